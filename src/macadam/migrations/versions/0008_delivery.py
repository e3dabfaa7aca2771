"""Tables of the delivery room."""

from alembic import op  # noqa: F401

revision = "0008_delivery"
down_revision = "0007_serving"


def upgrade() -> None:
    pass
