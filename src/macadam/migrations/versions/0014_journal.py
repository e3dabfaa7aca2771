"""What projects ask of their journal, and gaps."""

revision = "0014_journal"
down_revision = "0013_personal"


def upgrade() -> None:
    pass
