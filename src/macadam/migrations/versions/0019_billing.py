"""Bills, charges, prices and budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0019_billing"
down_revision = "0018_telemetry"

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _bills()
    _spending()
    _prices()


def _bills() -> None:
    op.create_table(
        "billing_deliveries",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("files", sa.String(80), nullable=False),
        sa.Column("content", sa.String(80), nullable=False),
        sa.Column("charges", sa.String(80), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.UniqueConstraint("files", name="uq_billing_deliveries_files"),
    )
    op.create_table(
        "billing_bills",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("delivery", sa.String(36), nullable=False),
        sa.Column("issuer", sa.String(300), nullable=False),
        sa.Column("account", sa.String(300), nullable=False),
        sa.Column("period_start", sa.String(27), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("replaced_by", sa.String(36)),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "billing_mappings",
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_billing_deliveries_content", "billing_deliveries", ["content"])
    op.create_index(
        "ix_billing_bills_issuer_account_period_start", "billing_bills", ["issuer", "account", "period_start"]
    )
    op.create_index("ix_billing_bills_delivery", "billing_bills", ["delivery"])


def _spending() -> None:
    op.create_table(
        "billing_spend",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("currency", sa.String(3), primary_key=True),
        sa.Column("bill", sa.String(36), primary_key=True),
        sa.Column("micros", _WHOLE, nullable=False),
    )
    op.create_table(
        "billing_reservations",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("held", _WHOLE, nullable=False),
        sa.Column("spent", _WHOLE, nullable=False),
        sa.Column("on_bill", sa.Boolean, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("settled", sa.String(27)),
    )
    op.create_table(
        "billing_budgets",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("subject", sa.String(200), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "billing_alerts",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("subject", sa.String(200), primary_key=True),
        sa.Column("period_start", sa.String(27), primary_key=True),
        sa.Column("threshold", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(10), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_billing_spend_bill", "billing_spend", ["bill"])
    op.create_index("ix_billing_reservations_project_settled", "billing_reservations", ["project", "settled"])


def _prices() -> None:
    op.create_table(
        "billing_price_lists",
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.UniqueConstraint("digest", name="uq_billing_price_lists_digest"),
    )
    op.create_table(
        "billing_exchange_rates",
        sa.Column("base", sa.String(3), primary_key=True),
        sa.Column("quote", sa.String(3), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("rate", sa.String(40), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
    )
