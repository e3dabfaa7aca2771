"""SQL tables of the advice room."""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

advice = sa.Table(
    "compute_advice",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("topic", sa.String(80), nullable=False),  # digest of kind, subjects: what it is about
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_compute_advice_project_topic", "project", "topic"),
)
