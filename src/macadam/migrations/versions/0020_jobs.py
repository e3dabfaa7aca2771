"""Jobs, quotas and cohorts."""

import sqlalchemy as sa
from alembic import op

revision = "0020_jobs"
down_revision = "0019_billing"


def upgrade() -> None:
    op.create_table(
        "compute_jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("likeness", sa.String(200), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_compute_jobs_state", "compute_jobs", ["state", "id"])
    op.create_index("ix_compute_jobs_project", "compute_jobs", ["project", "id"])
    op.create_index("ix_compute_jobs_likeness", "compute_jobs", ["project", "likeness", "state"])
    op.create_table(
        "compute_attempts",
        sa.Column("id", sa.String(48), primary_key=True),
        sa.Column("job", sa.String(36), nullable=False),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("kept", sa.Boolean, nullable=False),
        sa.Column("milli", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("started", sa.String(27), nullable=False),
        sa.Column("ended", sa.String(27)),
        sa.Column("gpu_ms", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("micros", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("ix_compute_attempts_open", "compute_attempts", ["open"])
    op.create_index("ix_compute_attempts_job", "compute_attempts", ["job"])
    op.create_index("ix_compute_attempts_project", "compute_attempts", ["project", "ended"])
    op.create_index("ix_compute_attempts_ended", "compute_attempts", ["ended"])
    op.create_index("ix_compute_attempts_kept", "compute_attempts", ["kept", "ended"])
    op.create_table(
        "compute_quotas",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "compute_machines",
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
