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
    sa.Column("projects", Json, nullable=False, server_default="[]"),
    sa.Column("assets", Json, nullable=False, server_default="[]"),
    sa.Column("replaced_by", sa.String(36)),
)
# Who an identity of a provider is here. identity: the value of the configured claim, unique with its issuer only. id:
# what leaves name it by, since they hold neither personal data nor its hash.
links = sa.Table(
    "access_links",
    metadata,
    sa.Column("issuer", sa.String(300), primary_key=True),
    sa.Column("identity", sa.String(300), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("principal", sa.String(100), nullable=False),
    sa.Column("linked", Instant, nullable=False),
    sa.Column("linked_by", sa.String(100), nullable=False),
)
# Which roles the provider's groups give at each sign-in.
groups = sa.Table(
    "access_groups",
    metadata,
    sa.Column("group", sa.String(200), primary_key=True),
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("role", sa.String(20), primary_key=True),
    sa.Column("mapped", Instant, nullable=False),
    sa.Column("mapped_by", sa.String(100), nullable=False),
)
# Limits that differ from the settings'.
rates = sa.Table(
    "access_rates",
    metadata,
    sa.Column("principal", sa.String(100), primary_key=True),
    sa.Column("per_second", sa.Float, nullable=False),
    sa.Column("burst", sa.Integer, nullable=False),
    sa.Column("since", Instant, nullable=False),
    sa.Column("set_by", sa.String(100), nullable=False),
)
# Reports of denials that are in the ledger, so that none is counted twice.
denials = sa.Table(
    "access_denials",
    metadata,
    sa.Column("report", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("at", Instant, nullable=False),
)
workloads = sa.Table(
    "access_workloads",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("principal", sa.String(100), nullable=False, unique=True),
    sa.Column("spiffe_id", sa.String(400), nullable=False, unique=True),
    sa.Column("external", sa.Boolean, nullable=False),
    sa.Column("created", Instant, nullable=False),
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("certified", Instant),
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
# A project's own policies: every text that was proposed, numbered from 1. What is active is the last activation.
policy_versions = sa.Table(
    "access_policy_versions",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("files", Json, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("proposed", Instant, nullable=False),
    sa.Column("proposed_by", sa.String(100), nullable=False),
)
policy_approvals = sa.Table(
    "access_policy_approvals",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("principal", sa.String(100), primary_key=True),
    sa.Column("at", Instant, nullable=False),
)
# number: from 1 in each project, so that two who activate at once cannot both be the last. version: 0 for none.
policy_activations = sa.Table(
    "access_policy_activations",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("policy_set", sa.String(80), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("by", sa.String(100), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
# What policies may ask of an asset beside its name; the rooms that own the assets write it.
assets = sa.Table(
    "access_assets",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("asset", sa.String(200), primary_key=True),
    sa.Column("classification", sa.String(20), nullable=False),
    sa.Column("location", sa.Text, nullable=False),
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
