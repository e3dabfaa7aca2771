"""Makes samples of what dcgm-exporter measures, whether scraped from it or read back from a Prometheus that did.

Fields are those of DCGM (`dcgm_fields.h`); labels differ between releases and between ways of scraping. A value that DCGM
marks as blank is None. What cannot be understood is left out, counted and named.
"""

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from macadam.compute.telemetry import mig
from macadam.compute.telemetry.exposition import Reading, Series, outgrown
from macadam.compute.telemetry.types import RATES, Sample

_MIB = 1024 * 1024
_INT32_BLANK = 0x7FFFFFF0
_WHOLE_LIMIT = 2**63
_MOST_NAMED = 20
_OWN_POD = "dcgm-exporter"
"""Prometheus labels a scrape with the exporter's own pod (and with its job and instance) unless the exporter names one: that
pod has no GPU. What an exporter says itself is a tenant's pod, however the tenant calls it.
"""
_LATEST = 253_402_300_799_000.0
"""ms since the epoch: the end of the year 9999."""


def _ratio(value: float) -> float:
    return value


def _percent(value: float) -> float:
    return value / 100


# DCGM's field → (field of a sample, how its value is written there)
_GAUGES: dict[str, tuple[str, Callable[[float], float]]] = {
    "DCGM_FI_DEV_GPU_UTIL": ("gpu_active", _percent),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": ("gr_active", _ratio),
    "DCGM_FI_PROF_SM_ACTIVE": ("sm_active", _ratio),
    "DCGM_FI_PROF_SM_OCCUPANCY": ("sm_occupancy", _ratio),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("tensor_active", _ratio),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("dram_active", _ratio),
    "DCGM_FI_DEV_POWER_USAGE": ("power", _ratio),
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": ("power_limit", _ratio),
    "DCGM_FI_DEV_SM_CLOCK": ("sm_clock", _ratio),
    "DCGM_FI_DEV_MEM_CLOCK": ("memory_clock", _ratio),
    "DCGM_FI_DEV_GPU_TEMP": ("temperature", _ratio),
    # Bytes/s, means of the last sample period, headers included (DCGM user guide, "Profiling Metrics", fields 1009 to 1012).
    "DCGM_FI_PROF_PCIE_TX_BYTES": ("pcie_sent", _ratio),
    "DCGM_FI_PROF_PCIE_RX_BYTES": ("pcie_received", _ratio),
    "DCGM_FI_PROF_NVLINK_TX_BYTES": ("nvlink_sent", _ratio),
    "DCGM_FI_PROF_NVLINK_RX_BYTES": ("nvlink_received", _ratio),
}
_DIRECTIONS = {f"{name}_{way}" for name in RATES for way in ("sent", "received")}
_OF_DEVICE = {"power": "gpu_power", "energy": "gpu_energy"}
"""What is repeated for each slice of a device, and what it is there: their sum would be several devices'."""
_WHOLE: dict[str, tuple[str, int]] = {
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("energy", 1),
    "DCGM_FI_DEV_FB_USED": ("memory_used", _MIB),
    "DCGM_FI_DEV_FB_FREE": ("memory_free", _MIB),
    "DCGM_FI_DEV_FB_RESERVED": ("memory_reserved", _MIB),
    "DCGM_FI_DEV_XID_ERRORS": ("xid", 1),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": ("throttle", 1),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": ("throttle", 1),
}
FIELDS = (*_GAUGES, *_WHOLE)
"""What is asked for of a Prometheus."""


class Problems(msgspec.Struct, kw_only=True):
    """What was left out: how often, and the first of it in words."""

    count: int = 0
    named: list[str] = []

    def add(self, what: str) -> None:
        self.count += 1
        if len(self.named) < _MOST_NAMED:
            self.named.append(what[:300])


class _Place(NamedTuple):
    """Where a series goes: to which row, under which name. facts: what its labels say of the row."""

    row: tuple[str, str]
    field: str
    convert: Callable[[float], float] | None
    times: int
    facts: dict[str, str | None]


class Translator:
    """Makes samples of readings. Keeps what it understood of each series, so one for each exporter is quickest."""

    def __init__(self, *, source: str, node: str = "") -> None:
        """node: the machine where labels name none."""
        self._source, self._node = source, node
        self._places: dict[int, tuple[Series, _Place | None]] = {}

    def samples(
        self, readings: Iterable[Reading], *, now: datetime, live: bool = True
    ) -> tuple[list[Sample], Problems]:
        """now: when they were read, UTC, which is also their instant where the source gives none. live: whether they were
        read as they were measured, so that their instants can be held against `now`.
        """
        problems = Problems()
        rows: dict[tuple[str, str, float | None], dict[str, float]] = {}
        facts: dict[tuple[str, str, float | None], dict[str, str | None]] = {}
        names_pods, seen = False, 0
        for reading in readings:
            seen += 1
            place = self._place(reading.series, problems)
            if place is None:
                continue
            names_pods = names_pods or bool(place.facts["pod"])
            value = _value(place, reading.value, problems)
            if value is None:
                continue
            key = (*place.row, reading.at)
            row = rows.setdefault(key, {})
            if place.field in row and row[place.field] != value:
                problems.add(f"{place.field} of {place.row[0]} has two values at one instant")
                row[place.field] = math.nan  # neither is believed, and a third does not decide
                continue
            row[place.field] = value
            facts.setdefault(key, place.facts)
        if outgrown(len(self._places), seen):
            self._places = {}
        # By instant, as a device may be divided within the history that is read.
        divided = {(device.partition(mig.SLICE)[0], at) for device, _, at in rows if mig.SLICE in device}
        devices = {(device, at): row for (device, _, at), row in rows.items() if (device, at) in divided}
        for (device, _, at), row in rows.items():
            if mig.SLICE in device:
                _take_of_device(row, devices.get((device.partition(mig.SLICE)[0], at), {}))
        found = [
            self._sample(key, row, facts[key], now, live=live, names_pods=names_pods)
            for key, row in rows.items()
            # The device itself would be counted beside its own MIG instances.
            if key in facts and (key[0], key[2]) not in divided and _is_time(key, problems)
        ]
        return found, problems

    def _place(self, series: Series, problems: Problems) -> _Place | None:
        known = self._places.get(id(series))
        if known is None or known[0] is not series:
            known = (series, self._understood(series, problems))
            self._places[id(series)] = known
        return known[1]

    def _understood(self, series: Series, problems: Problems) -> _Place | None:
        gauge, whole = _GAUGES.get(series.name), _WHOLE.get(series.name)
        if gauge is None and whole is None:
            return None
        labels = series.labels
        uuid = labels.get("UUID") or labels.get("uuid") or ""
        instance = labels.get("GPU_I_ID", "")
        # A UUID with its prefix has 40 characters; what looks like another device's slice would hide that device.
        if not uuid or len(uuid) > 100 or mig.SLICE in uuid or not (instance.isdecimal() or not instance):  # noqa: PLR2004
            problems.add(f"{series.name} names no device by UUID: {sorted(labels)[:8]}")
            return None
        device = f"gpu:{uuid}{mig.SLICE}{instance}" if instance else f"gpu:{uuid}"
        pod, namespace, container = _pod(labels)
        facts: dict[str, str | None] = {
            "node": labels.get("Hostname") or labels.get("hostname") or labels.get("instance") or self._node,
            "product": labels.get("modelName") or labels.get("modelname") or "",
            "pod": pod,
            "namespace": namespace,
            "container": container,
            "profile": labels.get("GPU_I_PROFILE", "") if instance else "",
        }
        if any(len(text) > 253 for text in facts.values() if text):  # noqa: PLR2004 - the longest name in Kubernetes
            problems.add(f"{series.name} of {device} has a label of more than 253 characters")
            return None
        part = f"{namespace}/{pod}/{container}" if pod else ""
        if gauge is not None:
            return _Place((device, part), gauge[0], gauge[1], 1, facts)
        name, times = whole or ("", 1)
        return _Place((device, part), name, None, times, facts)

    def _sample(
        self,
        key: tuple[str, str, float | None],
        row: dict[str, float],
        facts: dict[str, str | None],
        now: datetime,
        *,
        live: bool,
        names_pods: bool,
    ) -> Sample:
        device, part, at = key
        used, free = _whole(row.get("memory_used")), _whole(row.get("memory_free"))
        pod = {name: (facts[name] or "") if names_pods else None for name in ("pod", "namespace", "container")}
        return Sample(
            device=device,
            part=part,
            at=now if at is None else datetime.fromtimestamp(at / 1000, UTC),
            received=now if live else None,
            node=facts["node"] or "",
            product=facts["product"] or "",
            source=self._source,
            profile=facts["profile"] or None,
            **{name: row.get(name) for name, _ in _GAUGES.values() if name not in _DIRECTIONS},  # type: ignore[arg-type] # numbers by their names
            **{name: _both(row.get(f"{name}_sent"), row.get(f"{name}_received")) for name in RATES},  # type: ignore[arg-type]
            gpu_power=row.get("gpu_power"),
            gpu_energy=_whole(row.get("gpu_energy")),
            energy=_whole(row.get("energy")),
            memory_used=used,
            memory_total=None
            if used is None or free is None
            else used + free + (_whole(row.get("memory_reserved")) or 0),
            xid=_whole(row.get("xid")),
            throttle=_whole(row.get("throttle")),
            pod=pod["pod"],
            namespace=pod["namespace"],
            container=pod["container"],
        )


def _take_of_device(row: dict[str, float], device: dict[str, float]) -> None:
    """Makes a MIG instance's row say what is its own and what is the whole device's. dcgm-exporter repeats the device's power and
    energy for each of its instances, or gives them once; some releases give each a utilisation of 0, which none has.
    """
    for name, whole in _OF_DEVICE.items():
        value = row.pop(name, device.get(name))
        if value is not None:
            row[whole] = value
    row.pop("power_limit", None)
    if "throttle" in device:  # a device has one clock
        row.setdefault("throttle", device["throttle"])
    if row.get("gpu_active") == 0:
        del row["gpu_active"]


def _both(sent: float | None, received: float | None) -> float | None:
    """Of both directions together; None unless both are known."""
    return None if sent is None or received is None else sent + received


def _pod(labels: dict[str, str]) -> tuple[str, str, str]:
    """Whose pod the device is in, '' for nobody's. `exported_…` is the exporter's own label, moved aside by Prometheus."""
    if "exported_pod" in labels:
        found = tuple(labels.get(f"exported_{name}", "") for name in ("pod", "namespace", "container"))
        return found[0], found[1], found[2]
    pod = labels.get("pod") or labels.get("pod_name") or ""
    if _OWN_POD in pod and "job" in labels and "instance" in labels:
        return "", "", ""
    namespace = labels.get("namespace") or labels.get("pod_namespace") or ""
    return pod, namespace, labels.get("container") or labels.get("container_name") or ""


def _value(place: _Place, value: float, problems: Problems) -> float | None:
    """In the units of a sample; None if blank. A gauge that is no number stays so, for the checks to see."""
    if _is_blank(value):
        return None
    if place.convert is not None:
        return place.convert(value)
    scaled = value * place.times
    if not math.isfinite(value) or abs(scaled) >= _WHOLE_LIMIT:
        problems.add(f"{place.field} of {place.row[0]} is {value}")
        return None
    return float(int(value)) * place.times


def _is_blank(value: float) -> bool:
    """DCGM's marks for "not there", "not found", "not supported", "not permitted" (dcgm_structs.h)."""
    return _INT32_BLANK <= value < _INT32_BLANK + 16 or value >= 2**63 - 2048 or 2.0**47 <= value <= 2.0**47 + 3


def _is_time(key: tuple[str, str, float | None], problems: Problems) -> bool:
    at = key[2]
    if at is None or 0 <= at <= _LATEST:
        return True
    problems.add(f"{key[0]} was read at {at} ms, which is no time")
    return False


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)
