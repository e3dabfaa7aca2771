"""Where series of devices are kept, what is not believed of them, and whose pods are."""

import sqlalchemy as sa
from alembic import op

revision = "0018_telemetry"
down_revision = "0017_home"


def upgrade() -> None:
    op.create_table(
        "telemetry_files",
        sa.Column("level", sa.String(8), primary_key=True),
        sa.Column("start", sa.String(27), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("rows", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("leaf", sa.String(36), nullable=False),
        sa.Column("sealed", sa.String(27), nullable=False),
    )
    op.create_table(
        "telemetry_findings",
        sa.Column("hour", sa.String(27), primary_key=True),
        sa.Column("device", sa.String(400), primary_key=True),
        sa.Column("check", sa.String(40), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "telemetry_pods",
        sa.Column("namespace", sa.String(253), primary_key=True),
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(300), nullable=False),
        sa.Column("declared", sa.String(27), nullable=False),
    )
