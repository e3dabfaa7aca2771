"""Samples in the order in which they are judged and folded: by device and instant, each reading once.

Deliveries come twice, late and from several sources; what is made of them here depends on what they say and not on how
they came, which is what makes a repeated delivery harmless.
"""

import itertools
from functools import cached_property
from typing import TYPE_CHECKING, Any

from macadam.compute.catalogue import buses, gpus
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")

SECOND = 1_000_000
"""µs, the unit of all instants here."""
LONGEST = 330
"""Seconds that one reading can ever stand for: of a device that is read every five minutes, a little late. What lies between
two readings further apart was not seen."""
_USUAL, _MISSED, _STEPS = 120, 2.5, 3
"""Seconds that a reading can stand for at least; how many of a device's own steps, so that one that was missed is no gap; and
the steps that it takes to know them."""
_BEST_FIRST = ("nvml", "dcgm", "prometheus", "host")
"""Where several sources read one device in one minute, the nearest to the device counts."""
_COMPARED = (
    "gpu_active",
    "gr_active",
    "sm_active",
    "sm_occupancy",
    "tensor_active",
    "dram_active",
    "memory_used",
    "power",
    "energy",
    "temperature",
    "host_cpu",
)
_COMPARED_IF_KNOWN = ("throttle", "gpu_power", "gpu_energy", "nvlink", "pcie", "host_cores")
"""What older deliveries lack: the same reading with and without them is no contradiction."""
_NEVER = -(2**62)
_RAISED = 1.5


class Frame:
    """Samples (a table of `sample_schema`) sorted by device, instant and part, without repetitions.

    device, at (µs), part: codes and instants by row, shape (n,). A reading is one device at one instant: several rows if
    several pods share it. reading: its number by row; first: each reading's first row, shape (r,).
    """

    def __init__(self, samples: "pa.Table", *, judged: bool = True) -> None:
        """judged: leave out what a nearer source measured too, and of contradictions all but one; else only repetitions."""
        rows = samples.combine_chunks()
        self.devices, device = _codes(rows, "device")
        _, part = _codes(rows, "part")
        at = _instants(rows, "at")
        received = _instants(rows, "received")
        order = np.lexsort((received, part, at, device))
        rows, device, part, at = rows.take(order), device[order], part[order], at[order]
        kept, conflicts, self.duplicates = _each_once(rows, device, at, part, all_conflicts=not judged)
        if judged:
            kept &= _nearest_source(rows, device, at)
        self.rows = rows if kept.all() else rows.take(np.flatnonzero(kept))
        self.device: Ints = device[kept]
        self.at: Ints = at[kept]
        self.conflicting: Mask = conflicts[kept]
        new = np.ones(len(self.at), dtype=bool)
        new[1:] = (self.device[1:] != self.device[:-1]) | (self.at[1:] != self.at[:-1])
        self.first: Ints = np.flatnonzero(new)
        self.reading: Ints = np.cumsum(new) - 1

    def __len__(self) -> int:
        return len(self.at)

    def number(self, name: str) -> "Floats":
        """A column as 64-bit floats; NaN where it is null, or where it is NaN: see `given`."""
        return np.asarray(self.rows.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)

    def given(self, name: str) -> "Mask":
        """Where a column is not null."""
        return np.asarray(self.rows.column(name).is_valid().to_numpy(zero_copy_only=False), dtype=bool)

    def text(self, name: str) -> "tuple[list[str], Ints]":
        """A column's values and, by row, which of them; null is ''."""
        return _codes(self.rows, name)

    @cached_property
    def received(self) -> "Ints":
        """µs, far in the past where a sample was not read live."""
        return _instants(self.rows, "received")

    @cached_property
    def before(self) -> "Mask":
        """By reading: whether the one before it is of the same device."""
        same = np.zeros(len(self.first), dtype=bool)
        same[1:] = self.device[self.first[1:]] == self.device[self.first[:-1]]
        return same

    @cached_property
    def seconds(self) -> "Floats":
        """By reading: the time since the one before, for which it stands; 0 for the first and after a gap."""
        at = self.at[self.first]
        since = np.zeros(len(at))
        since[1:] = (at[1:] - at[:-1]) / SECOND
        return np.where(self.before & (since <= self._longest(since)), since, 0.0)

    def _longest(self, since: "Floats") -> "Floats":
        """By reading: seconds that it can stand for, by how often its device is read."""
        owner = self.device[self.first]
        bounds = np.searchsorted(owner, np.arange(len(self.devices) + 1))
        each = np.full(len(self.devices), float(_USUAL))
        for number, (low, high) in enumerate(itertools.pairwise(bounds.tolist())):
            if high - low > _STEPS:
                usual = float(np.median(since[low + 1 : high]))
                each[number] = min(max(_MISSED * usual, _USUAL), LONGEST)
        return each[owner]

    @cached_property
    def counter(self) -> "Floats":
        """By row: mJ that the counter shows, for a MIG slice that of its whole device."""
        own = self.number("energy")
        return np.where(np.isnan(own), self.number("gpu_energy"), own)

    @cached_property
    def drawn(self) -> "Floats":
        """By row: W, for a MIG slice those of its whole device."""
        own = self.number("power")
        return np.where(self.given("power"), own, self.number("gpu_power"))

    @cached_property
    def counted(self) -> "Floats":
        """By reading: joules that the device's counter grew by since the one before; NaN if it has none."""
        energy = self.counter[self.first]
        grown = np.full(len(energy), np.nan)
        grown[1:] = (energy[1:] - energy[:-1]) / 1000
        return np.where(self.before, grown, np.nan)

    @cached_property
    def unchanged(self) -> "Floats":
        """By reading: seconds from the last one at which the energy counter moved. Exporters serve a value for as long as it
        takes them to read the next, so growth that is seen at once may be of all of this time.
        """
        moved = ~self.before | (self.counted != 0)
        number = np.arange(len(moved))
        last = np.maximum.accumulate(np.where(moved, number, 0)) if len(moved) else number
        at = self.at[self.first]
        since = np.zeros(len(at))
        since[1:] = (at[1:] - at[last[:-1]]) / SECOND
        return np.where(self.before, since, 0.0)

    @cached_property
    def models(self) -> "tuple[list[str], Ints]":
        """The catalogue's name of each row's GPU, '' if it is not known."""
        products, code = self.text("product")
        names = [gpus.recognise(product) if product else "" for product in products]
        known = sorted(set(names))
        return known, np.array([known.index(name) for name in names] or [0], dtype=np.int64)[code]

    @cached_property
    def limit(self) -> "Floats":
        """W that the GPU may draw at most: by its data sheet, or what an owner set above it, which boards allow to a half
        more; else its own setting. NaN if neither is known.
        """
        names, code = self.models
        sheet = np.array([gpus.gpus()[name].power if name else np.nan for name in names] or [np.nan])[code]
        own = self.number("power_limit")
        return np.where(np.isnan(sheet), own, np.fmax(sheet, np.minimum(own, _RAISED * sheet)))

    @cached_property
    def memory(self) -> "Floats":
        """Bytes that the data sheet gives the GPU, NaN if it is not known."""
        names, code = self.models
        return np.array([gpus.gpus()[name].memory if name else np.nan for name in names] or [np.nan])[code]

    def carried(self, rate: str) -> "Floats":
        """Bytes/s that the GPU's 'nvlink' or 'pcie' can carry, both directions together; NaN if that is not known."""
        names, code = self.models
        found = [(gpus.gpus()[name].link if rate == "nvlink" else buses.pcie(name)) if name else 0.0 for name in names]
        return np.array([2 * one or np.nan for one in found] or [np.nan])[code]


def _codes(rows: "pa.Table", name: str) -> "tuple[list[str], Ints]":
    """Values in their order and codes, so that neither depends on the order of rows."""
    encoded: Any = pc.fill_null(rows.column(name), "").combine_chunks().dictionary_encode()
    values: list[str] = encoded.dictionary.to_pylist()
    place = np.argsort(np.argsort(np.array(values, dtype=object))) if values else np.zeros(0, dtype=np.int64)
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return sorted(values), (place[codes] if values else codes)


def _instants(rows: "pa.Table", name: str) -> "Ints":
    column = pc.fill_null(rows.column(name).cast(pa.int64()), _NEVER)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def _each_once(
    rows: "pa.Table", device: "Ints", at: "Ints", part: "Ints", *, all_conflicts: bool
) -> "tuple[Mask, Mask, int]":
    """(rows to keep, which of those were also delivered with other values, how many were not kept).

    all_conflicts: keep every row of a contradiction, so that it is found again when the hour is judged again.
    """
    again = np.zeros(len(at), dtype=bool)
    again[1:] = (device[1:] == device[:-1]) & (at[1:] == at[:-1]) & (part[1:] == part[:-1])
    conflicts = np.zeros(len(at), dtype=bool)
    if not again.any():
        return ~again, conflicts, 0
    heads = np.flatnonzero(~again)
    group = np.cumsum(~again) - 1
    head = heads[group]
    at_odds, uneven = np.zeros(len(at), dtype=bool), np.zeros(len(at), dtype=bool)
    values = {
        name: np.asarray(rows.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
        for name in (*_COMPARED, *_COMPARED_IF_KNOWN)
    }
    for name, one in values.items():
        if name in _COMPARED:
            at_odds |= (one != one[head]) & ~(np.isnan(one) & np.isnan(one[head]))
        else:
            most = np.fmax.reduceat(one, heads)[group]
            at_odds |= ~np.isnan(one) & (one != most)
            uneven |= np.isnan(one) & ~np.isnan(most)
    conflicts = np.isin(group, group[at_odds])
    # Which one came first must not matter: the one with the least values is kept, and no contradiction is believed.
    odd = np.flatnonzero(conflicts | np.isin(group, group[uneven]))
    by_value = odd[np.lexsort((*(np.nan_to_num(one[odd], nan=-1.0) for one in values.values()), group[odd]))]
    least = np.ones(len(odd), dtype=bool)
    least[1:] = group[by_value][1:] != group[by_value][:-1]
    kept = ~again
    kept[odd] = False
    kept[by_value[least]] = True
    if all_conflicts:
        return kept | conflicts, conflicts, int((again & ~conflicts).sum())
    return kept, conflicts, int(again.sum())


def _nearest_source(rows: "pa.Table", device: "Ints", at: "Ints") -> "Mask":
    names, code = _codes(rows, "source")
    if len(names) <= 1:
        return np.ones(len(at), dtype=bool)
    rank = np.array([_BEST_FIRST.index(name) if name in _BEST_FIRST else len(_BEST_FIRST) for name in names])[code]
    minute = at // (60 * SECOND)
    new = np.ones(len(at), dtype=bool)
    new[1:] = (device[1:] != device[:-1]) | (minute[1:] != minute[:-1])
    best = np.minimum.reduceat(rank, np.flatnonzero(new))[np.cumsum(new) - 1]
    return np.asarray(rank == best, dtype=bool)
