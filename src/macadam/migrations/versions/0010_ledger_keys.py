"""The ledger's keys in force, and what witnesses have cosigned."""

revision = "0010_ledger_keys"
down_revision = "0009_governance"


def upgrade() -> None:
    pass
