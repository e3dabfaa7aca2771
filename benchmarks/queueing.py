"""Completion times of a real cluster's jobs, ours beside the oracle, least attained service and first come first served; and what the work costs.

    python -m benchmarks queueing     (needs Philly's jobs in ../shared/data/gpu; some 6 minutes)

The oracle knows durations: shortest job first with backfill, without preemption. Ours knows only those of jobs that have ended, pays
30 s of lost work for each preemption, and lets no tenant wait longer at the 95th percentile than on a static share of its own.
"""

import sys
import time
from pathlib import Path

from benchmarks.report import Figure, machine, show
from macadam.compute.scheduling.types import Policy
from macadam.compute.simulation import queue, queueing
from macadam.compute.simulation.queue import Jobs

FILE = Path("../shared/data/gpu/philly_jobs.csv")
POOLS = (400, 500)
MANY = 1_000_000
OTHERS: tuple[queueing.Name, ...] = ("gittins", "least-attained", "shortest", "fifo-backfill", "static")


def run() -> list[Figure]:
    if not FILE.exists():
        return [Figure(name="not run", value=0, unit="", note=f"the trace is not at {FILE}")]
    jobs = queueing.read_jobs(FILE)
    figures = [figure for gpus in POOLS for figure in _pool(jobs, gpus)]
    figures.append(_speed(jobs))
    for gpus in POOLS:
        saving = queueing.save(jobs, gpus, least=0.4)
        note = (
            f"pool of {saving.found.gpus}, where no schedule saves more than {100 * saving.saved_at_most:.1f}%, "
            f"mean {saving.found.mean:,.0f} s against {saving.baseline.mean:,.0f} s"
        )
        figures.append(
            Figure(
                name=f"{gpus} GPUs: paid less, fixed pool", value=100 * saving.saved, unit="%", at_least=40, note=note
            )
        )
        note = f"up to {saving.elastic.gpus} GPUs by the hour, mean {saving.elastic.mean:,.0f} s"
        figures.append(
            Figure(
                name=f"{gpus} GPUs: paid less, elastic pool",
                value=100 * saving.saved_elastic,
                unit="%",
                at_least=40,
                note=note,
            )
        )
    return figures


def _pool(jobs: Jobs, gpus: int) -> list[Figure]:
    oracle, _ = queueing.run(jobs, gpus, "oracle")
    ours, _ = queueing.run(jobs, gpus, "default")
    figures = [
        Figure(
            name=f"{gpus} GPUs: mean, ours",
            value=ours.mean,
            unit="s",
            at_most=1.2 * oracle.mean,
            note=f"oracle {oracle.mean:,.0f}, ratio {ours.mean / oracle.mean:.2f}",
        ),
        Figure(
            name=f"{gpus} GPUs: median, ours",
            value=ours.median,
            unit="s",
            at_most=oracle.median,
            note=f"ratio {ours.median / oracle.median:.2f}",
        ),
        Figure(
            name=f"{gpus} GPUs: p95, ours",
            value=ours.p95,
            unit="s",
            at_most=oracle.p95,
            note=f"ratio {ours.p95 / oracle.p95:.2f}",
        ),
        Figure(
            name=f"{gpus} GPUs: tenants that wait longer than alone",
            value=len(ours.worse),
            unit="",
            at_most=0,
            note=f"of {len(ours.tenants)}; {ours.preemptions} preemptions lost {ours.lost_gpu_hours:,.0f} GPU-hours",
        ),
    ]
    for name in OTHERS:
        other, _ = queueing.run(jobs, gpus, name)
        note = f"median {other.median:,.0f}, p95 {other.p95:,.0f}, {len(other.worse)} tenants worse than alone"
        figures.append(Figure(name=f"{gpus} GPUs: mean, {name}", value=other.mean, unit="s", note=note))
    return figures


def _speed(jobs: Jobs) -> Figure:
    """A million jobs: the trace again and again, each time after the last submission of the time before, on 500 GPUs."""
    many, span = -(-MANY // len(jobs)), jobs.submitted[-1] + 1
    long = Jobs(
        submitted=[at + span * again for again in range(many) for at in jobs.submitted][:MANY],
        seconds=(jobs.seconds * many)[:MANY],
        gpus=(jobs.gpus * many)[:MANY],
        tenant=(jobs.tenant * many)[:MANY],
    )
    shares = queueing.proportional(jobs, 500)
    alone = queue.static_shares(long, shares)
    began = time.process_time()
    outcome = queue.simulate(long, 500, Policy(), shares)
    seconds = time.process_time() - began
    summary = queueing.summarise(long, 500, "default", outcome, alone, shares, seconds)
    note = f"{MANY:,} jobs, {summary.preemptions:,} preemptions, mean {summary.mean:,.0f} s; processor time"
    return Figure(name="jobs simulated", value=summary.jobs_per_second, unit="/s", at_least=20_000, note=note)


if __name__ == "__main__":
    sys.stdout.write(machine() + "\n")
    show("queueing", run(), 0)
