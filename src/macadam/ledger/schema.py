"""The ledger's tables: queued and integrated leaves, what each leaf uses, and signed checkpoints."""

import sqlalchemy as sa

from macadam.schema import Instant, metadata

leaves = sa.Table(
    "ledger_leaves",
    metadata,
    # Order of commit. AUTOINCREMENT, so that a number is never given twice, whatever is deleted.
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("idx", sa.Integer, unique=True),  # place in the tree; empty until it is integrated
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("at", sa.String(27), nullable=False),
    sa.Column("kind", sa.String(100), nullable=False),
    sa.Column("outcome", sa.String(10), nullable=False),
    sa.Column("actor", sa.String(300), nullable=False),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(400), nullable=False),
    sa.Column("leaf", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    # What people look leaves up by, each in ledger order, so that a page of the newest needs no sorting.
    sa.Index(None, "kind", "seq"),
    sa.Index(None, "subject", "seq"),
    sa.Index(None, "actor", "seq"),
    sa.Index(None, "project", "seq"),
    sa.Index(None, "at"),
    sqlite_autoincrement=True,
)
uses = sa.Table(
    "ledger_uses",
    metadata,
    sa.Column("leaf_id", sa.String(36), primary_key=True),
    sa.Column("ref", sa.String(400), primary_key=True, index=True),
)
checkpoints = sa.Table(
    "ledger_checkpoints",
    metadata,
    sa.Column("size", sa.Integer, primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("frontier", sa.LargeBinary, nullable=False),
    sa.Column("at", Instant, nullable=False),
)
