"""The series: delivered in any order, late, twice, with kills in between, it comes out as if it had come at once, with evidence."""

import contextlib
import errno
import hashlib
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from databases import KINDS, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.compute.telemetry import fleets
from unit.compute.telemetry.fleets import START, changed, fleet

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.telemetry import owners, reading, recordings, service, store
from macadam.compute.telemetry.requests import (
    DeclarePods,
    DeliverSamples,
    ExpireTelemetry,
    ListDevices,
    ListFindings,
    PodOwner,
    ReadUsage,
    SealTelemetry,
    VerifySeries,
)
from macadam.compute.telemetry.types import Claim, Holding, Sample, from_table, to_table
from macadam.errors import Busy, IntegrityError, InvalidInput, NotAuthorised, StorageFull
from macadam.faces import cli
from macadam.ledger.types import VerifyLedger
from macadam.operations import Decision, Granted
from macadam.testing import Clock, open_platform, token_of
from macadam.values import utc_now

DAY = timedelta(days=1)
SOAK = os.environ.get("MACADAM_SOAK") == "1"
ALLOWED = Granted(Decision(id="d", allowed=True, policies=("test",), policy_set=""), reading.PERMISSION, "project:*")


@pytest.fixture
def clock() -> Clock:
    return Clock(START + timedelta(hours=6))


@pytest.fixture
def platform(tmp_path: Path, clock: Clock) -> Iterator[Platform]:
    with open_platform(tmp_path / "home", clock=clock) as opened:
        yield opened


def usage(platform: Platform, step: reading.Step = "minute") -> pa.Table:
    rows = reading.usage(platform.ports, ALLOWED, START - DAY, START + DAY, project="*", step=step)
    return rows.sort_by([(n, "ascending") for n in ("device", "start", "project", "owner", "suspect")]).combine_chunks()


def files(platform: Platform) -> dict[str, int]:
    root = platform.settings.home / "telemetry"
    return {f.name: len(list(f.rglob("*.parquet"))) for f in sorted(root.iterdir())}


def leaves(platform: Platform, kind: str) -> list[dict[str, Any]]:
    with platform.ports.sql.read() as sql:
        rows = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves").scalars()
        found = [json.loads(row) for row in rows]
    return [leaf for leaf in found if leaf["kind"] == kind and leaf["outcome"] == "done"]


def deliver(platform: Platform, table: pa.Table, clock: Clock) -> None:
    service.deliver(platform.ports, table, clock())


def whole(seed: int = 3, devices: int = 6) -> pa.Table:
    """Three hours, with a lie in the second one."""
    table = fleet(devices, 3 * 3600 - 60, seed=seed, every=60)
    return changed(table, range(100, 110), sm_active=3.0)


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


# --- faults


def test_a_failure_before_the_commit_leaves_everything_as_it_was(
    platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(platform, whole(), clock)
    before = usage(platform)

    def fail(*_: object) -> None:
        raise OSError("pulled the plug")

    with monkeypatch.context() as broken:
        broken.setattr(service, "_point", fail)
        with pytest.raises(OSError, match="plug"):
            platform.call(SealTelemetry())
    assert leaves(platform, "compute.seal_telemetry") == []
    assert usage(platform).equals(before)
    assert len(platform.call(SealTelemetry()).hours) == 3
    assert usage(platform).equals(before)


def test_a_kill_after_the_commit_counts_nothing_twice(
    platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(platform, whole(), clock)
    with monkeypatch.context() as killed:
        killed.setattr(service, "_clean", lambda *_: None)
        platform.call(SealTelemetry())
    sealed = usage(platform)
    assert files(platform)["incoming"] == 3
    again = platform.call(SealTelemetry())
    assert again.hours == ()  # it came out as it was
    assert files(platform)["incoming"] == 0
    assert usage(platform).equals(sealed)


def test_two_sealers_at_once_do_not_undo_each_other(platform: Platform, clock: Clock) -> None:
    table = whole()
    deliver(platform, table.slice(0, 200), clock)
    ready = _prepared(platform)
    platform.call(SealTelemetry())
    with pytest.raises(Busy, match="another process"):
        _commit(platform, ready)


def _prepared(platform: Platform) -> Any:
    context = type("C", (), {})()
    context.ports, context.call, context.read = (
        platform.ports,
        type("N", (), {"now": START + timedelta(hours=6)}),
        platform.ports.sql.read,
    )
    context.progress = lambda *_: None
    return service._seal(context, SealTelemetry())


def _commit(platform: Platform, ready: Any) -> None:
    tx = type("T", (), {})()
    tx.now, tx.ports, tx.record, tx.after_commit = START, platform.ports, lambda *_, **__: "leaf", lambda _: None

    def work(sql: Any) -> None:
        tx.sql = sql
        service.seal_telemetry(tx, SealTelemetry(), ready)

    platform.ports.sql.write(work)


def test_a_damaged_file_is_an_error_and_not_less_usage(platform: Platform, clock: Clock) -> None:
    deliver(platform, whole(), clock)
    platform.call(SealTelemetry())
    victim = next((platform.settings.home / "telemetry" / "minute").glob("*.parquet"))
    assert platform.call(VerifySeries()).problems == ()
    victim.write_bytes(victim.read_bytes()[:-50])
    (problem,) = platform.call(VerifySeries()).problems
    assert victim.name in problem
    with pytest.raises(IntegrityError, match="cannot be read"):
        usage(platform)


@pytest.mark.parametrize("database", KINDS)
def test_sealers_of_several_processes_agree_on_one_outcome(tmp_path: Path, clock: Clock, database: str) -> None:
    table, settings = whole(devices=3), environment(database)
    with (
        open_platform(tmp_path / "home", environment=settings, clock=clock) as one,
        open_platform(tmp_path / "home", environment=settings, clock=clock) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for n in range(4):
            deliver(one, table.take(list(range(n, len(table), 4))), clock)
            for result in [pool.submit(lambda p=p: p.call(SealTelemetry())) for p in (one, two)]:
                with contextlib.suppress(Busy):
                    result.result()
        one.call(SealTelemetry())
        assert files(one)["incoming"] == 0
        assert one.call(VerifySeries()).problems == ()
        assert one.call(VerifyLedger()).problems == ()
        with open_platform(clock=clock) as at_once:
            deliver(at_once, table, clock)
            at_once.call(SealTelemetry())
            assert usage(two).equals(usage(at_once))
            assert usage(two, "hour").equals(usage(at_once, "hour"))


def test_what_killed_seals_left_is_swept_and_nothing_else(platform: Platform, clock: Clock) -> None:
    deliver(platform, whole(), clock)
    _prepared(platform)  # a seal that never commits
    root = platform.settings.home / "telemetry"
    half = next((root / "incoming").iterdir()) / ".0.writing"
    half.write_bytes(b"half")
    before, now = usage(platform), utc_now()
    assert service.sweep(platform.ports, now) == 0  # it may be about to commit
    assert service.sweep(platform.ports, now + timedelta(days=2)) == 8  # three hours, their day, and the half
    assert not half.exists()
    platform.call(SealTelemetry())
    assert service.sweep(platform.ports, now + timedelta(days=2)) == 0
    assert usage(platform).equals(before)
    assert platform.call(VerifySeries()).problems == ()


def test_what_a_killed_seal_left_damaged_is_written_anew(platform: Platform, clock: Clock) -> None:
    deliver(platform, whole(), clock)
    before = usage(platform)
    _prepared(platform)
    for level in ("raw", "minute", "hour"):
        for path in (platform.settings.home / "telemetry" / level).iterdir():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content[:-9])
    platform.call(SealTelemetry())
    assert platform.call(VerifySeries()).problems == ()
    assert usage(platform).equals(before)


def test_a_disk_that_is_full_loses_nothing_that_was_delivered(
    platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(platform, whole(), clock)
    before = usage(platform)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("link", "fsync"):
        with monkeypatch.context() as filled:
            filled.setattr(store.os, broken, full)
            with pytest.raises(StorageFull):
                platform.call(SealTelemetry())
    assert usage(platform).equals(before)
    platform.call(SealTelemetry())
    assert usage(platform).equals(before)


@pytest.mark.parametrize("damage", ["torn", "changed", "no table", "a link"])
def test_a_damaged_delivery_is_set_aside_and_said_and_holds_up_nothing(
    platform: Platform, clock: Clock, tmp_path: Path, damage: str
) -> None:
    table = whole()
    deliver(platform, table.slice(0, 400), clock)
    deliver(platform, table.slice(400), clock)
    victim = min((platform.settings.home / "telemetry" / "incoming").rglob("*.parquet"))
    content = victim.read_bytes()
    if damage == "torn":
        victim.write_bytes(content[:-50])
    elif damage == "changed":
        victim.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "no table":
        victim = victim.with_name(hashlib.sha256(b"x").hexdigest()[:32] + ".parquet")
        victim.write_bytes(b"x")
    else:
        victim.rename(tmp_path / "elsewhere")
        victim.symlink_to(tmp_path / "elsewhere")
    kept = b"x" if damage == "no table" else victim.read_bytes()
    sealed = platform.call(SealTelemetry())
    assert len(sealed.hours) == 3
    (said,) = sealed.set_aside
    assert victim.name in said
    (aside,) = (platform.settings.home / "telemetry" / "set-aside").iterdir()
    assert aside.read_bytes() == kept
    (found,) = platform.call(ListFindings(project="*", start=START, end=START + DAY, check="unfit-delivery"))
    assert victim.name in found.evidence
    assert any("set_aside" in leaf["body"] for leaf in leaves(platform, "compute.seal_telemetry"))
    assert len(usage(platform)) > 0
    deliver(platform, table, clock)  # delivered again, all of it is there, and what happened stays said
    assert platform.call(SealTelemetry()).set_aside == ()
    with open_platform(clock=clock) as at_once:
        deliver(at_once, table, clock)
        at_once.call(SealTelemetry())
        assert usage(platform).equals(usage(at_once))
    assert platform.call(ListFindings(project="*", start=START, end=START + DAY, check="unfit-delivery")) == (found,)


def test_many_small_deliveries_are_merged_around_a_damaged_one(platform: Platform, clock: Clock) -> None:
    table = whole().slice(0, 31)
    deliver(platform, table.slice(30), clock)
    victim = next((platform.settings.home / "telemetry" / "incoming").rglob("*.parquet"))
    victim.write_bytes(b"torn")
    for n in range(30):
        deliver(platform, table.slice(n, 1), clock)
    assert files(platform)["incoming"] < 30


def test_a_damaged_sealed_file_holds_up_its_own_hours_only(platform: Platform, clock: Clock) -> None:
    table = whole()
    hours = pc.divide(table.column("at").cast(pa.int64()), 3_600_000_000)
    first = pc.min(hours).as_py()
    deliver(platform, table.filter(pc.equal(hours, first)), clock)
    platform.call(SealTelemetry())
    raw = next((platform.settings.home / "telemetry" / "raw").glob("*.parquet"))
    raw.write_bytes(raw.read_bytes()[:-50])
    deliver(platform, table.filter(pc.greater(hours, first)), clock)
    sealed = platform.call(SealTelemetry())
    assert [one.hour for one in sealed.hours] == [START + timedelta(hours=2)]
    assert len(sealed.stuck) == 2
    assert raw.name in sealed.stuck[0]


def test_repetitions_in_one_delivery_do_not_hide_what_comes_later(platform: Platform, clock: Clock) -> None:
    table = whole().slice(0, 59)  # of one device and hour
    early = table.slice(0, 58)
    deliver(platform, pa.concat_tables([early, early.slice(0, 1)]), clock)
    platform.call(SealTelemetry())
    deliver(platform, table.slice(58), clock)
    platform.call(SealTelemetry())
    samples = reading.samples(platform.ports, ALLOWED, START, START + timedelta(hours=1))
    assert len(samples) == 59


def test_what_comes_while_its_hours_samples_expire_does_not_replace_the_hour(platform: Platform, clock: Clock) -> None:
    table = whole()
    deliver(platform, table, clock)
    platform.call(SealTelemetry())
    kept = usage(platform)
    clock.pass_time(timedelta(hours=50))
    late = fleet(6, 300, seed=9)
    hour = store.hour_of(START)
    with platform.ports.sql.read() as sql:
        closed = service.closed_hours(sql, [hour])  # looked at before the expiry, written after it
    platform.call(ExpireTelemetry())
    store.Store(platform.settings.home).deliver(late, now=clock(), closed=closed)
    (said,) = platform.call(SealTelemetry()).set_aside
    assert "expired" in said
    assert usage(platform).equals(kept)


def test_a_delivery_of_the_wrong_shape_is_refused(platform: Platform, clock: Clock) -> None:
    with pytest.raises(InvalidInput, match="other columns"):
        deliver(platform, whole().drop_columns(["xid"]), clock)


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


def test_a_recording_is_imported_watched_and_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
