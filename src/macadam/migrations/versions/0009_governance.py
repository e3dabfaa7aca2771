"""Inspections."""

import sqlalchemy as sa
from alembic import op

revision = "0009_governance"
down_revision = "0008_delivery"


def upgrade() -> None:
    op.create_table(
        "governance_inspections",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_governance_inspections_project", "governance_inspections", ["project", "id"])
