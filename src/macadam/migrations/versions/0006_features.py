"""Feature definitions, training sets, and what the online store holds."""

import sqlalchemy as sa
from alembic import op

revision = "0006_features"
down_revision = "0005_models"


def upgrade() -> None:
    op.create_table(
        "feature_views",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(12), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("definitions", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "feature_training_sets",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(12), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "feature_online",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("service", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(12), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("columns", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
