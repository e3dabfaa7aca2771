"""The ledger's tables: queued and integrated leaves, what each leaf uses, signed checkpoints, keys, cosignatures."""

import sqlalchemy as sa

from macadam.schema import WHOLE, Instant, metadata

leaves = sa.Table(
    "ledger_leaves",
    metadata,
    # Order of commit: numbers are given under the writers' lock, which is held until the commit (see the sequencer).
    # AUTOINCREMENT, so that a number is never given twice, whatever is deleted; Postgres's sequences do so anyway.
    sa.Column("seq", WHOLE, primary_key=True, autoincrement=True),
    sa.Column("idx", WHOLE, unique=True),  # place in the tree; empty until it is integrated
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
    sa.Column("size", WHOLE, primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("frontier", sa.LargeBinary, nullable=False),
    sa.Column("at", Instant, nullable=False),
)
keys = sa.Table(
    "ledger_keys",
    metadata,
    sa.Column("id", sa.String(8), primary_key=True),
    sa.Column("key", sa.String(300), nullable=False),  # the verifier key, one line
    sa.Column("secret", sa.String(101), nullable=False),  # the name of the private key in the secrets store
    sa.Column("announced", sa.String(36), nullable=False),  # the id of the leaf
    sa.Column("retired", sa.String(36), nullable=False),  # empty while it is in force
    sa.Column("retire_after", sa.String(27), nullable=False),  # end of the overlap; empty for the newest key
)
witnesses = sa.Table(
    "ledger_witnesses",
    metadata,
    sa.Column("key", sa.String(300), primary_key=True),
    sa.Column("size", sa.Integer, nullable=False),  # of the last checkpoint that it is known to have cosigned
    sa.Column("refusal", sa.Text, nullable=False),  # what it said last, if it cosigned nothing; empty if all is well
    sa.Column("breach", sa.Boolean, nullable=False),  # whether that means a fork or a rollback
    sa.Column("at", Instant, nullable=False),
)
cosignatures = sa.Table(
    "ledger_cosignatures",
    metadata,
    sa.Column("size", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(300), primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
)
