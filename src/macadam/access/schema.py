"""SQL tables of the access room. Token secrets are never stored, only their SHA-256."""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

projects = sa.Table(
    "access_projects",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("risk", sa.String(20), nullable=False),
    sa.Column("location", sa.Text, nullable=False),
    sa.Column("created", Instant, nullable=False),
    sa.Column("created_by", sa.String(100), nullable=False),
)
principals = sa.Table(
    "access_principals",
    metadata,
    sa.Column("id", sa.String(100), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("created", Instant, nullable=False),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("disabled", Instant),
)
grants = sa.Table(
    "access_grants",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("principal", sa.String(100), primary_key=True),
    sa.Column("role", sa.String(20), primary_key=True),
    sa.Column("granted", Instant, nullable=False),
    sa.Column("granted_by", sa.String(100), nullable=False),
)
tokens = sa.Table(
    "access_tokens",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False, unique=True),
    sa.Column("principal", sa.String(100), nullable=False, index=True),
    sa.Column("scopes", Json, nullable=False),
    sa.Column("issued", Instant, nullable=False),
    sa.Column("issued_by", sa.String(100), nullable=False),
    sa.Column("expires", Instant),
    sa.Column("revoked", Instant),
)
policy_sets = sa.Table(
    "access_policy_sets",
    metadata,
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("policies", sa.Text, nullable=False),
    sa.Column("schema", sa.Text, nullable=False),
    sa.Column("since", Instant, nullable=False),
)
# One row. generation: a new random id at each change of anything above, so that whoever holds a compiled engine
# knows with one small query whether it is still the current one, also across processes and undone transactions.
state = sa.Table(
    "access_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("generation", sa.String(36), nullable=False),
    sa.Column("policy_set", sa.String(80), nullable=False),
)
