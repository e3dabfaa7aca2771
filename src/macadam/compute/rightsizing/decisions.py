"""Train from scratch, fine-tune, LoRA, prompt or buy: what each way costs over the months, what it is worth, and how
sure that is.

Every draw takes a value out of each range, computes all ways with the same volume, prices and utilisation, and asks
which is best. The seed is fixed, so that the same question gets the same answer.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import gpus, llms, tokens
from macadam.compute.rightsizing import calibration, capacity, planning, roofline, training
from macadam.compute.rightsizing.capacity import Bucket
from macadam.compute.rightsizing.questions import Question, Range, Way
from macadam.compute.rightsizing.types import Efficiency, Engine, Offer, Slo
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
else:
    np = lazy("numpy")

_MILLION = 1e6
_HEARD = 0.05  # correlation below which a range is not named
_MONTH = 730.0  # hours: a year's 8,760 over twelve
_SECONDS = _MONTH * 3600
# Of a replica's time: fleets that kept their promise in the simulator were planned at 0.47 to 0.68 of it.
_PLANNED = 0.6
_TOGETHER = 8  # GPUs that can share a model where nothing is said of the machine


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
    recommended.
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
    """The draws that all ways share. slower: times that serving takes longer than the model says, as it did in one of the published
    measurements that it was not fitted to.
    """

    requests: "Array"
    slower: "Array"
    mfu: "Array"
    prices: "Array"
    value: "Array | None"


class _Way(msgspec.Struct, frozen=True, kw_only=True):
    """What a way costs in each draw, and its volume-dependent part as a function of requests a month (for the middle of
    everything).
    """

    way: Way
    one_off: "Array"
    monthly: "Array"
    accuracy: "Array | None"
    replicas: int
    training: Training | None
    doubt: str
    middle: Callable[[float], float]  # requests a month → USD a month
    middle_one_off: float


class Rent(msgspec.Struct, frozen=True, kw_only=True):
    """usd: of one GPU for an hour, today. machine: GPUs of the machine that has that price, which are all paid; 0 for GPUs
    that are paid one by one, of which eight can share a model. source: where that stands.
    """

    usd: float
    machine: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.usd < float("inf") or self.machine < 0:
            raise InvalidInput("A GPU's hour must cost more than nothing.", next_step="Give gpu_hour_usd.")

    def paid(self, gpus: Any) -> Any:
        """How many GPUs are paid if so many are used: machines are rented whole."""
        each = self.machine or 1
        return np.ceil(np.asarray(gpus) / each) * each


def cheapest(question: Question, rents: Sequence[Rent]) -> Rent:
    """The one with which the self-hosted ways cost least together by the month, in the middle of everything. The cheapest GPU
    is not always on it: of a machine of eight, all are paid. Raises InvalidInput if the models run on none.
    """
    costs: dict[float, Rent] = {}
    wrong = InvalidInput(f"No price of {question.gpu} is known.", next_step="Give gpu_hour_usd.")
    for rent in rents:
        try:
            cost = sum(_hourly(question, way, rent) for way in question.ways if way.kind != "api")
        except InvalidInput as error:  # too small a machine for one of the models: why, if there is no other
            wrong = error
        else:
            costs.setdefault(cost, rent)
    if not costs:
        raise wrong
    return costs[min(costs)]


def _hourly(question: Question, way: Way, rent: Rent) -> float:
    gpus_each, seconds = _hosted(question, way, rent)
    return float(rent.paid(_replicas(question, seconds, question.requests_per_month.middle) * gpus_each)) * rent.usd


def decide(question: Question, rent: Rent, *, seed: int = 0, draws: int = 20_000) -> Result:
    """Raises InvalidInput, NotFound if a way cannot be computed."""
    if draws < 1:
        raise InvalidInput("Nothing is drawn.", next_step="Give draws of 1 or more.")
    random = np.random.default_rng(seed)
    world = _World(
        requests=_draw(random, question.requests_per_month, draws),
        mfu=_draw(random, question.mfu, draws),
        prices=_draw(random, question.prices, draws),
        value=None if question.value_usd is None else _draw(random, question.value_usd, draws),
        slower=random.choice(calibration.ratios(Efficiency(), "test"), draws),
    )
    ways = [_way(question, way, world, random, rent) for way in question.ways]
    judged = world.value is not None and all(way.accuracy is not None for way in ways)
    scores = np.stack([_score(question, way, world, judged=judged) for way in ways])
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


def _way(question: Question, way: Way, world: _World, random: "np.random.Generator", rent: Rent) -> _Way:
    draws = len(world.requests)
    one_off, monthly = _draw(random, way.one_off_usd, draws), _draw(random, way.monthly_usd, draws)
    accuracy = None if way.accuracy is None else _draw(random, way.accuracy, draws)
    if way.kind == "api":
        each = _bought(question, way)
        return _Way(
            way=way, one_off=one_off, monthly=monthly + each * world.requests * world.prices, accuracy=accuracy,
            replicas=0, training=None, doubt="", middle=lambda n: each * n * question.prices.middle + way.monthly_usd.middle,
            middle_one_off=way.one_off_usd.middle,
        )  # fmt: skip
    gpus_each, seconds = _hosted(question, way, rent)

    def hosting(requests: Any, slower: Any = 1.0) -> Any:
        """USD a month, at today's prices."""
        return rent.paid(_replicas(question, seconds * slower, requests) * gpus_each) * rent.usd * _MONTH

    trained, cost = _trained(question, way, world, random, rent)
    expected = float(np.mean(cost)) if trained else 0.0
    return _Way(
        way=way,
        one_off=one_off + cost,
        monthly=monthly + hosting(world.requests, world.slower) * world.prices,
        accuracy=accuracy,
        replicas=int(_replicas(question, seconds, question.requests_per_month.middle)),
        training=trained,
        doubt=_doubt(way),
        middle=lambda n: float(hosting(n)) * question.prices.middle + way.monthly_usd.middle,
        middle_one_off=way.one_off_usd.middle + expected,
    )


def _bought(question: Question, way: Way) -> float:
    """USD a request."""
    if way.read_usd is not None and way.made_usd is not None:
        read, made = way.read_usd, way.made_usd
    else:
        price = tokens.find(way.api)
        if price.read.currency != "USD":
            raise InvalidInput(
                f"{way.api} is priced in {price.read.currency}.", next_step="Give read_usd and made_usd."
            )
        read, made = price.read.micros / _MILLION, price.made.micros / _MILLION
    return ((question.prompt + way.extra_prompt) * read + question.output * made) / _MILLION


def _replicas(question: Question, seconds: Any, requests: Any) -> Any:
    """How many replicas so many requests a month need, each of `seconds` of a replica."""
    needed = requests / _SECONDS * question.peak * seconds / _PLANNED
    return np.maximum(np.ceil(needed), question.replicas)


def _hosted(question: Question, way: Way, rent: Rent) -> tuple[int, float]:
    """GPUs of a replica, and the seconds of a replica that a request takes. The fewest GPUs that keep the promise."""
    llm, engine, slo = llms.read(way.model), Engine(), Slo(ttft=question.ttft, tpot=question.tpot)
    offer = Offer(name=question.gpu, gpu=gpus.find(question.gpu).name, gpus=rent.machine or _TOGETHER, hourly=1)
    bucket = Bucket(kind=0, prompt=question.prompt + way.extra_prompt, output=question.output, rate=1.0)
    for option in planning.options(llm, [offer], engine, [1, 2, 4, 8]):
        pace = roofline.speed(option.replica, engine, Efficiency())
        seconds = capacity.work(pace, engine, bucket, slo)
        if seconds < float("inf"):
            return option.replica.tp, seconds
    raise InvalidInput(
        f"{way.name}: {llm.name} keeps no first token in {question.ttft:g} s and {question.tpot:g} s for each further on {question.gpu}.",
        next_step="Relax ttft and tpot, shorten the prompt, or choose another gpu.",
    )


def _trained(
    question: Question, way: Way, world: _World, random: "np.random.Generator", rent: Rent
) -> tuple[Training | None, "Array"]:
    """What training takes, and its cost in each draw."""
    if way.training_tokens is None or way.kind == "prompt":
        return None, np.zeros(len(world.requests))
    llm, gpu = llms.read(way.model), gpus.find(question.gpu)
    read = _draw(random, way.training_tokens, len(world.requests)) * way.epochs * way.runs
    total = training.flops(way.kind, llm, 1.0) * read
    at_least = int(rent.paid(training.gpus_at_least(way.kind, llm, gpu)))
    # An hour of the machines that the state needs is paid each run, however short it is.
    hours = np.maximum(training.gpu_hours(1.0, gpu, 1.0) * total / world.mfu, at_least * way.runs)
    cost = hours * rent.usd * world.prices
    found = Training(
        flops=_spread(total),
        gpu_hours=_spread(hours),
        gpus=at_least,
        days=_spread(hours / at_least / 24),
        cost_usd=_spread(cost),
    )
    return found, cost


def _doubt(way: Way) -> str:
    if way.training_tokens is None or way.kind == "prompt":
        return ""
    llm = llms.read(way.model)
    if not training.starved(way.kind, llm, way.training_tokens.high):
        return ""
    return (
        f"from scratch {llm.name} wants about {training.OPTIMAL * llm.parameters:.2g} tokens (20 for each parameter: Hoffmann et al. 2022); "
        f"it would get {way.training_tokens.high:.2g}"
    )


def _score(question: Question, way: _Way, world: _World, *, judged: bool) -> "Array":
    """What is compared: worth less cost, or, where worth is not known, cost alone."""
    cost = way.one_off + way.monthly * question.months
    if not judged or way.accuracy is None or world.value is None:
        return -cost
    return _worth(question, way, world) - cost


def _worth(question: Question, way: _Way, world: _World) -> "Array":
    if way.accuracy is None or world.value is None:
        raise InvalidInput("What a right answer is worth is not said.", next_step="Give value_usd and accuracy.")
    return world.requests * question.months * way.accuracy * world.value


def _outcome(question: Question, way: _Way, world: _World, standing: tuple[float, float], *, judged: bool) -> Outcome:
    total = way.one_off + way.monthly * question.months
    right = None if way.accuracy is None else world.requests * question.months * np.maximum(way.accuracy, 1e-9)
    return Outcome(
        name=way.way.name,
        one_off_usd=_spread(way.one_off),
        monthly_usd=_spread(way.monthly),
        total_usd=_spread(total),
        net_usd=_spread(_worth(question, way, world) - total) if judged else None,
        per_accurate_usd=None if right is None else _spread(total / right),
        best=standing[0],
        regret_usd=standing[1],
        replicas=way.replicas,
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
        cost = way.middle_one_off + way.middle(requests) * question.months
        if not judged or way.way.accuracy is None or question.value_usd is None:
            return -cost
        return requests * question.months * way.way.accuracy.middle * question.value_usd.middle - cost

    return score(first) - score(other)


def _drivers(world: _World, ways: list[_Way], order: list[int], scores: "Array") -> dict[str, float]:
    """Rank correlation (Spearman) of each range with the lead of the best over the next."""
    lead = scores[order[0]] - scores[order[1]]
    inputs: dict[str, Any] = {
        "volume": world.requests,
        "utilisation in training": world.mfu,
        "prices to come": world.prices,
        "how far serving is off the model": world.slower,
    }
    if world.value is not None:
        inputs["worth of an answer"] = world.value
    for number in order[:2]:
        way = ways[number]
        if way.accuracy is not None:
            inputs[f"accuracy of {way.way.name}"] = way.accuracy
        inputs[f"one-off cost of {way.way.name}"] = way.one_off
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
