"""Where series of devices are kept and what is known of each device."""

revision = "0018_telemetry"
down_revision = "0017_home"


def upgrade() -> None:
    """Nothing yet."""
