"""Planted lies are flagged, each by its own check; honest devices with the noise of real sensors are not."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.telemetry import fleets
from unit.compute.telemetry.fleets import START, changed, fleet

from macadam.compute.telemetry import fold
from macadam.compute.telemetry.trust import CHECKS
from macadam.compute.telemetry.types import Finding

SECOND = fleets.SECOND
PER_DEVICE = 120  # readings of half an hour every 15 s
DEVICES = 5
LIAR = 2
MINE = np.arange(LIAR * PER_DEVICE, (LIAR + 1) * PER_DEVICE)
SOME = MINE[40:60]


def folded(table: pa.Table, hours: float = 1) -> fold.Folded:
    begin = int(START.timestamp()) * SECOND
    return fold.fold(table, begin, begin + int(hours * 3600) * SECOND, pods={}, holdings=())


def honest(seed: int = 1) -> pa.Table:
    return fleet(DEVICES, PER_DEVICE * 15, seed=seed)


def busy(table: pa.Table) -> pa.Table:
    """The liar works steadily, so that its lies are not hidden by idleness."""
    rng = np.random.default_rng(5)
    n = len(MINE)
    power = 600 + rng.normal(0, 10, n)
    energy = 10**9 + np.cumsum(600.0 * 15 * 1000 + rng.normal(0, 10_000, n)).astype(np.int64)
    return changed(
        table,
        MINE,
        gpu_active=list(np.round(0.95 + rng.normal(0, 0.01, n), 2).clip(0, 1)),
        gr_active=list(0.93 + rng.normal(0, 0.005, n)),
        sm_active=list(0.7 + rng.normal(0, 0.005, n)),
        tensor_active=0.3,
        dram_active=0.4,
        power=list(power),
        energy=[int(e) for e in energy],
        pod="job-liar",
        namespace="team",
    )


def column(table: pa.Table, name: str, rows: Any) -> Any:
    return np.array(table.column(name).to_pylist(), dtype=object)[rows]


def moved(table: pa.Table, rows: Any, by: timedelta) -> list[Any]:
    return [at + by for at in column(table, "at", rows)]


@dataclass(frozen=True)
class Lie:
    check: str
    plant: Callable[[pa.Table], pa.Table]
    rows: int = len(SOME)
    suspect: bool = True


def twice(table: pa.Table, **values: object) -> pa.Table:
    again = changed(table.take(SOME), range(len(SOME)), **values)
    return pa.concat_tables([table, again])


def two_pods(table: pa.Table) -> pa.Table:
    first = changed(table, SOME, part="team/one/c", pod="one")
    return twice(first, part="team/two/c", pod="two")


def mig(table: pa.Table) -> pa.Table:
    return changed(table, SOME, device=f"{fleets.names(DEVICES)[LIAR]}/mig:1")


def frozen(table: pa.Table) -> pa.Table:
    rows = MINE[40:90]
    held = {
        name: column(table, name, [rows[0]])[0]
        for name in ("gpu_active", "gr_active", "sm_active", "sm_occupancy", "tensor_active", "dram_active", "power")
    }
    return changed(table, rows, memory_used=10**10, temperature=60.0, sm_clock=1700.0, energy=None, **held)


LIES = {
    "profiling without rights": Lie(
        "profiling-off",
        lambda t: changed(t, SOME, gpu_active=0.99, gr_active=0.0, sm_active=0.0, tensor_active=0.0, dram_active=0.0),
    ),
    "one figure for every pod": Lie("shared-value", two_pods),
    "a busy GPU in no pod": Lie("no-pod", lambda t: changed(t, SOME, pod="", namespace="", container="")),
    "utilisation of a slice": Lie("mig-utilisation", mig),
    "a counter that goes back": Lie("backwards", lambda t: changed(t, SOME[10:11], energy=[1_200_000_000]), rows=1),
    "a counter that begins anew": Lie(
        "restarted",
        lambda t: changed(t, MINE[50:], energy=[9_000_000 * (n + 1) for n in range(PER_DEVICE - 50)]),
        rows=1,
        suspect=False,
    ),
    "utilisation as a ratio for percent": Lie(
        "utilisation-at-odds", lambda t: changed(t, MINE, gpu_active=0.0095), rows=100
    ),
    "memory in other units": Lie(
        "out-of-range", lambda t: changed(t, SOME, memory_used=5 * 10**16, memory_total=8 * 10**16)
    ),
    "twice the energy that it can draw, and no power to compare": Lie(
        "impossible-power",
        lambda t: changed(t, MINE, power=None, energy=[n * 1700 * 15 * 1000 for n in range(len(MINE))]),
        rows=100,
    ),
    "energy at half the power": Lie(
        "energy-at-odds",
        lambda t: changed(t, MINE, energy=[int(10**9 + n * 300 * 15 * 1000) for n in range(len(MINE))]),
        rows=80,
    ),
    "a ratio above one": Lie("out-of-range", lambda t: changed(t, SOME, sm_active=1.3, gr_active=1.4)),
    "a negative ratio": Lie("out-of-range", lambda t: changed(t, SOME, tensor_active=-0.1)),
    "no number": Lie("out-of-range", lambda t: changed(t, SOME, gpu_active=float("nan"))),
    "infinite power": Lie("out-of-range", lambda t: changed(t, SOME, power=float("inf"))),
    "negative power": Lie("out-of-range", lambda t: changed(t, SOME, power=-5.0)),
    "more memory than there is": Lie("out-of-range", lambda t: changed(t, SOME, memory_used=10**12)),
    "negative memory": Lie("out-of-range", lambda t: changed(t, SOME, memory_used=-1)),
    "an exporter that repeats itself": Lie(
        "stale", lambda t: changed(t, SOME, energy=column(t, "energy", [SOME[0]])[0]), rows=18
    ),
    "sensors that stand still": Lie("stale", frozen, rows=40),
    "a clock in the future": Lie("clock", lambda t: changed(t, SOME, received=moved(t, SOME, -timedelta(minutes=2)))),
    "a clock that goes back": Lie(
        "clock",
        lambda t: changed(t, SOME[:1], at=moved(t, SOME[:1], -timedelta(minutes=3, seconds=4))),
        rows=1,
    ),
    "two deliveries that differ": Lie("conflicting", lambda t: twice(t, power=111.0)),
    "more power than it can draw": Lie("impossible-power", lambda t: changed(t, SOME, power=900.0)),
    "more energy than it can draw": Lie(
        "impossible-power",
        lambda t: changed(t, SOME[5:6], energy=[column(t, "energy", [SOME[5]])[0] + 20_000_000]),
        rows=1,
    ),
    "more over NVLink than it carries": Lie("impossible-traffic", lambda t: changed(t, SOME, nvlink=1.0e12)),
    "more over PCIe than it carries": Lie("impossible-traffic", lambda t: changed(t, SOME, pcie=1.4e11)),
    "negative traffic": Lie("out-of-range", lambda t: changed(t, SOME, pcie=-1.0)),
    "reasons below nothing": Lie("out-of-range", lambda t: changed(t, SOME, throttle=-4)),
    "SMs busier than their engine": Lie("above-engine", lambda t: changed(t, SOME, gr_active=0.2, sm_active=0.6)),
    "tensor pipes busier than SMs": Lie("above-engine", lambda t: changed(t, SOME, tensor_active=0.9, sm_active=0.5)),
    "a lost device": Lie("lost", lambda t: changed(t, SOME, error="GPU is lost", gpu_active=None, power=None)),
    "a product nobody knows": Lie(
        "unknown-gpu", lambda t: changed(t, SOME, product="NVIDIA H1000 Ultra"), suspect=False
    ),
    "a slice that nothing is measured of": Lie(
        "mig-unmeasured",
        lambda t: changed(mig(t), SOME, gpu_active=None, gr_active=None, sm_active=None, dram_active=None),
        suspect=False,
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_planted_lie_is_flagged_by_its_check_and_on_its_device_only(name: str) -> None:
    lie = LIES[name]
    result = folded(lie.plant(busy(honest())))
    named = [f for f in result.findings if f.check == lie.check]
    assert len(named) == 1, [(f.check, f.device, f.count) for f in result.findings]
    (found,) = named
    assert found.device.startswith(fleets.names(DEVICES)[LIAR])
    assert found.count >= lie.rows
    assert found.evidence
    assert found.threshold
    assert {f.device for f in result.findings if f.suspect} <= {found.device}
    doubted = {row["device"] for row in result.usage.to_pylist() if row["suspect"]}
    assert doubted == ({found.device} if lie.suspect else set())


def test_every_check_has_a_lie_that_it_catches() -> None:
    assert {lie.check for lie in LIES.values()} == {check.name for check in CHECKS}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_only_the_time_of_a_lie_is_doubted_and_the_rest_stays_believed() -> None:
    rows = [
        r
        for r in folded(LIES["a ratio above one"].plant(busy(honest()))).usage.to_pylist()
        if r["owner"].endswith("liar")
    ]
    doubted = sum(r["seconds"] for r in rows if r["suspect"])
    assert doubted == pytest.approx(len(SOME) * 15, abs=1)
    assert sum(r["seconds"] for r in rows) == pytest.approx(119 * 15, abs=2)


def test_a_value_that_cannot_be_is_in_no_mean() -> None:
    for name in ("no number", "infinite power"):
        for row in folded(LIES[name].plant(busy(honest()))).usage.to_pylist():
            for field in ("gpu_active", "sm_active", "energy_joules"):
                assert row[field] is None or np.isfinite(row[field])


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), every=st.sampled_from([5.0, 15.0, 30.0, 60.0]), pods=st.booleans())
def test_honest_devices_are_never_suspected(*, seed: int, every: float, pods: bool) -> None:
    result = folded(fleet(12, 3600, seed=seed, every=every, pods=pods))
    assert result.findings == ()


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1), update=st.sampled_from([10, 30, 60, 120]), scrape=st.sampled_from([10, 15, 20, 60])
)
def test_an_exporter_that_reads_its_devices_seldom_is_honest(*, seed: int, update: int, scrape: int) -> None:
    """dcgm-exporter reads every 30 s unless it is told otherwise, and serves the same values until it reads again."""
    fine, devices = 5, 6
    table = fleet(devices, 3600, seed=seed, every=fine)
    per = len(table) // devices
    rng = np.random.default_rng(seed)
    asked, served = [], []
    for device in range(devices):
        phase = rng.uniform(0, update)
        times = np.arange(update + scrape, 3600 - fine, scrape) + rng.uniform(0, fine)
        asked += [device * per + int(t // fine) for t in times]
        served += [device * per + int(((t - phase) // update * update + phase) // fine) for t in times]
    seen = table.take(served)
    for name in ("at", "received"):
        place = seen.schema.get_field_index(name)
        seen = seen.set_column(place, seen.schema.field(place), table.take(asked).column(name))
    result = folded(seen)
    assert [f for f in result.findings if f.suspect] == []
    # A reading stands for the time since the one before, however often the exporter looks.
    assert sum(r["seconds"] for r in result.usage.to_pylist()) == pytest.approx(devices * (3600 - update), rel=0.05)


def test_a_machine_that_was_started_again_is_honest() -> None:
    table = busy(honest())
    after = MINE[60:]
    gone = changed(
        table,
        after,
        at=moved(table, after, timedelta(minutes=7)),
        received=moved(table, after, timedelta(minutes=7)),
        energy=[60_000_000 + 9_000_000 * n for n in range(len(after))],
    )
    result = folded(gone)
    assert [(f.check, f.suspect) for f in result.findings] == [("restarted", False)]
    assert all(r["energy_joules"] is None or r["energy_joules"] >= 0 for r in result.usage.to_pylist())


def test_a_board_whose_limit_its_owner_raised_is_honest() -> None:
    table = changed(busy(honest()), MINE, power_limit=950.0)
    hot = changed(table, SOME, power=900.0)
    assert "impossible-power" not in {f.check for f in folded(hot).findings}
    assert "impossible-power" in {
        f.check for f in folded(changed(hot, MINE, power_limit=50_000.0, power=1300.0)).findings
    }


def test_links_that_are_full_are_honest() -> None:
    table = changed(busy(honest()), SOME, nvlink=2 * 450e9, pcie=2 * 63e9, throttle=0x20 | 0x80)
    assert not folded(table).findings


def test_a_kernel_that_spins_without_memory_is_honest() -> None:
    table = changed(busy(honest()), MINE, gr_active=None, sm_active=None, sm_occupancy=None, tensor_active=None)
    assert folded(changed(table, MINE, gpu_active=1.0, dram_active=0.0)).findings == ()


def test_an_idle_device_in_no_pod_is_honest() -> None:
    result = folded(fleet(5, 1800))
    assert [f for f in result.findings if f.check == "no-pod"] == []


def test_devices_without_counters_or_profiling_are_honest() -> None:
    table = honest()
    rows = range(len(table))
    old = changed(table, rows, energy=None, gr_active=None, sm_active=None, sm_occupancy=None, tensor_active=None)
    assert folded(changed(old, rows, dram_active=None, power_limit=None, temperature=None)).findings == ()


def test_two_pods_that_share_a_device_with_figures_of_their_own_are_honest() -> None:
    table = changed(busy(honest()), SOME, part="team/one/c", pod="one")
    second = changed(
        table.take(SOME), range(len(SOME)), part="team/two/c", pod="two", sm_active=0.1, tensor_active=0.05
    )
    result = folded(pa.concat_tables([table, second]))
    assert result.findings == ()
    shares = {r["share"] for r in result.usage.to_pylist() if r["owner"] == "pod:team/two"}
    assert shares == {0.5}


def test_history_that_arrives_late_is_no_clock_that_is_wrong() -> None:
    table = honest()
    assert folded(changed(table, range(len(table)), received=None)).findings == ()


def test_evidence_says_what_was_seen() -> None:
    result = folded(LIES["profiling without rights"].plant(busy(honest())))
    found: Finding = result.findings[0]
    assert "gpu_active 0.99" in found.evidence
    assert "sm_active 0" in found.evidence
