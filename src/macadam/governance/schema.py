"""SQL tables of the governance room."""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

inspections = sa.Table(
    "governance_inspections",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_governance_inspections_project", "project", "id"),
)
