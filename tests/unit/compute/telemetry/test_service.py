"""The series: delivered in any order, late, twice, with kills in between, it comes out as if it had come at once, with evidence."""

import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.compute.telemetry import fleets
from unit.compute.telemetry.fleets import START, changed, fleet
from unit.compute.telemetry.series import DAY, deliver, files, leaves, usage, whole

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.telemetry import owners, recordings, service, store
from macadam.compute.telemetry.requests import (
    DeclarePods,
    DeliverSamples,
    ExpireTelemetry,
    ListDevices,
    ListFindings,
    PodOwner,
    ReadUsage,
    SealTelemetry,
)
from macadam.compute.telemetry.types import Claim, Holding, Sample, from_table, to_table
from macadam.errors import InvalidInput, NotAuthorised
from macadam.faces import cli
from macadam.ledger.types import VerifyLedger
from macadam.testing import Clock, open_platform, token_of

SOAK = os.environ.get("MACADAM_SOAK") == "1"


# --- one outcome, however it comes


@settings(max_examples=60 if SOAK else 3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), pieces=st.integers(1, 6))
def test_deliveries_in_any_order_twice_and_late_give_what_one_delivery_gives(
    tmp_path_factory: pytest.TempPathFactory, seed: int, pieces: int
) -> None:
    table = whole(seed % 7, devices=4)
    rng = random.Random(seed)
    clock = Clock(START + timedelta(hours=6))
    with open_platform(clock=clock) as at_once:
        deliver(at_once, table, clock)
        at_once.call(SealTelemetry())
        expected = {step: usage(at_once, step) for step in ("minute", "hour")}
        findings = at_once.call(ListFindings(project="*", start=START, end=START + DAY))
    order = np.random.default_rng(seed).permutation(len(table))
    parts = [table.take(piece) for piece in np.array_split(order, pieces)]
    parts += rng.sample(parts, rng.randint(0, len(parts)))
    rng.shuffle(parts)
    with open_platform(clock=clock) as piecemeal:
        for part in parts:
            deliver(piecemeal, part, clock)
            if rng.random() < 0.4:
                piecemeal.call(SealTelemetry())
            if rng.random() < 0.2:
                usage(piecemeal)
        if rng.random() < 0.5:  # what is not sealed yet is there all the same
            piecemeal.call(SealTelemetry())
            assert set(files(piecemeal)) == {"hour", "incoming", "minute", "raw"}
            assert files(piecemeal)["incoming"] == 0
            assert files(piecemeal)["minute"] == files(piecemeal)["raw"]
        piecemeal.call(SealTelemetry())
        for step in ("minute", "hour"):
            assert usage(piecemeal, step).equals(expected[step])
        assert piecemeal.call(ListFindings(project="*", start=START, end=START + DAY)) == findings


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_an_hour_that_comes_after_its_neighbour_was_sealed_changes_that_one_too(
    platform: Platform, clock: Clock, order: tuple[int, ...]
) -> None:
    table = whole()
    hours = pc.divide(table.column("at").cast(pa.int64()), 3_600_000_000)
    first = pc.min(hours).as_py()
    for number in order:
        deliver(platform, table.filter(pc.equal(hours, first + number)), clock)
        platform.call(SealTelemetry())
    with open_platform(clock=clock) as at_once:
        deliver(at_once, table, clock)
        at_once.call(SealTelemetry())
        assert usage(platform).equals(usage(at_once))


def test_an_open_hour_reads_as_the_sealed_one_will(platform: Platform, clock: Clock) -> None:
    deliver(platform, whole(), clock)
    before = {step: usage(platform, step) for step in ("minute", "hour")}
    found = platform.call(ListFindings(project="*", start=START, end=START + DAY))
    platform.call(SealTelemetry())
    assert usage(platform).equals(before["minute"])
    assert usage(platform, "hour").equals(before["hour"])
    assert {f.check for f in found} == {"out-of-range", "above-engine"}
    assert platform.call(ListFindings(project="*", start=START, end=START + DAY)) == found


def test_many_small_deliveries_become_few_files(platform: Platform, clock: Clock) -> None:
    table = whole()
    one = table.filter(
        pc.less(table.column("at"), pa.scalar(START + timedelta(hours=1), table.schema.field("at").type))
    )
    for n in range(30):
        deliver(platform, one.take(list(range(n, len(one), 30))), clock)
    assert files(platform)["incoming"] < 10
    expected = usage(platform)
    platform.call(SealTelemetry())
    assert usage(platform).equals(expected)


def test_an_hour_is_sealed_once_it_is_over_and_its_stragglers_had_time(platform: Platform, clock: Clock) -> None:
    clock.instant = START + timedelta(hours=1, minutes=4)
    deliver(platform, whole(), clock)
    assert not service.due(platform.ports, clock())
    assert platform.call(SealTelemetry()).hours == ()
    clock.pass_time(timedelta(minutes=2))
    assert service.due(platform.ports, clock())
    sealed = platform.call(SealTelemetry())
    assert [one.hour for one in sealed.hours] == [START]
    assert sealed.waiting == 2  # what was more than an hour ahead is not there


# --- evidence, retention


def test_each_sealed_hour_has_a_leaf_with_the_digests_of_its_files(platform: Platform, clock: Clock) -> None:
    deliver(platform, whole(), clock)
    sealed = platform.call(SealTelemetry())
    said = {leaf["subject"]: leaf["body"] for leaf in leaves(platform, "compute.seal_telemetry")}
    assert set(said) == {
        "telemetry:2026-11-20T00",
        "telemetry:2026-11-20T01",
        "telemetry:2026-11-20T02",
        "telemetry:2026-11-20T03",
        "telemetry:2026-11-20",
    } - (set() if len(sealed.hours) == 4 else {"telemetry:2026-11-20T03"})
    for one in sealed.hours:
        body = said[f"telemetry:{one.hour:%Y-%m-%dT%H}"]
        assert (body["raw"], body["minute"], body["samples"]) == (one.raw, one.minute, one.samples)
        (path,) = (platform.settings.home / "telemetry" / "minute").glob(f"{one.hour:%Y-%m-%dT%H}-*")
        assert store.digest_of_file(path) == one.minute
    assert platform.call(VerifyLedger()).problems == ()


def test_late_samples_revise_an_hour_and_the_leaf_says_so(platform: Platform, clock: Clock) -> None:
    table = whole()
    deliver(platform, table.slice(1), clock)
    (first, *_) = platform.call(SealTelemetry()).hours
    deliver(platform, table.slice(0, 1), clock)
    (again,) = platform.call(SealTelemetry()).hours
    assert (again.hour, again.samples) == (first.hour, first.samples + 1)
    assert [leaf["body"].get("revises") for leaf in leaves(platform, "compute.seal_telemetry")][-2:][0] == first.raw


def test_raw_samples_expire_first_and_what_comes_for_them_then_is_refused_and_said(
    platform: Platform, clock: Clock
) -> None:
    table = whole()
    deliver(platform, table, clock)
    platform.call(SealTelemetry())
    kept = usage(platform)
    clock.pass_time(timedelta(hours=50))
    gone = platform.call(ExpireTelemetry()).files
    assert gone["raw"] >= 3
    assert (gone["minute"], gone["hour"]) == (0, 0)
    assert usage(platform).equals(kept)
    refused = platform.call(DeliverSamples(samples=tuple(from_table(table.slice(0, 10)))))
    assert (refused.samples, refused.refused) == (0, {"late": 10})
    assert usage(platform).equals(kept)
    clock.pass_time(timedelta(days=40))
    assert platform.call(ExpireTelemetry()).files["minute"] >= 3
    assert len(usage(platform)) == 0
    assert len(usage(platform, "hour")) > 0


def test_history_that_nobody_has_seen_may_be_as_old_as_it_likes(platform: Platform, clock: Clock) -> None:
    clock.pass_time(timedelta(days=20))
    deliver(platform, whole(), clock)
    platform.call(SealTelemetry())
    assert platform.call(ExpireTelemetry()).files == {"raw": 0, "minute": 0, "hour": 0}
    assert len(usage(platform)) > 0


def test_instants_before_any_clock_are_refused_and_counted(platform: Platform, clock: Clock) -> None:
    never = [Sample(device="gpu:a", at=datetime(year, 1, 1, tzinfo=UTC)) for year in (1, 1969, 1999)]
    done = service.deliver(platform.ports, to_table(never), clock())
    assert (done.samples, done.refused) == (0, {"early": 3})


@pytest.mark.parametrize("device", ["", "GPU-a", "gpu:", "mig:1"])
def test_a_device_has_a_name_that_says_what_it_is(device: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"device": device, "at": START}, Sample)


def test_a_value_that_is_no_number_stays_doubted_in_json(platform: Platform, clock: Clock, tmp_path: Path) -> None:
    seen = [Sample(device="gpu:a", at=START + timedelta(seconds=15 * n), gpu_active=0.5) for n in range(9)]
    seen[4] = msgspec.structs.replace(seen[4], gpu_active=float("nan"), power=float("inf"))
    recordings.append(tmp_path / "seen.jsonl", seen)
    assert b"null" in (tmp_path / "seen.jsonl").read_bytes()
    ((again, _),) = recordings.read(tmp_path / "seen.jsonl", now=clock())
    platform.call(DeliverSamples(samples=tuple(again)))
    (found,) = platform.call(ListFindings(project="*", start=START, end=START + DAY, check="lost"))
    assert found.evidence == "error gpu_active is nan, power is inf"
    (line,) = platform.call(ReadUsage(project="*", start=START, end=START + DAY))
    assert line.suspect_hours * 3600 == pytest.approx(15)


def test_instants_far_in_the_future_are_refused_and_counted(platform: Platform, clock: Clock) -> None:
    clock.instant = START
    done = platform.call(DeliverSamples(samples=tuple(from_table(whole().slice(0, 120)))))
    assert done.refused == {"ahead": 120 - done.samples}
    assert 55 < done.samples < 65


# --- who may see what


def test_a_project_sees_its_own_usage_and_nobody_elses(platform: Platform, clock: Clock) -> None:
    for name in ("team-0", "team-1"):
        platform.call(CreateProject(project=name))
    pods = tuple(PodOwner(namespace=f"team-{n}", name="job-0", project=f"team-{n}", owner=f"job:{n}") for n in (0, 1))
    platform.call(DeclarePods(pods=pods))
    deliver(platform, whole(), clock)
    platform.call(SealTelemetry())
    alice = token_of(platform, "principal:alice", {"team-0": "developer"})
    asked = {"start": START, "end": START + DAY, "by": "owner"}
    lines = platform.call(ReadUsage(project="team-0", **asked), token=alice)  # type: ignore[arg-type]
    assert {line.key for line in lines} == {"job:0"}
    for project in ("team-1", "*"):
        with pytest.raises(NotAuthorised):
            platform.call(ReadUsage(project=project, **asked), token=alice)  # type: ignore[arg-type]
        with pytest.raises(NotAuthorised):
            platform.call(ListDevices(project=project), token=alice)
    claimed = Sample(device="gpu:a", at=START, claims=(Claim(project="team-1", owner="job:1"),))
    for forbidden in (SealTelemetry(), ExpireTelemetry(), DeliverSamples(samples=(claimed,)), DeclarePods(pods=pods)):
        with pytest.raises(NotAuthorised):
            platform.call(forbidden, token=alice)
    everything = platform.call(ReadUsage(project="*", **{**asked, "by": "project"}))  # type: ignore[arg-type]
    assert {line.key for line in everything} == {"", "team-0", "team-1"}
    assert sum(line.suspect_hours for line in everything) > 0


def test_devices_are_listed_with_their_owners_and_what_is_wrong(platform: Platform, clock: Clock) -> None:
    clock.instant = START + timedelta(minutes=10)
    table = fleet(4, 600, pods=False, source="nvml")
    deliver(platform, changed(table, range(79, 80), gpu_active=2.0), clock)
    names = fleets.names(4)
    held = [
        Holding(device=names[0], project="vision", owner="job:1", start=START),
        Holding(device=names[1], project="vision", owner="job:2", start=START, share=0.5),
    ]
    owners.register("test", lambda _sql, _start, _end: held)
    try:
        platform.call(CreateProject(project="vision"))
        seen = {d.device: d for d in platform.call(ListDevices(project="*"))}
        mine = platform.call(ListDevices(project="vision"))
    finally:
        owners.register("test", lambda _sql, _start, _end: ())
    assert [(h.owner, h.share) for h in seen[names[0]].owners] == [("job:1", 1.0)]
    assert [(h.owner, h.share) for h in seen[names[1]].owners] == [("job:2", 0.5)]
    assert seen[names[1]].suspect == "out-of-range"
    assert seen[names[3]].owners == ()
    assert seen[names[0]].model == "h100-sxm-80gb"
    assert len(seen[names[0]].trend) >= 9
    assert {d.device for d in mine} == set(names[:2])


def test_a_project_sees_nothing_of_what_others_do_with_a_device_it_had(platform: Platform, clock: Clock) -> None:
    clock.instant = START + timedelta(minutes=20)
    table = fleet(1, 1200, pods=False, source="nvml")
    deliver(platform, changed(table, range(41, 80), power=5000.0, memory_used=77), clock)
    (device,), handed = fleets.names(1), START + timedelta(minutes=10)
    held = [
        Holding(device=device, project="vision", owner="job:1", start=START, end=handed),
        Holding(device=device, project="secret", owner="job:2", start=handed),
    ]
    owners.register("test", lambda _sql, _start, _end: held)
    try:
        for name in ("vision", "secret", "third"):
            platform.call(CreateProject(project=name))
        (mine,) = platform.call(ListDevices(project="vision", minutes=30))
        (theirs,) = platform.call(ListDevices(project="secret", minutes=30))
        asked = {"start": START, "end": START + timedelta(hours=1)}
        heard = platform.call(ListFindings(project="vision", **asked))  # type: ignore[arg-type]
        assert platform.call(ListFindings(project="third", **asked)) == ()  # type: ignore[arg-type]
        everything = platform.call(ListFindings(project="*", **asked))  # type: ignore[arg-type]
    finally:
        owners.register("test", lambda _sql, _start, _end: ())
    assert mine.at <= handed + timedelta(seconds=15)
    assert (mine.memory_used, mine.suspect) != (77, "impossible-power")
    assert theirs.at > mine.at
    assert (theirs.power, theirs.memory_used) == (5000.0, 77)
    assert any("5000" in f.evidence for f in everything)
    assert not any("5000" in f.evidence for f in heard)


def test_a_pod_beside_ones_own_on_a_shared_device_stays_its_projects(platform: Platform, clock: Clock) -> None:
    clock.instant = START + timedelta(minutes=10)
    pods = tuple(PodOwner(namespace="n", name=name, project=name, owner=f"job:{name}") for name in ("aaa", "zzz"))
    for name in ("aaa", "zzz"):
        platform.call(CreateProject(project=name))
    platform.call(DeclarePods(pods=pods))
    samples = tuple(
        Sample(
            device="gpu:GPU-a",
            at=START + timedelta(seconds=15 * n),
            part=f"n/{name}/c",
            pod=name,
            namespace="n",
            sm_active=0.25 if name == "aaa" else 0.75,
        )
        for n in range(30)
        for name in ("aaa", "zzz")
    )
    platform.call(DeliverSamples(samples=samples))
    for name, own in (("aaa", 0.25), ("zzz", 0.75)):
        (seen,) = platform.call(ListDevices(project=name, minutes=30))
        assert seen.sm_active == own
        assert [h.project for h in seen.owners] == [name]


# --- from the command line


def run(home: Path, *words: str) -> int:
    return cli.main([*words, "--home", str(home)])


def test_a_recording_is_imported_watched_and_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # narrower ones leave the model out
    home, recording = tmp_path / "home", tmp_path / "seen.jsonl"
    lines = b"\n".join(msgspec.json.encode(s) for s in from_table(whole().slice(0, 400)))
    recording.write_bytes(lines)
    assert run(home, "gpu", "import", str(recording), "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 400
    assert (
        run(
            home,
            "gpu",
            "usage",
            "--project",
            "*",
            "--start",
            "2026-11-20T00:00:00Z",
            "--end",
            "2026-11-21T00:00:00Z",
            "--json",
        )
        == 0
    )
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert run(home, "gpu", "top", "--replay", str(recording), "--once", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["devices"]) >= 2
    assert shown["hourly"]["USD"] > 0
    assert run(home, "gpu", "top", "--replay", str(recording), "--once") == 0
    assert "h100-sxm-80gb" in capsys.readouterr().out


def test_a_file_that_is_no_recording_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "seen.jsonl"
    recording.write_text('{"device": "gpu:a", "at": "2026-11-20T00:00:00Z"}\n{"device": 5}\n')
    assert run(tmp_path / "home", "gpu", "import", str(recording)) == 2
    assert "Line 2" in capsys.readouterr().err
    scrape = tmp_path / "scrape.prom"
    scrape.write_text('DCGM_FI_DEV_GPU_UTIL{UUID="GPU-a"} 5\nbroken{\n')
    assert run(tmp_path / "home", "gpu", "import", str(scrape)) == 0
    out = capsys.readouterr().out
    assert "1 samples delivered" in out
    assert "line 2" in out


def test_naive_instants_are_refused(platform: Platform) -> None:
    naive = Sample(device="gpu:a", at=START.replace(tzinfo=None))
    with pytest.raises(InvalidInput):
        platform.call(DeliverSamples(samples=(naive,)))
