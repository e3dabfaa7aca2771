"""Samples become usage: seconds are never counted twice, shares sum to the whole, and the order of deliveries does not matter."""

import itertools
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.telemetry import fleets
from unit.compute.telemetry.fleets import START, changed, fleet

from macadam.compute.telemetry.fold import Folded, fold, rollup
from macadam.compute.telemetry.types import RATES, THROTTLED, Claim, Holding, Pod, Sample, to_table

SECOND = fleets.SECOND
BEGIN = int(START.timestamp()) * SECOND


def folded(table: pa.Table, *, pods: tuple[Pod, ...] = (), held: tuple[Holding, ...] = ()) -> Folded:
    known = {(p.namespace, p.name): p for p in pods}
    return fold(table, BEGIN, BEGIN + 3600 * SECOND, pods=known, holdings=held)


def at(seconds: float, **values: object) -> Sample:
    given: dict[str, object] = {"gpu_active": 0.5, "power": 100.0, "product": "Tesla T4", "node": "n"}
    return Sample(device="gpu:GPU-a", at=START + timedelta(seconds=seconds), **{**given, **values})  # type: ignore[arg-type]


def rows(*samples: Sample, held: tuple[Holding, ...] = ()) -> list[dict[str, object]]:
    found: list[dict[str, object]] = folded(to_table(list(samples)), held=held).usage.to_pylist()
    return found


def test_a_reading_stands_for_the_time_since_the_one_before_cut_at_minutes() -> None:
    found = rows(at(50), at(70), at(85))
    assert [(r["start"], r["seconds"]) for r in found] == [(START, 10.0), (START + timedelta(minutes=1), 25.0)]


def test_what_lies_between_readings_far_apart_was_not_seen() -> None:
    assert [r["seconds"] for r in rows(at(0), at(121))] == []
    assert sum(float(str(r["seconds"])) for r in rows(at(0), at(120))) == 120.0


@pytest.mark.parametrize("every", [90, 120, 180, 300])
def test_a_device_that_is_read_seldom_is_seen_all_the_same(every: int) -> None:
    late = [at(s + (s // every % 3) * 2) for s in range(0, 3600, every)]  # scrapes are a little late at times
    seen = sum(float(str(r["seconds"])) for r in rows(*late))
    assert seen == pytest.approx((3600 // every - 1) * every, abs=5)


def test_one_scrape_that_was_missed_is_no_gap_and_an_outage_is_one() -> None:
    regular = [at(s) for s in range(0, 1200, 60) if s != 300]
    assert sum(float(str(r["seconds"])) for r in rows(*regular)) == 1140
    for end in (420, 600):
        out = [at(s) for s in range(0, 1200, 60) if not 300 <= s < end]
        assert sum(float(str(r["seconds"])) for r in rows(*out)) == 240 + 1140 - end


def test_means_are_weighted_by_time_and_what_was_not_measured_weighs_nothing() -> None:
    (row,) = rows(at(0), at(10, gpu_active=1.0), at(40, gpu_active=0.0), at(50, gpu_active=None))
    assert row["seconds"] == 50.0
    assert row["gpu_active"] == pytest.approx(0.25)
    assert row["sm_active"] is None


def test_clocks_that_were_held_down_are_parts_of_the_time_by_the_gravest_reason() -> None:
    # idle; power cap; hot as well as at the power cap; power brake; sync boost
    seen = [at(0), *(at(10 * n, throttle=bits) for n, bits in enumerate((0x1, 0x4, 0x24, 0x88, 0x10), 1))]
    (row,) = rows(*seen)
    parts = [row[name] for name in ("throttled_heat", "throttled_hardware", "throttled_power", "throttled_sync")]
    assert parts == [pytest.approx(0.2)] * 4


@given(
    bits=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 511)), min_size=1, max_size=20)
)
def test_parts_of_the_time_held_down_never_sum_to_more_than_all_of_it(bits: list[int | None]) -> None:
    for row in rows(at(0), *(at(7 * n, throttle=one) for n, one in enumerate(bits, 1))):
        parts = [row[name] for name in THROTTLED]
        known = [float(str(part)) for part in parts if part is not None]
        assert len(known) in (0, 4)
        assert 0 <= sum(known) <= 1 + 1e-6


def test_what_was_not_asked_of_a_device_is_unknown_in_usage_too() -> None:
    (row,) = rows(at(0), at(15))
    assert {row[name] for name in (*THROTTLED, *RATES, "host_cores")} == {None}
    assert row["slice"] == 1


def test_traffic_is_a_mean_over_time() -> None:
    (row,) = rows(at(0), at(10, nvlink=3e9, pcie=1e9), at(40, nvlink=1e9))
    assert (row["nvlink"], row["pcie"]) == (pytest.approx(1.5e9), pytest.approx(1e9))
    assert [row["suspect"] for row in rows(at(0), at(10, nvlink=-1.0))] == ["out-of-range"]


@given(later=st.permutations(["old", "new"]))
def test_the_same_reading_from_a_collector_that_knew_less_is_no_contradiction(later: list[str]) -> None:
    known = {"throttle": 4, "nvlink": 1e9}
    told = {name: [at(s, power=50.0, **values) for s in (0, 15)] for name, values in {"old": {}, "new": known}.items()}
    found = rows(*(sample for name in later for sample in told[name]))
    assert [(row["seconds"], row["suspect"]) for row in found] == [(15.0, "")]
    odd = rows(*(at(s, power=50.0, nvlink=rate) for s, rate in ((0, None), (15, 1e9), (15, 2e9), (30, None))))
    assert [row["suspect"] for row in odd] == ["", "conflicting"]


def test_energy_is_the_counters_growth_and_without_one_power_times_time() -> None:
    (row,) = rows(at(0, energy=5_000_000), at(15, energy=5_900_000), at(30, energy=6_800_000))
    assert row["energy_joules"] == pytest.approx(1800)
    (row,) = rows(at(0), at(15), at(30, power=200.0))
    assert row["energy_joules"] == pytest.approx(15 * 100 + 15 * 200)
    (row,) = rows(at(0, power=None), at(15, power=None))
    assert row["energy_joules"] is None


def test_processes_say_more_than_pods_and_pods_more_than_assignments() -> None:
    held = (Holding(device="gpu:GPU-a", project="p", owner="job:held", start=START - timedelta(days=1)),)
    claims = (Claim(project="p", owner="job:process", memory=7),)
    in_pod = {"pod": "x", "namespace": "n", "part": "n/x/c"}
    assert [r["owner"] for r in rows(at(0), at(15, claims=claims, **in_pod), held=held)] == ["job:process"]
    assert [r["owner"] for r in rows(at(0), at(15, **in_pod), held=held)] == ["pod:n/x"]
    assert [r["owner"] for r in rows(at(0), at(15, claims=()), held=held)] == ["job:held"]
    assert [r["owner"] for r in rows(at(0), at(15))] == [""]


def test_a_claimant_has_the_memory_of_its_own_processes() -> None:
    claims = (Claim(project="p", owner="job:a", memory=7), Claim(project="q", owner="job:b"))
    found = rows(at(0), at(15, claims=claims, memory_used=100))
    assert [(r["owner"], r["share"], r["memory_bytes"]) for r in found] == [("job:a", 0.5, 7), ("job:b", 0.5, 100)]


def test_an_assignment_counts_for_its_own_time_and_part() -> None:
    held = (
        Holding(
            device="gpu:GPU-a", project="p", owner="job:1", start=START, end=START + timedelta(seconds=30), share=0.5
        ),
        Holding(device="gpu:GPU-a", project="p", owner="job:2", start=START + timedelta(seconds=30)),
        Holding(device="gpu:GPU-b", project="p", owner="job:3", start=START),
    )
    found = {r["owner"]: (r["seconds"], r["share"]) for r in rows(*(at(n) for n in range(0, 61, 15)), held=held)}
    assert found == {"": (30.0, 0.5), "job:1": (30.0, 0.5), "job:2": (30.0, 1.0)}


def test_assignments_of_more_than_a_device_share_no_more_than_it() -> None:
    held = tuple(Holding(device="gpu:GPU-a", project="p", owner=f"job:{n}", start=START, share=0.6) for n in range(3))
    found = {r["owner"]: r["share"] for r in rows(at(0), at(15), held=held)}
    assert found == {"job:0": 0.6, "job:1": pytest.approx(0.4)}


def test_two_pods_of_one_job_cover_one_time() -> None:
    pods = tuple(Pod(namespace="n", name=name, project="p", owner="job:1") for name in ("x", "y"))
    both = [
        at(s, pod=n, namespace="n", part=f"n/{n}/c", sm_active=0.1 if n == "x" else 0.2) for s in (0, 15) for n in "xy"
    ]
    (row,) = folded(to_table(both), pods=pods).usage.to_pylist()
    assert (row["seconds"], row["share"], row["energy_joules"]) == (15.0, 1.0, pytest.approx(1500))


def test_where_two_sources_read_one_device_the_nearer_counts() -> None:
    near = [at(s, gpu_active=0.9) for s in (0, 15, 30)]
    far = [at(s + 1, gpu_active=0.1, source="prometheus") for s in (0, 15, 30)]
    (row,) = rows(*near, *far)
    assert (row["seconds"], row["gpu_active"]) == (30.0, pytest.approx(0.9))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_repetitions_and_the_order_of_deliveries_change_nothing(seed: int, data: st.DataObject) -> None:
    table = fleet(4, 600, seed=seed)
    rng = np.random.default_rng(seed)
    again = rng.choice(len(table), size=data.draw(st.integers(0, len(table))))
    other = pa.concat_tables([table, table.take(again)])
    shuffled = other.take(rng.permutation(len(other)))
    assert folded(shuffled).usage.equals(folded(table).usage)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_contradictions_give_the_same_whoever_came_first(seed: int) -> None:
    table = fleet(3, 300, seed=seed)
    rng = np.random.default_rng(seed)
    hit = rng.choice(len(table), size=5, replace=False)
    liars = changed(table.take(hit), range(5), power=list(rng.uniform(50, 600, 5)), sm_active=None)
    one, two = pa.concat_tables([table, liars]), pa.concat_tables([liars, table])
    assert folded(one).usage.equals(folded(two).usage)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), every=st.sampled_from([5.0, 15.0, 47.0, 60.0, 119.0]))
def test_seconds_never_exceed_their_interval_and_sum_to_what_was_seen(seed: int, every: float) -> None:
    table = fleet(5, 3600, seed=seed, every=every)
    usage = folded(table).usage
    minutes: dict[tuple[str, object], float] = {}
    for row in usage.to_pylist():
        key = (row["device"], row["start"])
        minutes[key] = minutes.get(key, 0.0) + row["seconds"] * row["share"]
    assert max(minutes.values()) <= 60 + 1e-6
    for name in fleets.names(5):
        times = sorted(
            t.timestamp()
            for t, d in zip(table["at"].to_pylist(), table["device"].to_pylist(), strict=True)
            if d == name
        )
        seen = sum(b - a for a, b in itertools.pairwise(times) if b - a <= 120 and b <= BEGIN / SECOND + 3600)
        # The last reading may lie after the hour; what of it is inside counts.
        assert sum(v for (d, _), v in minutes.items() if d == name) == pytest.approx(seen, abs=every + 1)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_hours_are_what_their_minutes_are(seed: int) -> None:
    table = changed(fleet(4, 3000, seed=seed), range(30, 60), sm_active=2.0)
    direct = fold(table, BEGIN, BEGIN + 3600 * SECOND, pods={}, holdings=(), step=3600).usage.to_pylist()
    rolled = rollup(folded(table).usage, 3600).to_pylist()
    assert len(rolled) == len(direct)
    for ours, theirs in zip(rolled, direct, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


def test_nothing_folds_to_nothing() -> None:
    result = folded(fleet(1, 15).slice(0, 0))
    assert (len(result.usage), result.findings, result.samples) == (0, (), 0)
    assert len(rollup(result.usage, 3600)) == 0
