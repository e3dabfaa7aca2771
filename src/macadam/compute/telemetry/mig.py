"""What a MIG slice is of its GPU: its part by its profile, and its part of the energy, which is only counted for the whole device.

**An attribution, not a measurement**: NVIDIA counts power and energy of whole devices only. What the device takes when nothing runs is
split by the slices' parts, the rest by part times activity. Where a slice's activity is not known, all of it goes by parts.
The parts of one moment sum to what the device's counter grew by. Pure.
"""

import re
from typing import TYPE_CHECKING

from macadam.compute.catalogue import gpus
from macadam.compute.telemetry.frame import LONGEST, SECOND, Frame
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np

    from macadam.compute.telemetry.frame import Floats, Ints, Mask
else:
    np = lazy("numpy")

SLICE = "/mig:"
_EIGHTHS = 8
"""Slices of memory that a device has (NVIDIA, "MIG User Guide", partitioning); the A30 counts them in pairs."""
_COMPUTE, _COMPUTE_OF = 7, {"a30-24gb": 4}
"""Slices of compute: seven, but for the A30 with its four (the same guide, supported profiles)."""
IDLE = 0.1
"""Of the power limit that a device draws when nothing runs. An H200 of 700 W was seen at 74 W (conservemode.com/case-studies)
and at 80 W (api.serialalice.pt/alice-benchmark, June 2026).
"""
_PROFILE = re.compile(r"(?:[1-7]c\.)?([1-7])g\.([0-9]{1,3})gb(?:[+.-].*)?")


def part(profile: str, model: str) -> float | None:
    """Of the whole GPU that a slice takes from others: the larger of its parts of compute and of memory, 0 to 1.

    profile: such as '1g.10gb'; model: the catalogue's name of the GPU. None if either is not known.
    """
    said = _PROFILE.fullmatch(profile.strip().lower())
    if said is None or model not in gpus.gpus() or not gpus.gpus()[model].mig:
        return None
    compute = int(said[1]) / _COMPUTE_OF.get(model, _COMPUTE)
    # Profiles name gigabytes that are rounded, of a memory that is cut in eighths.
    memory = max(1, round(int(said[2]) * 1e9 / gpus.gpus()[model].memory * _EIGHTHS)) / _EIGHTHS
    larger = max(compute, memory)
    return larger if larger <= 1 else None


def profile(slices: int, megabytes: int, total: int) -> str:
    """A slice's profile as NVIDIA's tools name it: slices of compute and memory (MiB) of `total` bytes. '' if it cannot be."""
    if not (0 < slices <= _COMPUTE and 0 < megabytes * 2**20 <= total):
        return ""
    eighths = -(-megabytes * 2**20 * _EIGHTHS // total)
    return f"{slices}g.{round(eighths / _EIGHTHS * -(-total // 2**30))}gb"


def sliced(frame: Frame) -> "Mask":
    """By reading: whether it is of a slice."""
    names = np.array([SLICE in name for name in frame.devices] or [False])
    return names[frame.device[frame.first]] if names.any() else np.zeros(len(frame.first), dtype=bool)


def parts(frame: Frame) -> "Floats":
    """By row: of its whole GPU that the device is: 1 for a GPU, NaN for a slice of unknown size and for what is no GPU."""
    gpu = np.array([name.startswith("gpu:") for name in frame.devices] or [False])[frame.device]
    whole = np.where(gpu, 1.0, np.nan)
    of_slices = sliced(frame)
    if not of_slices.any():
        return whole
    slices = of_slices[frame.reading]
    profiles, said = frame.text("profile")
    models, model = frame.models
    pairs, place = np.unique(said * len(models) + model, return_inverse=True)
    known = [part(profiles[pair // len(models)], models[pair % len(models)]) for pair in pairs.tolist()]
    sizes = np.array([np.nan if one is None else one for one in known])
    return np.where(slices, sizes[place], whole)


def joules(frame: Frame) -> "Floats":
    """By reading of a slice: its part of what its device took since the device's reading before; NaN where nothing is known,
    and for all that is no slice.
    """
    found = np.full(len(frame.first), np.nan)
    reading = np.flatnonzero(sliced(frame))
    if not len(reading):
        return found
    row = frame.first[reading]
    device = _parents(frame)[frame.device[row]]
    order = np.lexsort((frame.at[row], device))
    reading, row, device = reading[order], row[order], device[order]
    new = np.ones(len(row), dtype=bool)
    new[1:] = (device[1:] != device[:-1]) | (frame.at[row][1:] != frame.at[row][:-1])
    group, edges = np.cumsum(new) - 1, np.flatnonzero(new)
    whole, seconds = _whole(frame, row, edges, device)
    size, active = _weights(frame, reading, row, group)
    limit = np.where(np.isfinite(frame.limit[row[edges]]), frame.limit[row[edges]], np.inf)
    idle = np.minimum(whole, np.where(np.isfinite(limit), IDLE * limit * seconds, IDLE * whole))
    found[reading] = idle[group] * size + (whole - idle)[group] * active
    return found


def _parents(frame: Frame) -> "Ints":
    """By device: a number that slices of one GPU share."""
    names = [name.partition(SLICE)[0] for name in frame.devices]
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([place[name] for name in names], dtype=np.int64)


def _whole(frame: Frame, row: "Ints", edges: "Ints", device: "Ints") -> "tuple[Floats, Floats]":
    """(joules of the whole device, seconds since its reading before), by moment; NaN for the first and after a gap."""
    known = np.nan_to_num(frame.counter[row], nan=-1.0)
    energy = np.maximum.reduceat(known, edges)
    energy = np.where(energy >= 0, energy, np.nan)
    power = np.maximum.reduceat(np.nan_to_num(frame.drawn[row], nan=-1.0), edges)
    at, of = frame.at[row[edges]], device[edges]
    grown, seconds = np.full(len(edges), np.nan), np.full(len(edges), np.nan)
    seconds[1:] = np.where(of[1:] == of[:-1], (at[1:] - at[:-1]) / SECOND, np.nan)
    seconds[seconds > LONGEST] = np.nan
    grown[1:] = (energy[1:] - energy[:-1]) / 1000
    drawn = np.where(np.isfinite(power) & (power >= 0), power, np.nan) * seconds
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(seconds), np.where(grown >= 0, grown, drawn), np.nan), seconds


def _weights(frame: Frame, reading: "Ints", row: "Ints", group: "Ints") -> "tuple[Floats, Floats]":
    """By reading, each summing to 1 in its moment: parts of what is idle, and of the rest. A reading that stands for no time
    (a slice that was just made) has none.
    """

    def sums(values: "Floats") -> "Floats":
        return np.asarray(np.bincount(group, weights=values)[group], dtype=np.float64)

    stands = frame.seconds[reading] > 0
    size = parts(frame)[row]
    size = np.where(sums(np.isnan(size).astype(float)) > 0, 1.0, size) * stands
    size /= np.where(sums(size) > 0, sums(size), 1.0)
    sm, engine = frame.number("sm_active")[row], frame.number("gr_active")[row]
    active = np.where(np.isfinite(sm), sm, engine).clip(0, 1)
    active = size * np.where(sums(np.isnan(active).astype(float)) > 0, 1.0, active)
    return size, np.where(sums(active) > 0, active / np.where(sums(active) > 0, sums(active), 1.0), size)
