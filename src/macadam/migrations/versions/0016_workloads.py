"""Identities of workloads."""

import sqlalchemy as sa
from alembic import op

revision = "0016_workloads"
down_revision = "0015_supply_chain"


def upgrade() -> None:
    op.create_table(
        "access_workloads",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("principal", sa.String(100), nullable=False, unique=True),
        sa.Column("spiffe_id", sa.String(400), nullable=False, unique=True),
        sa.Column("external", sa.Boolean, nullable=False),
        sa.Column("created", sa.String(27), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("certified", sa.String(27)),
        sa.Column("expires", sa.String(27)),
        sa.Column("revoked", sa.String(27)),
    )
