"""Tables of the models room."""

from alembic import op  # noqa: F401

revision = "0005_models"
down_revision = "0004_data"


def upgrade() -> None:
    pass
