"""Recorded NVIDIA devices that stand in for NVML at the library's own boundary: its functions, structures and errors.

What is written down here is what `nvidia-smi -q` and NVML's documentation say of these products: an H100 has GPM, an A100 that is
divided has no utilisation, a T4 no energy counter with its old driver, and a device that fell off the bus answers nothing.
"""

# ruff: noqa: N802, ARG002 - the names and arguments are the library's

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass(kw_only=True)
class Slice:
    instance: int
    used: int
    total: int
    pids: dict[int, int | None] = field(default_factory=dict)
    gpm: dict[int, float] = field(default_factory=dict)
    compute: int = 1
    megabytes: int | None = None


@dataclass(kw_only=True)
class Recorded:
    """One device. Values that are None are not supported by it."""

    uuid: str
    name: str
    used: int | None = 0
    total: int = 0
    gpu: int | None = 0
    power: int | None = 0
    limit: int | None = 0
    energy: int | None = 0
    clocks: tuple[int, int] = (345, 2619)
    reasons: int | None = 1
    temperature: int = 30
    pids: dict[int, int | None] | None = field(default_factory=dict)
    gpm: dict[int, float] | None = None
    slices: list[Slice] = field(default_factory=list)
    lost: bool = False


class RecordedNvml:
    """The part of `pynvml` that the collector uses."""

    def __init__(self, *devices: Recorded) -> None:
        self.devices = list(devices)
        self.events: list[tuple[str, int]] = []
        self.open_samples: set[int] = set()
        self.initialised = 0
        self.before_read: Callable[[], None] = lambda: None

    def nvmlInit(self) -> None:
        self.initialised += 1

    def nvmlShutdown(self) -> None:
        self.initialised -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        device = self.devices[index]
        if device.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return device

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return handle.uuid

    def nvmlDeviceGetName(self, handle: Any) -> bytes:
        return handle.name.encode()  # older releases of the library give bytes

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        if handle.slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=_or_not_supported(handle.gpu), memory=0)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(used=_or_not_supported(handle.used), total=handle.total, free=handle.total - handle.used)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return _or_not_supported(handle.power)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        return _or_not_supported(handle.limit)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return _or_not_supported(handle.energy)

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        return handle.clocks[0 if kind == pynvml.NVML_CLOCK_SM else 1]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return _or_not_supported(handle.reasons)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return handle.temperature

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        pids = _or_not_supported(handle.pids)
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in pids.items()]

    def nvmlDeviceGetMigMode(self, handle: Any) -> Any:
        if "A100" not in handle.name and "H100" not in handle.name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        mode = 1 if handle.slices else 0
        return [mode, mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        if index >= len(handle.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle.slices[index]

    def nvmlDeviceGetGpuInstanceId(self, handle: Any) -> int:
        return handle.instance

    def nvmlDeviceGetAttributes_v2(self, device: Any) -> Any:
        size = _or_not_supported(device.megabytes)
        return SimpleNamespace(gpuInstanceSliceCount=device.compute, memorySizeMB=size)

    def nvmlGpmQueryDeviceSupport(self, handle: Any) -> Any:
        return SimpleNamespace(isSupportedDevice=int(handle.gpm is not None))

    def nvmlGpmSampleAlloc(self) -> Any:
        made = ctypes.pointer(pynvml.struct_c_nvmlGpmSample_t())
        self.open_samples.add(id(made))
        return made

    def nvmlGpmSampleFree(self, sample: Any) -> None:
        self.open_samples.remove(id(sample))

    def nvmlGpmSampleGet(self, handle: Any, sample: Any) -> Any:
        self._measured = handle.gpm
        return sample

    def nvmlGpmMigSampleGet(self, handle: Any, instance: int, sample: Any) -> Any:
        self._measured = next(s.gpm for s in handle.slices if s.instance == instance)
        return sample

    def nvmlGpmMetricsGet(self, metrics: Any) -> Any:
        assert metrics.version == pynvml.NVML_GPM_METRICS_GET_VERSION
        assert metrics.sample1
        assert metrics.sample2
        for metric in metrics.metrics[: metrics.numMetrics]:
            known = metric.metricId in self._measured
            metric.nvmlReturn = pynvml.NVML_SUCCESS if known else pynvml.NVML_ERROR_NOT_SUPPORTED
            metric.value = self._measured.get(metric.metricId, 0.0)
        return metrics

    def nvmlEventSetCreate(self) -> Any:
        return SimpleNamespace(watched=[])

    def nvmlEventSetFree(self, events: Any) -> None:
        events.watched.clear()

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: int, events: Any) -> None:
        assert kinds == pynvml.nvmlEventTypeXidCriticalError
        events.watched.append(handle.uuid)

    def nvmlEventSetWait_v2(self, events: Any, timeout: int) -> Any:
        for number, (uuid, xid) in enumerate(self.events):
            if uuid in events.watched:
                del self.events[number]
                device = next(d for d in self.devices if d.uuid == uuid)
                return SimpleNamespace(device=device, eventData=xid)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)


def _or_not_supported(value: Any) -> Any:
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


def h100(**changes: Any) -> Recorded:
    given: dict[str, Any] = {
        "uuid": "GPU-11111111-1111-1111-1111-111111111111",
        "name": "NVIDIA H100 80GB HBM3",
        "used": 40 * 2**30,
        "total": 85_520_809_984,
        "gpu": 98,
        "power": 612_345,
        "limit": 700_000,
        "energy": 9_876_543_210,
        "clocks": (1980, 2619),
        "reasons": 4,
        "temperature": 61,
        "gpm": {1: 97.5, 2: 88.25, 3: 31.0, 5: 62.5, 10: 41.0},
    }
    return Recorded(**{**given, **changes})


def a100_divided() -> Recorded:
    """Two slices; an A100 has no GPM, so nothing says what they do."""
    return Recorded(
        uuid="GPU-22222222-2222-2222-2222-222222222222",
        name="NVIDIA A100-SXM4-80GB",
        used=30 * 2**30,
        total=85_899_345_920,
        gpu=None,
        power=210_000,
        limit=400_000,
        energy=1_000_000,
        slices=[
            Slice(instance=1, used=10 * 2**30, total=40 * 2**30, pids={4242: 10 * 2**30}, compute=3, megabytes=40192),
            Slice(instance=5, used=0, total=20 * 2**30, compute=2, megabytes=19968),
        ],
    )


def t4() -> Recorded:
    return Recorded(
        uuid="GPU-33333333-3333-3333-3333-333333333333",
        name="Tesla T4",
        used=2**30,
        total=15_843_721_216,
        gpu=37,
        power=42_000,
        limit=70_000,
        energy=None,
        reasons=None,
        pids=None,
    )
