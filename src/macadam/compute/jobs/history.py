"""How long jobs are thought to run, from those like them that succeeded: quantiles of what was, and on what they rest."""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from macadam.compute.jobs import registry
from macadam.compute.jobs.types import Job

_ENOUGH = 3
"""Fewer are no history; a median of two is a guess."""


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a whole job runs. None: nothing is known. basis: what it rests on, in words."""

    likely: float | None
    late: float | None
    basis: str

    def at(self, late: bool) -> float | None:  # noqa: FBT001 - which of the two
        return self.late if late else self.likely


def of(sql: sa.Connection, job: Job) -> Durations:
    """Of jobs that are alike; else of its project's time limit; never more than the limit."""
    like = registry.finished_like(sql, job.project, job.spec.likeness)
    limit = job.spec.time_limit
    if len(like) >= _ENOUGH:
        seconds = sorted(one.attained for one in like)
        likely, late = quantile(seconds, 0.5), quantile(seconds, 0.9)
        basis = f"{len(seconds)} like it ran {likely:.0f} s at the median and {late:.0f} s at the 90th percentile"
        return Durations(likely=min(likely, limit or likely), late=min(late, limit or late), basis=basis)
    if limit:
        return Durations(
            likely=limit, late=limit, basis=f"its time limit of {limit:g} s, as nothing like it has finished"
        )
    return Durations(likely=None, late=None, basis="nothing like it has finished, and it has no time limit")


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of them do not exceed."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
