"""Tables of the access room."""

from alembic import op  # noqa: F401

revision = "0002_access"
down_revision = "0001_kernel"


def upgrade() -> None:
    pass
