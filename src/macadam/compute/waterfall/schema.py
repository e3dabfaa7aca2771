"""Tables of the waterfall: what operations took on this machine, and months divided. Bills and telemetry are their own rooms'."""

import sqlalchemy as sa

from macadam.schema import WHOLE, Instant, Json, metadata

# Sums by operation, asset and day (UTC, ISO date). They are measurements; nothing is decided on them in a transaction, and what a
# training took stands in its run's leaf as well.
meter = sa.Table(
    "waterfall_meter",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("operation", sa.String(100), primary_key=True),
    sa.Column("subject", sa.String(300), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("calls", WHOLE, nullable=False),
    sa.Column("wall_micros", WHOLE, nullable=False),
    sa.Column("cpu_micros", WHOLE, nullable=False),
)

# Each time that a month's bills were divided; the newest of a month counts. facts: digest of what is kept beside the pieces.
allocations = sa.Table(
    "waterfall_allocations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("month", sa.String(7), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("facts", sa.String(80), nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_waterfall_allocations_month_at", "month", "at"),
)
