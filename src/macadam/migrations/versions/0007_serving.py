"""Tables of the serving room."""

from alembic import op  # noqa: F401

revision = "0007_serving"
down_revision = "0006_features"


def upgrade() -> None:
    pass
