"""Tables of the delivery room."""

revision = "0008_delivery"
down_revision = "0007_serving"


def upgrade() -> None:
    pass
