"""A copy of the ledger: written by the command line, checked by the independent verifier, and found out if touched."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.ledger.worlds import queue

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.errors import NotAuthorised
from macadam.faces import cli
from macadam.ledger.sequencer import integrate_all
from macadam.ledger.types import RetireKey, RotateKey, ShowCheckpoint, ShowKeys
from macadam.testing import open_platform, token_of
from macadam_verify import __main__ as verifier


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with open_platform(tmp_path_factory.mktemp("copies") / "home") as opened:
        opened.call(CreateProject(project="flights"))
        for _ in range(3):
            queue(opened.ports, 100)
            integrate_all(opened.ports)
        yield opened


@pytest.fixture(scope="module")
def copy(home: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("copy")
    assert cli.main(["ledger", "export", str(place), "--home", str(home.settings.home), "--project", "*"]) == 0
    return place / "ledger.jsonl"


def check(copy: Path, *more: str) -> int:
    return verifier.main(["--ledger", str(copy), "--key", str(copy.parent / "ledger.key"), *more])


def test_a_copy_is_checked_without_macadam(copy: Path) -> None:
    blocked = (
        "import runpy, sys; sys.modules['macadam'] = None; runpy.run_module('macadam_verify', run_name='__main__')"
    )
    given = ["--ledger", str(copy), "--key", str(copy.parent / "ledger.key")]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *given], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 30" in done.stdout
    assert "PROVED" in done.stdout


def test_a_copy_begins_with_the_checkpoint_that_somebody_kept(
    home: Platform, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(json.loads(first_note(copy.read_text().splitlines()))["checkpoint"])
    assert check(copy, "--since", str(kept)) == 0
    queue(home.ports, 1)
    integrate_all(home.ports)
    kept.write_text(home.call(ShowCheckpoint()).note)
    assert check(copy, "--since", str(kept)) == 1
    assert "cut off" in capsys.readouterr().out


def test_a_kept_checkpoint_that_is_an_empty_file_is_not_taken_for_none(
    home: Platform, copy: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("")
    assert check(copy) == 0
    assert check(copy, "--since", str(kept)) == 1
    verify = ["ledger", "verify", "--home", str(home.settings.home)]
    assert cli.main(verify) == 0
    for option in ("--since", "--key", "--witness-key"):
        assert cli.main([*verify, option, f"@{kept}"]) == 2


def test_a_copy_for_one_project_of_a_ledger_that_changed_its_key_is_checked_with_what_announces_it(
    tmp_path: Path,
) -> None:
    with open_platform(tmp_path / "home") as platform:
        platform.call(CreateProject(project="flights"))
        integrate_all(platform.ports)
        (tmp_path / "first").write_text(platform.call(ShowCheckpoint()).key)
        (old,) = platform.call(ShowKeys()).keys
        platform.call(RotateKey())
        platform.call(RetireKey(key=old.id))
        integrate_all(platform.ports)
        (tmp_path / "announced").write_text(platform.call(ShowKeys()).announcements)
    place = tmp_path / "copy"
    assert cli.main(["ledger", "export", str(place), "--home", str(tmp_path / "home"), "--project", "flights"]) == 0
    given = ["--ledger", str(place), "--key", str(tmp_path / "first")]
    assert verifier.main(given) == 1, "the leaves that announce keys are the platform's own"
    assert verifier.main([*given, "--announced", str(tmp_path / "announced")]) == 0


def first_note(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith('{"checkpoint"'))


def leaf_at(lines: list[str], index: int) -> int:
    return next(n for n, line in enumerate(lines) if json.loads(line).get("index") == index)


def changed(lines: list[str], index: int, old: str, new: str) -> list[str]:
    at = leaf_at(lines, index)
    assert old in lines[at]
    return [*lines[:at], lines[at].replace(old, new), *lines[at + 1 :]]


def without(lines: list[str], at: int) -> list[str]:
    return [*lines[:at], *lines[at + 1 :]]


def swapped(lines: list[str]) -> list[str]:
    one, two = leaf_at(lines, 50), leaf_at(lines, 51)
    first, second = json.loads(lines[one]), json.loads(lines[two])
    first["leaf"], second["leaf"] = second["leaf"], first["leaf"]
    lines[one], lines[two] = json.dumps(first), json.dumps(second)
    return lines


DAMAGES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a leaf is rewritten": (lambda lines: changed(lines, 40, "thing", "thong"), "do not have the root"),
    "a leaf is left out": (lambda lines: without(lines, leaf_at(lines, 40)), "leaf 40 is missing"),
    "two leaves change places": (swapped, "do not have the root"),
    "the end is cut off": (lambda lines: lines[:-1], "were announced"),
    "the last batch is cut off": (lambda lines: lines[:-101], "were announced"),
    "a line is cut off": (lambda lines: [*lines[:-1], lines[-1][:-20]], "is not JSON"),
    "a checkpoint is of another place": (lambda lines: [*lines, first_note(lines)], "stands after"),
    "a leaf is a hash of something else": (
        lambda lines: [
            *lines[: leaf_at(lines, 7)],
            json.dumps({"index": 7, "hash": "0" * 64}),
            *lines[leaf_at(lines, 7) + 1 :],
        ],
        "do not have the root",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_copy_is_found(copy: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(copy) == 0
    change, said = DAMAGES[damage]
    damaged = tmp_path / "ledger.jsonl"
    damaged.write_text("\n".join(change(copy.read_text().splitlines())) + "\n")
    (tmp_path / "ledger.key").write_text((copy.parent / "ledger.key").read_text())
    capsys.readouterr()
    assert check(damaged) == 1
    assert said in capsys.readouterr().out


def test_a_signature_that_was_changed_is_found(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = copy.read_text().splitlines()
    note = json.loads(lines[-1])["checkpoint"]
    at = len(note) - 20
    other = "A" if note[at] != "A" else "B"
    lines[-1] = json.dumps({"checkpoint": note[:at] + other + note[at + 1 :]})
    damaged = tmp_path / "ledger.jsonl"
    damaged.write_text("\n".join(lines) + "\n")
    (tmp_path / "ledger.key").write_text((copy.parent / "ledger.key").read_text())
    assert check(damaged) == 1
    assert "signature" in capsys.readouterr().out


def test_another_ledgers_key_proves_nothing(copy: Path, tmp_path: Path) -> None:
    with open_platform(tmp_path / "other") as other:
        integrate_all(other.ports)
        (tmp_path / "key").write_text(other.call(ShowCheckpoint()).key)
    assert verifier.main(["--ledger", str(copy), "--key", str(tmp_path / "key")]) == 1


def test_what_is_no_copy_is_unreadable(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}\n")
    key = str(copy.parent / "ledger.key")
    assert verifier.main(["--ledger", str(tmp_path / "x"), "--key", key]) == 2
    assert verifier.main(["--ledger", str(tmp_path / "nowhere"), "--key", key]) == 2


def test_a_copy_for_one_project_is_checked_and_says_what_it_does_not_tell(
    home: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = token_of(home, "principal:copyist", {"flights": "viewer"})
    integrate_all(home.ports)
    where = ["--home", str(home.settings.home), "--token", token]
    out = tmp_path / "own.jsonl"
    assert cli.main(["ledger", "export", str(out), "--project", "flights", *where]) == 0
    assert '"kind":"access.bootstrap"' not in out.read_text().replace("\\", "")
    assert check(out) == 0
    assert "not proved  what" in capsys.readouterr().out
    assert cli.main(["ledger", "export", str(out), "--project", "*", *where]) == NotAuthorised.exit_code


def test_a_copy_follows_a_key_that_took_over(tmp_path: Path) -> None:
    with open_platform(tmp_path / "home") as platform:
        integrate_all(platform.ports)
        first = platform.call(ShowCheckpoint()).key.splitlines()[0]
        platform.call(RotateKey())
        integrate_all(platform.ports)
        queue(platform.ports, 3)
        integrate_all(platform.ports)
        out = tmp_path / "copy.jsonl"
        assert cli.main(["ledger", "export", str(out), "--home", str(platform.settings.home), "--project", "*"]) == 0
    (tmp_path / "first").write_text(first.partition(" ")[0] + "\n")
    assert verifier.main(["--ledger", str(out), "--key", str(tmp_path / "first")]) == 0


def test_a_copy_that_cannot_be_written_leaves_nothing_behind(home: Platform, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert cli.main(["ledger", "export", str(tmp_path / "file" / "copy"), "--home", str(home.settings.home)]) != 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
