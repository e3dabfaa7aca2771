"""Usage rows as disjoint intervals of devices: what can be believed of each, and which part of it whom it belongs to.

Rows come as collectors delivered them: twice, overlapping, with shares of more than the whole, with values that cannot be. Here
nothing is charged; what does not fit is flagged and given to nobody, so that what follows can only divide time once.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from macadam.compute.telemetry.types import usage_schema
from macadam.compute.waterfall.types import Flag
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
    Bools = npt.NDArray[np.bool_]
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")

WHOLE = 1_000_000
"""A share of one device, in millionths."""
LONGEST = 366 * 86_400
"""Seconds of one row: longer ones are mistakes of unit."""
_SLACK = 1e-3  # how far above 1 a ratio may be measured and still be believed, as 1
_MS = 1000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen, by interval and by row. Codes are places in the lists of names.

    Intervals: disjoint for each device, in order of device and begin; milliseconds since 1970. `free` is what of an
    interval no row has, in millionths. Rows lie in order of their intervals: rows of interval i are first[i]:first[i+1].
    """

    devices: list[str]
    nodes: list[str]
    models: list[str]
    projects: list[str]
    owners: list[str]
    reasons: list[str]
    device: "Ints"
    node: "Ints"
    model: "Ints"
    begin: "Ints"
    end: "Ints"
    free: "Ints"
    doubted: "Ints"  # code of the reason for which an interval is not believed, 0 if it is
    first: "Ints"
    share: "Ints"
    project: "Ints"
    owner: "Ints"
    reason: "Ints"  # code, 0 = believed
    gpu: "Floats"
    sm: "Floats"
    tensor: "Floats"
    flags: tuple[Flag, ...]

    def is_host(self) -> "Bools":
        """For each device: whether it is a machine, not a GPU."""
        return np.array([name.startswith("host:") for name in self.devices], dtype=np.bool_)


@dataclass(kw_only=True)
class _Flags:
    found: list[Flag] = field(default_factory=list)

    def add(self, what: str, where: "Bools", examples: "npt.NDArray[Any]") -> None:
        count = int(where.sum())
        if count:
            self.found.append(Flag(what=what, count=count, example=str(examples[int(where.argmax())])))


def read(usage: "pa.Table", *, now: datetime | None = None) -> Seen:
    """usage: rows of `telemetry.types.usage_schema`. now: rows that begin after it are flagged and left out.

    Raises InvalidInput if columns are missing or have other types.
    """
    table = _columns(usage)
    flags = _Flags()
    table, begin, length = _timed(table, flags, now)
    devices, device = _parents(table)
    names = {name: _codes(table.column(name)) for name in ("node", "model", "project", "owner", "suspect", "device")}
    ratios = {name: _floats(table.column(name)) for name in ("share", "gpu_active", "sm_active", "tensor_active")}
    reasons, reason = _judge(names["suspect"], ratios, np.array(devices, dtype=object)[device], flags)
    shares = np.where(np.isnan(ratios["share"]), 1.0, ratios["share"]).clip(0, 1)
    order = np.lexsort(
        (length, shares, -reason, names["owner"][1], names["project"][1], names["device"][1], begin, device)
    )
    kept = order[_first_deliveries(order, device, begin, names, flags, devices)]
    device, begin, length = device[kept], begin[kept], length[kept]
    owner, owners = names["owner"][1][kept], names["owner"][0]
    wanted = (shares[kept] * WHOLE).round().astype(np.int64) * _owned(owner, owners)
    first = np.flatnonzero(np.r_[True, (np.diff(device) != 0) | (np.diff(begin) != 0)]) if len(kept) else _none()
    span = np.maximum.reduceat(length, first) if len(first) else _none()
    sizes = np.diff(np.r_[first, len(kept)])
    wanted = wanted * length // np.repeat(span, sizes).clip(min=1)
    share, over = _fitted(wanted, reason[kept] > 0, first, sizes)
    flags.add("owners had more than the whole of a device", over, np.array(devices, dtype=object)[device[first]])
    starts, ends = _disjoint(device[first], begin[first], begin[first] + span, devices, flags)
    free = WHOLE - (np.add.reduceat(share, first) if len(first) else _none())
    return Seen(
        devices=devices,
        nodes=names["node"][0],
        models=names["model"][0],
        projects=names["project"][0],
        owners=owners,
        reasons=reasons,
        device=device[first],
        node=names["node"][1][kept][first],
        model=names["model"][1][kept][first],
        begin=starts,
        end=ends,
        free=free,
        doubted=np.maximum.reduceat(reason[kept], first) if len(first) else _none(),
        first=np.r_[first, len(kept)].astype(np.int64),
        share=share,
        project=names["project"][1][kept],
        owner=owner,
        reason=reason[kept],
        gpu=ratios["gpu_active"][kept],
        sm=ratios["sm_active"][kept],
        tensor=ratios["tensor_active"][kept],
        flags=tuple(flags.found),
    )


def _none() -> "Ints":
    return np.zeros(0, dtype=np.int64)


def _columns(usage: "pa.Table") -> "pa.Table":
    schema = usage_schema()
    missing = [name for name in schema.names if name not in usage.column_names]
    if missing:
        raise InvalidInput(
            f"The usage rows lack the columns {', '.join(missing)}.", next_step="Give rows of telemetry's usage schema."
        )
    try:
        return usage.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidInput(
            f"The usage rows do not fit telemetry's schema: {error}.", next_step="Collect them again."
        ) from error


def _timed(table: "pa.Table", flags: _Flags, now: datetime | None) -> "tuple[pa.Table, Ints, Ints]":
    """Rows with a device, a time and a length; milliseconds since 1970, and how many of them."""
    seconds = _floats(table.column("seconds"))
    begun: Any = table.column("start").cast(pa.int64())
    device: Any = table.column("device")
    start, named = begun.fill_null(-1).to_numpy(), device.fill_null("").to_numpy()
    no_place = (start < 0) | (named == "")
    flags.add("usage without a time or a device", no_place, named)
    good = np.isfinite(seconds) & (seconds >= 0) & (seconds <= LONGEST)
    flags.add("usage whose seconds are missing, negative or of more than a year", ~good & ~no_place, named)
    keep = ~no_place & good & (seconds > 0)
    if now is not None:
        late = keep & (start > int(now.timestamp() * 1_000_000))
        flags.add("usage that begins in the future: a clock is wrong", late, named)
        keep &= ~late
    length = np.where(keep, seconds * _MS, 0).round().astype(np.int64)
    keep &= length > 0
    return table.filter(pa.array(keep)), (start // _MS)[keep], length[keep]


def _codes(column: Any) -> "tuple[list[str], Ints]":
    """Names, the empty one first, and the place of each row's among them."""
    filled: Any = column.fill_null("").combine_chunks()
    encoded = filled.dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda n: names[n])
    listed = ([] if "" in names else [""]) + [names[n] for n in order]
    place = {name: n for n, name in enumerate(listed)}
    moved = np.array([place[name] for name in names], dtype=np.int64)
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return listed, moved[codes] if len(codes) else codes


def _parents(table: "pa.Table") -> "tuple[list[str], Ints]":
    """A slice is part of its GPU: what is billed is the whole device."""
    names, codes = _codes(table.column("device"))
    parents = sorted({name.partition("/mig:")[0] for name in names} - {""})
    place = {name: n for n, name in enumerate(parents)}
    moved = np.array([place.get(name.partition("/mig:")[0], 0) for name in names], dtype=np.int64)
    return parents, moved[codes] if len(codes) else codes


def _floats(column: "pa.ChunkedArray[Any]") -> "Floats":
    """NaN for what was not measured."""
    return np.array(column.to_numpy(), dtype=np.float64)  # a copy: Arrow's own memory cannot be written


def _judge(
    suspect: "tuple[list[str], Ints]", ratios: "dict[str, Floats]", named: "npt.NDArray[Any]", flags: _Flags
) -> "tuple[list[str], Ints]":
    """Why each row is not believed, as a code: 0 if it is. Ratios are brought into 0 to 1."""
    reasons, reason = list(suspect[0]), suspect[1].copy()
    for name, values in ratios.items():
        bad = (values < 0) | (values > 1 + _SLACK)
        if bad.any():
            flags.add(f"usage whose {name} is not between 0 and 1", bad, named)
            reasons.append(f"{name} is not between 0 and 1")
            reason[bad & (reason == 0)] = len(reasons) - 1
        np.clip(values, 0, 1, out=values)
    return reasons, reason


def _first_deliveries(
    order: "Ints",
    device: "Ints",
    begin: "Ints",
    names: "dict[str, tuple[list[str], Ints]]",
    flags: _Flags,
    devices: list[str],
) -> "Bools":
    """The first row of each device, time and owner. A row that is not believed comes before one that is."""
    if not len(order):
        return np.zeros(0, dtype=np.bool_)
    same = np.ones(len(order) - 1, dtype=np.bool_)
    for codes in (device, begin, names["device"][1], names["project"][1], names["owner"][1]):
        same &= np.diff(codes[order]) == 0
    again: Bools = np.r_[False, same]
    flags.add("usage delivered more than once", again, np.array(devices, dtype=object)[device[order]])
    return ~again


def _owned(owner: "Ints", owners: list[str]) -> "Ints":
    """1 for rows that somebody had. Nobody's rows say that a device was seen; what is free of it follows."""
    return (np.array([name != "" for name in owners], dtype=np.int64))[owner] if len(owner) else owner


def _fitted(wanted: "Ints", doubted: "Bools", first: "Ints", sizes: "Ints") -> "tuple[Ints, Bools]":
    """Shares that are at most the whole: believed rows first, in proportion; the others get what is left."""
    if not len(first):
        return wanted, np.zeros(0, dtype=np.bool_)
    sure, unsure = np.where(doubted, 0, wanted), np.where(doubted, wanted, 0)
    sure_sum, unsure_sum = np.add.reduceat(sure, first), np.add.reduceat(unsure, first)
    over = (sure_sum + unsure_sum) > WHOLE + 1 + sizes  # a millionth for each share that was rounded
    sure = np.where(np.repeat(sure_sum, sizes) > WHOLE, sure * WHOLE // np.repeat(sure_sum.clip(min=1), sizes), sure)
    left = WHOLE - np.add.reduceat(sure, first)
    tight = np.repeat(unsure_sum > left, sizes)
    unsure = np.where(tight, unsure * np.repeat(left, sizes) // np.repeat(unsure_sum.clip(min=1), sizes), unsure)
    return sure + unsure, over


def _disjoint(device: "Ints", begin: "Ints", end: "Ints", devices: list[str], flags: _Flags) -> "tuple[Ints, Ints]":
    """Where rows of one device overlap in time, the later one counts from the end of the earlier one on."""
    if not len(device):
        return begin, end
    base = int(begin.min())
    offset = device * (int(end.max()) - base + 1)
    until = np.maximum.accumulate(offset + end - base)
    before = np.r_[0, until[:-1]] - offset + base
    starts = np.maximum(begin, before)
    flags.add("usage that overlaps in time", starts > begin, np.array(devices, dtype=object)[device])
    return starts, np.maximum(end, before)
