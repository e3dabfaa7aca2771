"""Tables of the models room. The whole answer is kept as JSON beside the columns that it is found by."""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

runs = sa.Table(
    "model_runs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_model_runs_project_model", "project", "model", "id"),
)

environments = sa.Table(
    "model_environments",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("at", Instant, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("author", sa.String(100), nullable=False),
    sa.Column("at", Instant, nullable=False),
)

versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("run", sa.String(36), nullable=False),
    sa.Column("artifact", sa.String(80), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.UniqueConstraint("project", "model", "run"),
)

signing_keys = sa.Table(
    "model_signing_keys",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(64), nullable=False),
    sa.Column("public", sa.Text, nullable=False),
    sa.Column("at", Instant, nullable=False),
)

aliases = sa.Table(
    "model_aliases",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("alias", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

thresholds = sa.Table(
    "model_thresholds",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_model_thresholds_project_model", "project", "model", "id"),
)

evaluations = sa.Table(
    "model_evaluations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_model_evaluations_project_model", "project", "model", "number", "id"),
)

gates = sa.Table(
    "model_gates",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("verdict", sa.String(10), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_model_gates_project_model", "project", "model", "number", "id"),
)

approvals = sa.Table(
    "model_approvals",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("approver", sa.String(100), nullable=False),
    sa.Column("artifact", sa.String(80), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.UniqueConstraint("project", "model", "number", "approver"),
)
