"""Tables of the features room. The whole answer is kept as JSON beside the columns that it is found by."""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

views = sa.Table(
    "feature_views",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(12), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("definitions", Json, nullable=False),
    sa.Column("document", Json, nullable=False),
)

training_sets = sa.Table(
    "feature_training_sets",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(12), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

online = sa.Table(
    "feature_online",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(12), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    # Table → column → Arrow type, as text: what pushed JSON is read as.
    sa.Column("columns", Json, nullable=False),
    sa.Column("document", Json, nullable=False),
)
