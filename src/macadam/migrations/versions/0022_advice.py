"""Advice that was given, taken and measured."""

import sqlalchemy as sa
from alembic import op

revision = "0022_advice"
down_revision = "0021_waterfall"


def upgrade() -> None:
    op.create_table(
        "compute_advice",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("topic", sa.String(80), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_compute_advice_project_topic", "compute_advice", ["project", "topic"])
