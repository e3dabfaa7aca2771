"""Contracts, sources, which of their files were taken, and the snapshots that came of them."""

import sqlalchemy as sa
from alembic import op

from macadam.schema import WHOLE

revision = "0004_data"
down_revision = "0003_ledger"


def upgrade() -> None:
    op.create_table(
        "data_contracts",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("version", sa.String(100), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "data_sources",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("table_name", sa.String(64), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "data_offsets",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("path", sa.String(1000), primary_key=True),
        sa.Column("size", WHOLE, nullable=False),
        sa.Column("sha256", sa.String(80), nullable=False),
        sa.Column("snapshot_id", sa.String(20), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.UniqueConstraint("project", "source", "sha256"),
    )
    op.create_table(
        "data_snapshots",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("table_name", sa.String(64), primary_key=True),
        sa.Column("snapshot_id", sa.String(20), primary_key=True),
        sa.Column("metadata_location", sa.String(1000), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_data_snapshots_project_table_name_at", "data_snapshots", ["project", "table_name", "at"])
