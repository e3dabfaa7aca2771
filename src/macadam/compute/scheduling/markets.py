"""In which markets a job's machines may be bought: on demand, or spot in some zone. Pure: (job, what there is, what was seen) → markets.

`spot` decides for one job with a deadline; this says what that means for a pool that many share, and for jobs without one: work that may
not be stopped never goes to spot; work with a deadline goes there while that is safe and on demand when it no longer is; other work that
loses little takes spot first. The queue places within these bounds. Times are seconds; instants on the caller's axis.
"""

from collections.abc import Callable

import msgspec

from macadam.compute.scheduling import spot
from macadam.errors import InvalidInput

ON_DEMAND = spot.ON_DEMAND
_SPOT = "spot/"
PRIOR = spot.Market()
"""What is expected of spot before anything was seen: a machine lasts four hours, spot is back after one, no zone stands in for another."""

Wish = Callable[[spot.Job, spot.Standing], str]


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """One job. may_stop: whether it may be stopped and started again; again: whether it is tried again after a machine was lost without a
    word. keeps: it goes on from checkpoints. lasts: what it takes without interruption, None if nobody knows. left: until its deadline, None = it has none. elapsed: since it was submitted. every:
    between its own checkpoints, 0 = it saves only when asked. changeover: from stopping it until it has gone on elsewhere, at most.
    saved, unsaved: of what it has done. where: the market that it runs in, '' = it waits. starting: until it goes on there.
    """

    may_stop: bool
    again: bool = True
    keeps: bool = False
    lasts: float | None = None
    left: float | None = None
    elapsed: float = 0.0
    every: float = 0.0
    changeover: float = 0.0
    saved: float = 0.0
    unsaved: float = 0.0
    where: str = spot.NOWHERE
    starting: float = 0.0


class Supply(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for a job. spot: all markets of spot that are known, those first that had it longest; available: of these,
    where it could have its GPUs now (or has them) → for how long there was spot without a break. room: whether it could have them on
    demand now (or has them).
    """

    spot: tuple[str, ...]
    available: dict[str, float] = {}
    room: bool = True


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """markets: where the job's machines may be bought, first choice first. target: where to move it from where it runs, '' = it stays.
    forced: its deadline needs an on-demand machine now: it goes before others to those that are free. slack: seconds that may be
    lost before that, infinite without a deadline. words: for the person who asks.
    """

    markets: tuple[str, ...]
    target: str = ""
    forced: bool = False
    slack: float = float("inf")
    words: str = ""


def of(*, spot: bool | None, zone: str) -> str:
    """The market of a machine. What is not known to be spot counts as on demand."""
    return f"{_SPOT}{zone}" if spot else ON_DEMAND


def is_spot(market: str) -> bool:
    return market.startswith(_SPOT)


def bounds(asker: Asker, supply: Supply, wish: Wish, *, step: float) -> Bounds:
    """Where the job may be put until the next decision. wish: what a policy of `spot` wishes. step: between two decisions, at most."""
    if not asker.may_stop:
        return Bounds(markets=(ON_DEMAND,), words="It may not be stopped, so it runs on demand only.")
    if asker.left is None:
        return _without_deadline(asker, supply)
    if not asker.again or asker.lasts is None:
        why = "nobody knows how long it runs: give it a time limit"
        if not asker.again:
            why = "it is not tried again if a machine is lost without a word: give it restarts"
        words = f"It has a deadline and runs on demand, as {why}."
        return Bounds(markets=_rather_than_nothing((ON_DEMAND,), supply), words=words)
    standing = _standing(asker, supply)
    try:
        job = _job(asker, step)
    except InvalidInput:
        return Bounds(
            markets=_rather_than_nothing((ON_DEMAND,), supply),
            target=ON_DEMAND if is_spot(asker.where) and supply.room else "",
            forced=True,
            slack=-float("inf"),
            words=f"Even on demand its deadline is not certain: it may take {_hours(asker.lasts)}.",
        )
    return _chosen(asker, supply, job, standing, spot.settle(job, standing, wish(job, standing)))


def _without_deadline(asker: Asker, supply: Supply) -> Bounds:
    if asker.keeps and asker.again:
        return Bounds(
            markets=(*supply.spot, ON_DEMAND), words="Spot goes first for it: it has no deadline and keeps checkpoints."
        )
    return Bounds(markets=(ON_DEMAND, *supply.spot), words="On demand goes first for it, as a loss would cost it much.")


def _chosen(asker: Asker, supply: Supply, job: spot.Job, standing: spot.Standing, choice: spot.Choice) -> Bounds:
    slack = spot.slack(job, standing)
    markets, spare = (
        supply.spot or (_SPOT,),
        f"{_hours(max(0.0, slack))} may still be lost before its deadline needs an on-demand machine",
    )
    words = f"It waits for spot: {spare}."
    # A policy that wishes for on demand by itself does not say whether there is time to stay or to wait for it.
    forced = choice.forced or (choice.where == ON_DEMAND != asker.where and not spot.safe(job, standing, asker.where))
    if forced:
        markets = _rather_than_nothing((ON_DEMAND,), supply)
        words = "Only on demand is its deadline certain from here on."
    elif choice.where == ON_DEMAND:
        safe = tuple(market for market in supply.spot if spot.safe(job, standing, market))
        markets = (ON_DEMAND, *safe)
        words = f"It runs on demand, so as not to fall behind: {spare}."
    elif choice.where:
        markets = (choice.where, *(market for market in supply.spot if market != choice.where))
        words = f"It runs on spot{_zone(choice.where)}: {spare}."
    target = _target(asker, supply, choice.where, forced=forced)
    return Bounds(markets=markets, target=target, forced=forced, slack=slack, words=words)


def _target(asker: Asker, supply: Supply, where: str, *, forced: bool) -> str:
    """Where to, for a job that runs. What would lose all that it has done is moved only for its deadline's sake; and nobody is
    stopped on demand to wait.
    """
    if not asker.where or where in (asker.where, spot.NOWHERE):
        return ""
    if where == ON_DEMAND:
        return ON_DEMAND if supply.room and (forced or asker.keeps) else ""
    return where if asker.keeps and asker.where == ON_DEMAND else ""


def _rather_than_nothing(markets: tuple[str, ...], supply: Supply) -> tuple[str, ...]:
    """With spot behind them while no machine on demand can be had: who runs gets further than who waits."""
    return markets if supply.room else (*markets, *supply.spot)


def _job(asker: Asker, step: float) -> spot.Job:
    """Raises InvalidInput where its deadline cannot be met."""
    work = max(asker.lasts or 0.0, asker.saved + asker.unsaved + 1.0)
    every, cost = asker.every or work, 0.0
    if not asker.keeps:
        every, cost = work, 2 * step  # dearer than a step: nothing can be built on its being saved
    return spot.Job(
        work=work,
        deadline=(asker.left or 0.0) + asker.elapsed,
        changeover=asker.changeover,
        checkpoint_every=every,
        checkpoint_cost=cost,
        step=step,
    )


def _standing(asker: Asker, supply: Supply) -> spot.Standing:
    return spot.Standing(
        elapsed=asker.elapsed,
        saved=asker.saved,
        unsaved=asker.unsaved,
        where=asker.where,
        starting=asker.starting,
        available=supply.available,
    )


def observed(
    held: tuple[tuple[float, bool], ...],
    spans: tuple[tuple[str, float, float | None], ...],
    now: float,
    *,
    price: float,
) -> spot.Market:
    """What is to be expected of spot, from what was seen, with `PRIOR` counted as one observation of each kind.

    held: of each attempt on spot, for how long it held its machine and whether it lost it. spans: (market, since, until) in which
    a market had machines, until None = it still has.
    """
    loss = (sum(lost for _, lost in held) + 1) / (sum(max(0.0, time) for time, _ in held) + 1 / PRIOR.loss)
    ends = [(market, until) for market, _, until in spans if until is not None]
    stood_in = sum(
        any(other != market and since <= at and (until is None or until > at) for other, since, until in spans)
        for market, at in ends
    )
    back, dark = _gaps(spans, now)
    return spot.Market(
        price=price,
        loss=_two_digits(loss),
        elsewhere=_two_digits(stood_in / (len(ends) + 1)),
        comeback=_two_digits((back + 1) / (dark + 1 / PRIOR.comeback)),
    )


def _gaps(spans: tuple[tuple[str, float, float | None], ...], now: float) -> tuple[int, float]:
    """How often spot came back after no market had any, and for how long in all none had."""
    back, dark, lit = 0, 0.0, None
    for _, since, until in sorted(spans, key=lambda span: span[1]):
        if lit is not None and since > lit:
            back, dark = back + 1, dark + since - lit
        lit = max(lit if lit is not None else since, now if until is None else until)
    return back, dark + max(0.0, now - lit) if lit is not None else 0.0


def _two_digits(rate: float) -> float:
    """So that what hardly changed is the same: plans are made anew for each market."""
    return float(f"{rate:.1e}")


def _zone(market: str) -> str:
    zone = market.removeprefix(_SPOT)
    return f" in {zone}" if zone else ""


def _hours(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
