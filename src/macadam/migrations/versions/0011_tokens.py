"""Sign-in, the reach of tokens, rate limits and denials at gateways."""

import sqlalchemy as sa
from alembic import op

revision = "0011_tokens"
down_revision = "0010_ledger_keys"


def upgrade() -> None:
    op.add_column("access_tokens", sa.Column("projects", sa.Text, nullable=False, server_default="[]"))
    op.add_column("access_tokens", sa.Column("assets", sa.Text, nullable=False, server_default="[]"))
    op.add_column("access_tokens", sa.Column("replaced_by", sa.String(36)))
    op.create_table(
        "access_links",
        sa.Column("issuer", sa.String(300), primary_key=True),
        sa.Column("identity", sa.String(300), primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("principal", sa.String(100), nullable=False),
        sa.Column("linked", sa.String(27), nullable=False),
        sa.Column("linked_by", sa.String(100), nullable=False),
    )
    op.create_table(
        "access_groups",
        sa.Column("group", sa.String(200), primary_key=True),
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("role", sa.String(20), primary_key=True),
        sa.Column("mapped", sa.String(27), nullable=False),
        sa.Column("mapped_by", sa.String(100), nullable=False),
    )
    op.create_table(
        "access_rates",
        sa.Column("principal", sa.String(100), primary_key=True),
        sa.Column("per_second", sa.Float, nullable=False),
        sa.Column("burst", sa.Integer, nullable=False),
        sa.Column("since", sa.String(27), nullable=False),
        sa.Column("set_by", sa.String(100), nullable=False),
    )
    op.create_table(
        "access_denials",
        sa.Column("report", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
    )
