"""The series under kills, damage, full disks and several sealers: nothing is lost or counted twice, and what happened is said."""

import contextlib
import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from databases import KINDS, environment
from unit.compute.telemetry.fleets import START, fleet
from unit.compute.telemetry.series import ALLOWED, DAY, deliver, files, leaves, usage, whole

from macadam.app.platform import Platform
from macadam.compute.telemetry import reading, service, store
from macadam.compute.telemetry.requests import (
    ExpireTelemetry,
    ListFindings,
    SealTelemetry,
    VerifySeries,
)
from macadam.errors import Busy, IntegrityError, InvalidInput, StorageFull
from macadam.ledger.types import VerifyLedger
from macadam.testing import Clock, open_platform
from macadam.values import utc_now


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
