"""Samples become usage: one row for each device, interval, owner and reason for doubt. Pure.

A reading stands for the time since the one before it, and is cut where intervals meet, so that the seconds of an interval
never sum to more than it has. Means are weighted by seconds; what was not measured weighs nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macadam.compute.telemetry import attribution, mig, trust
from macadam.compute.telemetry.frame import SECOND, Frame
from macadam.compute.telemetry.trust import Verdict
from macadam.compute.telemetry.types import RATES, RATIOS, THROTTLED, Finding, Holding, Pod, usage_schema
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from macadam.compute.telemetry.frame import Floats, Ints
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")

MINUTE, HOUR = 60, 3600
_MEASURED = ("gpu_active", "sm_active", "tensor_active", "dram_active", "host_cpu", "host_cores", *RATES)
_MEANS = (*_MEASURED, "slice", *THROTTLED)
REASONS = {
    "throttled_heat": 0x20 | 0x40,
    "throttled_hardware": 0x08 | 0x80,
    "throttled_power": 0x04,
    "throttled_sync": 0x10,
}
"""nvml.h, nvmlClocksEventReasons, the gravest first: SW and HW thermal slowdown; HW slowdown and power brake; SW power cap; sync
boost. An idle GPU's low clocks (0x01) and those that somebody set (0x02, 0x100) are no throttling.
"""
_EXACT = 2**53
"""From here on 64-bit floats do not hold every bit."""
_KEYS = ("device", "node", "model", "project", "owner", "suspect")


@dataclass(frozen=True, kw_only=True)
class Folded:
    """usage: a table of `usage_schema`, sorted by device and start. samples: distinct ones; duplicates: those left out."""

    usage: "pa.Table"
    findings: tuple[Finding, ...]
    samples: int
    duplicates: int


def fold(
    samples: "pa.Table",
    start: int,
    end: int,
    *,
    pods: Mapping[tuple[str, str], Pod],
    holdings: Iterable[Holding],
    step: int = MINUTE,
) -> Folded:
    """start, end: µs since the epoch, end excluded. samples may lie before and after: they say how long the first and the
    last reading stand for, and what checks over several readings need. step: seconds of an interval.
    """
    frame = Frame(samples)
    who = attribution.claimants(frame, pods, holdings)
    verdict = trust.judge(frame, who.owned(len(frame)))
    inside = [
        f for f in verdict.findings if f.last.timestamp() * SECOND >= start and f.first.timestamp() * SECOND < end
    ]
    return Folded(
        usage=_usage(frame, who, verdict, start, end, step),
        findings=tuple(inside),
        samples=int(((frame.at >= start) & (frame.at < end)).sum()),
        duplicates=frame.duplicates,
    )


def _usage(frame: Frame, who: attribution.Claimants, verdict: Verdict, start: int, end: int, step: int) -> "pa.Table":
    reading = frame.reading[who.row]
    doubt = verdict.suspect[who.row]
    same = _repeats(reading, who.who, doubt)
    entry, bucket, seconds = _pieces(frame, reading, start, end, step)
    energy = _joules(frame)[reading][entry] * who.share[entry] * _part(seconds, frame.seconds[reading][entry])
    row, weight = who.row[entry], seconds / same[entry]
    keys = (frame.device[row], bucket, who.who[entry], doubt[entry])
    order, edges = _groups(keys)
    columns = {name: _mean(values[row][order], weight[order], edges) for name, values in _measured(frame).items()}
    # Sensors round up to a little more than everything; what is far above it is suspect already.
    columns.update({name: np.minimum(columns[name], 1.0) for name in _MEANS if name in RATIOS})
    own = who.memory[entry]
    memory = np.where(own >= 0, own, np.nan_to_num(frame.number("memory_used")[row], nan=-1.0))
    total = _sums(weight[order], edges)
    first = order[edges]
    nodes, node = frame.text("node")
    models, model = frame.models
    people, reasons = who.people, Verdict.reasons()
    return _table(
        {
            "device": [frame.devices[n] for n in keys[0][first].tolist()],
            "node": [nodes[n] for n in node[row[first]].tolist()],
            "model": [models[n] for n in model[row[first]].tolist()],
            "start": start + keys[1][first] * step * SECOND,
            "seconds": total,
            "project": [people[n][0] for n in keys[2][first].tolist()],
            "owner": [people[n][1] for n in keys[2][first].tolist()],
            "share": _sums((who.share[entry] * seconds)[order], edges) / total,
            **columns,
            "memory_bytes": _most(memory[order], edges),
            "energy_joules": _known_sum(energy[order], edges),
            "suspect": [reasons[n] for n in keys[3][first].tolist()],
        }
    )


def _measured(frame: Frame) -> "dict[str, Floats]":
    """By row: what usage has means of; NaN where it was not measured."""
    found = {name: frame.number(name) for name in _MEASURED}
    for name in (*RATES, "host_cores"):
        found[name] = np.where(found[name] >= 0, found[name], np.nan)
    found["slice"] = mig.parts(frame)
    told = frame.number("throttle")
    known = (told >= 0) & (told < _EXACT)
    bits = np.where(known, told, 0).astype(np.int64)
    free = known
    for name, reasons in REASONS.items():
        held = free & (bits & reasons != 0)
        found[name] = np.where(known, held, np.nan)
        free = free & ~held
    return found


def _pieces(frame: Frame, reading: "Ints", start: int, end: int, step: int) -> "tuple[Ints, Ints, Floats]":
    """(claimant, interval from `start`, seconds): what each claimant's reading covers, cut at the intervals' edges."""
    at = frame.at[frame.first][reading]
    began = at - (frame.seconds[reading] * SECOND).astype(np.int64)
    width = step * SECOND
    found = []
    for n in range(int(frame.seconds.max(initial=0.0)) // step + 2):
        bucket = (began - start) // width + n
        low = np.maximum(began, start + bucket * width)
        high = np.minimum(at, start + (bucket + 1) * width)
        inside = (high > low) & (bucket >= 0) & (bucket < (end - start) // width)
        which = np.flatnonzero(inside)
        found.append((which, bucket[which], (high - low)[which] / SECOND))
    entry, bucket, seconds = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return entry, bucket, seconds


def _repeats(reading: "Ints", who: "Ints", doubt: "Ints") -> "Floats":
    """How often the same owner claims the same reading: two pods of one job on one device cover one time, not two."""
    size = np.bincount(reading)[reading] if len(reading) else np.zeros(0)
    if not (size > 1).any():
        return np.ones(len(reading))
    _, inverse, counts = np.unique(np.stack((reading, who, doubt)), axis=1, return_inverse=True, return_counts=True)
    return counts[inverse.reshape(-1)].astype(np.float64)


def _joules(frame: Frame) -> "Floats":
    """By reading: by the counter, else by the power that was shown; NaN if neither was. Of a MIG slice what is its part."""
    power = frame.drawn[frame.first]
    drawn = np.where(np.isfinite(power) & (power >= 0), power, np.nan) * frame.seconds
    return np.where(mig.sliced(frame), mig.joules(frame), np.where(frame.counted >= 0, frame.counted, drawn))


def _part(seconds: "Floats", whole: "Floats") -> "Floats":
    return seconds / np.where(whole > 0, whole, 1.0)


def _groups(keys: "tuple[Ints, ...]") -> "tuple[Ints, Ints]":
    """(order that brings equal keys together, where each group begins in it)."""
    order = np.lexsort(keys[::-1])
    if not len(order):
        return order, order
    edge = np.zeros(len(order), dtype=bool)
    edge[0] = True
    for key in keys:
        sorted_ = key[order]
        edge[1:] |= sorted_[1:] != sorted_[:-1]
    return order, np.flatnonzero(edge)


def _sums(values: "Floats", edges: "Ints") -> "Floats":
    return np.add.reduceat(values, edges) if len(edges) else np.zeros(0)


def _known_sum(values: "Floats", edges: "Ints") -> "Floats":
    """Sums of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    total = _sums(np.where(known, values, 0.0), edges)
    return np.where(_sums(known.astype(np.float64), edges) > 0, total, np.nan)


def _mean(values: "Floats", weights: "Floats", edges: "Ints") -> "Floats":
    known = np.isfinite(values)
    weight = _sums(np.where(known, weights, 0.0), edges)
    total = _sums(np.where(known, values, 0.0) * weights, edges)
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)


def _most(values: "Floats", edges: "Ints") -> "Floats":
    """The largest; -1 stands for unknown and stays NaN where it is all there is."""
    if not len(edges):
        return np.zeros(0)
    most = np.maximum.reduceat(values, edges)
    return np.where(most >= 0, most, np.nan)


def _table(columns: "Mapping[str, list[str] | Floats | Ints]") -> "pa.Table":
    arrays = []
    for field in usage_schema():
        values = columns[field.name]
        if isinstance(values, list):
            arrays.append(pa.array(values, field.type))
        elif pa.types.is_timestamp(field.type):
            arrays.append(pa.array(values, pa.int64()).cast(field.type))
        else:
            arrays.append(pa.array(values, pa.float64(), from_pandas=True).cast(field.type))
    return pa.table(arrays, schema=usage_schema())


def rollup(usage: "pa.Table", step: int) -> "pa.Table":
    """The same usage in longer intervals. step: seconds, a multiple of the intervals that are there.

    Rows that are of one owner and one doubt become one; the mean of means is that of the samples.
    """
    coded = [_coded(usage, name) for name in _KEYS]
    at = np.asarray(usage.column("start").cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
    bucket = at // (step * SECOND)
    order, edges = _groups((coded[0][1], bucket, *(code for _, code in coded[1:])))
    first = order[edges]

    def number(name: str) -> "Floats":
        return np.asarray(usage.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)[order]

    seconds = number("seconds")
    total = _sums(seconds, edges)
    texts = {name: [values[n] for n in code[first].tolist()] for name, (values, code) in zip(_KEYS, coded, strict=True)}
    return _table(
        {
            **texts,
            "start": bucket[first] * step * SECOND,
            "seconds": total,
            "share": _mean(number("share"), seconds, edges),
            **{name: _mean(number(name), seconds, edges) for name in _MEANS},
            "memory_bytes": _most(np.nan_to_num(number("memory_bytes"), nan=-1.0), edges),
            "energy_joules": _known_sum(number("energy_joules"), edges),
        }
    )


def _coded(table: "pa.Table", name: str) -> "tuple[list[str], Ints]":
    column: Any = table.column(name).combine_chunks()
    encoded = column.dictionary_encode()
    values: list[str] = encoded.dictionary.to_pylist()
    rank = {value: place for place, value in enumerate(sorted(values))}
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return sorted(values), np.array([rank[value] for value in values] or [0], dtype=np.int64)[codes]
