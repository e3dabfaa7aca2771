"""Usage rows as disjoint intervals of devices: what can be believed of each, and which part of it whom it belongs to.

Rows come as collectors delivered them: twice, overlapping, with shares of more than the whole, with values that cannot be. Here
nothing is charged; what does not fit is flagged and given to nobody, so that what follows can only divide time once.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from macadam.compute.telemetry.mig import SLICE
from macadam.compute.telemetry.types import brought_up, usage_schema
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
_STEPS = (3_600_000, 60_000)
"""Milliseconds between the starts of rows, as the series store keeps them: hours, else minutes."""


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
    flags = _Flags()
    table, begin, length = _timed(_columns(usage), flags, now)
    devices, device = _parents(table)
    named = np.array(devices, dtype=object)
    texts = {name: _codes(table.column(name)) for name in ("node", "model", "project", "owner", "suspect", "device")}
    ratios = {name: _floats(table.column(name)) for name in ("share", "gpu_active", "sm_active", "tensor_active")}
    reasons, reason = _judge(texts["suspect"], ratios, named[device], flags)
    share = np.where(np.isnan(ratios["share"]), 1.0, ratios["share"])
    order = np.lexsort((length, share, *_identity(device, begin, texts)))
    kept = order[_first_deliveries(order, _identity(device, begin, texts), flags, named[device])]
    device, begin, length, reason = device[kept], begin[kept], length[kept], reason[kept]
    code = {name: codes[kept] for name, (_, codes) in texts.items()}
    first = np.flatnonzero(np.r_[True, (np.diff(device) != 0) | (np.diff(begin) != 0)]) if len(kept) else _none()
    sizes = np.diff(np.r_[first, len(kept)])
    size = _floats(table.column("slice"))[kept]
    part = _part(share[kept], size, code["device"], texts["device"][0], first, sizes)
    span = _spans(begin, length, part, first)
    claims = ~_unowned(code["owner"]) | (reason > 0)
    wanted = (part * length * WHOLE / np.repeat(span, sizes).clip(min=1) * claims).round().astype(np.int64)
    fitted, over = _fitted(wanted, reason > 0, first, sizes)
    flags.add("owners had more than the whole of a device", over, named[device[first]])
    starts, ends = _disjoint(device[first], begin[first], begin[first] + span, named, flags)
    return Seen(
        devices=devices,
        nodes=texts["node"][0],
        models=texts["model"][0],
        projects=texts["project"][0],
        owners=texts["owner"][0],
        reasons=reasons,
        device=device[first],
        node=code["node"][first],
        model=code["model"][first],
        begin=starts,
        end=ends,
        free=WHOLE - (np.add.reduceat(fitted, first) if len(first) else _none()),
        first=np.r_[first, len(kept)].astype(np.int64),
        share=fitted,
        project=code["project"],
        owner=code["owner"],
        reason=reason,
        gpu=ratios["gpu_active"][kept],
        sm=ratios["sm_active"][kept],
        tensor=ratios["tensor_active"][kept],
        flags=tuple(flags.found),
    )


def _none() -> "Ints":
    return np.zeros(0, dtype=np.int64)


def _columns(usage: "pa.Table") -> "pa.Table":
    schema = usage_schema()
    usage = brought_up(usage, schema)
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
    parents = sorted({name.partition(SLICE)[0] for name in names} - {""})
    place = {name: n for n, name in enumerate(parents)}
    moved = np.array([place.get(name.partition(SLICE)[0], 0) for name in names], dtype=np.int64)
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
        values[bad] = 1.0  # of a share: all that it can have been, so that none of it is given to others as free
        np.clip(values, 0, 1, out=values)
    return reasons, reason


def _identity(device: "Ints", begin: "Ints", texts: "dict[str, tuple[list[str], Ints]]") -> "tuple[Ints, ...]":
    """What makes a row another one, the last first, as sorting wants it. Doubted time is a row beside what is believed."""
    return (*(texts[name][1] for name in ("suspect", "owner", "project", "device")), begin, device)


def _first_deliveries(order: "Ints", identity: "tuple[Ints, ...]", flags: _Flags, named: "npt.NDArray[Any]") -> "Bools":
    if not len(order):
        return np.zeros(0, dtype=np.bool_)
    same = np.ones(len(order) - 1, dtype=np.bool_)
    for codes in identity:
        same &= np.diff(codes[order]) == 0
    again: Bools = np.r_[False, same]
    flags.add("usage delivered more than once", again, named[order])
    return ~again


def _unowned(owner: "Ints") -> "Bools":
    """Nobody's rows say that a device was seen; what is free of it follows. The empty name is the first."""
    nobody: Bools = owner == 0
    return nobody


def _part(share: "Floats", size: "Floats", device: "Ints", names: list[str], first: "Ints", sizes: "Ints") -> "Floats":
    """Of the whole GPU. size: the part that a slice takes of it; slices whose size is not known have equal parts of what the others
    leave. Slices that would take more than the GPU (memory of one, compute of another) have it in proportion.
    """
    sliced = np.array([SLICE in name for name in names], dtype=np.bool_)[device] if len(device) else share > 2  # noqa: PLR2004
    if not sliced.any():
        return share.clip(0, 1)
    new = np.r_[True, np.diff(device) != 0]
    new[first] = True
    told = sliced & (size > 0) & (size <= 1)
    taken = np.add.reduceat(np.where(new & told, size, 0.0), first)
    others = np.add.reduceat((new & sliced & ~told).astype(np.int64), first)
    left = np.where(taken < 1, 1 - taken, 1.0) / others.clip(min=1)
    parts = np.where(told, size, np.repeat(left, sizes))
    together = np.add.reduceat(np.where(new & sliced, parts, 0.0), first).clip(min=1)
    return share.clip(0, 1) * np.where(sliced, parts / np.repeat(together, sizes), 1.0)


def _spans(begin: "Ints", length: "Ints", part: "Floats", first: "Ints") -> "Ints":
    """How long each interval lasts. Owners may have had a device one after another, or together: at least as long as
    the longest row, and as long as all of them one after another if the step of the table leaves room for it.
    """
    if not len(first):
        return _none()
    longest: Ints = np.maximum.reduceat(length, first)
    together = np.ceil(np.add.reduceat(part * length, first) - 1e-6).astype(np.int64)
    step = next((step for step in _STEPS if not (begin % step).any()), 0)
    return np.maximum(longest, np.minimum(together, step))


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


def _disjoint(
    device: "Ints", begin: "Ints", end: "Ints", named: "npt.NDArray[Any]", flags: _Flags
) -> "tuple[Ints, Ints]":
    """Where rows of one device overlap in time, the earlier one ends where the later one begins."""
    if not len(device):
        return begin, end
    after = np.r_[np.where(np.diff(device) == 0, begin[1:], end[:-1]), end[-1]]
    flags.add("usage that overlaps in time", after < end, named[device])
    return begin, np.minimum(end, after)
