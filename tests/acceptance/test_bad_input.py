"""What is wrong with a project's files, rows or disk is said, with the next step; the state stays as it was.

Taken ports: tests/faces/test_up and tests/unit/serving/test_gateway. Half a file in every format: unit/data/test_files.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from acceptance.roads import (
    MODEL,
    PATH,
    PROJECT,
    SOAK,
    Road,
    Way,
    gateway,
    questions,
    require_sound,
    sealed,
    state,
    until,
)

from macadam.app.platform import Platform
from macadam.delivery import scaffold
from macadam.faces import cli
from macadam.journal.types import SealClosed
from macadam.ledger import service as ledger
from macadam.models.types import ListRuns

pytestmark = pytest.mark.slow
DISK = 48 * 1024 * 1024
BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A deployed project whose files a test may spoil, and the command line in this process."""

    road: Road
    said: Callable[[], str]

    def apply(self) -> tuple[int, dict[str, Any]]:
        return self.run("apply", str(self.road.place))

    def run(self, *words: str) -> tuple[int, dict[str, Any]]:
        code = cli.main([*words, "--json", "--project", PROJECT, "--home", str(self.road.home)])
        return code, msgspec.json.decode(self.said())

    def state(self) -> dict[str, object]:
        with self.road.platform() as platform:
            require_sound(platform)
            return state(platform)


@pytest.fixture(scope="module")
def deployed(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """A copy, and the platform told that the files have moved."""
    road = way.road.copy(tmp_path_factory.mktemp("bad"))
    road.say("apply")
    return road


@pytest.fixture
def bench(
    deployed: Road, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Bench]:
    """The files are put back afterwards."""
    for name in [name for name in os.environ if name.startswith("MACADAM_")]:
        monkeypatch.delenv(name)
    kept = tmp_path / "kept"
    shutil.copytree(deployed.place, kept)
    yield Bench(road=deployed, said=lambda: capsys.readouterr().out)
    shutil.rmtree(deployed.place)
    shutil.copytree(kept, deployed.place)


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


ROW = "P9,harbour,quickship,3.0,24,2025-06-01T06:17:00Z,56,2025-06-02T07:13:00Z\n"
HEAD = "parcel,depot,carrier,weight_kg,promised_hours,shipped_at,late_minutes,delivered_at\n"
CONTRACT, JUNE = "contracts/parcels.odcs.yaml", "raw/parcels-2025-06.csv"
WRONG_FILES = {
    "a contract that is no YAML": (CONTRACT, lambda text: text + "\n  - : [", 2, [CONTRACT, "YAML"]),
    "a contract that names an unknown type": (
        CONTRACT, replaced("logicalType: integer", "logicalType: whole"), 2, [CONTRACT, "whole"],
    ),
    "a source without files": (
        "macadam.yaml", replaced("raw/parcels-*.csv", "raw/boxes-*.csv"), 2, ["raw/boxes-*.csv"],
    ),
    "a half-written file": (JUNE, lambda _: HEAD + ROW + ROW[:20], 2, [JUNE, "half-written"]),
    "rows that are too short": (JUNE, lambda _: HEAD + ROW + "P10,harbour\n", 2, [JUNE, "row 3", "2 fields"]),
    "a file without a column": (
        JUNE, lambda _: HEAD.replace("depot", "depo") + ROW, 2, [JUNE, "lacks 'depot'", "surplus 'depo'"],
    ),
    "features.py that raises": (
        "features.py", lambda text: text + "\nraise RuntimeError('no such depot')\n", 8, ["features.py", "no such depot"],
    ),
    "features.py that asks for an unknown column": (
        "features.py", replaced('RequestFeature(name="weight_kg")', 'RequestFeature(name="weight_lb")'), 8, ["weight_lb"],
    ),
    "gates.yaml that is wrong": ("gates.yaml", replaced("at_least: 0.6", "at_leest: 0.6"), 2, ["gates.yaml", "at_leest"]),
    "macadam.yaml that is wrong": ("macadam.yaml", replaced("late_parcel", "late_parzel"), 2, ["late_parzel", "features.py"]),
}  # fmt: skip


@pytest.mark.parametrize(("file", "change", "code", "words"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_files_are_refused_with_the_next_step_and_nothing_changes(
    bench: Bench, file: str, change: Callable[[str], str], code: int, words: list[str]
) -> None:
    before, path = bench.state(), bench.road.place / file
    path.write_text(change(path.read_text() if path.exists() else ""))
    ended, told = bench.apply()
    assert ended == told["exit_code"] == code, told
    for word in words:
        assert word in told["detail"] + told["next"], told
    assert told["next"]
    assert bench.state() == before


RAISES = "def train(run):\n    run.data('train')\n    raise ValueError('no parcels today')\n"
OWN = """
from sklearn.ensemble import HistGradientBoostingClassifier

class Own(HistGradientBoostingClassifier):
    pass

def train(run):
    rows = run.data("train")
    run.save_sklearn(Own(max_iter=2).fit(rows.X, rows.y))
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [(RAISES, ["ValueError: no parcels today"]), (OWN, ["Own cannot be exported to ONNX"])],
    ids=["train.py that raises", "a model that does not export"],
)
def test_a_training_that_fails_is_a_recorded_run_and_changes_nothing_else(
    bench: Bench, text: str, words: list[str]
) -> None:
    before = bench.state()
    (bench.road.place / "train.py").write_text(text)
    ended, told = bench.apply()
    assert (ended, told["code"]) == (8, "user-code-failed")
    for word in words:
        assert word in told["detail"]
    assert "runs show" in told["next"] or "Correct" in told["next"]
    after = bench.state()
    assert (after["tables"], after["model"]) == (before["tables"], before["model"])
    with bench.road.platform() as platform, platform.ports.sql.read() as sql:
        found = [e.leaf for e in ledger.find(sql) if e.leaf.outcome == "done"]
        run = platform.call(ListRuns(project=PROJECT, model=MODEL, limit=1))[0]
    new = found[: len(found) - len(before["leaves"])]  # type: ignore[arg-type] # newest first
    assert run.state == "failed"
    assert run.ref in [leaf.subject for leaf in new]
    assert {leaf.kind for leaf in new} == {"models.train"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"parcel": "P9", "colour": "red"}, ["colour"]),
        ({"depot": "harbour"}, ["parcel"]),
        ({"parcel": "P9", "shipped_at": "yesterday"}, ["shipped_at"]),
        ({"parcel": "P9", "weight_kg": "heavy"}, ["weight_kg"]),
    ],
)
def test_pushed_rows_of_the_wrong_shape_are_refused_whole(bench: Bench, row: dict[str, str], words: list[str]) -> None:
    before = bench.state()
    good = {"parcel": "P8", "depot": "harbour", "carrier": "overland", "weight_kg": 1.0, "promised_hours": 24,
            "shipped_at": "2025-05-30T10:00:00Z"}  # fmt: skip
    rows = msgspec.json.encode([good, row]).decode()
    ended, told = bench.run("online", "push", "parcels", "--rows", rows)
    assert (ended, told.get("code")) == (9, "checks-failed"), told
    assert told["next"]
    for word in words:
        assert word in told["detail"]
    assert bench.state() == before


# --- a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, *, leaving: int = 0) -> Path:
    """Takes all space but `leaving` bytes; returns the file that holds it."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leaving)
    return filler


def rows_of(platform: Platform) -> tuple[object, ...]:
    with platform.ports.sql.read() as sql:
        leaves = [e.leaf.id for e in ledger.find(sql, kind="data.ingest") if e.leaf.outcome == "done"]
    require_sound(platform)
    return tuple(leaves)


def test_an_apply_on_a_full_disk_says_so_keeps_the_state_and_goes_on_when_there_is_space(
    disk: Path, tmp_path: Path
) -> None:
    road = Road(place=scaffold.init(tmp_path, PROJECT), home=disk / "home")
    document = road.place / "macadam.yaml"
    document.write_text(document.read_text().partition("features:")[0])
    road.say("apply")
    (road.place / JUNE).write_text(HEAD + ROW)
    with road.platform() as platform:
        before = rows_of(platform)
    failed = 0
    for leaving in range(0, 24 * BLOCK, (4 if SOAK else 12) * BLOCK):
        filler = fill(disk, leaving=leaving)
        with road.start("apply", "--json") as process:
            out, err = process.communicate(timeout=60)
        filler.unlink()
        assert "Traceback" not in err
        if process.returncode:
            failed += 1
            told = msgspec.json.decode(out)
            assert (told["code"], told["status"], process.returncode) == ("storage-full", 507, 12), told
            assert "full" in told["detail"]
            assert "space" in told["next"]
            with road.platform() as platform:
                assert rows_of(platform) == before
    assert failed
    road.say("apply")
    with road.platform() as platform:
        assert len(rows_of(platform)) == len(before) + 1


def test_a_gateway_on_a_full_disk_refuses_what_it_cannot_journal_and_goes_on_when_there_is_space(
    way: Way, disk: Path
) -> None:
    road, asked, answered = way.road.copy(disk), questions(way.road.place), []
    with gateway(road.home) as running, running.client(way.caller["token"]) as client:

        def status() -> int:
            answer = client.post(PATH, json=next(asked))
            if answer.status_code == 200:
                answered.append(answer.json()["prediction"])
            else:
                assert answer.status_code == 503, answer.text
                assert answer.json()["code"] == "journal-disk-full"
                assert answer.json()["next"]
            return answer.status_code

        assert status() == 200
        filler = fill(disk)
        until(lambda: status() == 503)
        filler.unlink()
        until(lambda: status() == 200)
        assert len(answered) > 2
    with road.platform() as platform:
        platform.call(SealClosed(project=PROJECT))
        assert sealed(platform) == set(answered)
        require_sound(platform)
