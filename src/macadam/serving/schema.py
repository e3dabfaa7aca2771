"""Tables of the serving room: deployments, which of them each endpoint serves, and labels that came later."""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

deployments = sa.Table(
    "serving_deployments",
    metadata,
    # The id is that of the ledger leaf: records name it, and so lead to the evidence.
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_serving_deployments_project_endpoint", "project", "endpoint"),
)
endpoints = sa.Table(
    "serving_endpoints",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("deployment", sa.String(36), nullable=False),
    # A new id with each change: what the gateways' state is compared by.
    sa.Column("generation", sa.String(36), nullable=False),
    sa.Column("at", Instant, nullable=False),
)
feedback = sa.Table(
    "serving_feedback",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("prediction", sa.String(36), primary_key=True),
    sa.Column("label", sa.Float, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("recorded", Instant, nullable=False),
    sa.Column("batch", sa.String(36), nullable=False),
)
