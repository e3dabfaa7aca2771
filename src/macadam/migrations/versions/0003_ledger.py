"""Leaves, what they use, and checkpoints."""

import sqlalchemy as sa
from alembic import op

from macadam.schema import WHOLE

revision = "0003_ledger"
down_revision = "0002_access"


def upgrade() -> None:
    op.create_table(
        "ledger_leaves",
        sa.Column("seq", WHOLE, primary_key=True, autoincrement=True),
        sa.Column("idx", WHOLE, unique=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("kind", sa.String(100), nullable=False, index=True),
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("actor", sa.String(300), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(400), nullable=False, index=True),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "ledger_uses",
        sa.Column("leaf_id", sa.String(36), primary_key=True),
        sa.Column("ref", sa.String(400), primary_key=True, index=True),
    )
    op.create_table(
        "ledger_checkpoints",
        sa.Column("size", WHOLE, primary_key=True),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
    )
