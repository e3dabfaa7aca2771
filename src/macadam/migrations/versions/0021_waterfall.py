"""What operations take on this machine."""

import sqlalchemy as sa
from alembic import op

revision = "0021_waterfall"
down_revision = "0020_jobs"

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "waterfall_meter",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("operation", sa.String(100), primary_key=True),
        sa.Column("subject", sa.String(300), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("calls", _WHOLE, nullable=False),
        sa.Column("wall_micros", _WHOLE, nullable=False),
        sa.Column("cpu_micros", _WHOLE, nullable=False),
    )
