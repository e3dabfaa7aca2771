"""MFU of a known kernel on a real GPU: what we compute of it against what the collector saw of it.

A square matrix product in bf16 runs through cuBLAS for some seconds while the collector reads the device once a second. Its FLOPs
are known (2 n^3 each), so achieved FLOPs / dense peak is the MFU; the tensor pipes' measured activity must say the same within
10%. Needs an NVIDIA GPU of Hopper or later (GPM) and CUDA's libcudart and libcublas; without them it says what is missing.

`python -m benchmarks mfu`; here as elsewhere a figure is only as good as the clock: the activity is compared with the peak at
the SM clock that was measured, since the data sheet's is the boost clock's.
"""

import ctypes
import ctypes.util
import glob
import socket
import statistics
import threading
import time
from typing import Any

from benchmarks.report import Figure
from macadam.compute.catalogue import gpus
from macadam.compute.telemetry import nvml
from macadam.compute.telemetry.collecting import nobody
from macadam.compute.telemetry.nvml import NvmlCollector
from macadam.compute.telemetry.types import Sample
from macadam.values import utc_now

SIZE = 8192
SECONDS = 20.0
_WARM = 3.0
_BF16, _FLOAT, _COMPUTE_32F, _TENSOR = 14, 0, 68, 99  # library_types.h, cublas_api.h
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
        runtime, blas = _library("cudart"), _library("cublas")
    except OSError as error:
        return [_absent(str(error))]
    return _measured(runtime, blas)


def _absent(why: str) -> Figure:
    return Figure(name="MFU against the collector", value=float("nan"), unit="", note=f"not run: {why}")


def _measured(runtime: Any, blas: Any) -> list[Figure]:
    kernel = Product(runtime, blas, SIZE)
    kernel.run_for(_WARM)
    seen: list[Sample] = []
    done = threading.Event()

    def watch() -> None:
        with NvmlCollector(nvml.library(), node=socket.gethostname(), clock=utc_now, owner_of=nobody) as collector:
            while not done.is_set():
                seen.extend(collector.read()[:1])
                done.wait(1.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        count, seconds = kernel.run_for(SECONDS)
    finally:
        done.set()
        watcher.join()
    flops = 2 * SIZE**3 * count / seconds
    model = gpus.recognise(seen[0].product)
    if not model:
        return [_absent(f"the catalogue does not know {seen[0].product!r}")]
    inside = seen[2:-1]  # the first has no means yet, the last may reach past the end
    tensor = [s.tensor_active for s in inside if s.tensor_active is not None]
    watts = [s.power for s in inside if s.power is not None]
    peak = gpus.find(model).peak["bf16"]
    mfu = flops / peak
    figures = [
        Figure(
            name="achieved",
            value=flops / 1e12,
            unit="TFLOP/s",
            note=f"{model}, bf16, {SIZE}³, {count} in {seconds:.1f} s",
        ),
        Figure(name="MFU computed", value=mfu, unit="", note=f"of {peak / 1e12:.0f} TFLOP/s dense"),
        Figure(name="power", value=statistics.mean(watts) if watts else float("nan"), unit="W"),
    ]
    if not tensor:
        return [*figures, _absent("the device has no GPM, so nothing says how active its tensor pipes were")]
    clocks = [s.sm_clock for s in inside if s.sm_clock is not None]
    fastest = _boost(runtime)
    at_clock = statistics.mean(tensor) * (statistics.mean(clocks) / fastest if clocks and fastest else 1.0)
    return [
        *figures,
        Figure(name="tensor activity measured", value=statistics.mean(tensor), unit="", note=f"{len(tensor)} readings"),
        Figure(
            name="MFU measured / computed",
            value=at_clock / mfu,
            unit="",
            at_least=0.9,
            at_most=1.1,
            note=f"activity at {statistics.mean(clocks) if clocks else 0:.0f} of {fastest:.0f} MHz",
        ),
    ]


def _boost(runtime: Any) -> float:
    """MHz that the data sheet's peak is for: cudaDevAttrClockRate is 13, in kHz."""
    value = ctypes.c_int()
    _check(runtime.cudaDeviceGetAttribute(ctypes.byref(value), 13, 0), "cudaDeviceGetAttribute")
    return value.value / 1000


class Product:
    """C = A·B in bf16 with sums in fp32, again and again."""

    def __init__(self, runtime: Any, blas: Any, size: int) -> None:
        self._runtime, self._blas, self._size = runtime, blas, size
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
        n = ctypes.c_int(self._size)
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
