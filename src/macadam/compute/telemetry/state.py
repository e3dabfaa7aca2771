"""Devices as they were last seen: the newest sample of each, who has it, and how it went in the last minutes. Pure."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from macadam.compute.catalogue import gpus
from macadam.compute.telemetry.requests import Device, Holder
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")

_JOULES = 3_600_000.0
_MOST_POINTS = 60
_SHOWN = (
    "gpu_active",
    "sm_active",
    "tensor_active",
    "dram_active",
    "memory_used",
    "memory_total",
    "power",
    "temperature",
)


def devices(samples: "pa.Table", usage: "pa.Table", now: datetime) -> tuple[Device, ...]:
    """samples: sorted by device and instant; usage: by minute, of the same time. Sorted by node and device."""
    newest: dict[str, dict[str, Any]] = {}
    for row in _last_rows(samples):
        newest[row["device"]] = row
    minutes: dict[str, list[dict[str, Any]]] = {}
    for row in usage.to_pylist():
        minutes.setdefault(row["device"], []).append(row)
    found = [_device(row, minutes.get(device, []), now) for device, row in newest.items()]
    return tuple(sorted(found, key=lambda d: (d.node, d.device)))


def _last_rows(samples: "pa.Table") -> list[dict[str, Any]]:
    names = samples.column("device").to_pylist()
    last = [n for n, name in enumerate(names) if n + 1 == len(names) or names[n + 1] != name]
    return samples.take(pa.array(last, pa.int64())).to_pylist()


def _device(row: dict[str, Any], minutes: list[dict[str, Any]], now: datetime) -> Device:
    newest = max((m["start"] for m in minutes), default=None)
    current = [m for m in minutes if m["start"] == newest]
    joules = [m["energy_joules"] for m in minutes if m["energy_joules"] is not None]
    return Device(
        device=row["device"],
        node=row["node"],
        model=gpus.recognise(row["product"]) if row["product"] else "",
        product=row["product"],
        at=row["at"],
        age=max(0.0, (now - row["at"]).total_seconds()),
        owners=_owners(current),
        **{name: _finite(row[name]) for name in _SHOWN},
        xid=row["xid"],
        throttle=row["throttle"],
        energy_kwh=sum(joules) / _JOULES if joules else None,
        trend=_trend(minutes),
        suspect=next((m["suspect"] for m in reversed(current) if m["suspect"]), ""),
        error=row["error"],
        profile=row["profile"] or "",
    )


def _owners(current: list[dict[str, Any]]) -> tuple[Holder, ...]:
    """Each once: time that is doubted is a row beside that which is believed."""
    found = {
        (m["project"], m["owner"]): Holder(project=m["project"], owner=m["owner"], share=m["share"])
        for m in current
        if m["owner"]
    }
    return tuple(found.values())


def _trend(minutes: list[dict[str, Any]]) -> tuple[float | None, ...]:
    by_start: dict[datetime, float | None] = {}
    for minute in sorted(minutes, key=lambda m: m["start"]):
        value = minute["sm_active"] if minute["sm_active"] is not None else minute["gpu_active"]
        by_start[minute["start"]] = value if value is not None else by_start.get(minute["start"])
    return tuple(by_start.values())[-_MOST_POINTS:]


def _finite(value: Any) -> Any:
    """JSON has no NaN; the suspicion says that there was one."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
