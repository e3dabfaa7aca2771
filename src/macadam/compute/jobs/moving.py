"""Keeps machines for those whose deadlines need them now, before the queue decides on the others. Pure.

A job that goes on in another market is stopped where it runs, and starts there once it has ended: until then the GPUs that it goes to
are held for it, or somebody else would have them. Those whose deadlines need an on-demand machine go before all others to free ones, the
one with the least time to lose first; nobody is stopped for them, and their projects' limits hold.
"""

import msgspec

from macadam.compute.jobs import picture as pictures
from macadam.compute.jobs.picture import MakePlaces, Picture
from macadam.compute.jobs.types import AttemptRow
from macadam.compute.scheduling.markets import ON_DEMAND, Bounds
from macadam.compute.scheduling.quota import Limits
from macadam.compute.scheduling.types import Places, Running, Start, State, Work


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """state: what is left to decide on. starts: of those that wait and were given machines. moves: by the job's id, why it is stopped."""

    state: State
    starts: tuple[Start, ...] = ()
    moves: dict[str, str] = {}


def hold(picture: Picture, state: State, make: MakePlaces) -> Held:
    """state: that of the picture."""
    urgent = _urgent(picture)
    return _Holding(picture, state, make).hold(urgent) if urgent else Held(state=state)


def _urgent(picture: Picture) -> list[str]:
    leaving = {row.job for row in picture.attempts if _goes_on(row, picture)}
    found = [
        job
        for job, bound in picture.markets.items()
        if bound.target or job in leaving or (bound.forced and job not in picture.jobs)
    ]
    return sorted(found, key=lambda job: (not picture.markets[job].forced, picture.markets[job].slack, job))


def _goes_on(row: AttemptRow, picture: Picture) -> bool:
    """Whether it is being stopped to go on elsewhere at once: it is moved, or has to leave its machine and no time to lose."""
    bound = picture.markets.get(row.job)
    if bound is None or not row.milli or not picture.jobs[row.job].spec.preemptible:
        return False
    return row.wish == "move" or (row.wish == "node" and bound.forced)


class _Holding:
    def __init__(self, picture: Picture, state: State, make: MakePlaces) -> None:
        self._picture, self._state = picture, state
        self._now = picture.now.timestamp()
        self._limits = Limits(self._now, state)
        self._waiting = {work.id: work for work in state.waiting}
        self._running = {one.work.id: one for one in state.running}
        self._stopping = {row.job for row in picture.attempts if row.wish}
        self._starts: list[Start] = []
        self._moves: dict[str, str] = {}
        self._places: Places = make(state.nodes)
        for one in self._running.values():
            self._places.take(one.work, one.placement)

    def hold(self, urgent: list[str]) -> Held:
        for job in urgent:
            bound = self._picture.markets[job]
            if job in self._waiting:
                self._begin(self._waiting[job])
            elif job in self._running and bound.target:
                self._move(self._running[job], bound)
            elif job in self._stopping:
                self._keep(pictures.work(self._picture.jobs[job], self._picture), bound)
        state = msgspec.structs.replace(
            self._state, waiting=tuple(self._waiting.values()), running=tuple(self._running.values())
        )
        return Held(state=state, starts=tuple(self._starts), moves=self._moves)

    def _begin(self, work: Work) -> None:
        before = self._limits.borrowed(work.tenant)
        one = self._take(work, (ON_DEMAND,))
        if one is not None:
            borrowed = 0 if self._limits.unlimited else self._limits.borrowed(work.tenant) - before
            self._starts.append(Start(id=work.id, placement=one.placement, borrowed=borrowed))
            del self._waiting[work.id]

    def _move(self, one: Running, bound: Bounds) -> None:
        """What it had counts as gone, as of all who were asked to stop."""
        self._limits.remove(one)
        if self._take(one.work, (bound.target,)) is None:
            self._limits.add(one)
        else:
            self._moves[one.work.id] = bound.words

    def _keep(self, work: Work, bound: Bounds) -> None:
        self._take(work, (ON_DEMAND,) if bound.forced else bound.markets)

    def _take(self, work: Work, markets: tuple[str, ...]) -> Running | None:
        """Takes GPUs for it in these markets, if its project may have them. Nobody may stop it there: it has not begun."""
        placed = (
            None if self._limits.why_not(work) else self._places.place(msgspec.structs.replace(work, markets=markets))
        )
        if placed is None:
            return None
        held = msgspec.structs.replace(work, markets=markets, preemptible=False)
        self._running[work.id] = Running(work=held, placement=placed, started=self._now)
        self._limits.add(self._running[work.id])
        return self._running[work.id]
