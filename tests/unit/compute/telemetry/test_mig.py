"""Slices of a GPU: what they are of it by their profiles, and that their parts of its energy sum to what its counter says."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.telemetry import fleets
from unit.compute.telemetry.fleets import START

from macadam.compute.telemetry import mig
from macadam.compute.telemetry.fold import fold
from macadam.compute.telemetry.types import Sample, to_table

A100, GB80 = "NVIDIA A100-SXM4-80GB", 85_899_345_920
SECOND = fleets.SECOND
BEGIN = int(START.timestamp()) * SECOND


@pytest.mark.parametrize(
    ("profile", "model", "part"),
    [
        ("1g.10gb", "a100-sxm-80gb", 1 / 7),
        ("1g.10gb+me", "a100-sxm-80gb", 1 / 7),
        ("1g.20gb", "a100-sxm-80gb", 2 / 8),  # of memory it takes more than of compute
        ("3g.40gb", "h100-sxm-80gb", 4 / 8),
        ("4g.40gb", "h100-sxm-80gb", 4 / 7),
        ("1c.3g.40gb", "h100-sxm-80gb", 4 / 8),
        ("7g.80gb", "h100-sxm-80gb", 1),
        ("1g.18gb", "h200-sxm-141gb", 1 / 7),
        ("1g.45gb", "b200-sxm-180gb", 2 / 8),
        ("1g.6gb", "a30-24gb", 1 / 4),
        ("4g.24gb", "a30-24gb", 1),
        ("", "a100-sxm-80gb", None),
        ("half of it", "a100-sxm-80gb", None),
        ("1g.10gb", "", None),
        ("1g.160gb", "a100-sxm-80gb", None),
        ("7g.24gb", "a30-24gb", None),
        ("1g.6gb", "t4-16gb", None),
    ],
)
def test_a_slice_is_the_larger_of_its_parts_of_compute_and_memory(profile, model, part):
    assert mig.part(profile, model) == (None if part is None else pytest.approx(part))


@pytest.mark.parametrize(
    ("slices", "megabytes", "total", "profile"),
    [
        (3, 40192, GB80, "3g.40gb"),
        (1, 9728, GB80, "1g.10gb"),
        (1, 4864, 42_949_672_960, "1g.5gb"),
        (7, 81037, GB80, "7g.80gb"),
    ],
)
def test_what_nvml_counts_makes_the_name_that_nvidias_tools_give(slices, megabytes, total, profile):
    assert mig.profile(slices, megabytes, total) == profile


@pytest.mark.parametrize(
    ("slices", "megabytes", "total"), [(0, 1, GB80), (8, 1, GB80), (1, 0, GB80), (1, 2**40, GB80), (1, 1, 0)]
)
def test_counts_that_cannot_be_make_no_profile(slices, megabytes, total):
    assert mig.profile(slices, megabytes, total) == ""


def slice_of(number: int, second: float, **values: object) -> Sample:
    given: dict[str, object] = {"product": A100, "node": "n", "profile": "3g.40gb", "sm_active": 0.5, "gr_active": 0.5}
    device = f"gpu:GPU-a/mig:{number}"
    return Sample(device=device, at=START + timedelta(seconds=second), **{**given, **values})  # type: ignore[arg-type]


def joules(*samples: Sample) -> dict[str, float]:
    rows = fold(to_table(list(samples)), BEGIN, BEGIN + 3600 * SECOND, pods={}, holdings=()).usage.to_pylist()
    found: dict[str, float] = {}
    for row in rows:
        if row["energy_joules"] is not None:
            number = row["device"].partition(mig.SLICE)[2]
            found[number] = found.get(number, 0.0) + row["energy_joules"]
    return found


def test_idle_energy_goes_by_size_and_the_rest_by_size_and_activity():
    busy = {1: 0.9, 2: 0.3}
    # 15 s at 200 W; a tenth of an A100's 400 W is idle: 600 J of 3000.
    found = joules(*(slice_of(n, s, sm_active=busy[n], gpu_energy=int(s * 200_000)) for s in (0, 15) for n in busy))
    assert found == {"1": pytest.approx(300 + 2400 * 0.75), "2": pytest.approx(300 + 2400 * 0.25)}


def test_slices_where_nothing_runs_share_by_size_alone():
    sizes = {1: "4g.40gb", 2: "1g.10gb"}
    found = joules(
        *(slice_of(n, s, profile=sizes[n], sm_active=0.0, gpu_energy=int(s * 60_000)) for s in (0, 15) for n in sizes)
    )
    assert found["1"] / found["2"] == pytest.approx(4)
    assert sum(found.values()) == pytest.approx(900)


def test_an_activity_that_one_slice_lacks_is_not_made_up_for_it():
    found = joules(
        slice_of(1, 0, gpu_energy=0),
        slice_of(2, 0, gpu_energy=0),
        slice_of(1, 15, gpu_energy=3_000_000),
        slice_of(2, 15, gpu_energy=3_000_000, sm_active=None, gr_active=None),
    )
    assert found == {"1": pytest.approx(1500), "2": pytest.approx(1500)}


def test_power_over_time_stands_in_for_a_counter_that_is_not_there_or_began_anew():
    for energies in ((None, None), (9_000_000_000, 5)):
        found = joules(
            *(
                slice_of(n, s, gpu_power=100.0, gpu_energy=e)
                for s, e in zip((0, 15), energies, strict=True)
                for n in (1, 2)
            )
        )
        assert sum(found.values()) == pytest.approx(1500)
    assert joules(*(slice_of(n, s) for s in (0, 15) for n in (1, 2))) == {}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), slices=st.integers(1, 7))
def test_slices_sum_to_what_their_device_took_whichever_were_seen(seed: int, slices: int) -> None:
    """Slices come and go, and some instants show only part of them."""
    rng = np.random.default_rng(seed)
    counter, samples, expected, before = 10**9, [], 0.0, None
    for step in range(12):
        present = [n for n in range(slices) if rng.random() < 0.8] or [0]
        counter += int(rng.integers(0, 5_000_000))
        standing = {sample.device for sample in samples}
        if before is not None and any(f"gpu:GPU-a/mig:{n}" in standing for n in present):
            expected += (counter - before) / 1000
        before = counter
        for n in present:
            profile = rng.choice(["1g.10gb", "1g.20gb", "3g.40gb", "odd", ""])
            active = None if rng.random() < 0.1 else float(rng.random())
            samples.append(
                slice_of(n, step * 10, profile=str(profile), sm_active=active, gr_active=active, gpu_energy=counter)
            )
    # Instants of slices that were new then have no time to put the energy on: they are in neither sum.
    assert sum(joules(*samples).values()) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_an_honest_divided_device_is_not_suspected():
    one = fleets.fleet(1, 3500, seed=5, pods=False)
    shared = {"gpu_power": one["power"].to_pylist(), "gpu_energy": one["energy"].to_pylist(), "profile": "3g.40gb"}
    gone = dict.fromkeys(("power", "power_limit", "energy", "gpu_active", "memory_total"))
    slices = [
        fleets.changed(one, range(len(one)), device=[f"gpu:GPU-x{mig.SLICE}{n}"] * len(one), **shared, **gone)
        for n in (1, 2)
    ]
    result = fold(pa.concat_tables(slices), BEGIN, BEGIN + 3600 * SECOND, pods={}, holdings=())
    assert [finding for finding in result.findings if finding.suspect] == []
    grown = one.sort_by("at")["energy"].to_pylist()
    assert sum(row["energy_joules"] for row in result.usage.to_pylist()) == pytest.approx((grown[-1] - grown[0]) / 1000)


def test_a_slice_whose_device_shows_more_power_than_it_can_draw_is_suspected():
    rows = fold(
        to_table([slice_of(1, s, gpu_power=9000.0) for s in (0, 15, 30)]),
        BEGIN,
        BEGIN + 60 * SECOND,
        pods={},
        holdings=(),
    ).usage.to_pylist()
    assert {row["suspect"] for row in rows} == {"impossible-power"}
