"""What operations take on this machine, and months that were divided."""

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
    op.create_table(
        "waterfall_allocations",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("facts", sa.String(80), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_waterfall_allocations_month_at", "waterfall_allocations", ["month", "at"])
