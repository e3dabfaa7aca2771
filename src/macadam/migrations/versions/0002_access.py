"""Projects, principals, grants, tokens and policy sets."""

import sqlalchemy as sa
from alembic import op

revision = "0002_access"
down_revision = "0001_kernel"


def upgrade() -> None:
    op.create_table(
        "access_projects",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("risk", sa.String(20), nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("created", sa.String(27), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
    )
    op.create_table(
        "access_principals",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("created", sa.String(27), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("disabled", sa.String(27)),
    )
    op.create_table(
        "access_grants",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("principal", sa.String(100), primary_key=True),
        sa.Column("role", sa.String(20), primary_key=True),
        sa.Column("granted", sa.String(27), nullable=False),
        sa.Column("granted_by", sa.String(100), nullable=False),
    )
    _tokens()
    op.create_table(
        "access_policy_sets",
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("policies", sa.Text, nullable=False),
        sa.Column("schema", sa.Text, nullable=False),
        sa.Column("since", sa.String(27), nullable=False),
    )
    op.create_table(
        "access_state",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("generation", sa.String(36), nullable=False),
        sa.Column("policy_set", sa.String(80), nullable=False),
    )


def _tokens() -> None:
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False, unique=True),
        sa.Column("principal", sa.String(100), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("issued", sa.String(27), nullable=False),
        sa.Column("issued_by", sa.String(100), nullable=False),
        sa.Column("expires", sa.String(27)),
        sa.Column("revoked", sa.String(27)),
    )
    op.create_index("ix_access_tokens_principal", "access_tokens", ["principal"])
