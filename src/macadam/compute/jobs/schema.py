"""SQL tables of jobs, their attempts and quotas. The whole answer is kept as JSON beside the columns that it is found by."""

import sqlalchemy as sa

from macadam.schema import WHOLE, Instant, Json, metadata

# state: 'waiting', 'starting', 'running', 'stopping', 'succeeded', 'failed', 'cancelled'.
jobs = sa.Table(
    "compute_jobs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project", sa.String(63), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("likeness", sa.String(200), nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_compute_jobs_state", "state", "id"),
    sa.Index("ix_compute_jobs_project", "project", "id"),
    sa.Index("ix_compute_jobs_likeness", "project", "likeness", "state"),
)

# One row for each time that a job runs. open: it holds its GPUs. kept: its log and files are still there. milli: thousandths
# of GPUs. gpu_ms: milliseconds of whole GPUs that it held, once it has ended; micros: what it cost, of `currency`, once it has ended.
attempts = sa.Table(
    "compute_attempts",
    metadata,
    sa.Column("id", sa.String(48), primary_key=True),
    sa.Column("job", sa.String(36), nullable=False),
    sa.Column("project", sa.String(63), nullable=False),
    sa.Column("open", sa.Boolean, nullable=False),
    sa.Column("kept", sa.Boolean, nullable=False),
    sa.Column("milli", WHOLE, nullable=False),
    sa.Column("started", Instant, nullable=False),
    sa.Column("ended", Instant),
    sa.Column("gpu_ms", WHOLE, nullable=False),
    sa.Column("micros", WHOLE, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("document", Json, nullable=False),
    sa.Index("ix_compute_attempts_open", "open"),
    sa.Index("ix_compute_attempts_job", "job"),
    sa.Index("ix_compute_attempts_project", "project", "ended"),
    sa.Index("ix_compute_attempts_ended", "ended"),
    sa.Index("ix_compute_attempts_kept", "kept", "ended"),
)

quotas = sa.Table(
    "compute_quotas",
    metadata,
    sa.Column("project", sa.String(63), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# The machines as the queue saw them last, so that questions are answered where no executor is at hand.
machines = sa.Table(
    "compute_machines",
    metadata,
    sa.Column("name", sa.String(253), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("document", Json, nullable=False),
)

# When each market of spot machines had any: 'spot/<zone>'. until: none while it still has.
market_spans = sa.Table(
    "compute_market_spans",
    metadata,
    sa.Column("market", sa.String(100), primary_key=True),
    sa.Column("since", Instant, primary_key=True),
    sa.Column("until", Instant),
    sa.Index("ix_compute_market_spans_until", "until"),
)
