"""What the platform's own operations cost, by stage of the road: measured time, priced by what a core-hour costs here.

Two bounds, both measured. At least: the processor time that was used, at the price of a core-hour. At most: every core of the machine
for as long as it ran, as if nothing else could have used it meanwhile. The first is the estimate, for other work does use the rest.
Storage, network, idle time between calls and people are not in it.
"""

from collections.abc import Iterable
from datetime import date

import msgspec

from macadam.errors import InvalidInput
from macadam.values import Money

ORDER = (
    "ingest",
    "features",
    "train",
    "register",
    "evaluate",
    "gate",
    "deploy",
    "serve",
    "seal",
    "feedback",
    "governance",
    "other",
    "platform",
)
# Operation, or the room before the point, → stage.
_STAGES = {
    "data": "ingest",
    "features": "features",
    "models.train": "train",
    "models.register_version": "register",
    "models.evaluate": "evaluate",
    "models": "gate",
    "serving.deploy": "deploy",
    "serving.rollback": "deploy",
    "serving.record_feedback": "feedback",
    "serving.gateway": "serve",
    "serving": "other",
    "journal": "seal",
    "governance": "governance",
}
GATEWAY = "serving.gateway"
"""What the time of gateways is reported as: they answer in a process of their own, by no operation."""
_SECONDS_PER_HOUR = 3600


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Sums for one operation on one asset on one day (UTC). wall, cpu: seconds."""

    project: str
    operation: str
    subject: str
    day: date
    calls: int
    wall: float
    cpu: float

    def __post_init__(self) -> None:
        if self.calls < 0 or not (0 <= self.wall < float("inf") and 0 <= self.cpu < float("inf")):
            raise InvalidInput(
                f"{self.calls} calls, {self.wall} s and {self.cpu} CPU seconds cannot be.",
                next_step="Report what was measured, of at least 0.",
            )


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What an hour of one core costs, on a machine of so many. source: who says so."""

    core_hour: Money
    cores: int
    source: str

    def __post_init__(self) -> None:
        if self.core_hour.micros < 0 or self.cores < 1:
            raise InvalidInput(
                f"{self.cores} cores at {self.core_hour} cannot be.", next_step="Correct MACADAM_PRICE_CPU_HOUR."
            )


class CostSpan(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its bounds, in one currency."""

    value: Money
    low: Money
    high: Money

    def plus(self, other: "CostSpan") -> "CostSpan":
        """The sum of two; raises InvalidInput for two currencies."""
        if self.value.currency != other.value.currency:
            raise InvalidInput(
                f"{self.value.currency} and {other.value.currency} cannot be added up.",
                next_step="Price everything in one currency.",
            )
        return _span(
            self.value.micros + other.value.micros,
            self.low.micros + other.low.micros,
            self.high.micros + other.high.micros,
            self.value.currency,
        )


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """wall, cpu: seconds, summed over calls; calls at the same time count their own wall time each."""

    stage: str
    calls: int
    wall: float
    cpu: float
    cost: CostSpan


PLATFORM = "platform"
"""The stage of what was done for no project: making projects, watching devices, importing bills, keeping the ledger."""
_NO_PROJECT = ("", "*")


def of(one: Measured) -> str:
    """The stage of what was measured."""
    return PLATFORM if one.project in _NO_PROJECT else stage_of(one.operation)


def stage_of(operation: str) -> str:
    """Of an operation for a project."""
    return _STAGES.get(operation) or _STAGES.get(operation.partition(".")[0], "other")


def priced(wall: float, cpu: float, price: Price) -> CostSpan:
    """Of measured seconds. Processor time above the wall time of all cores is possible only by a wrong clock: it counts."""
    used = _micros(cpu, price)
    whole = _micros(wall * price.cores, price)
    return _span(used, used, max(used, whole), price.core_hour.currency)


def _micros(core_seconds: float, price: Price) -> int:
    return round(core_seconds * price.core_hour.micros / _SECONDS_PER_HOUR)


def _span(value: int, low: int, high: int, currency: str) -> CostSpan:
    return CostSpan(
        value=Money(micros=value, currency=currency),
        low=Money(micros=low, currency=currency),
        high=Money(micros=high, currency=currency),
    )


def nothing(currency: str) -> CostSpan:
    return _span(0, 0, 0, currency)


def exactly(micros: int, currency: str) -> CostSpan:
    """What is known, as a bill says it."""
    return _span(micros, micros, micros, currency)


def total(spans: Iterable[CostSpan], currency: str) -> CostSpan:
    summed = nothing(currency)
    for span in spans:
        summed = summed.plus(span)
    return summed


def by_stage(measured: Iterable[Measured], price: Price) -> tuple[StageCost, ...]:
    """In the order of the road; stages that nothing was measured of are left out."""
    sums: dict[str, list[float]] = {}
    for one in measured:
        found = sums.setdefault(of(one), [0, 0.0, 0.0])
        for place, value in enumerate((one.calls, one.wall, one.cpu)):
            found[place] += value
    return tuple(
        StageCost(stage=stage, calls=int(calls), wall=wall, cpu=cpu, cost=priced(wall, cpu, price))
        for stage in ORDER
        if stage in sums
        for calls, wall, cpu in (sums[stage],)
    )
