"""Tables of the ledger room."""

from alembic import op  # noqa: F401

revision = "0003_ledger"
down_revision = "0002_access"


def upgrade() -> None:
    pass
