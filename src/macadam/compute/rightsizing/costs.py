"""What the ways to get answers cost, from amounts that follow from one another: tokens bought, replicas rented, FLOPs trained.

For single values and for arrays of draws alike, so that what is drawn and what is explained come from the same lines.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import gpus, llms, tokens
from macadam.compute.catalogue.llms import Llm
from macadam.compute.rightsizing import capacity, planning, roofline, training
from macadam.compute.rightsizing.capacity import Bucket
from macadam.compute.rightsizing.questions import Question, Way
from macadam.compute.rightsizing.types import Efficiency, Engine, Offer, Slo
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

MONTH = 730.0  # hours: a year's 8,760 over twelve
# Of a replica's time: fleets that kept their promise in the simulator were planned at 0.47 to 0.68 of it.
PLANNED = 0.6

_MILLION = 1e6
_SECONDS = MONTH * 3600
_TOGETHER = 8  # GPUs that can share a model where nothing is said of the machine


class Rent(msgspec.Struct, frozen=True, kw_only=True):
    """usd: of one GPU for an hour, today. machine: GPUs of the machine that has that price, which are all paid; 0 for GPUs
    that are paid one by one, of which eight can share a model. source: where that stands. gpu: which, '' for the question's.
    """

    usd: float
    machine: int = 0
    source: str = ""
    gpu: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.usd < float("inf") or self.machine < 0:
            raise InvalidInput("A GPU's hour must cost more than nothing.", next_step="Give gpu_hour_usd.")

    def paid(self, gpus: Any) -> Any:
        """How many GPUs are paid if so many are used: machines are rented whole."""
        each = self.machine or 1
        return np.ceil(np.asarray(gpus) / each) * each


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """USD for a million tokens: read, read before, made."""

    read: float
    cached: float
    made: float


class Hosted(msgspec.Struct, frozen=True, kw_only=True):
    """gpus: that share a replica. seconds: of a replica that a request takes."""

    gpus: int
    seconds: float


def months(question: Question) -> list[float]:
    """The part of each month that counts: 1, but for a last one that is broken off."""
    whole = int(question.months)
    return [1.0] * whole + ([question.months - whole] if question.months > whole else [])


def volumes(question: Question, requests: Any, growth: Any) -> list[Any]:
    """Requests of each month at its full length, the first month's as given."""
    return [requests * growth**month for month in range(len(months(question)))]


def total(question: Question, requests: Any, growth: Any) -> Any:
    """Requests over all months."""
    return sum(
        part * volume for part, volume in zip(months(question), volumes(question, requests, growth), strict=True)
    )


def rates(question: Question, way: Way) -> Rates:
    """What tokens cost. Raises InvalidInput if what is asked for has no price, NotFound."""
    if way.read_usd is not None and way.made_usd is not None:
        if way.cached.high > 0 and way.cached_usd is None:
            raise InvalidInput(f"{way.name}: tokens from the cache have no price.", next_step="Give cached_usd.")
        return Rates(
            read=way.read_usd, cached=way.read_usd if way.cached_usd is None else way.cached_usd, made=way.made_usd
        )
    price = tokens.find(way.api)
    if price.read.currency != "USD":
        raise InvalidInput(f"{way.api} is priced in {price.read.currency}.", next_step="Give read_usd and made_usd.")
    if price.most and question.prompt + way.extra_prompt > price.most:
        raise InvalidInput(
            f"{way.api} has this price for prompts of up to {price.most} tokens, and these have {question.prompt + way.extra_prompt}.",
            next_step="Give read_usd and made_usd of longer prompts.",
        )
    if way.batch and price.batch is None:
        raise InvalidInput(
            f"What {way.api} costs in batches is not known.", next_step="Give read_usd and made_usd of the batch."
        )
    if way.cached.high > 0 and way.cached_usd is None and price.cached is None:
        raise InvalidInput(f"What {way.api} costs from its cache is not known.", next_step="Give cached_usd.")
    part = price.batch if way.batch and price.batch is not None else 1.0
    read = price.read.micros / _MILLION * part
    listed = price.cached.micros / _MILLION if price.cached is not None else read
    # Whether a batch's discount also holds for the cache differs; the lower of the two is charged, and no lower.
    cached = min(listed if way.cached_usd is None else way.cached_usd, read)
    return Rates(read=read, cached=cached, made=price.made.micros / _MILLION * part)


def bought(question: Question, way: Way, cached: Any) -> Any:
    """USD a request. cached: part of the prompt."""
    price = rates(question, way)
    prompt = question.prompt + way.extra_prompt
    return (
        prompt * (1 - cached) * price.read + prompt * cached * price.cached + question.output * price.made
    ) / _MILLION


def hosted(question: Question, way: Way, rent: Rent) -> Hosted:
    """The fewest GPUs that keep the promise. Raises InvalidInput if none do."""
    llm, engine, slo = _asked(question, way), Engine(), Slo(ttft=question.ttft, tpot=question.tpot)
    gpu = rent.gpu or question.gpu
    offer = Offer(name=gpu, gpu=gpus.find(gpu).name, gpus=rent.machine or _TOGETHER, hourly=1)
    prompt = question.prompt + way.extra_prompt
    bucket = Bucket(kind=0, prompt=prompt, output=question.output, rate=1.0, cached=int(way.cached.middle * prompt))
    for option in planning.options(llm, [offer], engine, [1, 2, 4, 8]):
        pace = roofline.speed(option.replica, engine, Efficiency())
        seconds = capacity.work(pace, engine, bucket, slo)
        if seconds < float("inf"):
            return Hosted(gpus=option.replica.tp, seconds=seconds)
    raise InvalidInput(
        f"{way.name}: {llm.name} keeps no first token in {question.ttft:g} s and {question.tpot:g} s for each further on {gpu}.",
        next_step="Relax ttft and tpot, shorten the prompt, or choose another gpu.",
    )


def _asked(question: Question, way: Way) -> Llm:
    """The way's model. Raises InvalidInput if a request is longer than what it reads."""
    llm, longest = llms.read(way.model), question.prompt + way.extra_prompt + question.output
    if 0 < llm.context < longest:
        raise InvalidInput(
            f"{way.name}: a request of {longest} tokens is longer than the {llm.context} that {llm.name} reads.",
            next_step="Shorten prompt or extra_prompt, or choose a model that reads more.",
        )
    return llm


def replicas(question: Question, seconds: Any, requests: Any) -> Any:
    """How many replicas so many requests a month need in their busiest hour, each of `seconds` of a replica."""
    needed = requests / _SECONDS * question.peak * seconds / PLANNED
    return np.maximum(np.ceil(needed), question.replicas)


def hosting(question: Question, own: Hosted, rent: Rent, requests: Any, slower: Any = 1.0) -> Any:
    """USD a month at today's prices, day and night. slower: times that serving takes longer than the model says."""
    return rent.paid(replicas(question, own.seconds * slower, requests) * own.gpus) * rent.usd * MONTH


def used(question: Question, own: Hosted, rent: Rent, requests: float) -> float:
    """The part of the GPU time paid in a month in which requests are served; the rest is idle, and paid."""
    paid = float(rent.paid(replicas(question, own.seconds, requests) * own.gpus))
    return min(1.0, requests * own.seconds * own.gpus / (paid * _SECONDS))


def to_train(question: Question, rents: Sequence[Rent]) -> Rent:
    """The one on which all trainings together cost least, in the middle of everything. The cheapest GPU is not always on it: of a
    machine of eight, all are paid. Raises InvalidInput if there is none.
    """
    if not rents:
        raise InvalidInput(f"No price of {question.gpu} is known.", next_step="Give gpu_hour_usd.")
    able = [rent for rent in rents if all(_trainable(question, way, rent) for way in question.ways)]
    if not able:
        raise InvalidInput(
            f"No machine of {question.gpu} that has a price has as many GPUs as training needs, nor eight.",
            next_step="Choose another gpu, or give gpu_hour_usd.",
        )
    return min(able, key=lambda rent: (sum(_training(question, way, rent) for way in question.ways), rent.usd))


def _trainable(question: Question, way: Way, rent: Rent) -> bool:
    """GPUs that share a training stand in one machine, or in whole ones of eight: smaller ones have no network between them that
    carries it.
    """
    if way.training_tokens is None or rent.machine in (0, _TOGETHER) or rent.machine > _TOGETHER:
        return True
    gpu = gpus.find(rent.gpu or question.gpu)
    return training.gpus_at_least(way.kind, llms.read(way.model), gpu) <= rent.machine


def _training(question: Question, way: Way, rent: Rent) -> float:
    if way.training_tokens is None:
        return 0.0
    llm, gpu = llms.read(way.model), gpus.find(rent.gpu or question.gpu)
    read = way.training_tokens.middle * way.epochs * way.runs
    flops = training.flops(way.kind, llm, read, training.sequence(question, way))
    least = float(rent.paid(training.gpus_at_least(way.kind, llm, gpu))) * way.runs
    return max(training.gpu_hours(flops, gpu, question.mfu.middle), least) * rent.usd


def cheapest_of(question: Question, way: Way, rents: Sequence[Rent]) -> Rent:
    """The one on which that way is hosted for least: a small model needs no large GPU. Raises InvalidInput if it runs on none."""
    _asked(question, way)
    found: dict[float, Rent] = {}
    for rent in rents:
        try:
            found.setdefault(_over_months(question, way, rent), rent)
        except InvalidInput:  # this one is too small or too slow; another may do
            continue
    if not found:
        raise InvalidInput(
            f"{way.name}: {way.model} keeps no first token in {question.ttft:g} s and {question.tpot:g} s for each further on any GPU that has a price.",
            next_step="Relax ttft and tpot, shorten the prompt, or give gpu and gpu_hour_usd.",
        )
    return found[min(found)]


def _over_months(question: Question, way: Way, rent: Rent) -> float:
    own = hosted(question, way, rent)
    each = volumes(question, question.requests_per_month.middle, question.growth.middle)
    return sum(
        part * float(hosting(question, own, rent, volume)) for part, volume in zip(months(question), each, strict=True)
    )
