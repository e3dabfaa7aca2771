"""The ledger's keys in force, and what witnesses have cosigned; leaves by actor, project and time."""

from alembic import op

revision = "0010_ledger_keys"
down_revision = "0009_governance"


def upgrade() -> None:
    _look_leaves_up_in_ledger_order()


def _look_leaves_up_in_ledger_order() -> None:
    for column in ("kind", "subject"):
        op.drop_index(f"ix_ledger_leaves_{column}", "ledger_leaves")
    for column in ("kind", "subject", "actor", "project"):
        op.create_index(f"ix_ledger_leaves_{column}_seq", "ledger_leaves", [column, "seq"])
    op.create_index("ix_ledger_leaves_at", "ledger_leaves", ["at"])
