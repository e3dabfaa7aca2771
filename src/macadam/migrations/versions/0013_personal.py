"""Keys of subjects, and erasures."""

revision = "0013_personal"
down_revision = "0012_policies"


def upgrade() -> None:
    pass
