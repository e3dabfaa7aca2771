"""Train from scratch, fine-tune, LoRA, prompt or buy: what each way costs over the months, what it is worth, and how
sure that is.

Every draw takes a value out of each range, computes all ways with the same volume, prices and utilisation, and asks
which is best. The seed is fixed, so that the same question gets the same answer.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import gpus, llms
from macadam.compute.rightsizing import calibration, costs, training
from macadam.compute.rightsizing.costs import Hosted, Rent
from macadam.compute.rightsizing.questions import Question, Range, Way
from macadam.compute.rightsizing.types import Efficiency
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
else:
    np = lazy("numpy")

_HEARD = 0.05  # correlation below which a range is not named


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """value: the median; low, high: between them are nine draws of ten."""

    value: float
    low: float
    high: float


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """flops: of all runs. gpus: the least whose memory suffices, in whole machines. days: with so many, all runs one after another."""

    flops: Spread
    gpu_hours: Spread
    gpus: int
    days: Spread
    cost_usd: Spread


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One way. total: over the months; net: worth less cost. per_accurate: cost of one right answer. best: part of the
    draws in which it is best. regret: what the best of each draw is better by, in the mean. doubt: why it cannot be
    recommended. replicas: in the first month and in the last, by the model as it is; used: part of the GPU time paid in the first
    month in which requests are served, the rest is idle. gpu, hour_usd: that it is served on, and what it costs today. sunk: spent already, and not counted.
    """

    name: str
    one_off_usd: Spread
    monthly_usd: Spread
    total_usd: Spread
    net_usd: Spread | None
    per_accurate_usd: Spread | None
    best: float
    regret_usd: float
    replicas: int = 0
    replicas_at_end: int = 0
    used: float = 1.0
    gpu: str = ""
    hour_usd: float = 0.0
    sunk_usd: float = 0.0
    training: Training | None = None
    doubt: str = ""


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """Where two ways change places as the volume grows: requests a month, None if they don't between a thousandth and a
    thousand times.
    """

    above: str  # better above that volume
    below: str
    requests_per_month: float | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """by: what was compared, 'net' worth or 'cost'. drivers: how strongly each range moves the difference between the
    two best, as rank correlation.
    """

    outcomes: tuple[Outcome, ...]
    by: str
    crossings: tuple[Crossing, ...]
    drivers: dict[str, float]
    gpu_hour_usd: float
    gpu_source: str
    seed: int
    draws: int


class _World(msgspec.Struct, frozen=True, kw_only=True):
    """The draws that all ways share. requests: of the first month; total: of all. slower: times that serving takes longer than the model says, as it did in one of the published
    measurements that it was not fitted to.
    """

    requests: "Array"
    growth: "Array"
    total: "Array"
    slower: "Array"
    mfu: "Array"
    prices: "Array"
    gpu_prices: "Array"
    value: "Array | None"


class _Way(msgspec.Struct, frozen=True, kw_only=True):
    """What a way costs in each draw, once and over all months, and the latter as a function of the first month's requests, in the
    middle of everything else. ranges: what was drawn for this way alone, by what it is called.
    """

    way: Way
    one_off: "Array"
    running: "Array"
    accuracy: "Array | None"
    ranges: "dict[str, Array]"
    replicas: int
    replicas_at_end: int
    used: float
    rent: Rent | None
    training: Training | None
    doubt: str
    middle: Callable[[float], float]
    middle_one_off: float


def decide(
    question: Question,
    rent: Rent,
    *,
    serving: Mapping[str, Rent] | None = None,
    seed: int = 0,
    draws: int = 20_000,
) -> Result:
    """rent: of what is trained on. serving: of what each way is served on, by its name; where it says nothing, the same. Raises InvalidInput, NotFound if a way cannot be computed."""
    if draws < 1 or seed < 0:
        raise InvalidInput(
            f"Nothing is drawn {draws} times from the seed {seed}.",
            next_step="Give draws of 1 or more, and a seed of 0 or more.",
        )
    random = np.random.default_rng(seed)
    requests, growth = _draw(random, question.requests_per_month, draws), _draw(random, question.growth, draws)
    world = _World(
        requests=requests,
        growth=growth,
        total=costs.total(question, requests, growth),
        mfu=_draw(random, question.mfu, draws),
        prices=_draw(random, question.prices, draws),
        gpu_prices=_draw(random, question.gpu_prices, draws),
        value=None if question.value_usd is None else _draw(random, question.value_usd, draws),
        slower=random.choice(calibration.ratios(Efficiency(), "test"), draws),
    )
    hosts = serving or {}
    ways = [_way(question, way, world, random, (rent, hosts.get(way.name, rent))) for way in question.ways]
    judged = world.value is not None and all(way.accuracy is not None for way in ways)
    scores = np.stack([_score(way, world, judged=judged) for way in ways])
    winners = np.bincount(np.argmax(scores, axis=0), minlength=len(ways)) / draws
    regrets = np.mean(np.max(scores, axis=0) - scores, axis=1)
    order = sorted(range(len(ways)), key=lambda number: -float(np.mean(scores[number])))
    return Result(
        outcomes=tuple(
            _outcome(question, ways[number], world, (float(winners[number]), float(regrets[number])), judged=judged)
            for number in order
        ),
        by="net" if judged else "cost",
        crossings=tuple(_crossing(question, ways[order[0]], ways[other], judged=judged) for other in order[1:]),
        drivers=_drivers(world, ways, order, scores),
        gpu_hour_usd=rent.usd,
        gpu_source=rent.source,
        seed=seed,
        draws=draws,
    )


def _way(question: Question, way: Way, world: _World, random: "np.random.Generator", rents: tuple[Rent, Rent]) -> _Way:
    """rents: of what is trained on, and of what is served on."""
    draws = len(world.requests)
    one_off, monthly = _draw(random, way.one_off_usd, draws), _draw(random, way.monthly_usd, draws)
    accuracy = None if way.accuracy is None else _draw(random, way.accuracy, draws)
    cached = _draw(random, way.cached, draws)
    ranges = {"upkeep": monthly} | ({} if accuracy is None else {"accuracy": accuracy})
    if way.kind == "api":
        running = costs.bought(question, way, cached) * world.total * world.prices
        return _Way(
            way=way, one_off=one_off, running=running + monthly * question.months, accuracy=accuracy,
            ranges=ranges | {"one-off cost": one_off, "part cached": cached},
            replicas=0, replicas_at_end=0, used=1.0, rent=None, training=None, doubt="", middle_one_off=way.one_off_usd.middle,
            middle=_middle_bought(question, way),
        )  # fmt: skip
    rent = rents[1]
    own = costs.hosted(question, way, rent)
    trained, cost = _trained(question, way, world, random, rents[0])
    running = sum(
        part * costs.hosting(question, own, rent, volume, world.slower)
        for part, volume in zip(
            costs.months(question), costs.volumes(question, world.requests, world.growth), strict=True
        )
    )
    each = costs.volumes(question, question.requests_per_month.middle, question.growth.middle)
    return _Way(
        way=way,
        one_off=one_off + cost,
        ranges=ranges | {"one-off cost": one_off + cost},
        running=running * world.gpu_prices + monthly * question.months,
        accuracy=accuracy,
        replicas=int(costs.replicas(question, own.seconds, each[0])),
        replicas_at_end=int(costs.replicas(question, own.seconds, each[-1])),
        used=costs.used(question, own, rent, each[0]),
        rent=rent,
        training=trained,
        doubt=_doubt(way),
        middle_one_off=way.one_off_usd.middle + (float(np.mean(cost)) if trained else 0.0),
        middle=_middle_hosted(question, way, own, rent),
    )


def _middle_bought(question: Question, way: Way) -> Callable[[float], float]:
    """USD over all months by the first month's requests, in the middle of everything else."""
    each = float(costs.bought(question, way, way.cached.middle)) * question.prices.middle
    fixed = way.monthly_usd.middle * question.months
    return lambda requests: each * float(costs.total(question, requests, question.growth.middle)) + fixed


def _middle_hosted(question: Question, way: Way, own: Hosted, rent: Rent) -> Callable[[float], float]:
    parts = np.asarray(costs.months(question))
    grown = np.asarray(costs.volumes(question, 1.0, question.growth.middle))
    fixed = way.monthly_usd.middle * question.months
    return lambda requests: (
        float(np.sum(parts * costs.hosting(question, own, rent, requests * grown))) * question.gpu_prices.middle + fixed
    )


def _trained(
    question: Question, way: Way, world: _World, random: "np.random.Generator", rent: Rent
) -> tuple[Training | None, "Array"]:
    """What training takes, and its cost in each draw."""
    if way.training_tokens is None:
        return None, np.zeros(len(world.requests))
    llm, gpu = llms.read(way.model), gpus.find(question.gpu)
    read = _draw(random, way.training_tokens, len(world.requests)) * way.epochs * way.runs
    total = training.flops(way.kind, llm, 1.0, training.sequence(question, way)) * read
    at_least = int(rent.paid(training.gpus_at_least(way.kind, llm, gpu)))
    # An hour of the machines that the state needs is paid each run, however short it is.
    hours = np.maximum(training.gpu_hours(1.0, gpu, 1.0) * total / world.mfu, at_least * way.runs)
    cost = hours * rent.usd  # now, at today's price
    found = Training(
        flops=_spread(total),
        gpu_hours=_spread(hours),
        gpus=at_least,
        days=_spread(hours / at_least / 24),
        cost_usd=_spread(cost),
    )
    return found, cost


def _doubt(way: Way) -> str:
    if way.training_tokens is None:
        return ""
    llm = llms.read(way.model)
    if not training.starved(way.kind, llm, way.training_tokens.high):
        return ""
    return (
        f"from scratch {llm.name} wants about {training.OPTIMAL * llm.parameters:.2g} tokens (20 for each parameter: Hoffmann et al. 2022); "
        f"it would get {way.training_tokens.high:.2g}"
    )


def _score(way: _Way, world: _World, *, judged: bool) -> "Array":
    """What is compared: worth less cost, or, where worth is not known, cost alone."""
    cost = way.one_off + way.running
    if not judged or way.accuracy is None or world.value is None:
        return -cost
    return _worth(way, world) - cost


def _worth(way: _Way, world: _World) -> "Array":
    if way.accuracy is None or world.value is None:
        raise InvalidInput("What a right answer is worth is not said.", next_step="Give value_usd and accuracy.")
    return world.total * way.accuracy * world.value


def _outcome(question: Question, way: _Way, world: _World, standing: tuple[float, float], *, judged: bool) -> Outcome:
    total = way.one_off + way.running
    right = None if way.accuracy is None else world.total * np.maximum(way.accuracy, 1e-9)
    return Outcome(
        name=way.way.name,
        one_off_usd=_spread(way.one_off),
        monthly_usd=_spread(way.running / question.months),
        total_usd=_spread(total),
        net_usd=_spread(_worth(way, world) - total) if judged else None,
        per_accurate_usd=None if right is None else _spread(total / right),
        best=standing[0],
        regret_usd=standing[1],
        replicas=way.replicas,
        replicas_at_end=way.replicas_at_end,
        used=way.used,
        gpu="" if way.rent is None else way.rent.gpu or question.gpu,
        hour_usd=0.0 if way.rent is None else way.rent.usd,
        sunk_usd=way.way.sunk_usd,
        training=way.training,
        doubt=way.doubt,
    )


def _crossing(question: Question, first: _Way, other: _Way, *, judged: bool) -> Crossing:
    """The volume nearest to the question's at which the two change places, everything else in the middle of its range."""
    now = question.requests_per_month.middle
    scales = np.logspace(-3, 3, 1201)
    better = [_lead(question, first, other, now * float(scale), judged=judged) > 0 for scale in scales]
    flips = [i for i in range(1, len(scales)) if better[i] != better[i - 1]]
    if not flips:
        return Crossing(above=first.way.name, below=other.way.name, requests_per_month=None)
    at = min(flips, key=lambda i: abs(float(np.log(scales[i]))))
    above, below = (first, other) if better[at] else (other, first)
    return Crossing(above=above.way.name, below=below.way.name, requests_per_month=now * float(scales[at]))


def _lead(question: Question, first: _Way, other: _Way, requests: float, *, judged: bool) -> float:
    def score(way: _Way) -> float:
        cost = way.middle_one_off + way.middle(requests)
        if not judged or way.way.accuracy is None or question.value_usd is None:
            return -cost
        answers = float(costs.total(question, requests, question.growth.middle))
        return answers * way.way.accuracy.middle * question.value_usd.middle - cost

    return score(first) - score(other)


def _drivers(world: _World, ways: list[_Way], order: list[int], scores: "Array") -> dict[str, float]:
    """Rank correlation (Spearman) of each range with the lead of the best over the next."""
    lead = scores[order[0]] - scores[order[1]]
    inputs: dict[str, Any] = {
        "volume": world.requests,
        "utilisation in training": world.mfu,
        "growth": world.growth,
        "prices of tokens to come": world.prices,
        "prices of GPUs to come": world.gpu_prices,
        "how far serving is off the model": world.slower,
    }
    if world.value is not None:
        inputs["worth of an answer"] = world.value
    for number in order[:2]:
        inputs |= {f"{what} of {ways[number].way.name}": values for what, values in ways[number].ranges.items()}
    return {name: found for name, values in inputs.items() if abs(found := _rank(values, lead)) >= _HEARD}


def _rank(left: "Array", right: "Array") -> float:
    if float(np.ptp(left)) == 0.0 or float(np.ptp(right)) == 0.0:
        return 0.0
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _draw(random: "np.random.Generator", said: Range, draws: int) -> "Array":
    return random.uniform(said.low, said.high, draws)


def _spread(values: "Array") -> Spread:
    low, middle, high = (float(x) for x in np.percentile(values, [5, 50, 95]))
    return Spread(value=middle, low=low, high=high)
