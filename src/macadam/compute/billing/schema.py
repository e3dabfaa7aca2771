"""SQL tables of bills, prices and budgets. The charges themselves are Parquet objects: see `store`."""

import sqlalchemy as sa

from macadam.schema import WHOLE, Instant, Json, metadata

# One row for each delivery that was taken. files: digest over the bytes of its files; content: over its rows, in any
# order and however they were compressed. charges: the object that holds them.
deliveries = sa.Table(
    "billing_deliveries",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("files", sa.String(80), nullable=False, unique=True),
    sa.Column("content", sa.String(80), nullable=False),
    sa.Column("charges", sa.String(80), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_billing_deliveries_content", "content"),
)

# One row for each issuer, account, billing period and currency of a delivery. replaced_by: the delivery that says it anew;
# withdrawn: when somebody said that it was imported by mistake; restored: when it last began to count again. A bill that is neither is current, and only such are counted.
bills = sa.Table(
    "billing_bills",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("delivery", sa.String(36), nullable=False),
    sa.Column("issuer", sa.String(300), nullable=False),
    sa.Column("account", sa.String(300), nullable=False),
    sa.Column("period_start", Instant, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("replaced_by", sa.String(36)),
    sa.Column("withdrawn", Instant),
    sa.Column("withdrawn_because", sa.Text),
    sa.Column("restored", Instant),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_billing_bills_issuer_account_period_start", "issuer", "account", "period_start"),
    sa.Index("ix_billing_bills_delivery", "delivery"),
)

# Every set of rules by which charges become projects'; the newest one counts.
mappings = sa.Table(
    "billing_mappings",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# What current bills charge to whom on which day (UTC, ISO date), so that admission need not open a bill. project: ''
# for what is nobody's. micros: of effective cost.
spend = sa.Table(
    "billing_spend",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("currency", sa.String(3), primary_key=True),
    sa.Column("bill", sa.String(36), primary_key=True),
    sa.Column("micros", WHOLE, nullable=False),
    sa.Index("ix_billing_spend_bill", "bill"),
)

# What running work has reserved and finished work has cost, by our own meter. key: of the work, such as 'job:…'.
# on_bill: a provider's bill will show it too. until: when what is held will be used up, null if nobody said. settled: null
# while it is held.
reservations = sa.Table(
    "billing_reservations",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("project", sa.String(63), nullable=False),
    sa.Column("subject", sa.String(200), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("held", WHOLE, nullable=False),
    sa.Column("spent", WHOLE, nullable=False),
    sa.Column("on_bill", sa.Boolean, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("until", Instant),
    sa.Column("settled", Instant),
    sa.Index("ix_billing_reservations_project_settled", "project", "settled"),
)

# subject: '' for all that the project spends, else a reference such as 'endpoint:delays'.
budgets = sa.Table(
    "billing_budgets",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("subject", sa.String(200), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# Alerts that were raised: once for each budget, period, threshold and kind.
alerts = sa.Table(
    "billing_alerts",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("subject", sa.String(200), primary_key=True),
    sa.Column("period_start", Instant, primary_key=True),
    sa.Column("threshold", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(10), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# Price lists of this home's own, each a list of prices; where two speak of the same offer, the later import counts.
price_lists = sa.Table(
    "billing_price_lists",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False, unique=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# How many of `quote` one of `base` was worth on a day. rate: decimal text, as it was given.
exchange_rates = sa.Table(
    "billing_exchange_rates",
    metadata,
    sa.Column("base", sa.String(3), primary_key=True),
    sa.Column("quote", sa.String(3), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("rate", sa.String(40), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("at", Instant, nullable=False),
)
