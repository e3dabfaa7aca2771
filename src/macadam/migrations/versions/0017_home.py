"""Which home the database belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0017_home"
down_revision = "0016_workloads"


def upgrade() -> None:
    op.create_table(
        "platform_home",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
    )
