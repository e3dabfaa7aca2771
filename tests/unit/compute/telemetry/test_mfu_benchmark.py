"""What the benchmark of MFU does beside a GPU: whose readings it takes, what it makes of them, and what it says without one."""

import ctypes
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from benchmarks import mfu
from benchmarks.mfu import Chip
from benchmarks.report import Figure
from macadam.compute.catalogue import gpus
from macadam.compute.telemetry import nvml
from macadam.compute.telemetry.types import Sample

DEVICE = "gpu:GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
H100 = Chip(device=DEVICE, multiprocessors=132, capability=(9, 0))
PEAK = gpus.find("h100-sxm-80gb").peak["bf16"]


def seen(tensor: float | None = 0.7, clock: float | None = 1500.0, device: str = DEVICE) -> Sample:
    return Sample(
        device=device,
        at=datetime(2026, 11, 21, tzinfo=UTC),
        product="NVIDIA H100 80GB HBM3",
        tensor_active=tensor,
        sm_clock=clock,
        power=650.0,
    )


def named(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


@pytest.mark.parametrize(
    ("chip", "model", "megahertz"),
    [
        (Chip(device="", multiprocessors=132, capability=(9, 0)), "h100-sxm-80gb", 1830),
        (Chip(device="", multiprocessors=108, capability=(8, 0)), "a100-sxm-80gb", 1410),
        (Chip(device="", multiprocessors=148, capability=(10, 0)), "b200-sxm-180gb", 1856),
    ],
)
def test_flops_per_cycle_and_the_catalogues_peak_agree_at_the_makers_clock(chip, model, megahertz):
    assert chip.flops_at(megahertz) == pytest.approx(gpus.find(model).peak["bf16"], rel=2e-3)


def test_an_unknown_architecture_has_no_rate():
    assert Chip(device="", multiprocessors=1, capability=(12, 0)).flops_at(1000) is None


@pytest.mark.parametrize("clock", [1200.0, 1830.0, 1980.0])
def test_a_kernel_that_does_what_its_pipes_were_busy_with_is_measured_exactly_at_any_clock(clock):
    done = 0.7 * 132 * 4096 * clock * 1e6
    found = named(mfu.judged([seen(0.7, clock)] * 20, done, H100, "x"))
    assert found["MFU computed"].value == pytest.approx(done / PEAK)
    ratio = found["MFU measured / computed"]
    assert ratio.value == pytest.approx(1.0)
    assert ratio.met
    off = named(mfu.judged([seen(0.7, clock)] * 20, done * 1.2, H100, "x"))["MFU measured / computed"]
    assert not off.met


def test_a_clock_that_moves_is_taken_reading_by_reading():
    quick, slow = seen(0.9, 1900.0), seen(0.5, 1000.0)
    readings = [quick, quick, *[quick, slow] * 9, slow]  # the first two and the last are left out
    done = (0.9 * 1900 + 0.5 * 1000) / 2 * 132 * 4096 * 1e6
    assert named(mfu.judged(readings, done, H100, "x"))["MFU measured / computed"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("readings", "chip", "why"),
    [
        ([], H100, "too seldom"),
        ([seen()] * 7, H100, "too seldom"),
        ([seen(None)] * 20, H100, "no GPM"),
        ([seen(clock=None)] * 20, H100, "no GPM"),
        ([seen()] * 20, Chip(device=DEVICE, multiprocessors=1, capability=(12, 0)), "compute capability"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_made_up_for_it(readings, chip, why):
    last = mfu.judged(readings, 1e14, chip, "x")[-1]
    assert why in last.note
    assert last.value != last.value


@dataclass
class Kernel:
    size: int = 1000
    asked: list[float] = field(default_factory=list)

    def run_for(self, seconds: float) -> tuple[int, float]:
        self.asked.append(seconds)
        while len(self.asked) > 1 and self.reads < 12:
            pass
        return 100, 2.0

    reads: int = 0


def test_only_readings_of_the_device_that_the_kernel_runs_on_count():
    kernel = Kernel()

    def read() -> list[Sample]:
        kernel.reads += 1
        return [seen(0.1, device="gpu:GPU-other"), seen(0.7)]

    found = named(mfu.measured(kernel, read, H100, every=0.0))
    assert kernel.asked == [mfu._WARM, mfu.SECONDS]
    assert found["achieved"].value == pytest.approx(2 * 1000**3 * 100 / 2.0 / 1e12)
    assert found["tensor activity measured"].value == pytest.approx(0.7)


def test_a_collector_that_fails_is_no_silent_figure():
    kernel = Kernel(reads=99)

    def read() -> list[Sample]:
        raise OSError("the device fell off the bus")

    with pytest.raises(OSError, match="fell off"):
        mfu.measured(kernel, read, H100, every=0.0)


class Driver:
    def cuInit(self, _flags: int) -> int:  # noqa: N802 - the library's name
        return 0

    def cuDeviceGet(self, _device: object, number: int) -> int:  # noqa: N802
        return number

    def cuDeviceGetUuid(self, found: object, _device: object) -> int:  # noqa: N802
        ctypes.memmove(ctypes.cast(found, ctypes.c_void_p), bytes(range(16)), 16)
        return 0


def test_cudas_device_is_named_as_the_collector_names_it():
    assert mfu.uuid_of(Driver()) == DEVICE


def test_an_error_of_cuda_is_named():
    driver = Driver()
    driver.cuInit = lambda _flags: 100  # type: ignore[method-assign]
    with pytest.raises(OSError, match="cuInit answered 100"):
        mfu.uuid_of(driver)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(nvml, "present", lambda: False)
    (figure,) = mfu.run()
    assert (figure.note, figure.met) == ("not run: no NVIDIA driver on this machine", True)
    monkeypatch.setattr(nvml, "present", lambda: True)
    monkeypatch.setattr(mfu, "_PLACES", ("/nowhere",))
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    (figure,) = mfu.run()
    assert "libcudart is not in the loader's path nor in /nowhere" in figure.note
