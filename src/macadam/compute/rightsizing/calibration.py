"""How far the model is from what others measured: published figures, what it says of them, and the error that follows.

The efficiencies were fitted on the rows marked 'fit' (TensorRT-LLM with batches that stay together: no scheduler to
blame) and are judged on those marked 'test', which it never saw: other engines, other years, other models, engines
under maximum load.
"""

import importlib.resources
import math
import statistics
from collections.abc import Iterable
from functools import cache
from typing import Literal

import msgspec

from macadam.compute.catalogue import gpus, llms
from macadam.compute.rightsizing import capacity, roofline
from macadam.compute.rightsizing.types import PHYSICS, Efficiency, Engine, Format, Replica

__all__ = ["PHYSICS", "Error", "Measured", "error", "predicted", "published", "ratios"]

_ALL_MEMORY = 0.95  # the share that these benchmarks gave (kv_cache_free_gpu_mem_fraction)
_BATCH_AT_LOAD = 2048  # more than fits; memory decides


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One published figure. kind: 'static' batch, 'first' token, a 'step' of decoding, or a steady 'load', whose batch
    is the number of requests at once, 0 for as many as fit.
    """

    kind: Literal["static", "first", "step", "load"]
    gpu: str
    model: str
    format: Format
    tp: int
    batch: int
    prompt: int
    output: int
    value: float
    unit: str
    source: str
    use: Literal["fit", "test"]


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """Of what the model says over what was measured: 1.2 means 20% too much. rows: how many figures."""

    rows: int
    median: float
    low: float
    high: float
    typical: float  # median of how far it is off, either way: 0.1 is 10%


@cache
def published() -> tuple[Measured, ...]:
    """All figures, with their sources."""
    text = importlib.resources.files("macadam.compute.rightsizing").joinpath("published.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[Measured, ...])


def predicted(row: Measured, efficiency: Efficiency) -> float:
    """What the model says of it, in the row's unit."""
    replica = Replica(llm=llms.find(row.model), gpu=gpus.find(row.gpu), tp=row.tp)
    kv: Format = "fp8" if row.format == "fp8" else "fp16"  # what these benchmarks kept keys and values in
    engine = Engine(weights=row.format, kv=kv, memory_share=_ALL_MEMORY, most=_BATCH_AT_LOAD)
    pace = roofline.speed(replica, engine, efficiency)
    if row.kind == "first":
        return _prefill(pace, 1, row.prompt)
    if row.kind == "step":
        return pace.decode(row.batch, row.batch * (row.prompt + row.output // 2))
    if row.kind == "static":
        return row.batch * row.output / (_prefill(pace, row.batch, row.prompt) + _decoding(pace, row))
    together = min(row.batch or _BATCH_AT_LOAD, pace.kv_tokens // (row.prompt + row.output // 2))
    return together / capacity.iteration(pace, together, row.prompt, row.output)


def ratios(efficiency: Efficiency, use: str) -> list[float]:
    """Predicted over measured, turned so that above 1 means that the model promises too much speed."""
    rows = [row for row in published() if row.use == use]
    said = [predicted(row, efficiency) / row.value for row in rows]
    return [ratio if row.kind in ("static", "load") else 1 / ratio for row, ratio in zip(rows, said, strict=True)]


def loss(efficiency: Efficiency) -> float:
    """What the efficiencies were chosen to make small: the mean of how far the fitted rows are off, as |ln| of the
    ratio.
    """
    return statistics.fmean(abs(math.log(ratio)) for ratio in ratios(efficiency, "fit"))


def rows_of(gpu: str) -> int:
    """How many published figures are of that GPU. None: what is said of it stands on its data sheet and on the others'
    efficiencies.
    """
    return sum(1 for row in published() if row.gpu == gpu)


def error(found: Iterable[float]) -> Error:
    """Sums ratios up."""
    ratios_ = sorted(found)
    return Error(
        rows=len(ratios_),
        median=statistics.median(ratios_),
        low=ratios_[0],
        high=ratios_[-1],
        typical=statistics.median(max(ratio, 1 / ratio) - 1 for ratio in ratios_),
    )


def _prefill(pace: roofline.Speed, batch: int, prompt: int) -> float:
    tokens = batch * prompt
    return pace.fixed + pace.matrices(tokens, batch) + batch * pace.prompt(prompt, 0) + pace.exchange * tokens


def _decoding(pace: roofline.Speed, row: Measured) -> float:
    middle = row.batch * (row.prompt + row.output // 2)
    return (row.output - 1) * pace.decode(row.batch, middle)
