"""The cheapest mix of machines that carries a load: an integer linear programme, solved by HiGHS through scipy.

After Mélange (Griggs et al. 2024, arXiv:2404.14527): requests of like size are a class, a replica of each kind takes so
much of its time for one of them, and each replica's time is a bin. There a class is cut into slices that are assigned
whole; here any part of a class may go to any kind of replica, which is the limit of ever finer slices. Machines are
rented whole, so that GPUs which stay idle are paid.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from macadam.compute.rightsizing.types import Fleet, Option
from macadam.errors import InvalidInput, Unavailable
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")
optimize: Any = lazy("scipy.optimize")  # scipy has no types
sparse: Any = lazy("scipy.sparse")

_MOST_SECONDS = 20.0  # for one solution; what is found by then is used
_GAP = 1e-4  # of the cost, at which a solution counts as the best
_DOLLAR = 1_000_000
_INFEASIBLE = 2  # scipy.optimize.milp's status


def cheapest(options: Sequence[Option], works: Sequence[Sequence[float]], rates: Sequence[float]) -> Fleet:
    """works[option][class]: seconds of a replica for one request, infinite where it must not go. rates: requests/s of
    each class.

    Raises InvalidInput if some class can go nowhere, Unavailable if no solution was found in time.
    """
    for kind in range(len(rates)):
        if all(math.isinf(work[kind]) for work in works):
            raise InvalidInput(
                f"No GPU keeps the promise for the requests of class {kind + 1} of {len(rates)} by the length of the prompt, even alone.",
                next_step="Relax the promise, allow more GPUs a replica (--tp), or offer faster GPUs.",
                details={"class": kind},
            )
    offers = list({option.offer.name: option.offer for option in options}.values())
    layout = _Layout(len(options), len(rates), len(offers))
    cost = np.zeros(layout.size)
    for number, offer in enumerate(offers):
        cost[layout.machine(number)] = offer.hourly / _DOLLAR
    found = optimize.milp(
        cost,
        constraints=[
            _all_go(layout, works),
            _fit(layout, works, rates),
            _housed(layout, options, [o.name for o in offers]),
        ],
        integrality=layout.integers(),
        bounds=optimize.Bounds(0, layout.upper(works)),
        options={"time_limit": _MOST_SECONDS, "mip_rel_gap": _GAP},
    )
    if found.x is None:
        if found.status == _INFEASIBLE:
            raise InvalidInput("No mix carries this load.", next_step="Offer more kinds of machines.")
        raise Unavailable(f"No mix was found in {_MOST_SECONDS:g} s.", next_step="Offer fewer kinds of machines.")
    replicas = tuple(round(found.x[layout.replica(o)]) for o in range(len(options)))
    routes = tuple(
        tuple(float(max(0.0, found.x[layout.route(k, o)])) for o in range(len(options))) for k in range(len(rates))
    )
    return housed(options, replicas, routes)


def housed(options: Sequence[Option], replicas: Sequence[int], routes: tuple[tuple[float, ...], ...] = ()) -> Fleet:
    """The machines that so many replicas need, and what they cost."""
    needed: dict[str, int] = {}
    offers = {option.offer.name: option.offer for option in options}
    for option, count in zip(options, replicas, strict=True):
        needed[option.offer.name] = needed.get(option.offer.name, 0) + count * option.replica.tp
    machines = {name: -(-gpus // offers[name].gpus) for name, gpus in needed.items() if gpus}
    hourly = sum(offers[name].hourly * count for name, count in machines.items())
    return Fleet(replicas=tuple(replicas), machines=machines, hourly=hourly, routes=routes)


def busiest(works: Sequence[Sequence[float]], rates: Sequence[float], replicas: Sequence[int]) -> float:
    """The least load of the busiest replica, however the classes are spread: 1 is all of its time. Infinite if a class
    can go nowhere.
    """
    used = [option for option, count in enumerate(replicas) if count]
    places = [(kind, o) for kind in range(len(rates)) for o in used if not math.isinf(works[o][kind])]
    if len({kind for kind, _ in places}) < len(rates):
        return math.inf
    loads = np.zeros((len(used), len(places) + 1))
    all_go = np.zeros((len(rates), len(places) + 1))
    for column, (kind, option) in enumerate(places):
        loads[used.index(option), column] = works[option][kind] * rates[kind] / replicas[option]
        all_go[kind, column] = 1.0
    loads[:, -1] = -1.0
    cost = np.zeros(len(places) + 1)
    cost[-1] = 1.0
    found = optimize.linprog(
        cost, A_ub=loads, b_ub=np.zeros(len(used)), A_eq=all_go, b_eq=np.ones(len(rates)), method="highs"
    )
    return float(found.fun) if found.status == 0 else math.inf


class _Layout:
    """Where each variable stands: parts of classes, then replicas, then machines."""

    def __init__(self, options: int, classes: int, offers: int) -> None:
        self.options, self.classes, self.offers = options, classes, offers
        self.size = classes * options + options + offers

    def route(self, kind: int, option: int) -> int:
        return kind * self.options + option

    def replica(self, option: int) -> int:
        return self.classes * self.options + option

    def machine(self, offer: int) -> int:
        return self.classes * self.options + self.options + offer

    def integers(self) -> "np.ndarray[Any, Any]":
        whole = np.ones(self.size)
        whole[: self.classes * self.options] = 0
        return whole

    def upper(self, works: Sequence[Sequence[float]]) -> "np.ndarray[Any, Any]":
        """Nothing goes where the promise cannot be kept."""
        most = np.full(self.size, np.inf)
        for kind in range(self.classes):
            for option in range(self.options):
                most[self.route(kind, option)] = 0.0 if math.isinf(works[option][kind]) else 1.0
        return most


def _all_go(layout: _Layout, works: Sequence[Sequence[float]]) -> Any:
    """Every class goes somewhere, whole."""
    rows = sparse.lil_matrix((layout.classes, layout.size))
    for kind in range(layout.classes):
        for option in range(len(works)):
            rows[kind, layout.route(kind, option)] = 1.0
    return optimize.LinearConstraint(rows.tocsr(), 1.0, 1.0)


def _fit(layout: _Layout, works: Sequence[Sequence[float]], rates: Sequence[float]) -> Any:
    """No replica is asked for more than its time."""
    rows = sparse.lil_matrix((layout.options, layout.size))
    for option, work in enumerate(works):
        for kind, seconds in enumerate(work):
            if not math.isinf(seconds):
                rows[option, layout.route(kind, option)] = seconds * rates[kind]
        rows[option, layout.replica(option)] = -1.0
    return optimize.LinearConstraint(rows.tocsr(), -np.inf, 0.0)


def _housed(layout: _Layout, options: Sequence[Option], offers: Sequence[str]) -> Any:
    """Replicas stand in machines."""
    rows = sparse.lil_matrix((layout.offers, layout.size))
    for option, said in enumerate(options):
        rows[offers.index(said.offer.name), layout.replica(option)] = said.replica.tp
    for number, name in enumerate(offers):
        gpus = next(option.offer.gpus for option in options if option.offer.name == name)
        rows[number, layout.machine(number)] = -gpus
    return optimize.LinearConstraint(rows.tocsr(), -np.inf, 0.0)
