"""Tables of the telemetry room: which files hold the series, what trust checks found in them, whose pods are.

Samples and usage are Parquet files under the home; a row here is what makes one visible, and its leaf vouches for it.
"""

import sqlalchemy as sa

from macadam.schema import WHOLE, Instant, Json, metadata

files = sa.Table(
    "telemetry_files",
    metadata,
    # 'raw' and 'minute' have a file for each hour, 'hour' one for each day.
    sa.Column("level", sa.String(8), primary_key=True),
    sa.Column("start", Instant, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("rows", WHOLE, nullable=False),
    sa.Column("leaf", sa.String(36), nullable=False),
    sa.Column("sealed", Instant, nullable=False),
)
findings = sa.Table(
    "telemetry_findings",
    metadata,
    sa.Column("hour", Instant, primary_key=True),
    sa.Column("device", sa.String(400), primary_key=True),
    sa.Column("check", sa.String(40), primary_key=True),
    sa.Column("document", Json, nullable=False),
)
pods = sa.Table(
    "telemetry_pods",
    metadata,
    sa.Column("namespace", sa.String(253), primary_key=True),
    sa.Column("name", sa.String(253), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(300), nullable=False),
    sa.Column("declared", Instant, nullable=False),
)
