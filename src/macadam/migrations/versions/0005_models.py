"""Runs, models, versions, aliases, thresholds, evaluations, gate decisions and approvals."""

import sqlalchemy as sa
from alembic import op

revision = "0005_models"
down_revision = "0004_data"


def upgrade() -> None:
    _create_registry()
    _create_gates()


def _name(column: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(column, sa.String(64), primary_key=key, nullable=False)


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(36), primary_key=True)


def _at() -> sa.Column[str]:
    return sa.Column("at", sa.String(27), nullable=False)


def _document() -> sa.Column[str]:
    return sa.Column("document", sa.Text, nullable=False)


def _create_registry() -> None:
    op.create_table(
        "model_runs",
        _id(),
        _name("project"),
        _name("model"),
        sa.Column("state", sa.String(10), nullable=False),
        _at(),
        _document(),
    )
    op.create_index("ix_model_runs_project_model", "model_runs", ["project", "model", "id"])
    op.create_table(
        "model_environments",
        _name("project", key=True),
        sa.Column("digest", sa.String(80), primary_key=True),
        _at(),
    )
    op.create_table(
        "models",
        _name("project", key=True),
        _name("name", key=True),
        sa.Column("author", sa.String(100), nullable=False),
        _at(),
    )
    op.create_table(
        "model_versions",
        _name("project", key=True),
        _name("model", key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("run", sa.String(36), nullable=False),
        sa.Column("artifact", sa.String(80), nullable=False),
        _at(),
        _document(),
        sa.UniqueConstraint("project", "model", "run"),
    )
    op.create_table(
        "model_aliases",
        _name("project", key=True),
        _name("model", key=True),
        _name("alias", key=True),
        sa.Column("number", sa.Integer, nullable=False),
        _at(),
        _document(),
    )


def _create_gates() -> None:
    op.create_table("model_thresholds", _id(), _name("project"), _name("model"), _at(), _document())
    op.create_index("ix_model_thresholds_project_model", "model_thresholds", ["project", "model", "id"])
    number = sa.Column("number", sa.Integer, nullable=False)
    op.create_table("model_evaluations", _id(), _name("project"), _name("model"), number.copy(), _at(), _document())
    op.create_index("ix_model_evaluations_project_model", "model_evaluations", ["project", "model", "number", "id"])
    op.create_table(
        "model_gates",
        _id(),
        _name("project"),
        _name("model"),
        number.copy(),
        sa.Column("verdict", sa.String(10), nullable=False),
        _at(),
        _document(),
    )
    op.create_index("ix_model_gates_project_model", "model_gates", ["project", "model", "number", "id"])
    op.create_table(
        "model_approvals",
        _id(),
        _name("project"),
        _name("model"),
        number.copy(),
        sa.Column("approver", sa.String(100), nullable=False),
        sa.Column("artifact", sa.String(80), nullable=False),
        _at(),
        _document(),
        sa.UniqueConstraint("project", "model", "number", "approver"),
    )
