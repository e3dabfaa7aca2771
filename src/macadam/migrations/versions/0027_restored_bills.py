"""When a bill that had been withdrawn or replaced began to count again."""

import sqlalchemy as sa
from alembic import op

revision = "0027_restored_bills"
down_revision = "0026_market_spans"


def upgrade() -> None:
    op.add_column("billing_bills", sa.Column("restored", sa.String(27)))
