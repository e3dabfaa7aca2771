"""The ledger's keys in force, and what witnesses have cosigned; leaves by actor, project and time."""

import sqlalchemy as sa
from alembic import op

revision = "0010_ledger_keys"
down_revision = "0009_governance"


def upgrade() -> None:
    _keys_and_witnesses()
    _look_leaves_up_in_ledger_order()


def _keys_and_witnesses() -> None:
    op.create_table(
        "ledger_keys",
        sa.Column("id", sa.String(8), primary_key=True),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("secret", sa.String(101), nullable=False),
        sa.Column("announced", sa.String(36), nullable=False),
        sa.Column("retired", sa.String(36), nullable=False),
        sa.Column("retire_after", sa.String(27), nullable=False),
    )
    op.create_table(
        "ledger_witnesses",
        sa.Column("key", sa.String(300), primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("refusal", sa.Text, nullable=False),
        sa.Column("breach", sa.Boolean, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
    )
    op.create_table(
        "ledger_cosignatures",
        sa.Column("size", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(300), primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
    )


def _look_leaves_up_in_ledger_order() -> None:
    for column in ("kind", "subject"):
        op.drop_index(f"ix_ledger_leaves_{column}", "ledger_leaves")
    for column in ("kind", "subject", "actor", "project"):
        op.create_index(f"ix_ledger_leaves_{column}_seq", "ledger_leaves", [column, "seq"])
    op.create_index("ix_ledger_leaves_at", "ledger_leaves", ["at"])
