"""Bills that are broken, and imports that break: whatever happens, a bill is there whole or not at all."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import wait_until
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from unit.compute.billing.bills import USAGE, usage, write_csv

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing import schema, service, store
from macadam.compute.billing.types import CheckBill, ImportBill, ListBills, ListCharges, MapCharges
from macadam.errors import Conflict, IntegrityError, MacadamError, StorageFull
from macadam.ledger.types import VerifyLedger
from macadam.testing import Clock, open_platform

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TABLES = (schema.deliveries, schema.bills, schema.spend)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with open_platform(clock=Clock(NOW)) as opened:
        opened.call(CreateProject(project="flights"))
        yield opened


def rows_in(platform: Platform) -> list[int]:
    with platform.ports.sql.read() as sql:
        return [sql.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in TABLES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rows = [usage(n, Tags='{"project": "flights"}', BilledCost=f"{n}.125") for n in range(6)]
    return write_csv(tmp_path_factory.mktemp("whole") / "bill.csv", rows).read_bytes()


@given(st.integers(0, 2000), st.binary(max_size=4), st.integers(0, 40))
@example(0, b"\xef\xbb", 2)
@example(700, b'"', 0)
@example(0, b"\x1f\x8b\x08", 0)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_bill_is_judged_in_words_and_never_falls_over(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory, whole: bytes, at: int, put: bytes, gone: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "bill.csv"
    at %= len(whole)
    path.write_bytes(whole[:at] + put + whole[at + gone :])
    before = rows_in(platform)
    with contextlib.suppress(MacadamError):
        report = platform.call(CheckBill(path=str(path)))
        assert len(report.problems) == min(report.refused, 1000)
        if not report.refused:
            return
    with pytest.raises(MacadamError) as caught:
        platform.call(ImportBill(path=str(path)))
    assert caught.value.next_step
    assert rows_in(platform) == before


@pytest.mark.parametrize("step", ["keep", "keep_spent"])
def test_an_import_that_breaks_in_its_transaction_leaves_nothing(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, BillingAccountId=step), usage(2, BillingAccountId=f"{step}-2")])
    before = rows_in(platform)
    real = getattr(store, step)

    def broken(*arguments: object) -> None:
        real(*arguments)
        raise StorageFull("The disk is full.", next_step="Make room.")

    with monkeypatch.context() as patched:
        patched.setattr(store, step, broken)
        with pytest.raises(StorageFull):
            platform.call(ImportBill(path=str(path)))
    assert rows_in(platform) == before
    assert list((platform.ports.settings.home / "tmp").iterdir()) == []
    assert not platform.call(ImportBill(path=str(path))).repeated


def test_rules_that_change_while_a_bill_is_read_make_it_be_read_again(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, BillingAccountId="race")])
    real, raced = service._bill, []

    def racing(*arguments: object) -> object:
        if not raced:
            raced.append(platform.call(MapCharges(tag_keys=("team",))))
        return real(*arguments)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(service, "_bill", racing)
    with pytest.raises(Conflict, match="Import it again"):
        platform.call(ImportBill(path=str(path)))
    assert "race" not in {bill.account for bill in platform.call(ListBills(all=True))}
    assert not platform.call(ImportBill(path=str(path))).repeated


def test_a_bill_that_grows_while_it_is_read_is_taken_as_it_was(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, BillingAccountId="grows")])
    was = path.read_bytes()
    real = service.deliveries._Reader.take

    def growing(reader: object) -> None:
        with path.open("ab") as file:
            file.write(was.splitlines()[1].replace(b"i-1", b"i-2") + b"\n")
        real(reader)  # type: ignore[arg-type] # passed on as it came

    with monkeypatch.context() as patched:
        patched.setattr(service.deliveries._Reader, "take", growing)
        first = platform.call(ImportBill(path=str(path)))
    assert first.rows == 1
    assert platform.ports.objects.get(first.originals["bill.csv"]) == was
    assert platform.call(ImportBill(path=str(path))).replaced == (first.bills[0].id,)


def test_a_cell_of_a_quarter_of_a_megabyte_is_refused(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2, ChargeDescription="a" * 2**18), usage(3)])
    (problem,) = platform.call(CheckBill(path=str(path))).problems
    assert (problem.column, len(problem.got)) == ("ChargeDescription", 80)


def test_a_bill_of_every_column_and_no_sense_is_refused(platform: Platform, tmp_path: Path) -> None:
    nonsense = dict.fromkeys(USAGE, "?")
    report = platform.call(CheckBill(path=str(write_csv(tmp_path / "bill.csv", [nonsense]))))
    columns = {problem.column for problem in report.problems}
    assert {"BilledCost", "BillingCurrency", "ChargeCategory", "ChargePeriodStart", "Tags"} <= columns
    with contextlib.suppress(FileNotFoundError):
        assert list((platform.ports.settings.home / "tmp").iterdir()) == []


def test_charges_that_somebody_rewrote_are_found(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, Tags='{"project": "flights"}')])
    with open_platform(clock=Clock(NOW)) as opened:
        opened.call(CreateProject(project="flights"))
        opened.call(ImportBill(path=str(path)))
        with opened.ports.sql.read() as sql:
            (one,) = store.stored(sql)
        (stored,) = (opened.ports.settings.home).rglob(f"*{one.object.removeprefix('sha256:')[4:]}*")
        stored.chmod(0o600)
        stored.write_bytes(stored.read_bytes()[:-1] + b"?")
        assert any(one.object in problem for problem in opened.call(VerifyLedger()).problems)
        with pytest.raises(IntegrityError):
            opened.call(ListCharges(project="flights"))


def test_an_import_that_is_killed_leaves_nothing_but_a_folder_that_the_next_one_removes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(n) for n in range(100_000)])
    home = tmp_path / "home"
    with open_platform(home) as opened:
        opened.call(CreateProject(project="flights"))
    command = [sys.executable, "-m", "macadam.faces.cli", "--home", str(home), "cost", "import", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any((home / "tmp").glob("bill-*/draft.parquet")))
    process.kill()
    process.wait()
    with open_platform(home) as opened:
        assert opened.call(ListBills(all=True)) == ()
        small = write_csv(tmp_path / "small.csv", [usage(1)])
        assert opened.call(ImportBill(path=str(small))).rows == 1
        assert list((home / "tmp").iterdir()) == []
