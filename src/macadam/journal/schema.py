"""Tables of the journal: which segments are sealed, where records are found by id, what projects ask of their journal,
and answers without a record.
"""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

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
# Where a record is looked for: a segment stands under the prefixes that its ids' times share (see `spans`), so that finding
# one among many that overlap is a look-up by key, not a comparison with each.
spans = sa.Table(
    "journal_spans",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("prefix", sa.String(8), primary_key=True),
    sa.Column("segment", sa.String(36), primary_key=True),
)
policies = sa.Table(
    "journal_policies",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("durability", sa.String(20), nullable=False),
    sa.Column("on_journal_failure", sa.String(20), nullable=False),
    # A new id with each change: what the gateways' state is compared by.
    sa.Column("generation", sa.String(36), nullable=False),
    sa.Column("declared", Instant, nullable=False),
    sa.Column("declared_by", sa.String(100), nullable=False),
)
gaps = sa.Table(
    "journal_gaps",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False, index=True),
    sa.Column("segment", sa.String(36), nullable=False),
    sa.Column("gateway", sa.String(100), nullable=False),
    sa.Column("first_at", sa.String(27), nullable=False),
    sa.Column("last_at", sa.String(27), nullable=False),
    sa.Column("answers", sa.Integer, nullable=False),
    sa.Column("causes", Json, nullable=False),
)
