"""Tables of the data room. Whole answers are kept as JSON beside the columns that they are found by.

Which snapshot of a table is published is not said here but in `macadam.catalog`.
"""

import sqlalchemy as sa

from macadam.schema import WHOLE, Instant, Json, metadata

contracts = sa.Table(
    "data_contracts",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("version", sa.String(100), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

sources = sa.Table(
    "data_sources",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("table_name", sa.String(64), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# Exactly once: a file's row commits together with the snapshot that its rows are in.
offsets = sa.Table(
    "data_offsets",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("path", sa.String(1000), primary_key=True),
    sa.Column("size", WHOLE, nullable=False),
    sa.Column("sha256", sa.String(80), nullable=False),
    sa.Column("snapshot_id", sa.String(20), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.UniqueConstraint("project", "source", "sha256"),
)

snapshots = sa.Table(
    "data_snapshots",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("table_name", sa.String(64), primary_key=True),
    sa.Column("snapshot_id", sa.String(20), primary_key=True),
    sa.Column("metadata_location", sa.String(1000), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_data_snapshots_project_table_name_at", "project", "table_name", "at"),
)
