"""Until when running work has reserved money, so that bills that come meanwhile are not counted beside it."""

import sqlalchemy as sa
from alembic import op

revision = "0025_held_until"
down_revision = "0023_withdrawn_bills"


def upgrade() -> None:
    op.add_column("billing_reservations", sa.Column("until", sa.String(27)))
