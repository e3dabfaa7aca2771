import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macadam.compute.scheduling.spot import Job, Market, Policy
from macadam.compute.simulation import spot
from macadam.compute.simulation.spot import Zone
from macadam.errors import InvalidInput, SourceInvalid
from macadam.faces import cli, study_verbs

TRACES = Path("../shared/data/spot")
needs_traces = pytest.mark.skipif(not TRACES.exists(), reason="the traces of spot machines are not on this machine")
NAMES = ("on-demand", "greedy", "time-sliced", "uniform-progress", "expected-cost")
HOUR = 3600.0
GAP = 300.0

# Runs of up to two hours with and without spot, and single probes.
runs = st.builds(lambda up, length: [up] * length, st.booleans(), st.integers(1, 24))
traces = st.lists(
    st.lists(runs, min_size=1, max_size=8).map(lambda parts: [up for part in parts for up in part]),
    min_size=1,
    max_size=3,
)


def zones(*up, gap=GAP):
    return [Zone(name=f"z{i}", gap=gap, up=tuple(map(bool, one))) for i, one in enumerate(up)]


def job(**more):
    return Job(**({"work": 2 * HOUR, "deadline": 3 * HOUR, "changeover": 600.0, "step": GAP} | more))


@settings(deadline=None, max_examples=200)
@given(
    traces,
    st.sampled_from(NAMES),
    st.integers(0, 59),
    st.floats(0, 4000),  # slack beyond work and changeover
    st.sampled_from([0.0, 100.0, 600.0, 1000.0]),  # changeover
    st.sampled_from([(0.0, 0.0), (600.0, 60.0), (1800.0, 400.0), (100.0, 500.0)]),  # checkpoints
)
@example([[True, False]], "greedy", 0, 3600.0, 600.0, (1800.0, 400.0))
def test_no_deadline_is_ever_missed_whatever_spot_does(up, name, start, slack, changeover, checkpoints):
    every, cost = checkpoints
    due = job(
        deadline=2 * HOUR + changeover + slack,
        changeover=changeover,
        checkpoint_every=every,
        checkpoint_cost=cost,
    )
    found = spot.run(zones(*up), due, Policy(name=name), Market(loss=1 / HOUR, comeback=1 / HOUR), start=start)
    assert found.met
    assert found.finished <= due.deadline + 1e-6
    assert found.cost == pytest.approx(found.on_demand + 0.33 * found.on_spot)
    assert found.finished == pytest.approx(found.on_demand + found.on_spot + found.waited)
    assert found.on_demand + found.on_spot >= due.work


def test_all_on_spot_costs_its_price_and_the_changeover():
    found = spot.run(zones([1]), job(), Policy(name="greedy"), Market(price=0.25), start=0)
    assert found.cost == pytest.approx(0.25 * (2 * HOUR + 600))
    assert found.savings == pytest.approx(1 - found.cost / (2 * HOUR))
    assert (found.interruptions, found.changeovers, found.waited) == (0, 1, 0)


def test_an_interruption_loses_what_was_not_saved():
    # Two hours of spot, then none: checkpoints every 50 minutes leave the last of them behind.
    up = [1] * 20 + [0] * 200
    saving = job(work=4 * HOUR, deadline=9 * HOUR, checkpoint_every=3000.0)
    found = spot.run(zones(up), saving, Policy(name="greedy"), Market(), start=0)
    assert found.on_spot == 20 * GAP
    # 6000 s on spot less 600 s of changeover are 5400 s of work, of which 3000 s were saved.
    assert found.on_demand == pytest.approx(4 * HOUR - 3000 + 600)
    assert found.met


def test_a_checkpoint_that_is_cut_off_saves_nothing():
    up = [1] * 6 + [0] * 200
    cut = job(changeover=0.0, checkpoint_every=1500.0, checkpoint_cost=400.0)
    found = spot.run(zones(up), cut, Policy(name="greedy"), Market(), start=0)
    assert found.on_demand == pytest.approx(2 * HOUR)


def test_a_checkpoint_that_takes_longer_than_a_step_is_not_built_on_by_who_leaves():
    # Forced on demand after 1500 s: to write for 1000 s on a machine that may be lost after 300 would be a gamble.
    long = job(deadline=2 * HOUR + 1500, changeover=0.0, checkpoint_every=3000.0, checkpoint_cost=1000.0)
    found = spot.run(zones([1]), long, Policy(name="greedy"), Market(), start=0)
    assert (found.on_spot, found.on_demand) == (1500, 2 * HOUR)
    assert found.met
    short = job(deadline=2 * HOUR + 1500, changeover=0.0, checkpoint_every=3000.0, checkpoint_cost=GAP)
    assert spot.run(zones([1]), short, Policy(name="greedy"), Market(), start=0).on_demand < 2 * HOUR


def test_jobs_millions_of_steps_long_are_refused_rather_than_waited_for():
    with pytest.raises(InvalidInput, match="decisions away"):
        job(deadline=1e300)


def test_there_are_no_more_starts_than_probes():
    (found,) = spot.study(zones([1, 1, 0]), [Policy(name="greedy")], [3 * HOUR], job=job(), starts=10**12)
    assert found.starts == 3


def test_what_is_expected_comes_from_before_the_start_only():
    up = [1] * 40 + [0] * 10 + [1] * 50
    before = spot.observe(zones(up), 40)
    assert before == spot.observe(zones(up[:40] + [0] * 60), 40)
    assert spot.observe(zones(up), 60).loss > before.loss
    other = [1] * 100
    assert spot.observe(zones(up, other), 60).elsewhere == 0.75  # one loss with a way out, and a prior of one half
    assert spot.observe(zones(up), 60).elsewhere == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"data": [1]}',
        '{"metadata": {"gap_seconds": 0}, "data": [1]}',
        '{"metadata": {"gap_seconds": 1e-9}, "data": [1]}',
        '{"metadata": {"gap_seconds": 60}, "data": [2]}',
        '{"metadata": {"gap_seconds": 60}, "data": [0.5]}',
        '{"metadata": {"gap_seconds": 60}, "data": [NaN]}',
        '{"metadata": {"gap_seconds": 60}, "data": []}',
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(SourceInvalid):
        spot.read_zone(tmp_path / "t.json")


def test_two_files_of_one_name_are_two_zones_and_one_file_twice_is_refused(tmp_path):
    files = [tmp_path / folder / "v100.json" for folder in ("east", "west")]
    for file, up in zip(files, ([1, 0], [0, 1]), strict=True):
        file.parent.mkdir()
        file.write_text(json.dumps({"metadata": {"gap_seconds": GAP}, "data": up}))
    found = spot.read_zones(files)
    assert [zone.name for zone in found] == [str(file) for file in files]
    # One of them always has spot; under one name each would hide the other.
    (summary,) = spot.study(found, [Policy(name="greedy")], [3 * HOUR], job=job(changeover=0.0), starts=1)
    assert summary.on_spot_part == 1
    with pytest.raises(InvalidInput, match="one name"):
        spot.study(spot.read_zones([files[0], files[0]]), [Policy()], [3 * HOUR], job=job())


def test_traces_of_different_steps_are_refused():
    with pytest.raises(InvalidInput, match="gap_seconds"):
        spot.run([*zones([1]), *zones([1], gap=60.0)], job(), Policy(), Market(), start=0)


def test_the_command_prints_one_json_value_and_draws(tmp_path, capsys):
    for name, up in {"a": [1, 1, 1, 0] * 100, "b": [0, 1, 1, 1] * 100}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": up}))
    words = ["simulate", "spot", "--zones", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--work", "3"]
    words += ["--deadline", "4", "6", "--policy", "greedy", "--policy", "uniform-progress", "--starts", "5"]
    assert cli.main([*words, "--json", "--plot", str(tmp_path / "p.svg")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(one["policy"], one["missed"]) for one in said] == [("greedy", 0), ("uniform-progress", 0)] * 2
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert cli.main(["simulate", "spot", "--zones", str(tmp_path / "a.json"), "--work", "3", "--deadline", "3"]) == 2
    assert "later deadline" in capsys.readouterr().err


@pytest.mark.parametrize(("same", "other"), [("3", "3h"), ("3", "180m"), ("48", "2d"), ("0.5", "30m")])
def test_times_are_plain_hours_or_durations(same, other):
    assert study_verbs._hours(same) == study_verbs._hours(other)


@pytest.mark.parametrize("wrong", ["nan", "-1", "3x", "1e400", "999999999999999999999w", ""])
def test_times_that_are_none_are_refused_with_what_to_write(tmp_path, capsys, wrong):
    (tmp_path / "a.json").write_text('{"metadata": {"gap_seconds": 600}, "data": [1, 1, 0]}')
    words = ["simulate", "spot", "--zones", str(tmp_path / "a.json"), "--work=" + wrong, "--deadline", "6h"]
    assert cli.main(words) == 2
    assert "such as 90m" in capsys.readouterr().err


@needs_traces
def test_on_real_traces_no_job_is_late_and_none_pays_more_than_by_uniform_progress():
    names = [f"us-west-2{letter}_v100_1" for letter in "abc"]
    all_zones = [spot.read_zone(TRACES / f"{name}.json") for name in names]
    work = 48 * HOUR
    policies = [Policy(name="uniform-progress"), Policy(name="expected-cost")]
    found = spot.study(
        all_zones,
        policies,
        [1.1 * work, 1.5 * work],
        job=Job(work=work, deadline=2 * work, step=all_zones[0].gap),
        starts=12,
    )
    assert [one.missed for one in found] == [0] * 4
    for base, ours in (found[:2], found[2:]):
        assert ours.savings >= base.savings
    assert found[3].savings >= 0.6


def test_a_job_that_starts_in_the_middle_knows_for_how_long_each_zone_has_had_spot():
    young, old = [0] * 8 + [1] * 52, [1] * 60
    assert spot._ages(zones(young, old), 10) == {"z0": 2 * GAP, "z1": 10 * GAP}
    # The older is taken, and is the one that lasts: no interruption.
    found = spot.run(zones([*young[:20], *[0] * 40], old), job(), Policy(name="greedy"), Market(), start=10)
    assert found.interruptions == 0
