"""Erasures of people. Their keys are not in this database."""

import sqlalchemy as sa
from alembic import op

revision = "0013_personal"
down_revision = "0012_policies"


def upgrade() -> None:
    op.create_table(
        "personal_erasures",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_personal_erasures_project_at", "personal_erasures", ["project", "at"])
    op.create_table(
        "personal_erased",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("subject", sa.String(32), primary_key=True),
        sa.Column("erasure", sa.String(36), nullable=False),
    )
