"""Advice that was given, taken and measured."""

revision = "0022_advice"
down_revision = "0021_waterfall"


def upgrade() -> None:
    """Nothing yet."""
