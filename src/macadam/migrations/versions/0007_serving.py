"""Tables of the serving room, and the journal's index of sealed segments."""

import sqlalchemy as sa
from alembic import op

revision = "0007_serving"
down_revision = "0006_features"


def upgrade() -> None:
    op.create_table(
        "journal_segments",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("gateway", sa.String(100), nullable=False),
        sa.Column("worker", sa.Integer, nullable=False),
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
        sa.Column("sealed", sa.String(27), nullable=False),
    )
    op.create_index("ix_journal_segments_project_last_id", "journal_segments", ["project", "last_id"])
    op.create_table(
        "serving_deployments",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_serving_deployments_project_endpoint", "serving_deployments", ["project", "endpoint"])
    op.create_table(
        "serving_endpoints",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("deployment", sa.String(36), nullable=False),
        sa.Column("generation", sa.String(36), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
    )
    op.create_table(
        "serving_feedback",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("prediction", sa.String(36), primary_key=True),
        sa.Column("label", sa.Float, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("recorded", sa.String(27), nullable=False),
        sa.Column("batch", sa.String(36), nullable=False),
    )
