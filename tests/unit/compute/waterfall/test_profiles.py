"""Means by owner, over what was measured and is believed, and MFU over the peak of the GPUs that it had."""

import pytest
from hypothesis import given
from unit.compute.waterfall import clusters
from unit.compute.waterfall.clusters import row, table

from macadam.compute.catalogue import gpus
from macadam.compute.waterfall import profiles
from macadam.errors import InvalidInput

PEAK = gpus.find("h100-sxm-80gb").peak["bf16"]


def test_means_are_weighted_by_device_time_and_leave_out_what_was_not_measured():
    usage = [
        row(seconds=3600, gpu_active=0.9, sm_active=0.8, tensor_active=0.4, dram_active=0.5),
        row(start=1, seconds=1800, gpu_active=0.3, sm_active=None, tensor_active=None),
        row(start=2, gpu_active=0.0, sm_active=0.0, suspect="stuck"),
    ]
    (found,) = profiles.by_owner(table(*usage))
    assert found.gpu_hours == pytest.approx(1.5)
    assert found.means["gpu_active"] == pytest.approx(0.7)
    assert found.means["sm_active"] == pytest.approx(0.8)
    assert found.roofline is not None
    assert found.roofline.bound == "memory"
    assert found.mfu is None


def test_mfu_counts_all_the_gpus_that_an_owner_had():
    usage = [row(device=f"gpu:{n}", share=0.5) for n in range(4)]
    work = {"run:a": 0.4 * PEAK * 2 * 3600}
    (found,) = profiles.by_owner(table(*usage), model_flops=work)
    assert found.mfu == pytest.approx(0.4)
    assert found.gpus == 4
    assert profiles.mfus(table(*usage), work, "bf16") == {"run:a": pytest.approx(0.4)}


def test_a_slice_has_its_part_of_the_peak():
    usage = [row(device="gpu:0/mig:1", slice=0.25), row(device="gpu:0/mig:2", slice=0.5, owner="run:b")]
    found = profiles.mfus(table(*usage), {"run:a": 0.1 * PEAK * 3600, "run:b": 0.1 * PEAK * 3600}, "bf16")
    assert found == {"run:a": pytest.approx(0.4), "run:b": pytest.approx(0.2)}


def test_no_mfu_is_made_up_for_a_gpu_whose_peak_is_not_known_or_an_owner_that_was_not_seen():
    usage = [row(), row(device="gpu:1", model="mystery")]
    assert profiles.mfus(table(*usage), {"run:a": 1e15, "run:z": 1e15}, "bf16") == {}


def test_more_than_the_peak_is_refused():
    with pytest.raises(InvalidInput, match="times the peak of run:a"):
        profiles.by_owner(table(row()), model_flops={"run:a": 2 * PEAK * 3600})


@given(clusters.usage())
def test_whatever_was_collected_makes_profiles_of_parts_of_the_whole(usage):
    for one in profiles.by_owner(table(*usage)):
        assert one.owner
        assert all(0 <= mean <= 1 + 1e-9 for mean in one.means.values())
