"""When a job will start, by playing the queue forward: the same decisions on what is thought to happen. Pure.

Nothing is submitted in that future, so a start is the earliest that is likely; the late one takes everybody's late duration.
"""

from collections.abc import Callable

import msgspec

from macadam.compute.jobs import picture as pictures
from macadam.compute.jobs.picture import MakePlaces, Picture
from macadam.compute.jobs.types import Job
from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.types import Decision, Estimates, Policy, Running, State, Wait

_MOST_STEPS = 400
"""Decisions in one forecast: it is answered while a person waits."""
_FAR = 366 * 86400.0

Lasts = Callable[[str], float | None]
"""Seconds that a job (by id) runs in all; None if nothing is known."""


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """seconds: until it starts, None if that cannot be said. wait: why not now, None if it starts now."""

    seconds: float | None
    wait: Wait | None = None


def outlook(
    picture: Picture, job: Job, policy: Policy, lasts: Lasts, *, places: MakePlaces, estimates: Estimates | None = None
) -> Outlook:
    """job: one of `picture.waiting`."""
    if not job.spec.resources.demand:
        return _plain(picture, job, lasts)
    state, now = pictures.state(picture), picture.now.timestamp()
    first, begin = None, now
    for _ in range(_MOST_STEPS):
        decision = decide(now, state, policy, estimates, places)
        if any(start.id == job.id for start in decision.starts):
            return Outlook(seconds=now - begin, wait=first)
        first = first or decision.waits.get(job.id)
        state = _after(now, state, decision)
        step = _next(now, state, decision, lasts)
        if step is None or step - begin > _FAR:
            break
        now = step
        state = msgspec.structs.replace(state, running=_lasting(now, state, lasts))
    return Outlook(seconds=None, wait=first)


def _after(now: float, state: State, decision: Decision) -> State:
    stopped = {one.id for one in decision.preemptions}
    started = {one.id: one.placement for one in decision.starts}
    back = tuple(
        msgspec.structs.replace(one.work, attained=one.attained(now), preemptions=one.work.preemptions + 1)
        for one in state.running
        if one.work.id in stopped
    )
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


def _next(now: float, state: State, decision: Decision, lasts: Lasts) -> float | None:
    """The next instant at which anything can change."""
    ends = [end for one in state.running if (end := _ends(one, lasts)) is not None]
    times = [max(now + 1.0, end) for end in ends]
    if decision.look_again is not None and times:
        times.append(max(now + 1.0, decision.look_again))
    return min(times, default=None)


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
