"""Bills that were imported by mistake and are counted no more."""

import sqlalchemy as sa
from alembic import op

revision = "0023_withdrawn_bills"
down_revision = "0022_advice"


def upgrade() -> None:
    op.add_column("billing_bills", sa.Column("withdrawn", sa.String(27)))
    op.add_column("billing_bills", sa.Column("withdrawn_because", sa.Text))
