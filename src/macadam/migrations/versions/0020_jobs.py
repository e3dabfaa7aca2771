"""Jobs, quotas and cohorts."""

revision = "0020_jobs"
down_revision = "0019_billing"


def upgrade() -> None:
    """Nothing yet."""
