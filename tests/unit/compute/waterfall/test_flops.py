"""What was achieved of what is possible: never more than physics allows, and a bottleneck only with its evidence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.catalogue import gpus
from macadam.compute.waterfall import flops
from macadam.compute.waterfall.flops import Job
from macadam.errors import InvalidInput

H100 = gpus.find("h100-sxm-80gb")
part = st.one_of(st.none(), st.floats(0, 1))


def test_model_flops_are_six_for_training_and_two_for_inference_per_parameter_and_token():
    assert flops.training(7e9, 1e9) == 4.2e19
    assert flops.inference(7e9, 1000) == 1.4e13


def test_mfu_is_model_flops_over_the_dense_peak():
    # 8 GPUs for an hour at 40% of their dense bf16 peak.
    work = 0.4 * H100.peak["bf16"] * 8 * 3600
    assert flops.mfu(work, H100, "bf16", 8 * 3600) == pytest.approx(0.4)


def test_more_than_the_peak_is_an_error_and_not_a_figure():
    with pytest.raises(InvalidInput, match=r"1\.10 times the peak"):
        flops.mfu(1.1 * H100.peak["bf16"], H100, "bf16", 1)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_what_cannot_be_counted_is_refused(bad):
    with pytest.raises(InvalidInput):
        flops.training(bad, 1)
    with pytest.raises(InvalidInput):
        flops.mfu(1e12, H100, "bf16", bad)


def test_an_unknown_number_format_is_answered_with_those_that_are_known():
    with pytest.raises(InvalidInput, match="fp4"):
        flops.mfu(1, H100, "fp4", 1)


@given(st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_work_lies_under_the_roof_and_the_ridge_divides_what_bounds_it(tensor, dram):
    found = flops.roofline_of(H100, "bf16", Job(tensor_active=tensor, dram_active=dram))
    assert found is not None
    assert found.achieved <= found.attainable * (1 + 1e-9)
    assert 0 < found.of_roof <= 1 + 1e-9
    assert found.bound == ("memory" if tensor < dram else "compute") or tensor == pytest.approx(dram)
    assert found.of_roof == pytest.approx(max(tensor, dram))


def test_more_than_the_roof_is_refused():
    with pytest.raises(InvalidInput, match="above the roof"):
        flops.roofline(H100, "bf16", flops_per_second=2 * H100.peak["bf16"], bytes_per_second=1e9)


@pytest.mark.parametrize(
    ("job", "expected", "evidence"),
    [
        (Job(gpu_active=0.9, throttled_heat=0.3), "throttling", "by heat 30%"),
        (Job(gpu_active=0.9, throttled_hardware=0.06, throttled_sync=0.05), "throttling", "protection 6%"),
        (Job(gpu_active=0.9, sm_active=0.9, throttled_power=0.5), "throttling", "power limit 50%"),
        (Job(gpu_active=0.99, sm_active=0.9, tensor_active=0.7, throttled_power=0.9), "compute", "power limit 90%"),
        (Job(gpu_active=0.4, bus_active=0.6), "data_loading", "bus to the host was 60%"),
        (Job(gpu_active=0.4, host_cores=0.95), "data_loading", "95% of the host's cores"),
        (Job(gpu_active=0.6, gaps=True), "data_loading", "regular intervals"),
        (Job(gpu_active=0.99, sm_active=0.2, link_active=0.8, gpus=8), "communication", "8 GPUs"),
        (Job(gpu_active=0.99, sm_active=0.9, dram_active=0.75, tensor_active=0.1), "memory_bandwidth", "75%"),
        (Job(gpu_active=0.99, sm_active=0.95, dram_active=0.4, tensor_active=0.7), "compute", "70%"),
        (Job(gpu_active=0.99, sm_active=0.15), "small_kernels", "15%"),
        (Job(gpu_active=0.3, host_cores=0.1), "waiting", "30%"),
        (Job(), "unknown", "too little"),
        (Job(gpu_active=0.99, sm_active=0.2, link_active=0.8, gpus=1), "small_kernels", "20%"),
    ],
)
def test_the_likely_bottleneck_comes_with_its_evidence(job, expected, evidence):
    found = flops.likely(job)
    assert found.bottleneck == expected
    assert evidence in " ".join(found.evidence)
    assert found.try_next


@given(
    st.builds(
        Job, gpu_active=part, sm_active=part, tensor_active=part, dram_active=part, host_cores=part, gaps=st.none()
    )
)
def test_data_loading_is_never_blamed_without_a_host_that_was_seen_busy(job):
    if flops.likely(job).bottleneck == "data_loading":
        assert job.host_cores is not None
        assert job.host_cores >= flops.BUSY_HOST


def test_parts_above_the_whole_are_refused():
    with pytest.raises(InvalidInput, match="gpu_active"):
        Job(gpu_active=1.2)
