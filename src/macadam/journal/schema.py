"""Tables of the journal: which segments are sealed, and between which ids their records lie."""

import sqlalchemy as sa

from macadam.schema import Instant, metadata

segments = sa.Table(
    "journal_segments",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("gateway", sa.String(100), nullable=False),
    sa.Column("worker", sa.Integer, nullable=False),
    # Ids grow within a segment, so these two say whether a record can be in it. Empty without records.
    sa.Column("first_id", sa.String(36), nullable=False),
    sa.Column("last_id", sa.String(36), nullable=False),
    sa.Column("first_at", sa.String(27), nullable=False),
    sa.Column("last_at", sa.String(27), nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("answers", sa.Integer, nullable=False),
    sa.Column("torn", sa.Integer, nullable=False),
    sa.Column("root", sa.String(80), nullable=False),
    sa.Column("archive", sa.String(80), nullable=False),
    sa.Column("places", sa.String(80), nullable=False),
    sa.Column("snapshot", sa.String(100), nullable=False),
    sa.Column("leaf", sa.String(36), nullable=False),
    sa.Column("sealed", Instant, nullable=False),
    sa.Index("ix_journal_segments_project_last_id", "project", "last_id"),
)
