"""Divides each charge over what was seen of its devices while it ran: the join of money and telemetry.

A charge meets devices by its device, else by its machine (node, or the provider's id of it), else, for bills that only name a
GPU model, by that model among devices that nothing more specific pays for. Its money is spread evenly over its device time; time
that nothing was seen of stays unattributed. However rows overlap, no device time is charged twice by one charge.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from macadam.compute.billing import sharing
from macadam.compute.billing.types import Charge
from macadam.compute.telemetry.mig import SLICE
from macadam.compute.waterfall import bill as bills
from macadam.compute.waterfall.bill import Bill
from macadam.compute.waterfall.seen import WHOLE, Seen
from macadam.compute.waterfall.types import Flag, Uncharged
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
else:
    np = lazy("numpy")

LINE, DARK, FREE, DOUBTED, OWNED = range(5)
"""Kinds of pieces: a line of its own; no telemetry; nobody's; not believed; somebody's."""
_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Parts of slices of charges, in order of the slices. Each array has one value for each piece.

    row: of the usage, -1 if none; interval: -1 if none; gpu_ms: device milliseconds, in millionths of a device. Where several
    charges pay for the same time (a licence beside its machine, an hour that a commitment covers in part), each has a part.
    """

    slice: "Ints"
    kind: "Ints"
    row: "Ints"
    interval: "Ints"
    gpu_ms: "Ints"
    micros: "Ints"


@dataclass(frozen=True, kw_only=True)
class Joined:
    pieces: Pieces
    uncharged: tuple[Uncharged, ...]
    flags: tuple[Flag, ...]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """A slice of a charge and one device of its own each, in order of the slices."""

    slice: "Ints"
    device: "Ints"


@dataclass(frozen=True, kw_only=True)
class _Meets:
    """A slice and an interval of one of its devices that overlap. begin: on one line for all devices; ms: for how long."""

    slice: "Ints"
    interval: "Ints"
    begin: "Ints"
    ms: "Ints"


def join(bill: Bill, seen: Seen) -> Joined:
    targets = _targets(bill, seen)
    pairs = _pairs(bill, targets)
    meets, devices = _meet(bill, seen, pairs)
    weights, flags = _capacity(bill, seen, meets, devices)
    parts = [_owned(seen, meets), _free(seen, meets), _dark(bill, targets, weights, meets)]
    pieces = _counted_once(bill, meets, len(seen.begin), _priced(bill, parts, weights))
    return Joined(pieces=pieces, uncharged=_uncharged(seen, meets), flags=flags)


# --- which devices a charge is for


def _targets(bill: Bill, seen: Seen) -> "list[Ints]":
    """The devices of each charge, empty for what is joined to none."""
    finder = _Finder(seen)
    specific = [
        finder.devices(charge) if not line else finder.none
        for charge, line in zip(bill.charges, bill.lines, strict=True)
    ]
    taken = {int(code) for codes in {id(codes): codes for codes in specific}.values() for code in codes}
    pools: dict[str, Ints] = {}
    for place, (charge, line) in enumerate(zip(bill.charges, bill.lines, strict=True)):
        if line or not charge.model or charge.device or charge.node or charge.resource:
            continue
        if charge.model not in pools:
            codes = finder.of_model(charge.model)
            pools[charge.model] = codes[[int(code) not in taken for code in codes]] if len(codes) else codes
        specific[place] = pools[charge.model]
    return specific


class _Finder:
    """Finds devices by name, by machine and by model."""

    def __init__(self, seen: Seen) -> None:
        self.none = np.zeros(0, dtype=np.int64)
        self._device = {name: np.array([code]) for code, name in enumerate(seen.devices)}
        host = seen.is_host()
        self._gpus = self._by(seen.nodes, seen.node, seen.device, ~host)
        self._hosts = self._by(seen.nodes, seen.node, seen.device, host)
        self._models = self._by(seen.models, seen.model, seen.device, ~host)

    def _by(self, names: list[str], code: "Ints", device: "Ints", wanted: "Bools") -> "dict[str, Ints]":
        """Names that are not empty → the devices seen under them."""
        if not len(device):
            return {}
        code, device = np.divmod(np.unique(code * len(wanted) + device), len(wanted))
        code, device = code[wanted[device]], device[wanted[device]]
        begins = np.searchsorted(code, np.arange(len(names) + 1))
        return {name: device[begins[n] : begins[n + 1]] for n, name in enumerate(names) if name}

    def devices(self, charge: Charge) -> "Ints":
        if charge.device:
            return self._device.get(charge.device.partition(SLICE)[0], self.none)
        for machine in (charge.node, charge.resource):
            found = self._gpus.get(machine, self.none)
            if not len(found) and not bills.is_gpu(charge):
                found = self._hosts.get(machine, self.none)
            if len(found):
                return found
        return self._device.get(charge.resource, self.none)

    def of_model(self, model: str) -> "Ints":
        return self._models.get(model, self.none)


# --- time that both a charge and telemetry cover


def _pairs(bill: Bill, targets: "list[Ints]") -> _Pairs:
    counts = np.array([len(codes) for codes in targets], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *targets])
    offset = np.cumsum(counts) - counts
    charge = bill.slices.charge
    several = counts[charge]
    return _Pairs(slice=np.repeat(np.arange(len(charge)), several), device=flat[_ranges(offset[charge], several)])


def _ranges(begin: "Ints", count: "Ints") -> "Ints":
    """begin[0], begin[0]+1, … for count[0] places, then from begin[1] on, and so on."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    places: Ints = np.arange(total) + np.repeat(begin - (ends - count), count)
    return places


def _meet(bill: Bill, seen: Seen, pairs: _Pairs) -> "tuple[_Meets, Ints]":
    """The overlaps, and for each slice how many of its devices were seen in it."""
    slices = len(bill.slices.charge)
    if not len(seen.begin) or not len(pairs.slice):
        none = np.zeros(0, dtype=np.int64)
        return _Meets(slice=none, interval=none, begin=none, ms=none), np.zeros(slices, dtype=np.int64)
    base, last = int(seen.begin.min()), int(seen.end.max())
    line = seen.device * (last - base + 2)  # all devices one after another on a single time line
    begins, ends = line + seen.begin - base, line + seen.end - base
    from_ms = bill.slices.begin[pairs.slice].clip(base, last) - base + pairs.device * (last - base + 2)
    to_ms = bill.slices.end[pairs.slice].clip(base, last) - base + pairs.device * (last - base + 2)
    low, high = np.searchsorted(ends, from_ms, side="right"), np.searchsorted(begins, to_ms, side="left")
    count = np.maximum(high - low, 0)
    pair = np.repeat(np.arange(len(count)), count)
    interval = _ranges(low, count)
    first = np.maximum(begins[interval], from_ms[pair])
    ms = np.minimum(ends[interval], to_ms[pair]) - first
    real = ms > 0
    meets = _Meets(slice=pairs.slice[pair][real], interval=interval[real], begin=first[real], ms=ms[real])
    met = pair[real]
    met = met[np.r_[True, np.diff(met) > 0]] if len(met) else met  # in order already, so each once
    return meets, np.bincount(pairs.slice[met], minlength=slices).astype(np.int64)


def _capacity(bill: Bill, seen: Seen, meets: _Meets, devices: "Ints") -> "tuple[Ints, tuple[Flag, ...]]":
    """Device time of each slice, ms in millionths of a device: of the GPUs that it pays for, or of those seen if more."""
    slices = bill.slices
    one = np.array([bool(charge.device) for charge in bill.charges], dtype=np.bool_)[slices.charge]
    paid = np.where(one, 1.0, bill.gpus[slices.charge])
    length = slices.end - slices.begin
    host = seen.is_host()
    hosts = np.zeros(len(devices), dtype=np.bool_)
    if len(meets.slice):
        hosts[meets.slice] = host[seen.device[meets.interval]]
    more = (devices > paid) & (paid >= 1) & ~hosts & ~one
    flags = []
    if more.any():
        example = bill.charges[int(slices.charge[int(more.argmax())])].id
        flags.append(Flag(what="charges with more GPUs seen than paid for", count=int(more.sum()), example=example))
    return np.round(np.maximum(paid, devices) * length).astype(np.int64) * WHOLE, tuple(flags)


# --- pieces


def _owned(seen: Seen, meets: _Meets) -> "Pieces":
    count = (seen.first[1:] - seen.first[:-1])[meets.interval]
    row = _ranges(seen.first[meets.interval], count)
    weight = np.repeat(meets.ms, count) * seen.share[row]
    kind = np.where(seen.reason[row] > 0, DOUBTED, OWNED)
    return _unpriced(np.repeat(meets.slice, count), kind, row, np.repeat(meets.interval, count), weight)


def _free(seen: Seen, meets: _Meets) -> "Pieces":
    weight = meets.ms * seen.free[meets.interval]
    return _unpriced(meets.slice, np.full(len(weight), FREE), np.full(len(weight), -1), meets.interval, weight)


def _dark(bill: Bill, targets: "list[Ints]", capacity: "Ints", meets: _Meets) -> "Pieces":
    """What nothing was seen of; the whole of a slice that pays for no machine, or lasts no time."""
    slices = bill.slices
    covered = np.zeros(len(capacity), dtype=np.int64)
    np.add.at(covered, meets.slice, meets.ms * WHOLE)
    machine = np.array([not line for line in bill.lines], dtype=np.bool_)
    gpu = np.array([bills.is_gpu(charge) or len(t) > 0 for charge, t in zip(bill.charges, targets, strict=True)])
    telling = (machine & gpu.astype(np.bool_))[slices.charge] if len(bill.charges) else np.zeros(0, dtype=np.bool_)
    rest = capacity - covered
    none = np.full(len(rest), -1)
    weight = np.where(capacity == 0, 1, rest)
    kind = np.where(telling, DARK, LINE)
    return _unpriced(np.arange(len(rest)), kind, none, none, weight)


def _unpriced(slice_: "Ints", kind: "Ints", row: "Ints", interval: "Ints", weight: "Ints") -> Pieces:
    keep = weight > 0
    zero = np.zeros(int(keep.sum()), dtype=np.int64)
    return Pieces(
        slice=slice_[keep], kind=kind[keep], row=row[keep], interval=interval[keep], gpu_ms=weight[keep], micros=zero
    )


def _priced(bill: Bill, parts: list[Pieces], capacity: "Ints") -> Pieces:
    """All parts in order of slices, with their money."""
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in Pieces.__dataclass_fields__}
    order = np.argsort(joined["slice"], kind="stable")
    found = {name: values[order] for name, values in joined.items()}
    found["micros"] = sharing.share_out(bill.slices.micros, found["slice"], found["gpu_ms"])
    found["gpu_ms"] = np.where(capacity[found["slice"]] > 0, found["gpu_ms"], 0)
    return Pieces(**found)


def _counted_once(bill: Bill, meets: _Meets, intervals: int, pieces: Pieces) -> Pieces:
    """The same with device time that is there once, however many charges pay for it."""
    part = np.ones(len(pieces.slice))
    met = pieces.interval >= 0
    part[met] = _once(meets, intervals)[pieces.interval[met]]
    part[~met] = 1 / _alike(bill)[pieces.slice[~met]]
    return replace(pieces, gpu_ms=np.round(pieces.gpu_ms * part).astype(np.int64))


def _once(meets: _Meets, intervals: int) -> "npt.NDArray[np.float64]":
    """For each interval: the time of it that charges cover, over the sum of their times."""
    order = np.lexsort((meets.begin, meets.interval))
    begin, end = meets.begin[order], (meets.begin + meets.ms)[order]
    before = np.maximum.accumulate(np.r_[-1, end])[:-1]
    new = np.maximum(end - np.maximum(begin, before), 0)
    covered = np.bincount(meets.interval[order], weights=new, minlength=intervals)
    part: npt.NDArray[np.float64] = covered / np.bincount(meets.interval, meets.ms, intervals).clip(min=1)
    return part


def _alike(bill: Bill) -> "Ints":
    """For each slice: how many of the same machine and time there are that are for GPUs."""
    names = [charge.device or charge.node or charge.resource for charge in bill.charges]
    slices = bill.slices
    keys = [
        (names[charge], begin, end) if names[charge] and bill.gpus[charge] > 0 else None
        for charge, begin, end in zip(slices.charge.tolist(), slices.begin.tolist(), slices.end.tolist(), strict=True)
    ]
    counts = Counter(keys)
    return np.array([1 if key is None else counts[key] for key in keys], dtype=np.int64)


def _uncharged(seen: Seen, meets: _Meets) -> tuple[Uncharged, ...]:
    """What owners had of devices at times that no charge covers. Believed rows of GPUs only."""
    covered = np.zeros(len(seen.begin), dtype=np.int64)
    np.add.at(covered, meets.interval, meets.ms)
    bare = np.maximum(seen.end - seen.begin - covered, 0)
    bare[seen.is_host()[seen.device]] = 0
    sizes = seen.first[1:] - seen.first[:-1]
    ms = np.repeat(bare, sizes) * seen.share * (seen.reason == 0)
    found: dict[tuple[int, int], int] = {}
    places = np.flatnonzero(ms)
    for owner, project, amount in zip(
        seen.owner[places].tolist(), seen.project[places].tolist(), ms[places].tolist(), strict=True
    ):
        found[owner, project] = found.get((owner, project), 0) + amount
    listed = sorted(found.items(), key=lambda item: -item[1])
    return tuple(
        Uncharged(owner=seen.owners[owner], project=seen.projects[project], gpu_hours=amount / WHOLE / _MS_PER_HOUR)
        for (owner, project), amount in listed
    )
