"""Policy sets per project: versions, approvals."""

revision = "0012_policies"
down_revision = "0011_tokens"


def upgrade() -> None:
    pass
