"""Identities of workloads."""

revision = "0016_workloads"
down_revision = "0015_supply_chain"


def upgrade() -> None:
    pass
