"""When each market of spot machines had any."""

import sqlalchemy as sa
from alembic import op

revision = "0026_market_spans"
down_revision = "0025_held_until"


def upgrade() -> None:
    op.create_table(
        "compute_market_spans",
        sa.Column("market", sa.String(100), primary_key=True),
        sa.Column("since", sa.String(27), primary_key=True),
        sa.Column("until", sa.String(27)),
    )
    op.create_index("ix_compute_market_spans_until", "compute_market_spans", ["until"])
