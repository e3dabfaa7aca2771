"""When a job will start, by playing the queue forward: the same decisions on what is thought to happen. Pure.

Nothing is submitted in that future, so a start is the earliest that is likely; the late one takes everybody's late duration.
"""

import math
from collections.abc import Callable

import msgspec

from macadam.compute.jobs import picture as pictures
from macadam.compute.jobs.picture import MakePlaces, Picture
from macadam.compute.jobs.types import Job
from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.first_fit import FirstFit
from macadam.compute.scheduling.types import Decision, Estimates, Policy, Running, State, Wait

_MOST_STEPS, _FEWEST_STEPS = 400, 40
_LOOKED_AT = 60_000
"""Decisions in one forecast, and jobs that are looked at in all of them: it is answered while a person waits."""
_MANY = 100
"""Among more jobs places are found by first fit, in a quarter of the time, and ends that lie near each other are taken as one."""
_TOGETHER, _NEAR = 0.25, 0.2
"""The first of what runs to end is taken together: that part of it at most, as far as it ends within that part of the time that has passed."""
_FAR = 366 * 86400.0

Lasts = Callable[[str], float | None]
"""Seconds that a job (by id) runs in all; None if nothing is known."""


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """seconds: until it starts, None if that cannot be said. wait: why not now, None if it starts now. after: seconds for which it was
    seen to wait.
    """

    seconds: float | None
    wait: Wait | None = None
    after: float = 0


def outlook(
    picture: Picture, job: Job, policy: Policy, lasts: Lasts, *, places: MakePlaces, estimates: Estimates | None = None
) -> Outlook:
    """job: one of `picture.waiting`."""
    if not job.spec.resources.demand:
        return _plain(picture, job, lasts)
    state, now = pictures.state(picture), picture.now.timestamp()
    first, begin, jobs = None, now, len(state.waiting) + len(state.running)
    many = jobs > _MANY
    places = FirstFit if many else places
    for _ in range(_steps(jobs)):
        decision = decide(now, state, policy, estimates, places)
        if any(start.id == job.id for start in decision.starts):
            return Outlook(seconds=now - begin, wait=first)
        first = first or decision.waits.get(job.id)
        state = _after(now, state, decision)
        step = _next(now, begin, state, decision, lasts, coarse=many)
        if step is None or step[0] - begin > _FAR:
            break
        now, until = step
        state = msgspec.structs.replace(state, running=_lasting(until, state, lasts))
    return Outlook(seconds=None, wait=first, after=now - begin)


def _steps(jobs: int) -> int:
    """How many decisions a forecast may take among so many jobs."""
    return max(_FEWEST_STEPS, min(_MOST_STEPS, _LOOKED_AT // (jobs or 1)))


def _after(now: float, state: State, decision: Decision) -> State:
    stopped = {one.id for one in decision.preemptions}
    started = {one.id: one.placement for one in decision.starts}
    back = tuple(one.stopped(now) for one in state.running if one.work.id in stopped)
    begun = tuple(
        Running(work=work, placement=started[work.id], started=now) for work in state.waiting if work.id in started
    )
    return msgspec.structs.replace(
        state,
        waiting=(*(work for work in state.waiting if work.id not in started), *back),
        running=(*(one for one in state.running if one.work.id not in stopped), *begun),
    )


def _ends(one: Running, lasts: Lasts) -> float | None:
    whole = lasts(one.work.id)
    return None if whole is None else one.started + max(1.0, whole - one.work.attained)


def _next(
    now: float, begin: float, state: State, decision: Decision, lasts: Lasts, *, coarse: bool
) -> tuple[float, float] | None:
    """The next instant at which anything can change, and until when what ends counts as ended then. coarse: the mean of some ends, so
    that what follows them is said to start neither sooner nor later than it would one by one.
    """
    ends = sorted(max(now + 1.0, end) for one in state.running if (end := _ends(one, lasts)) is not None)
    if not ends:
        return None
    if decision.look_again is not None and decision.look_again < ends[0]:
        again = max(now + 1.0, decision.look_again)
        return again, again
    if not coarse:
        return ends[0], ends[0]
    near = ends[0] + _NEAR * (ends[0] - begin)
    together = [end for end in ends[: math.ceil(_TOGETHER * len(ends))] if end <= near]
    return sum(together) / len(together), together[-1]


def _lasting(now: float, state: State, lasts: Lasts) -> tuple[Running, ...]:
    return tuple(one for one in state.running if (end := _ends(one, lasts)) is None or end > now)


def _plain(picture: Picture, job: Job, lasts: Lasts) -> Outlook:
    """Of a job without GPUs: when enough of what runs has ended."""
    now = picture.now.timestamp()
    wait = None
    ends = sorted(
        (max(now, row.started.timestamp() + whole), row.id)
        for row in picture.attempts
        if (whole := lasts(row.job)) is not None
    )
    for at, gone in [(now, ""), *ends]:
        left = tuple(row for row in picture.attempts if row.id != gone)
        picture = msgspec.structs.replace(picture, attempts=left)
        if any(one.id == job.id for one, _ in pictures.plain_starts(picture, ())):
            return Outlook(seconds=at - now, wait=wait)
        wait = Wait(reason="no-gpus", words="The processors and memory that it asks for are in use.")
    return Outlook(seconds=None, wait=wait)
