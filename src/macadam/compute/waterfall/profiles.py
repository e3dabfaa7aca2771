"""How each owner's GPUs did on the whole: means of what was measured, place under the roofline, likely bottleneck, MFU."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.waterfall import flops
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

_MEANS = ("gpu_active", "sm_active", "tensor_active", "dram_active")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One owner on one GPU model. gpu_hours: believed ones. means: by device time; what was not measured is left out.

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


def by_owner(
    usage: "pa.Table", *, number_format: str = "bf16", model_flops: Mapping[str, float] | None = None
) -> tuple[Profile, ...]:
    """usage: rows of telemetry's schema; suspect ones and machines are left out. Raises InvalidInput for more than a peak."""
    rows = _summed(usage)
    known = mfus(usage, model_flops or {}, number_format)
    made = []
    for row in rows:
        means = {name: row[name] / row[f"{name}_time"] for name in _MEANS if row[f"{name}_time"] > 0}
        job = Job(**{name: min(1.0, max(0.0, value)) for name, value in means.items()}, gpus=row["devices"])
        gpu = gpus.gpus().get(gpus.recognise(row["model"]))
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
            )
        )
    return tuple(sorted(made, key=lambda one: (-one.gpu_hours, one.owner, one.gpu)))


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
    names = {name: _texts(usage, name) for name in ("device", "project", "owner", "model", "suspect")}
    seconds, share = _numbers(usage, "seconds"), _numbers(usage, "share")
    good = np.isfinite(seconds) & (seconds > 0) & (seconds <= LONGEST) & (names["suspect"] == "")
    good &= (names["owner"] != "") & np.char.startswith(names["device"].astype(str), "gpu:")
    time = np.where(good, seconds, 0.0) * np.where(np.isnan(share), 1.0, share.clip(0, 1))
    columns: dict[str, Any] = {name: pa.array(names[name]) for name in ("project", "owner", "model", "device")}
    columns["time"] = pa.array(time)
    for name in _MEANS:
        ratio = _numbers(usage, name)
        sound = (ratio >= 0) & (ratio <= 1) & good
        columns[name] = pa.array(np.where(sound, ratio, 0.0) * time)
        columns[f"{name}_time"] = pa.array(np.where(sound, time, 0.0))
    table = pa.table(columns).filter(pa.array(good))
    sums = ["time", *_MEANS, *(f"{name}_time" for name in _MEANS)]
    grouped = table.group_by(["project", "owner", "model"]).aggregate(
        [*((name, "sum") for name in sums), ("device", "count_distinct")]
    )
    return [
        {**{name.removesuffix("_sum"): value for name, value in row.items()}, "devices": row["device_count_distinct"]}
        for row in grouped.to_pylist()
    ]


def _texts(usage: "pa.Table", name: str) -> "npt.NDArray[Any]":
    return np.array([text or "" for text in usage[name].to_pylist()], dtype=object)


def _numbers(usage: "pa.Table", name: str) -> "npt.NDArray[np.float64]":
    return np.array(usage[name].to_numpy(), dtype=np.float64)
