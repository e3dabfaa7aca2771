"""Charges as columns: what is a machine's cost and can be divided by telemetry, and what stands in a line of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from macadam.compute.billing import sharing
from macadam.compute.billing.types import Charge
from macadam.compute.waterfall.types import Flag, Step
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
else:
    np = lazy("numpy")

DAY = 86_400_000
"""Milliseconds."""
MOST_GPUS = 100_000
"""Of one charge: more is a mistake, and is taken for unknown."""
_LONGEST = 3700  # days of one charge: ten years is the longest that anybody commits to
_LINES: tuple[Step, ...] = ("tax", "credit", "adjustment", "purchase")


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Each charge cut at midnight (UTC), so that sums by day are exact too. All arrays have one value for each slice.

    charge: its place in the list; begin, end: ms since 1970 (equal for a charge that lasts no time); micros: effective cost.
    """

    charge: "Ints"
    begin: "Ints"
    end: "Ints"
    micros: "Ints"

    @property
    def day(self) -> "Ints":
        """Days since 1970."""
        return self.begin // DAY


@dataclass(frozen=True, kw_only=True)
class Bill:
    """charges; lines: for each the step that it stands in by itself, '' for a machine's cost."""

    charges: list[Charge]
    lines: list[str]
    gpus: "Floats"  # 0 = unknown
    slices: Slices
    flags: tuple[Flag, ...]

    def totals(self) -> dict[str, int]:
        """Micros by currency: what every waterfall over this bill must sum to."""
        found: dict[str, int] = {}
        for charge in self.charges:
            money = charge.effective
            found[money.currency] = found.get(money.currency, 0) + money.micros
        return found


def read(charges: Iterable[Charge]) -> Bill:
    """Raises InvalidInput for charges with one id in one bill, or that last longer than ten years."""
    listed = list(charges)
    _refuse_twins(listed)
    gpus = np.array([charge.gpus for charge in listed], dtype=np.float64)
    wild = ~(np.isfinite(gpus) & (gpus >= 0) & (gpus <= MOST_GPUS))
    begin = np.array([_ms(charge.start) for charge in listed], dtype=np.int64)
    end = np.array([_ms(charge.end) for charge in listed], dtype=np.int64)
    micros = np.array([charge.effective.micros for charge in listed], dtype=np.int64)
    flags = [
        _flag("charges whose number of GPUs cannot be", [c for c, bad in zip(listed, wild, strict=True) if bad]),
        _flag("charges that end before they begin", [c for c in listed if c.end < c.start]),
    ]
    return Bill(
        charges=listed,
        lines=[line_of(charge) for charge in listed],
        gpus=np.where(wild, 0.0, gpus),
        slices=_sliced(listed, begin, np.maximum(begin, end), micros),
        flags=tuple(flag for flag in flags if flag.count),
    )


def line_of(charge: Charge) -> str:
    """The step that a charge stands in whatever telemetry says, '' if it pays for a machine's time."""
    if charge.category in _LINES:
        return charge.category
    if "unused" in (charge.commitment, charge.capacity):
        return "unused"
    machine = charge.gpus or charge.model or charge.device or charge.node or charge.resource
    return "" if machine else "other"


def is_gpu(charge: Charge) -> bool:
    """Whether a charge is for GPUs by what it says itself."""
    return bool(charge.gpus > 0 or charge.model or charge.device.startswith("gpu:"))


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _flag(what: str, charges: list[Charge]) -> Flag:
    return Flag(what=what, count=len(charges), example=charges[0].id if charges else "")


def _refuse_twins(charges: list[Charge]) -> None:
    seen: set[tuple[str, str]] = set()
    for charge in charges:
        key = (charge.bill, charge.id)
        if key in seen:
            raise InvalidInput(
                f"The charge {charge.id!r} of the bill {charge.bill!r} is there twice.",
                next_step="Import each bill once: macadam cost import refuses a second time.",
            )
        seen.add(key)


def _sliced(charges: list[Charge], begin: "Ints", end: "Ints", micros: "Ints") -> Slices:
    days = np.maximum(1, -(-end // DAY) - begin // DAY)
    if len(charges) and int(days.max()) > _LONGEST:
        longest = charges[int(days.argmax())]
        raise InvalidInput(
            f"The charge {longest.id!r} lasts {int(days.max())} days; at most {_LONGEST} can be.",
            next_step="Correct its period.",
        )
    charge, starts, ends, parts = sharing.by_days(begin, end, micros, DAY)
    return Slices(charge=charge, begin=starts, end=ends, micros=parts)
