"""A project's own jobs as a trace: what the studies of queueing replay under another policy or on another pool."""

from collections.abc import Iterable

from macadam.compute.jobs.types import Job
from macadam.compute.simulation.queue import Jobs
from macadam.errors import NotFound


def trace(jobs: Iterable[Job]) -> Jobs:
    """Of the jobs that succeeded on GPUs. Authors are the tenants; a part of a GPU counts as one, so the pool is never too small.

    Raises NotFound if there are none.
    """
    rows = sorted(
        (job.submitted.timestamp(), job.id, job.attained, max(1, job.spec.resources.gpus), job.author)
        for job in jobs
        if job.state == "succeeded" and job.attained > 0 and job.spec.resources.demand
    )
    if not rows:
        raise NotFound("The project has no job that succeeded on GPUs.", next_step="Give a file: --jobs FILE.")
    return Jobs(
        submitted=[at - rows[0][0] for at, *_ in rows],
        seconds=[seconds for _, _, seconds, _, _ in rows],
        gpus=[gpus for *_, gpus, _ in rows],
        tenant=[author for *_, author in rows],
    )
