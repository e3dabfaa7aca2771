"""Policy sets per project: versions, approvals, activations; what policies may ask of an asset."""

import sqlalchemy as sa
from alembic import op

revision = "0012_policies"
down_revision = "0011_tokens"


def upgrade() -> None:
    op.create_table(
        "access_policy_versions",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("proposed", sa.String(27), nullable=False),
        sa.Column("proposed_by", sa.String(100), nullable=False),
    )
    op.create_table(
        "access_policy_approvals",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("principal", sa.String(100), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
    )
    op.create_table(
        "access_policy_activations",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("policy_set", sa.String(80), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("by", sa.String(100), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "access_assets",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("asset", sa.String(200), primary_key=True),
        sa.Column("classification", sa.String(20), nullable=False),
        sa.Column("location", sa.Text, nullable=False),
    )
