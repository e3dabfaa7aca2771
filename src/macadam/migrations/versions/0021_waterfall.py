"""What the waterfall and its reports keep."""

revision = "0021_waterfall"
down_revision = "0020_jobs"


def upgrade() -> None:
    """Nothing yet."""
