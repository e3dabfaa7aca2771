"""Tables of the features room."""

from alembic import op  # noqa: F401

revision = "0006_features"
down_revision = "0005_models"


def upgrade() -> None:
    pass
