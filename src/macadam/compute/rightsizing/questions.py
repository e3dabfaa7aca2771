"""The question behind `macadam decide train`: a task, its volume, what an accurate answer is worth, and the ways to get
answers.

What is not known for sure is given as a range, in which any value counts as equally likely.
"""

import math
from typing import Literal

import msgspec

from macadam.errors import InvalidInput

Kind = Literal["api", "prompt", "lora", "finetune", "scratch"]


_MOST = 1e18  # of any amount: beyond the world's tokens and money, and far from where floats end
_MONTHS = 1200
_A_DAY = 0.03  # months
_TOKENS = 10_000_000  # of one request; above, a column was mistaken for another
_USD = 1e6  # for a million tokens, or for a GPU's hour
_TIMES = 1_000_000  # epochs, runs, replicas; and the busiest hour over the mean


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raises InvalidInput if it is turned around, not finite or beyond 1e18."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= _MOST:  # NaN is not above 0
            raise InvalidInput(
                f"{self.low} to {self.high} is no range.", next_step=f"Give low and high between 0 and {_MOST:g}."
            )

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


_COIN = 0.5
NONE = Range(low=0.0, high=0.0)
SAME = Range(low=1.0, high=1.0)
_LEAST_GROWTH = 0.5  # below, a part was mistaken for a factor
# Model FLOPs utilisation where none was measured: GPT-3 21%, PaLM 46% (Chowdhery et al. 2022, arXiv:2204.02311, table
# 3),
# Llama 3 38 to 43% (arXiv:2407.21783, table 4); those had better engineers and worse networks than most.
MFU = Range(low=0.25, high=0.45)
# Of a price in the months to come, against the list price today.
PRICES = Range(low=0.75, high=1.1)


class Way(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to get answers.

    cached: part of the prompt that was read before, by the provider or by one's own engine; cached_usd: what a million of those
    tokens cost. batch: requests may wait, at the catalogue's price for that. sequence: tokens of one example in training, 0: a
    request's. sunk_usd: what is spent already, which decides nothing and is only told. api: the name of a price in the catalogue of tokens; or read_usd and made_usd for a million tokens. model: a known
    model or the path of its config.json, for all but api. extra_prompt: tokens of instructions and examples with each
    request. training_tokens: read once, epochs times; runs: how often, trials of settings included. one_off_usd:
    labels, people, evaluation. monthly_usd: upkeep. accuracy: part of the answers that are right, measured on the task;
    without it, the way is not judged by its worth.
    """

    name: str
    kind: Kind
    api: str = ""
    read_usd: float | None = None
    made_usd: float | None = None
    model: str = ""
    extra_prompt: int = 0
    training_tokens: Range | None = None
    epochs: float = 1.0
    runs: int = 1
    one_off_usd: Range = NONE
    monthly_usd: Range = NONE
    accuracy: Range | None = None
    cached: Range = NONE
    cached_usd: float | None = None
    batch: bool = False
    sequence: int = 0
    sunk_usd: float = 0.0

    def __post_init__(self) -> None:
        if self.kind == "api" and not self.api and (self.read_usd is None or self.made_usd is None):
            raise self._wrong("has no price", "Name its api, or give read_usd and made_usd.")
        if self.kind != "api" and not self.model:
            raise self._wrong("has no model", "Give model: a known model's name, or the path of its config.json.")
        if self.kind in ("lora", "finetune", "scratch") and (
            self.training_tokens is None or self.training_tokens.low <= 0
        ):
            raise self._wrong("is trained, but on how many tokens is not said", "Give training_tokens.")
        if self.accuracy is not None and self.accuracy.high > 1:
            raise self._wrong(f"is right in {self.accuracy.high} of the answers", "Give accuracy between 0 and 1.")
        if not 0 <= self.extra_prompt <= _TOKENS or not 1 <= self.runs <= _TIMES or not 0 < self.epochs <= _TIMES:
            raise self._wrong(
                "has a count that cannot be",
                f"Give extra_prompt of 0 to {_TOKENS}, runs of 1 and epochs above 0, up to {_TIMES}.",
            )
        prices = (self.read_usd, self.made_usd, self.cached_usd)
        if not all(0 <= price <= _USD for price in prices if price is not None):
            raise self._wrong("has a price that cannot be", f"Give read_usd, made_usd and cached_usd of 0 to {_USD:g}.")
        self._check_kind()
        self._check_discounts()

    def _check_kind(self) -> None:
        """What would be left out of the sum unsaid is refused."""
        if (self.read_usd is None) != (self.made_usd is None):
            raise self._wrong("has one price of two", "Give both read_usd and made_usd, or neither.")
        if self.kind != "api" and (self.api or self.read_usd is not None or self.cached_usd is not None):
            raise self._wrong(
                "is hosted, and has a price by the token too", "Leave out api, read_usd, made_usd and cached_usd."
            )
        if self.kind in ("api", "prompt") and self.training_tokens is not None:
            raise self._wrong(
                f"is of the kind {self.kind}, which trains nothing, and has training_tokens",
                "Leave them out, or give kind: lora, finetune or scratch; what a provider charges for training is one_off_usd.",
            )

    def _check_discounts(self) -> None:
        if not self.cached.high < 1:
            raise self._wrong(f"has {self.cached.high} of each prompt cached", "Give a part below 1.")
        if self.batch and (self.kind != "api" or self.read_usd is not None):
            raise self._wrong(
                "is paid in batches, at no price of the catalogue",
                "Give read_usd and made_usd of the batch, without batch.",
            )
        if not 0 <= self.sequence <= _TOKENS or not 0 <= self.sunk_usd <= _MOST:
            raise self._wrong(
                "has a count that cannot be", f"Give sequence of 0 to {_TOKENS} and sunk_usd of 0 or more."
            )

    def _wrong(self, what: str, next_step: str) -> InvalidInput:
        return InvalidInput(f"The way {self.name!r} {what}.", next_step=next_step)


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """gpu: to train on, and with gpu_hour_usd, one's own price of it, to serve on too. serving_gpu: to serve on; '' is the
    cheapest that keeps the promise, for each way. ttft, tpot: the promise that self-hosted models must keep, seconds. peak: the busiest hour over the mean.
    replicas: at least so many run, day and night. mfu: measured if you have it. prices, gpu_prices: of tokens and of GPUs in
    the months to come over today's, which do not move together. growth: requests of a month over those of the one before. confidence: in how many of the draws a recommendation must be best, unless choosing it wrongly costs, in
    the mean, no more than tolerance, as a part of all its costs.
    """

    task: str
    months: float
    requests_per_month: Range
    prompt: int
    output: int
    ways: tuple[Way, ...]
    value_usd: Range | None = None
    gpu: str = "h100-sxm-80gb"
    gpu_hour_usd: float | None = None
    serving_gpu: str = ""
    mfu: Range = MFU
    prices: Range = PRICES
    gpu_prices: Range = PRICES
    growth: Range = SAME
    ttft: float = 2.0
    tpot: float = 0.1
    peak: float = 3.0
    replicas: int = 1
    confidence: float = 0.8
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if len(self.ways) <= 1 or len({way.name for way in self.ways}) < len(self.ways):
            raise InvalidInput("A choice needs two ways with names of their own.", next_step="Add ways.")
        counts = ((self.prompt, _TOKENS), (self.output, _TOKENS), (self.replicas, _TIMES), (self.peak, _TIMES))
        if not (0 < self.ttft <= _MOST and 0 < self.tpot <= _MOST):
            raise InvalidInput(
                f"No promise is a first token in {self.ttft:g} s and {self.tpot:g} s for each further.",
                next_step="Give ttft and tpot in seconds above zero.",
            )
        if not _A_DAY <= self.months <= _MONTHS or not all(1 <= said <= most for said, most in counts):
            raise InvalidInput(
                f"{self.months} months, {self.prompt} and {self.output} tokens, {self.replicas} replicas or a peak of {self.peak} cannot be.",
                next_step=f"Give {_A_DAY} to {_MONTHS} months, prompt and output of 1 to {_TOKENS}, and replicas and peak of 1 or more.",
            )
        least = min(self.requests_per_month.low, self.mfu.low, self.prices.low, self.gpu_prices.low)
        if least <= 0 or self.mfu.high > 1:
            raise InvalidInput(
                "Volume, mfu and prices must be above zero, and mfu at most 1.", next_step="Correct them."
            )
        self._check_growth()
        if not 0 <= self.tolerance < 1:
            raise InvalidInput("Tolerance lies between 0 and 1.", next_step="Correct it.")
        if not _COIN < self.confidence < 1 or (self.gpu_hour_usd is not None and not 0 < self.gpu_hour_usd <= _USD):
            raise InvalidInput(
                f"Confidence lies between 0.5 and 1; a GPU's hour costs more than nothing and at most {_USD:g}.",
                next_step="Correct them.",
            )

    def _check_growth(self) -> None:
        if self.growth.low < _LEAST_GROWTH:
            raise InvalidInput(
                f"Requests would fall to {self.growth.low:g} of the month before, each month.",
                next_step="Give growth as a factor: 1.02 is 2% more each month.",
            )
        if math.log(self.requests_per_month.high) + self.months * math.log(self.growth.high) > math.log(_MOST):
            raise InvalidInput(
                f"{self.growth.high:g} times as many each month leads beyond {_MOST:g} requests.",
                next_step="Give growth as a factor: 1.02 is 2% more each month.",
            )
