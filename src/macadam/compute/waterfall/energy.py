"""Energy and CO₂ of each owner, from telemetry: counters first, power where there is no counter, and what is not known as an interval.

Telemetry's `energy_joules` is the GPU's own counter where it has one, else its power over time. Time that has neither lies
between nothing and the GPU's power limit: the estimate takes the mean power of the time that was measured. What a building needs
beside its machines (PUE, ISO/IEC 30134-2) and how dirty a grid is come in as intervals too, and the product says how wide it is.
Emissions are location-based (GHG Protocol, Scope 2 Guidance, 2015): of the grid, not of contracts. Making the hardware is not in them.
"""

from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.waterfall import profiles
from macadam.compute.waterfall.seen import LONGEST
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")

_JOULES_PER_KWH = 3.6e6


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate and its bounds, all at least 0."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high < float("inf"):
            raise InvalidInput(
                f"{self.low} ≤ {self.value} ≤ {self.high} does not hold.",
                next_step="Give an estimate between its bounds.",
            )

    def times(self, other: "Span") -> "Span":
        """The product of what is not below 0: bounds multiply."""
        return Span(value=self.value * other.value, low=self.low * other.low, high=self.high * other.high)

    @classmethod
    def exactly(cls, value: float) -> "Span":
        return cls(value=value, low=value, high=value)


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What a kWh of a grid stands for in CO₂ equivalent, in the mean of a year; dated: when its source was published."""

    region: str
    grams_per_kwh: Span
    year: int
    dated: date
    source: str


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner's devices used. measured: part of its device time that energy was measured in. devices_kwh: of the
    devices; facility_kwh: with the building's share; co2_kg: None if the grid is not known.
    """

    owner: str
    project: str
    gpu_hours: float
    measured: float
    devices_kwh: Span
    facility_kwh: Span
    co2_kg: Span | None


def by_owner(usage: "pa.Table", *, pue: Span, grams_per_kwh: Span | None) -> tuple[Energy, ...]:
    """usage: rows of telemetry's schema; suspect ones count as not measured. The most energy first.

    pue: facility energy / machine energy, at least 1. grams_per_kwh: CO₂ equivalent of the grid. Raises InvalidInput.
    """
    if pue.low < 1:
        raise InvalidInput(f"A PUE of {pue.low} would make energy.", next_step="Give 1 or more.")
    found = [_one(rows, pue, grams_per_kwh) for rows in _groups(usage)]
    return tuple(sorted(found, key=lambda one: (-one.devices_kwh.value, one.project, one.owner)))


def _groups(usage: "pa.Table") -> list[list[dict[str, Any]]]:
    """Sums by owner, project and GPU model: [measured, not measured] seconds of GPUs, and joules. Nothing counts what machines
    take beside their GPUs: that is in the building's share, with wide bounds.
    """
    usage = usage.filter(pc.starts_with(usage["device"].combine_chunks().fill_null(""), pattern="gpu:"))
    joules = np.array(usage["energy_joules"].to_numpy(), dtype=np.float64)
    told = np.array(usage["seconds"].to_numpy(), dtype=np.float64)
    seconds = np.where(np.isfinite(told) & (told > 0) & (told <= LONGEST), told, 0.0)
    share = np.array(usage["share"].to_numpy(), dtype=np.float64)
    time = seconds * np.where(np.isnan(share), 1.0, share.clip(0, 1)) * profiles.slices(usage)
    doubted = np.array([bool(text) for text in usage["suspect"].to_pylist()], dtype=np.bool_)
    known = np.isfinite(joules) & (joules >= 0) & ~doubted
    columns: dict[str, Any] = {
        name: usage[name].combine_chunks().fill_null("") for name in ("project", "owner", "model")
    }
    columns |= {
        "joules": pa.array(np.where(known, joules, 0.0)),
        "known": pa.array(np.where(known, time, 0.0)),
        "dark": pa.array(np.where(known, 0.0, time)),
    }
    table = pa.table(columns)
    summed = table.group_by(["project", "owner", "model"]).aggregate([(n, "sum") for n in ("joules", "known", "dark")])
    owners: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for summed_row in summed.to_pylist():
        row = {name.removesuffix("_sum"): value for name, value in summed_row.items()}
        if row["owner"]:
            owners.setdefault((row["project"], row["owner"]), []).append(row)
    return list(owners.values())


def _one(rows: list[dict[str, Any]], pue: Span, grams_per_kwh: Span | None) -> Energy:
    devices = Span.exactly(0)
    for row in rows:
        kwh = _kwh(row["joules"], row["known"], row["dark"], row["model"])
        devices = Span(value=devices.value + kwh.value, low=devices.low + kwh.low, high=devices.high + kwh.high)
    facility = devices.times(pue)
    time = sum(row["known"] + row["dark"] for row in rows)
    per_kilogram = Span.exactly(1e-3)
    return Energy(
        owner=rows[0]["owner"],
        project=rows[0]["project"],
        gpu_hours=time / 3600,
        measured=sum(row["known"] for row in rows) / time if time else 0.0,
        devices_kwh=devices,
        facility_kwh=facility,
        co2_kg=None if grams_per_kwh is None else facility.times(grams_per_kwh).times(per_kilogram),
    )


def _kwh(joules: float, known: float, dark: float, model: str) -> Span:
    """Unmeasured time takes between nothing and the power limit: of its GPU, or of the hungriest one if it is not known."""
    name = gpus.recognise(model) if model else ""
    limit = gpus.gpus()[name].power if name else max(gpu.power for gpu in gpus.gpus().values())
    mean = joules / known if known else limit / 2
    most = max(limit, mean)
    guess = joules + dark * mean
    return Span(
        value=guess / _JOULES_PER_KWH, low=joules / _JOULES_PER_KWH, high=(joules + dark * most) / _JOULES_PER_KWH
    )
