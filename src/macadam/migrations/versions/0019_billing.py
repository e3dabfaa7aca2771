"""Bills, charges, prices and budgets."""

revision = "0019_billing"
down_revision = "0018_telemetry"


def upgrade() -> None:
    """Nothing yet."""
