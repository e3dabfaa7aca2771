"""Signatures and provenance of model versions."""

revision = "0015_supply_chain"
down_revision = "0014_journal"


def upgrade() -> None:
    pass
