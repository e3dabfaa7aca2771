"""What is read of NVIDIA devices, with recordings standing in at the library's boundary."""

from datetime import UTC, datetime
from typing import Any

import pynvml
import pytest
from unit.compute.telemetry.devices import RecordedNvml, a100_divided, h100, t4

from macadam.compute.telemetry.nvml import NvmlCollector
from macadam.compute.telemetry.types import Claim, from_table, to_table
from macadam.errors import Unavailable

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ALICE, BOB = Claim(project="vision", owner="job:a"), Claim(project="speech", owner="job:b")


def collector(nvml: RecordedNvml, owners: dict[int, Claim] | None = None) -> NvmlCollector:
    return NvmlCollector(nvml, node="node-1", clock=lambda: NOW, owner_of=(owners or {}).get)


def test_a_hopper_gives_profiling_means_from_the_second_reading_on() -> None:
    with collector(RecordedNvml(h100())) as reader:
        (first,) = reader.read()
        assert (first.gpu_active, first.sm_active) == (0.98, None)
        (second,) = reader.read()
    profile = (second.gr_active, second.sm_active, second.sm_occupancy, second.tensor_active, second.dram_active)
    assert profile == (0.975, 0.8825, 0.31, 0.625, 0.41)
    assert (second.device, second.product) == ("gpu:GPU-11111111-1111-1111-1111-111111111111", "NVIDIA H100 80GB HBM3")
    assert (second.power, second.power_limit, second.energy) == (612.345, 700.0, 9_876_543_210)
    assert (second.memory_used, second.sm_clock, second.throttle, second.temperature) == (40 * 2**30, 1980, 4, 61)
    assert from_table(to_table([second]))[0].sm_active == pytest.approx(0.8825)


def test_traffic_over_links_is_bytes_per_second_in_both_directions() -> None:
    traffic = {20: 1000.0, 21: 3000.0, 60: 50_000.0, 61: 30_000.0}  # MiB/s
    with collector(RecordedNvml(h100(gpm=traffic), h100(uuid="GPU-one-way", gpm={20: 5.0}))) as reader:
        reader.read()
        both, one_way = reader.read()
    assert (both.pcie, both.nvlink) == (4000 * 2**20, 80_000 * 2**20)
    assert (one_way.pcie, one_way.nvlink) == (None, None)


def test_a_driver_that_refuses_to_be_asked_about_links_still_tells_the_rest() -> None:
    class Older(RecordedNvml):
        def nvmlGpmMetricsGet(self, metrics: Any) -> Any:  # noqa: N802 - the library's name
            if any(metric.metricId >= 20 for metric in metrics.metrics[: metrics.numMetrics]):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
            return super().nvmlGpmMetricsGet(metrics)

    with collector(Older(h100())) as reader:
        reader.read()
        (seen,) = reader.read()
    assert (seen.sm_active, seen.tensor_active, seen.nvlink, seen.pcie) == (0.8825, 0.625, None, None)


def test_one_metric_that_a_device_lacks_is_unknown_and_the_others_are_there() -> None:
    with collector(RecordedNvml(h100(gpm={2: 50.0}))) as reader:
        reader.read()
        (seen,) = reader.read()
    assert (seen.sm_active, seen.tensor_active, seen.dram_active) == (0.5, None, None)


def test_what_a_device_does_not_support_is_unknown_and_never_nothing() -> None:
    with collector(RecordedNvml(t4())) as reader:
        reader.read()
        (seen,) = reader.read()
    assert (seen.gpu_active, seen.power) == (0.37, 42.0)
    assert (seen.energy, seen.throttle, seen.sm_active, seen.tensor_active) == (None, None, None, None)
    assert (seen.processes, seen.claims) == (None, None)


def test_a_divided_device_is_read_as_its_slices_only() -> None:
    with collector(RecordedNvml(a100_divided()), {4242: ALICE}) as reader:
        first, second = reader.read()
    assert first.device == "gpu:GPU-22222222-2222-2222-2222-222222222222/mig:1"
    assert second.device.endswith("/mig:5")
    assert (first.memory_used, first.memory_total) == (10 * 2**30, 40 * 2**30)
    assert first.claims == (Claim(project="vision", owner="job:a", memory=10 * 2**30),)
    assert second.claims == ()
    assert first.gpu_active is None
    assert first.power is None
    assert (first.profile, second.profile) == ("3g.40gb", "2g.20gb")
    assert {(seen.at, seen.gpu_power, seen.gpu_energy, seen.throttle) for seen in (first, second)} == {
        (NOW, 210.0, 1_000_000, 1)
    }


def test_a_slice_whose_size_the_driver_does_not_tell_has_no_profile() -> None:
    divided = a100_divided()
    divided.slices[0].megabytes = None
    with collector(RecordedNvml(divided)) as reader:
        assert [seen.profile for seen in reader.read()] == [None, "2g.20gb"]


def test_a_slice_of_a_hopper_has_profiling_of_its_own() -> None:
    device = h100()
    divided = a100_divided()
    divided.name, divided.gpm = device.name, device.gpm
    divided.slices[0].gpm, divided.slices[1].gpm = {2: 70.0}, {2: 5.0}
    with collector(RecordedNvml(divided)) as reader:
        reader.read()
        assert [seen.sm_active for seen in reader.read()] == [0.7, 0.05]


def test_a_lost_device_is_said_to_be_lost_and_the_others_are_read_on() -> None:
    nvml = RecordedNvml(h100(), t4())
    with collector(nvml) as reader:
        reader.read()
        nvml.devices[0].lost = True
        lost, alive = reader.read()
    assert (lost.device, lost.error) == ("gpu:GPU-11111111-1111-1111-1111-111111111111", "GPU is lost")
    assert (lost.gpu_active, lost.power) == (None, None)
    assert alive.gpu_active == 0.37


def test_an_xid_error_stays_the_devices_last_one() -> None:
    nvml = RecordedNvml(h100(), t4())
    with collector(nvml) as reader:
        assert [seen.xid for seen in reader.read()] == [None, None]
        nvml.events += [(nvml.devices[0].uuid, 79), (nvml.devices[0].uuid, 48)]
        assert [seen.xid for seen in reader.read()] == [48, None]
        assert [seen.xid for seen in reader.read()] == [48, None]


def test_processes_are_claimed_by_their_owners_with_their_memory_together() -> None:
    pids = {10: 100, 11: 200, 12: None, 13: 7}
    with collector(RecordedNvml(h100(pids=pids)), {10: ALICE, 11: ALICE, 12: BOB}) as reader:
        (seen,) = reader.read()
    assert seen.claims is not None
    assert [(c.owner, c.memory) for c in seen.claims] == [("job:b", None), ("job:a", 300)]
    assert seen.processes is not None
    assert len(seen.processes) == 4


def test_nothing_of_the_driver_is_held_after_closing() -> None:
    nvml = RecordedNvml(h100(), h100(uuid="GPU-other"))
    with collector(nvml) as reader:
        for _ in range(3):
            reader.read()
        assert len(nvml.open_samples) == 2
    assert (nvml.open_samples, nvml.initialised) == (set(), 0)


def test_a_machine_without_a_driver_is_told_what_to_do() -> None:
    class Driverless(RecordedNvml):
        def nvmlInit(self) -> None:  # noqa: N802 - the library's name
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    with pytest.raises(Unavailable, match="NVML does not start"):
        collector(Driverless())
