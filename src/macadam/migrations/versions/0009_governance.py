"""Tables of the governance room."""

from alembic import op  # noqa: F401

revision = "0009_governance"
down_revision = "0008_delivery"


def upgrade() -> None:
    pass
