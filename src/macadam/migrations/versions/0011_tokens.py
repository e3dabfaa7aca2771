"""Sign-in and the reach of tokens."""

revision = "0011_tokens"
down_revision = "0010_ledger_keys"


def upgrade() -> None:
    pass
