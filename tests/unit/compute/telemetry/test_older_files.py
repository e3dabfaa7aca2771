"""What was written before usage had columns for throttling, links and slices: it is read, sealed and added to as before."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unit.compute.telemetry.fleets import START, fleet
from unit.compute.telemetry.series import deliver, usage

from macadam.app.platform import Platform
from macadam.compute.telemetry import recordings, store
from macadam.compute.telemetry.requests import SealTelemetry
from macadam.compute.telemetry.types import RATES, THROTTLED, brought_up, sample_schema, usage_schema
from macadam.errors import SourceInvalid
from macadam.testing import Clock, open_platform

LATER = {"profile", "gpu_power", "gpu_energy", "slice", "host_cores", *THROTTLED, *RATES}


@pytest.fixture
def clock() -> Clock:
    return Clock(START + timedelta(hours=1, minutes=10))


@pytest.fixture
def platform(tmp_path: Path, clock: Clock) -> Iterator[Platform]:
    with open_platform(tmp_path / "home", clock=clock) as opened:
        yield opened


def older(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if name in LATER])


def aged(platform: Platform) -> int:
    """Rewrites every file of the series as it was before; returns how many."""
    found = list((platform.settings.home / "telemetry").rglob("*.parquet"))
    for path in found:
        pq.write_table(older(pq.ParquetFile(path).read()), path)
    return len(found)


def test_older_files_read_with_what_they_do_not_have_unknown(platform: Platform, clock: Clock) -> None:
    deliver(platform, fleet(3, 3500, seed=1), clock)
    platform.call(SealTelemetry())
    before = {step: usage(platform, step) for step in ("minute", "hour")}
    assert aged(platform) == 3
    for step, new in before.items():
        old = usage(platform, step)
        assert old.schema.equals(usage_schema())
        assert older(old).equals(older(new))
        assert all(old[name].null_count == len(old) for name in LATER if name in old.column_names)


def test_new_hours_are_added_to_the_day_of_an_older_release(platform: Platform, clock: Clock) -> None:
    table = fleet(3, 7100, seed=2)
    first = table.filter([at < START + timedelta(hours=1) for at in table["at"].to_pylist()])
    deliver(platform, first, clock)
    platform.call(SealTelemetry())
    aged(platform)
    clock.pass_time(timedelta(hours=1))
    deliver(platform, table, clock)
    sealed = platform.call(SealTelemetry())
    assert (sealed.set_aside, sealed.stuck) == ((), ())
    rows = usage(platform, "hour").to_pylist()
    assert {row["start"] for row in rows} == {START, START + timedelta(hours=1)}
    assert all(row["throttled_power"] is not None for row in rows if row["start"] > START)


def test_a_delivery_of_an_older_release_that_still_waits_is_sealed(platform: Platform, clock: Clock) -> None:
    deliver(platform, fleet(2, 3500, seed=3), clock)
    (path,) = (platform.settings.home / "telemetry" / "incoming").rglob("*.parquet")
    pq.write_table(older(pq.ParquetFile(path).read()), path)
    named = path.with_name(store.digest_of_file(path).removeprefix("sha256:")[:32] + ".parquet")
    path.rename(named)
    sealed = platform.call(SealTelemetry())
    assert (len(sealed.hours), sealed.set_aside) == (1, ())
    assert len(usage(platform)) > 0


def test_an_older_recording_is_read_and_one_without_other_columns_is_refused(tmp_path: Path) -> None:
    table = fleet(1, 60)
    pq.write_table(older(table), tmp_path / "old.parquet")
    ((samples, _),) = recordings.read(tmp_path / "old.parquet", now=START)
    assert (len(samples), samples[0].nvlink, samples[0].profile) == (4, None, None)
    pq.write_table(table.drop_columns(["power"]), tmp_path / "odd.parquet")
    with pytest.raises(SourceInvalid):
        list(recordings.read(tmp_path / "odd.parquet", now=START))


def test_only_columns_that_were_added_are_made_up_for() -> None:
    table = sample_schema().empty_table()
    assert brought_up(older(table), sample_schema()).schema.equals(sample_schema())
    odd = table.drop_columns(["power", "nvlink"])
    assert brought_up(odd, sample_schema()) is odd
