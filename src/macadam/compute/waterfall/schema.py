"""Tables of the waterfall: what operations took on this machine. Bills and telemetry are their own rooms'."""

import sqlalchemy as sa

from macadam.schema import WHOLE, metadata

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
