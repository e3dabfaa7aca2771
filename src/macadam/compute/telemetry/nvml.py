"""Reads NVIDIA devices of this machine through NVML, as the package `nvidia-ml-py` gives it.

`Nvml` is the part of that library that is used, so that recorded devices can stand in for it at the library's boundary.
What a device does not support is None, never 0; a device that is lost is said to be lost, and the others are read on.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self, cast

from macadam.compute.telemetry import mig
from macadam.compute.telemetry.types import Claim, Process, Sample
from macadam.errors import Unavailable
from macadam.lazy import lazy

# The library makes its error classes when it is imported, so there are no types to check against.
pynvml: Any = lazy("pynvml")

_log = logging.getLogger(__name__)

# nvml.h: nvmlClockType_t, nvmlTemperatureSensors_t, nvmlGpmMetricId_t, nvmlEventTypeXidCriticalError
_SM_CLOCK, _MEMORY_CLOCK, _ON_DIE, _XID_EVENT = 1, 2, 0, 0x8
_GPM = {"gr_active": 1, "sm_active": 2, "sm_occupancy": 3, "tensor_active": 5, "dram_active": 10}
"""Percentages."""
_GPM_RATES = {"pcie": (20, 21), "nvlink": (60, 61)}
"""MiB/s, sent and received (NVML_GPM_METRIC_PCIE_TX_PER_SEC and its neighbours)."""
_MIB = 1024 * 1024
_MIG_ENABLED = 1
_MOST_EVENTS = 64
"""XID events read at once: a device in a storm of errors must not hold up the others."""
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")

Handle = Any
OwnerOf = Callable[[int], Claim | None]
"""Whose a process is: called with its id; None if it is nobody's that is known."""


class Nvml(Protocol):
    """What is used of NVML, by its own names: the module `pynvml` is one, a recording of devices is another."""

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Handle) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Handle) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Handle) -> Any: ...  # noqa: N802
    def nvmlDeviceGetPowerUsage(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetClockInfo(self, handle: Handle, kind: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[Any]: ...  # noqa: N802
    def nvmlDeviceGetMigMode(self, handle: Handle) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle: ...  # noqa: N802
    def nvmlDeviceGetGpuInstanceId(self, handle: Handle) -> int: ...  # noqa: N802
    def nvmlDeviceGetAttributes_v2(self, device: Handle) -> Any: ...  # noqa: N802
    def nvmlGpmQueryDeviceSupport(self, handle: Handle) -> Any: ...  # noqa: N802
    def nvmlGpmSampleAlloc(self) -> Any: ...  # noqa: N802
    def nvmlGpmSampleFree(self, sample: Any) -> None: ...  # noqa: N802
    def nvmlGpmSampleGet(self, handle: Handle, sample: Any) -> Any: ...  # noqa: N802
    def nvmlGpmMigSampleGet(self, handle: Handle, instance: int, sample: Any) -> Any: ...  # noqa: N802
    def nvmlGpmMetricsGet(self, metrics: Any) -> Any: ...  # noqa: N802
    def nvmlEventSetCreate(self) -> Any: ...  # noqa: N802
    def nvmlEventSetFree(self, events: Any) -> None: ...  # noqa: N802
    def nvmlDeviceRegisterEvents(self, handle: Handle, kinds: int, events: Any) -> Any: ...  # noqa: N802
    def nvmlEventSetWait_v2(self, events: Any, timeout: int) -> Any: ...  # noqa: N802


def present() -> bool:
    """Whether this machine has an NVIDIA driver at all: a look at two files, so that starting without one stays cheap."""
    return any(Path(name).exists() for name in _DEVICE_FILES)


def library() -> Nvml:
    """The real NVML."""
    return cast("Nvml", pynvml)


class NvmlCollector:
    """Reads every device of this machine. Use as a context manager; one thread at a time.

    GPM metrics (Hopper and later) are means since the reading before, so the first one has none.
    """

    def __init__(self, nvml: Nvml, *, node: str, clock: Callable[[], datetime], owner_of: OwnerOf) -> None:
        """Raises Unavailable if there is no driver."""
        self._nvml, self._node, self._clock, self._owner_of = nvml, node, clock, owner_of
        self._gpm: dict[str, Any] = {}
        self._xids: dict[str, int] = {}
        self._names: dict[int, tuple[str, str]] = {}
        try:
            nvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise Unavailable(
                f"NVML does not start: {error}.", next_step="Install NVIDIA's driver, or scrape a dcgm-exporter."
            ) from error
        self._events = self._watch_errors()

    def read(self) -> list[Sample]:
        """One sample for each device, or for each MIG instance of one that is divided."""
        self._take_errors()
        found: list[Sample] = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                self._names[index] = (
                    _text(self._nvml.nvmlDeviceGetUUID(handle)),
                    _text(self._nvml.nvmlDeviceGetName(handle)),
                )
                found += self._device(handle, *self._names[index])
            except pynvml.NVMLError as error:
                found.append(self._failed(index, error))
        return found

    def _failed(self, index: int, error: Exception) -> Sample:
        """A device that does not answer is a reading of its own: silence would pass for a device that is gone."""
        now = self._clock()
        uuid, product = self._names.get(index, (f"index-{index}", ""))
        return Sample(
            device=f"gpu:{uuid}", at=now, received=now, node=self._node, product=product, error=str(error)[:200]
        )

    def _device(self, handle: Handle, uuid: str, product: str) -> list[Sample]:
        instances = list(self._instances(handle))
        if not instances:
            return [self._whole(handle, uuid, product)]
        # The device itself is left out: it would be counted beside its own slices. All have its one instant and its counter.
        now, nvml = self._clock(), self._nvml
        shared = {
            "gpu_power": _scaled(self._ask(nvml.nvmlDeviceGetPowerUsage, handle), 1000),
            "gpu_energy": self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
            "throttle": self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
        }
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        total = 0 if memory is None else int(memory.total)
        return [self._slice(handle, one, uuid, product, now, total, shared) for one in instances]

    def _instances(self, handle: Handle) -> Iterator[Handle]:
        """Handles of MIG devices; none if the device is not divided."""
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != _MIG_ENABLED:
            return
        for index in range(self._ask(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            one = self._ask(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if one is not None:
                yield one

    def _whole(self, handle: Handle, uuid: str, product: str) -> Sample:
        nvml, ask, device = self._nvml, self._ask, f"gpu:{uuid}"
        now = self._clock()
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return self._sample(
            handle,
            device,
            product,
            now,
            gpu_active=None if rates is None else rates.gpu / 100,
            power=_scaled(ask(nvml.nvmlDeviceGetPowerUsage, handle), 1000),
            power_limit=_scaled(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1000),
            energy=ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
            sm_clock=ask(nvml.nvmlDeviceGetClockInfo, handle, _SM_CLOCK),
            memory_clock=ask(nvml.nvmlDeviceGetClockInfo, handle, _MEMORY_CLOCK),
            throttle=ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
            temperature=ask(nvml.nvmlDeviceGetTemperature, handle, _ON_DIE),
            xid=self._xids.get(uuid),
            **self._profile(device, handle, None),
        )

    def _slice(
        self, parent: Handle, handle: Handle, uuid: str, product: str, now: datetime, total: int, shared: dict[str, Any]
    ) -> Sample:
        """A MIG instance has memory and processes of its own; power, energy and clocks are only known of the whole device.

        total: bytes of the whole device, 0 if not known; shared: what is the whole device's.
        """
        instance = self._nvml.nvmlDeviceGetGpuInstanceId(handle)
        device = f"gpu:{uuid}{mig.SLICE}{instance}"
        size = self._ask(self._nvml.nvmlDeviceGetAttributes_v2, handle)
        return self._sample(
            handle,
            device,
            product,
            now,
            profile=None if size is None else mig.profile(size.gpuInstanceSliceCount, size.memorySizeMB, total),
            xid=self._xids.get(uuid),
            **shared,
            **self._profile(device, parent, instance),
        )

    def _sample(self, handle: Handle, device: str, product: str, now: datetime, **own: Any) -> Sample:
        """What a device and a slice of one answer alike, and their own."""
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        processes = self._processes(handle)
        return Sample(
            device=device,
            at=now,
            received=now,
            node=self._node,
            product=product,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            processes=processes,
            claims=self._claims(processes),
            **own,
        )

    def _profile(self, device: str, handle: Handle, instance: int | None) -> dict[str, Any]:
        """Means since the reading before, from GPM; {} where the device has none, or at the first reading."""
        nvml = self._nvml
        support = self._ask(nvml.nvmlGpmQueryDeviceSupport, handle)
        if support is None or not support.isSupportedDevice:
            return {}
        fresh, taken = nvml.nvmlGpmSampleAlloc(), None
        try:
            taken = (
                self._ask(nvml.nvmlGpmSampleGet, handle, fresh)
                if instance is None
                else self._ask(nvml.nvmlGpmMigSampleGet, handle, instance, fresh)
            )
        finally:
            if taken is None:
                nvml.nvmlGpmSampleFree(fresh)
        if taken is None:
            return {}
        before = self._gpm.get(device)
        self._gpm[device] = fresh
        if before is None:
            return {}
        try:
            return self._metrics(before, fresh)
        finally:
            nvml.nvmlGpmSampleFree(before)

    def _metrics(self, before: Any, after: Any) -> dict[str, Any]:
        ratios = list(_GPM.values())
        rates = [metric for pair in _GPM_RATES.values() for metric in pair]
        # A driver that refuses the whole question for what it does not know of links is asked for the rest.
        told = self._told(before, after, [*ratios, *rates]) or self._told(before, after, ratios)
        found = {name: told[metric] / 100 for name, metric in _GPM.items() if metric in told}
        traffic = {
            name: (told[sent] + told[received]) * _MIB
            for name, (sent, received) in _GPM_RATES.items()
            if sent in told and received in told
        }
        return {**found, **traffic}

    def _told(self, before: Any, after: Any, metrics: list[int]) -> dict[int, float]:
        """By metric, what GPM says of the time between two of its samples; without those that the device lacks."""
        wanted = pynvml.c_nvmlGpmMetricsGet_t()
        wanted.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = len(metrics)
        wanted.sample1, wanted.sample2 = before, after
        for place, metric in enumerate(metrics):
            wanted.metrics[place].metricId = metric
        if self._ask(self._nvml.nvmlGpmMetricsGet, wanted) is None:
            return {}
        return {
            metric: wanted.metrics[place].value
            for place, metric in enumerate(metrics)
            if wanted.metrics[place].nvmlReturn == pynvml.NVML_SUCCESS
        }

    def _processes(self, handle: Handle) -> tuple[Process, ...] | None:
        found = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if found is None:
            return None
        return tuple(Process(pid=one.pid, memory=one.usedGpuMemory) for one in found)

    def _claims(self, processes: tuple[Process, ...] | None) -> tuple[Claim, ...] | None:
        """One claim for each owner whose processes are there, with the memory of all of them."""
        if processes is None:
            return None
        memory: dict[tuple[str, str], int | None] = {}
        for process in processes:
            whose = self._owner_of(process.pid)
            if whose is not None:
                key = (whose.project, whose.owner)
                known = memory.get(key, 0)
                memory[key] = None if known is None or process.memory is None else known + process.memory
        return tuple(Claim(project=p, owner=o, memory=m) for (p, o), m in sorted(memory.items()))

    def _watch_errors(self) -> Any:
        """XID errors come as events: from now on, for the devices that can tell."""
        nvml = self._nvml
        events = self._ask(nvml.nvmlEventSetCreate)
        for index in range(nvml.nvmlDeviceGetCount() if events is not None else 0):
            with contextlib.suppress(pynvml.NVMLError):  # one that is lost, or cannot tell, is read without
                nvml.nvmlDeviceRegisterEvents(nvml.nvmlDeviceGetHandleByIndex(index), _XID_EVENT, events)
        return events

    def _take_errors(self) -> None:
        """An error stays the device's last one until the next."""
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                self._xids[_text(self._nvml.nvmlDeviceGetUUID(event.device))] = int(event.eventData)
            except pynvml.NVMLError_Timeout:
                return
            except pynvml.NVMLError as error:
                _log.debug("events of NVML: %s", error)
                return

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; None if the device does not support the question, or we may not ask it. Raises for a lost device."""
        try:
            return question(*arguments)
        except pynvml.NVMLError as error:
            if error.value in _unanswered():
                return None
            raise

    def close(self) -> None:
        with contextlib.suppress(pynvml.NVMLError):  # the driver may be gone already
            for sample in self._gpm.values():
                self._nvml.nvmlGpmSampleFree(sample)
            if self._events is not None:
                self._nvml.nvmlEventSetFree(self._events)
            self._nvml.nvmlShutdown()
        self._gpm.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _unanswered() -> frozenset[int]:
    """Errors that mean "this device, driver or user has no answer", unlike those of a device that is broken."""
    return frozenset(
        {
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_NO_PERMISSION,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_NOT_FOUND,
            pynvml.NVML_ERROR_INVALID_ARGUMENT,
        }
    )


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def _scaled(value: int | None, by: int) -> float | None:
    return None if value is None else value / by
