"""Tables of the personal room: erasures that are done, and whom they were about under names that lead nowhere.

Keys are not here: see `vault`.
"""

import sqlalchemy as sa

from macadam.schema import Instant, Json, metadata

erasures = sa.Table(
    "personal_erasures",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_personal_erasures_project_at", "project", "at"),
)
erased = sa.Table(
    "personal_erased",
    metadata,
    sa.Column("project", sa.String(64), primary_key=True),
    # The random name in records, as hex. It has nothing to do with the person's id.
    sa.Column("subject", sa.String(32), primary_key=True),
    sa.Column("erasure", sa.String(36), nullable=False),
)
