"""How each owner's GPUs did on the whole: means of what was measured, place under the roofline, likely bottleneck, MFU."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.catalogue.gpus import Gpu
from macadam.compute.telemetry.types import RATES, THROTTLED, brought_up, usage_schema
from macadam.compute.waterfall import flops, links
from macadam.compute.waterfall.flops import Job, Likely, Roofline
from macadam.compute.waterfall.seen import LONGEST
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")

_MEANS = ("gpu_active", "sm_active", "tensor_active", "dram_active", *THROTTLED)


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One owner on one GPU model. gpu_hours: believed ones, of a MIG slice its part. means: by device time; what was not measured
    is left out. rates: bytes/s of each GPU over its links. host_cores: part of the cores of its machines that it used.

    roofline: from counters, None if they are missing; mfu: None unless its model FLOPs are known.
    """

    owner: str
    project: str
    gpu: str
    gpu_hours: float
    gpus: int
    means: dict[str, float]
    roofline: Roofline | None
    likely: Likely
    mfu: float | None = None
    rates: dict[str, float] = {}
    host_cores: float | None = None


def by_owner(
    usage: "pa.Table", *, number_format: str = "bf16", model_flops: Mapping[str, float] | None = None
) -> tuple[Profile, ...]:
    """usage: rows of telemetry's schema; suspect ones and machines are left out. Raises InvalidInput for more than a peak."""
    rows = _summed(usage)
    known = mfus(usage, model_flops or {}, number_format)
    hosts = _hosts(usage)
    made = []
    for row in rows:
        means, rates = _means(row, _MEANS), _means(row, RATES)
        gpu = gpus.gpus().get(gpus.recognise(row["model"]))
        host = hosts.get((row["project"], row["owner"]))
        job = _job(row, means, rates, gpu, host)
        made.append(
            Profile(
                owner=row["owner"],
                project=row["project"],
                gpu=row["model"],
                gpu_hours=row["time"] / 3600,
                gpus=row["devices"],
                means=means,
                roofline=flops.roofline_of(gpu, number_format, job) if gpu else None,
                likely=flops.likely(job),
                mfu=known.get(row["owner"]),
                rates=rates,
                host_cores=host,
            )
        )
    return tuple(sorted(made, key=lambda one: (-one.gpu_hours, one.owner, one.gpu)))


def _means(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    return {name: row[name] / row[f"{name}_time"] for name in names if row[f"{name}_time"] > 0}


def _job(
    row: Mapping[str, Any], means: Mapping[str, float], rates: Mapping[str, float], gpu: Gpu | None, host: float | None
) -> Job:
    found = links.Traffic(links=None, bus=None)
    if gpu is not None:
        found = links.traffic(
            gpu, nvlink=rates.get("nvlink"), pcie=rates.get("pcie"), gpus=row["devices"], nodes=row["nodes"]
        )
    parts: dict[str, Any] = {name: min(1.0, max(0.0, value)) for name, value in means.items()}
    return Job(
        **parts,
        link_active=found.links,
        bus_active=found.bus,
        host_cores=host,
        gpus=row["devices"],
    )


def _hosts(usage: "pa.Table") -> dict[tuple[str, str], float]:
    """(project, owner) → part of the cores of the machines that it was on that it used, while it was seen on them."""
    rows = brought_up(usage, usage_schema())
    names = {name: _texts(rows, name) for name in ("device", "project", "owner", "suspect")}
    seconds, used, has = _numbers(rows, "seconds"), _numbers(rows, "host_cpu"), _numbers(rows, "host_cores")
    good = np.isfinite(seconds) & (seconds > 0) & (seconds <= LONGEST) & (names["suspect"] == "")
    good &= (names["owner"] != "") & np.char.startswith(names["device"].astype(str), "host:")
    good &= np.isfinite(used) & (used >= 0) & np.isfinite(has) & (has > 0)
    sums: dict[tuple[str, str], list[float]] = {}
    for place in np.flatnonzero(good).tolist():
        pair = sums.setdefault((names["project"][place], names["owner"][place]), [0.0, 0.0])
        pair[0] += float(used[place] * seconds[place])
        pair[1] += float(has[place] * seconds[place])
    return {key: min(1.0, busy / cores) for key, (busy, cores) in sums.items()}


def mfus(usage: "pa.Table", model_flops: Mapping[str, float], number_format: str) -> dict[str, float]:
    """Owner → MFU over all its believed device time. Owners on a GPU whose peak is not known are left out.

    Raises InvalidInput for more than the peak.
    """
    peaks: dict[str, float] = {}
    unknown: set[str] = set()
    for row in _summed(usage) if model_flops else ():
        gpu = gpus.gpus().get(gpus.recognise(row["model"]))
        if gpu is None or number_format not in gpu.peak:
            unknown.add(row["owner"])
        else:
            peaks[row["owner"]] = peaks.get(row["owner"], 0.0) + gpu.peak[number_format] * row["time"]
    return {
        owner: flops.of_peak(done, peaks[owner], owner)
        for owner, done in model_flops.items()
        if owner in peaks and owner not in unknown
    }


def _summed(usage: "pa.Table") -> list[dict[str, Any]]:
    """Sums by project, owner and model of believed GPU rows: device time, and each ratio times the time that it is known."""
    usage = brought_up(usage, usage_schema())
    names = {name: _texts(usage, name) for name in ("device", "node", "project", "owner", "model", "suspect")}
    seconds, share = _numbers(usage, "seconds"), _numbers(usage, "share")
    good = np.isfinite(seconds) & (seconds > 0) & (seconds <= LONGEST) & (names["suspect"] == "")
    good &= (names["owner"] != "") & np.char.startswith(names["device"].astype(str), "gpu:")
    time = np.where(good, seconds, 0.0) * np.where(np.isnan(share), 1.0, share.clip(0, 1)) * slices(usage)
    columns: dict[str, Any] = {name: pa.array(names[name]) for name in ("project", "owner", "model", "device", "node")}
    columns["time"] = pa.array(time)
    for name in (*_MEANS, *RATES):
        ratio = _numbers(usage, name)
        sound = (ratio >= 0) & (np.isfinite(ratio) if name in RATES else ratio <= 1) & good
        columns[name] = pa.array(np.where(sound, ratio, 0.0) * time)
        columns[f"{name}_time"] = pa.array(np.where(sound, time, 0.0))
    table = pa.table(columns).filter(pa.array(good))
    sums = ["time", *(f"{name}{end}" for name in (*_MEANS, *RATES) for end in ("", "_time"))]
    grouped = table.group_by(["project", "owner", "model"]).aggregate(
        [*((name, "sum") for name in sums), ("device", "count_distinct"), ("node", "count_distinct")]
    )
    return [
        {
            **{name.removesuffix("_sum"): value for name, value in row.items()},
            "devices": row["device_count_distinct"],
            "nodes": row["node_count_distinct"],
        }
        for row in grouped.to_pylist()
    ]


def slices(usage: "pa.Table") -> "npt.NDArray[np.float64]":
    """By row: which part of a GPU its device is. A MIG slice of unknown size counts as a whole one."""
    part = _numbers(brought_up(usage, usage_schema()), "slice")
    return np.where((part > 0) & (part <= 1), part, 1.0)


def _texts(usage: "pa.Table", name: str) -> "npt.NDArray[Any]":
    return np.array([text or "" for text in usage[name].to_pylist()], dtype=object)


def _numbers(usage: "pa.Table", name: str) -> "npt.NDArray[np.float64]":
    return np.array(usage[name].to_numpy(), dtype=np.float64)
