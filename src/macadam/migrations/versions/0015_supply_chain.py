"""Signatures and provenance of model versions."""

import sqlalchemy as sa
from alembic import op

revision = "0015_supply_chain"
down_revision = "0014_journal"


def upgrade() -> None:
    op.create_table(
        "model_signing_keys",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("public", sa.Text, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
    )
