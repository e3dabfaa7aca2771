"""What projects ask of their journal, answers without a record, and where a record is looked for by its id."""

import sqlalchemy as sa
from alembic import op

revision = "0014_journal"
down_revision = "0013_personal"


def upgrade() -> None:
    spans = op.create_table(
        "journal_spans",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("prefix", sa.String(8), primary_key=True),
        sa.Column("segment", sa.String(36), primary_key=True),
    )
    op.create_table(
        "journal_policies",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("durability", sa.String(20), nullable=False),
        sa.Column("on_journal_failure", sa.String(20), nullable=False),
        sa.Column("generation", sa.String(36), nullable=False),
        sa.Column("declared", sa.String(27), nullable=False),
        sa.Column("declared_by", sa.String(100), nullable=False),
    )
    op.create_table(
        "journal_gaps",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("segment", sa.String(36), nullable=False),
        sa.Column("gateway", sa.String(100), nullable=False),
        sa.Column("first_at", sa.String(27), nullable=False),
        sa.Column("last_at", sa.String(27), nullable=False),
        sa.Column("answers", sa.Integer, nullable=False),
        sa.Column("causes", sa.Text, nullable=False),
    )
    op.create_index("ix_journal_gaps_project", "journal_gaps", ["project"])
    sql = op.get_bind()
    sealed = sql.execute(sa.text("SELECT id, project, first_id, last_id FROM journal_segments")).all()
    rows = [
        {"project": one.project, "prefix": prefix, "segment": one.id}
        for one in sealed
        for prefix in _cover(one.first_id, one.last_id)
    ]
    if rows:
        sql.execute(sa.insert(spans), rows)


_OPEN = 7  # digits of eight that a prefix leaves open at most


def _cover(first: str, last: str) -> list[str]:
    """As `macadam.journal.spans` had it at this step: a step never changes with the program."""
    if not first:
        return []
    low, high = int(first[:8], 16), int(last[:8], 16)
    found = []
    while low <= high:
        width = 0
        while width < _OPEN and low % 16 ** (width + 1) == 0 and low + 16 ** (width + 1) - 1 <= high:
            width += 1
        found.append(f"{low // 16**width:0{8 - width}x}")
        low += 16**width
    return found
