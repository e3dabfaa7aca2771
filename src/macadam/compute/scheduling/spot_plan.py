"""What it costs on average to finish a job by its deadline from every point on the way, if spot comes and goes at known rates.

A Markov decision process over (time left, work left, where it runs, whether spot can be had), solved backwards on a grid: in each cell
the cheapest of running on spot, running on demand and waiting. Rates are constant, losses are independent of the past, and where
spot is lost another zone has it with a fixed probability. Costs are seconds of on-demand machines.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.floating]
else:
    np = lazy("numpy")

Mode = Literal["spot", "on-demand", "nowhere"]
_CELLS = 512  # steps of time, and less than twice as many where a changeover takes several
# What a second of waiting costs. Without it, to begin now and to begin later cost the same while there is time enough, and slack would
# be spent for nothing; it is worth most where spot behaves worse than was expected.
_IMPATIENCE = 0.01
_NEVER = 1e-30  # a chance that single precision would round to 0, and 0 times infinity is no number
_KEPT = 8  # each has some ten MB


@lru_cache(maxsize=_KEPT)
def plan(  # noqa: PLR0913 - the cache's key
    work: float,
    deadline: float,
    changeover: float,
    price: float,
    loss: float,
    elsewhere: float,
    comeback: float,
    *,
    pace: float = 1.0,
    undone: float = 0.0,
) -> "Plan":
    """The plan for a job. Seconds, and rates per second; price: of the on-demand price. pace: seconds of work in one on spot, where
    checkpoints are written. undone: seconds of work that the loss of a machine undoes.
    """
    return Plan(work, deadline, changeover, price, loss, elsewhere, comeback, pace=pace, undone=undone)


class Plan:
    """Costs of the best continuation, by steps of time left (first index) and steps of work left (second)."""

    def __init__(  # noqa: PLR0913 - see `plan`
        self,
        work: float,
        deadline: float,
        changeover: float,
        price: float,
        loss: float,
        elsewhere: float,
        comeback: float,
        *,
        pace: float = 1.0,
        undone: float = 0.0,
    ) -> None:
        self._unit = deadline / _CELLS
        if changeover > self._unit:
            self._unit = changeover / math.ceil(changeover / self._unit)
        # A changeover takes whole steps; what is over of the last one is worked.
        self._lag = max(1, round(changeover / self._unit))
        self._gain = self._lag - changeover / self._unit
        self._times = math.floor(deadline / self._unit)
        self._works = math.ceil(work / self._unit)
        self._price = price
        self._pace = pace
        # For each cell of work left, which two cells it is between after a loss, and how near to the second.
        back = np.minimum(np.arange(self._works + 1) + undone / self._unit, self._works)
        self._low = np.floor(back).astype(np.int64)
        self._high, self._near = np.minimum(self._low + 1, self._works), undone / self._unit % 1
        self._lost = 1 - math.exp(-loss * self._unit)
        self._elsewhere = elsewhere
        self._gone = 1 - math.exp(-loss * (1 - elsewhere) * self._unit)
        self._back = 1 - math.exp(-comeback * self._unit)
        # The first index: 0 while no zone has spot, 1 while one has. What cannot be done in time costs infinitely much.
        shape = (2, self._times + 1, self._works + 1)
        self._demand, self._nowhere = (np.full(shape, np.inf, dtype=np.float32) for _ in range(2))
        self._spot = np.full(shape[1:], np.inf, dtype=np.float32)
        for time in range(self._times + 1):
            self._solve(time)

    @property
    def cells(self) -> int:
        """The size of the grid."""
        return self._spot.size

    def best(self, now: Mode, left: float, work: float, *, spot: bool) -> Mode:
        """The cheapest of the three for a job that runs `now` there, with `left` seconds to its deadline and `work` seconds to do.

        spot: whether it can be had. Whoever has a machine and changes pays the changeover.
        """
        costs = self._costs(now, left, work, spot=spot)
        return min(costs, key=lambda mode: (costs[mode], mode != now))  # of equals, what it does already

    def cost(self, now: Mode, left: float, work: float, *, spot: bool) -> float:
        """What the best continuation is expected to cost; infinite where the deadline cannot be met for certain."""
        return min(self._costs(now, left, work, spot=spot).values())

    def _costs(self, now: Mode, left: float, work: float, *, spot: bool) -> dict[Mode, float]:
        time = max(1, min(self._times, math.floor(left / self._unit)))
        cell = min(self._works, max(0, math.ceil(work / self._unit)))
        demand = self._stay_on_demand if now == "on-demand" else self._begin_on_demand
        costs: dict[Mode, float] = {"on-demand": float(demand(time, int(spot))[cell])}
        if spot:
            costs["spot"] = float((self._stay_on_spot if now == "spot" else self._begin_spot)(time)[cell])
        costs["nowhere"] = float(self._wait(time, int(spot))[cell])
        return costs

    def _solve(self, time: int) -> None:
        """Costs at one instant, from those at later ones. Being on spot or on demand means: and the machine is running."""
        self._spot[time, 0] = self._demand[:, time, 0] = self._nowhere[:, time, 0] = 0.0
        if time == 0:
            return
        for spot in (0, 1):
            stay = self._stay_on_demand(time, spot)
            wait = self._wait(time, spot)
            begin = self._begin_on_demand(time, spot)
            join = self._begin_spot(time) if spot else np.full(self._works + 1, np.inf)
            nowhere = np.minimum(np.minimum(begin, join), wait)
            nowhere[0] = 0.0
            self._nowhere[spot, time] = nowhere
            self._demand[spot, time, 1:] = np.minimum(np.minimum(stay, join), wait)[1:]
        self._spot[time, 1:] = np.minimum(self._stay_on_spot(time), self._nowhere[1, time])[1:]

    # --- each action's cost for all work left, shape (works + 1,)

    def _after(self, table: "Floats", time: int, spot: int) -> "Floats":
        """The expectation over whether spot can be had at `time`, given what was so a step before."""
        chance = 1 - self._gone if spot else self._back
        return _mean(chance, table[1, time], table[0, time])

    def _stay_on_demand(self, time: int, spot: int) -> "Floats":
        return self._unit + _less(self._after(self._demand, time - 1, spot))

    def _stay_on_spot(self, time: int) -> "Floats":
        lost = _mean(self._elsewhere, self._nowhere[1, time - 1], self._nowhere[0, time - 1])
        after = _mean(self._lost, self._undo(lost), self._spot[time - 1])
        return self._price * self._unit + _mean(self._pace, _less(after), after)

    def _undo(self, costs: "Floats") -> "Floats":
        """With the work left that a loss leaves."""
        return _mean(self._near, costs[self._high], costs[self._low])

    def _wait(self, time: int, spot: int) -> "Floats":
        return _IMPATIENCE * self._unit + self._after(self._nowhere, time - 1, spot)

    def _begin_on_demand(self, time: int, spot: int) -> "Floats":
        if time < self._lag:
            return np.full(self._works + 1, np.inf)
        then = self._demand[spot, time - self._lag]
        return np.asarray(self._lag * self._unit + _mean(self._gain, _less(then), then))

    def _begin_spot(self, time: int) -> "Floats":
        if time < self._lag:
            return np.full(self._works + 1, np.inf)
        then = time - self._lag
        lost = _mean(self._elsewhere, self._nowhere[1, then], self._nowhere[0, then])
        after = _mean((1 - self._lost) ** self._lag, self._spot[then], lost)
        return np.asarray(self._price * self._lag * self._unit + _mean(self._gain * self._pace, _less(after), after))


def _less(costs: "Floats") -> "Floats":
    """Shifted by one step of work that is done meanwhile."""
    return np.concatenate([[0.0], costs[:-1]])


def _mean(chance: float, one: "Floats", other: "Floats") -> "Floats":
    """An expectation in which what cannot happen may cost infinitely much."""
    if chance >= 1:
        return one
    if chance <= _NEVER:
        return other
    return np.asarray(chance * one + (1 - chance) * other)
