"""MFU of a known kernel on a real GPU: what we compute of it against what the collector saw of it.

A square matrix product in bf16 (sums in fp32) runs through cuBLAS for some seconds while the collector reads the device once a
second. Its FLOPs are known (2 n^3 each), so achieved FLOPs / dense peak is the MFU; the tensor pipes' measured activity must say the
same within 10%. Needs an NVIDIA GPU with GPM (Hopper or later) and CUDA's libcudart and libcublas; without them it says what is
missing.

A tensor pipe that is active in every cycle does so many FLOPs a cycle, at whatever clock it runs: activity x multiprocessors x FLOPs
per cycle x the SM clock that was measured is what was done. A data sheet's peak is the same product at the clock that its maker names
for it, which is not the highest one: an H100 SXM has its 989 TFLOP/s at 1,830 MHz and may run at 1,980 MHz
(glennklockwood.com/garden/processors/h100).
"""

import ctypes
import ctypes.util
import glob
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Figure
from macadam.compute.catalogue import gpus
from macadam.compute.telemetry import nvml
from macadam.compute.telemetry.collecting import nobody
from macadam.compute.telemetry.nvml import NvmlCollector
from macadam.compute.telemetry.types import Sample
from macadam.errors import MacadamError
from macadam.values import utc_now

SIZE = 8192
SECONDS = 20.0
EVERY = 1.0
"""Seconds between two readings: NVML refreshes GPM's counters every 100 ms ("NVML API Reference", GPM functions)."""
_WARM = 3.0
_FEWEST = 5
_BF16, _COMPUTE_32F, _TENSOR = 14, 68, 99  # library_types.h, cublas_api.h
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # driver_types.h, cudaDeviceAttr
_PER_CYCLE = {(8, 0): 2048, (9, 0): 4096, (10, 0): 8192}
"""Dense bf16 FLOPs of one multiprocessor in a cycle, by compute capability: NVIDIA's architecture white papers of A100, H100 and
Blackwell (256, 512 and 1024 multiply-adds in each of four tensor cores).
"""
_PLACES = (
    "/usr/local/cuda*/lib64",
    "/usr/local/cuda*/targets/*/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/opt/*/lib/python3*/site-packages/nvidia/*/lib",
    "/usr/local/lib/python3*/*-packages/nvidia/*/lib",
)


def run() -> list[Figure]:
    if not nvml.present():
        return [_absent("no NVIDIA driver on this machine")]
    try:
        runtime, blas, driver = _library("cudart"), _library("cublas"), _library("cuda")
        chip = Chip(
            device=uuid_of(driver),
            multiprocessors=_attribute(runtime, _MULTIPROCESSORS),
            capability=(_attribute(runtime, _MAJOR), _attribute(runtime, _MINOR)),
        )
        with NvmlCollector(nvml.library(), node=socket.gethostname(), clock=utc_now, owner_of=nobody) as collector:
            return measured(Product(runtime, blas, SIZE), collector.read, chip)
    except (OSError, MacadamError) as error:
        return [_absent(str(error))]


def _absent(why: str) -> Figure:
    return Figure(name="MFU against the collector", value=float("nan"), unit="", note=f"not run: {why}")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What CUDA says of the device that the kernel runs on. device: as the collector names it; capability: major, minor."""

    device: str
    multiprocessors: int
    capability: tuple[int, int]

    def flops_at(self, megahertz: float) -> float | None:
        """Dense bf16 FLOP/s with every tensor pipe busy; None for an architecture whose rate is not known here."""
        per_cycle = _PER_CYCLE.get(self.capability)
        return None if per_cycle is None else self.multiprocessors * per_cycle * megahertz * 1e6


def measured(kernel: Any, read: Callable[[], list[Sample]], chip: Chip, *, every: float = EVERY) -> list[Figure]:
    """Runs the kernel, watches it, and compares. kernel: has `size` and `run_for(seconds) -> (how many, in how many seconds)`."""
    kernel.run_for(_WARM)
    done = threading.Event()

    def watch() -> list[Sample]:
        seen: list[Sample] = []
        while not done.is_set():
            seen += [sample for sample in read() if sample.device == chip.device]
            done.wait(every)
        return seen

    with ThreadPoolExecutor(max_workers=1) as pool:
        watching = pool.submit(watch)
        try:
            count, seconds = kernel.run_for(SECONDS)
        finally:
            done.set()
        seen = watching.result()
    return judged(seen, 2 * kernel.size**3 * count / seconds, chip, f"{kernel.size}³, {count} in {seconds:.1f} s")


def judged(seen: Sequence[Sample], flops: float, chip: Chip, what: str) -> list[Figure]:
    """seen: readings of the chip while it achieved `flops` FLOP/s. Pure."""
    # GPM's values are means since the reading before: the first has none, the second may begin before the kernel does, and
    # the last may reach past its end.
    inside = seen[2:-1]
    if len(inside) < _FEWEST:
        return [_absent(f"the collector saw {chip.device} {len(seen)} times, too seldom")]
    model = gpus.recognise(inside[0].product)
    if not model or "bf16" not in gpus.gpus()[model].peak:
        return [_absent(f"the catalogue knows no bf16 peak of {inside[0].product!r}")]
    peak = gpus.gpus()[model].peak["bf16"]
    mfu, watts = flops / peak, [s.power for s in inside if s.power is not None]
    figures = [
        Figure(name="achieved", value=flops / 1e12, unit="TFLOP/s", note=f"{model}, bf16, {what}"),
        Figure(name="MFU computed", value=mfu, unit="", note=f"of {peak / 1e12:.0f} TFLOP/s dense"),
        Figure(name="power", value=statistics.mean(watts) if watts else float("nan"), unit="W"),
    ]
    # What a cycle does and how many there were belong together, reading by reading: a clock that moves is no error of its own.
    pairs = [(s.tensor_active, s.sm_clock) for s in inside if s.tensor_active is not None and s.sm_clock]
    if len(pairs) < _FEWEST:
        return [*figures, _absent("the device has no GPM, so nothing says how active its tensor pipes were")]
    busy = statistics.mean(active for active, _ in pairs)
    clock = statistics.mean(megahertz for _, megahertz in pairs)
    most = chip.flops_at(1.0)
    if most is None:
        return [*figures, _absent(f"FLOPs per cycle of compute capability {chip.capability} are not known here")]
    counted = statistics.mean(active * megahertz for active, megahertz in pairs) * most / peak
    named = peak / most
    return [
        *figures,
        Figure(name="tensor activity measured", value=busy, unit="", note=f"{len(pairs)} readings at {clock:.0f} MHz"),
        Figure(name="MFU measured", value=counted, unit="", note=f"the peak is for {named:.0f} MHz"),
        Figure(name="MFU measured / computed", value=counted / mfu, unit="", at_least=0.9, at_most=1.1),
    ]


def uuid_of(driver: Any) -> str:
    """The collector's name of CUDA's first device, whatever order CUDA and NVML count them in. Raises OSError."""
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    _check(driver.cuInit(0), "cuInit")
    _check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _check(driver.cuDeviceGetUuid(ctypes.byref(found), device), "cuDeviceGetUuid")
    digits = bytes(found).hex()
    return "gpu:GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _attribute(runtime: Any, attribute: int) -> int:
    value = ctypes.c_int()
    _check(runtime.cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0), "cudaDeviceGetAttribute")
    return value.value


class Product:
    """C = A·B in bf16 with sums in fp32, again and again."""

    def __init__(self, runtime: Any, blas: Any, size: int) -> None:
        self._runtime, self._blas, self.size = runtime, blas, size
        self._handle = ctypes.c_void_p()
        _check(blas.cublasCreate_v2(ctypes.byref(self._handle)), "cublasCreate")
        self._matrices = [ctypes.c_void_p() for _ in range(3)]
        for number, matrix in enumerate(self._matrices):
            _check(runtime.cudaMalloc(ctypes.byref(matrix), ctypes.c_size_t(size * size * 2)), "cudaMalloc")
            # Zeros draw less power and so run at another clock; 0x3c3c is a small bf16 that is not zero.
            _check(
                runtime.cudaMemset(matrix, 0 if number == 2 else 0x3C, ctypes.c_size_t(size * size * 2)), "cudaMemset"
            )

    def run_for(self, seconds: float) -> tuple[int, float]:
        """(how many, in how many seconds): begun and ended with an idle device."""
        _check(self._runtime.cudaDeviceSynchronize(), "cudaDeviceSynchronize")
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(50):
                self._once()
            count += 50
            _check(self._runtime.cudaDeviceSynchronize(), "cudaDeviceSynchronize")
        return count, time.perf_counter() - began

    def _once(self) -> None:
        n = ctypes.c_int(self.size)
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        a, b, c = self._matrices
        status = self._blas.cublasGemmEx(
            self._handle, 0, 0, n, n, n, ctypes.byref(one), a, _BF16, n, b, _BF16, n,
            ctypes.byref(zero), c, _BF16, n, _COMPUTE_32F, _TENSOR,
        )  # fmt: skip
        _check(status, "cublasGemmEx")


def _check(status: int, what: str) -> None:
    if status:
        raise OSError(f"{what} answered {status}")


def _library(name: str) -> Any:
    """Raises OSError, saying where it was looked for."""
    found = ctypes.util.find_library(name)
    for path in [*([found] if found else []), *(p for d in _PLACES for p in sorted(glob.glob(f"{d}/lib{name}.so*")))]:  # noqa: PTH207 - patterns from the root
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise OSError(f"lib{name} is not in the loader's path nor in {', '.join(_PLACES)}")
