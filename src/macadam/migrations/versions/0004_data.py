"""Tables of the data room."""

from alembic import op  # noqa: F401

revision = "0004_data"
down_revision = "0003_ledger"


def upgrade() -> None:
    pass
