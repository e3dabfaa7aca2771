"""A ledger and its witnesses as real processes: grown logs are cosigned, and a ledger that was changed is refused."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.errors import InvalidInput
from macadam.ledger import note
from macadam.ledger.types import RotateKey, ShowCheckpoint, ShowWitnesses, VerifyLedger
from macadam.settings import Settings
from macadam.values import uuid7


class Running:
    """One `macadam witness`, on a port of its own that it keeps over restarts."""

    def __init__(self, place: Path, logs: Path, name: str) -> None:
        self._place, self._logs, self._name, self._port = place, logs, name, 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "macadam.faces.cli", "witness", "--directory", str(self._place)]
        command += ["--logs", str(self._logs), "--name", self._name, "--port", str(self._port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        said = json.loads(line)
        self.key, self.url = said["key"], said["url"]
        self._port = int(self.url.rpartition(":")[2])

    def kill(self, number: int = signal.SIGKILL) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=20)[1]


class World:
    def __init__(self, place: Path) -> None:
        self.home, self.list = place / "home", place / "witnesses"
        self.settings = Settings.load({"MACADAM_LEDGER_WITNESSES": str(self.list)}, home=self.home)
        self.list.write_text("")
        with self.open() as platform:
            self.keys = platform.call(ShowCheckpoint()).key if platform.call(VerifyLedger()) else ""
        self.logs = place / "logs"
        self.logs.write_text(self.keys + "\n")

    def open(self) -> Platform:
        return Platform(self.settings)

    def grow(self, by: int = 1) -> None:
        with self.open() as platform:
            for _ in range(by):
                platform.call(CreateProject(project=f"p{uuid7()}"))

    def problems(self, witnesses: int = 0, key: str = "") -> tuple[str, ...]:
        with self.open() as platform:
            return platform.call(VerifyLedger(witnesses=witnesses, witness_key=key)).problems


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@contextlib.contextmanager
def witnesses(world: World, tmp_path: Path, count: int = 1) -> Iterator[list[Running]]:
    started: list[Running] = []
    try:
        started += [Running(tmp_path / f"w{number}", world.logs, f"w{number}.example") for number in range(count)]
        world.list.write_text("".join(f"{one.key} {one.url}\n" for one in started))
        yield started
    finally:
        for one in started:
            if one.process.poll() is None:
                one.kill(signal.SIGTERM)


def test_a_grown_ledger_is_cosigned_beside_the_append_and_a_killed_witness_remembers(
    world: World, tmp_path: Path
) -> None:
    with witnesses(world, tmp_path) as (one,):
        world.grow()
        assert world.problems(witnesses=1) == ()
        one.kill()
        world.grow()
        (problem,) = world.problems(witnesses=1)
        assert "nobody of 1 witnesses cosigned" in problem
        assert world.problems() == (), "what nobody demands is not missed"
        one.start()
        assert world.problems(witnesses=1) == ()
        with world.open() as platform:
            (state,) = platform.call(ShowWitnesses())
            published = platform.ports.objects.get_name("ledger/checkpoint").decode()
            shown = platform.call(ShowCheckpoint()).note
        assert (state.refusal, state.breach, state.size > 0) == ("", False, True)
        assert published == shown
        assert [line.name for line in note.Note.parse(published).signatures][1:] == ["w0.example"]


def test_k_of_n_must_have_cosigned(world: World, tmp_path: Path) -> None:
    with witnesses(world, tmp_path, 2) as (one, other):
        world.grow()
        assert world.problems(witnesses=2) == ()
        assert world.problems(witnesses=1, key=one.key) == ()
        one.kill()
        world.grow()
        assert world.problems(witnesses=1) == ()
        assert "w1.example of 2 witnesses cosigned" in world.problems(witnesses=2)[0]
        assert "nobody of 1" in world.problems(witnesses=1, key=one.key)[0]
        with pytest.raises(InvalidInput, match="3 witnesses must"):
            world.problems(witnesses=3)
        with pytest.raises(InvalidInput, match="2 witnesses must"):
            world.problems(witnesses=2, key=f"{other.key}\n{other.key}\n")


def test_a_home_that_was_rolled_back_is_refused_and_says_so(world: World, tmp_path: Path) -> None:
    with witnesses(world, tmp_path) as (one,):
        world.grow()
        shutil.copytree(world.home, tmp_path / "older")
        world.grow(3)
        assert world.problems(witnesses=1) == ()
        shutil.rmtree(world.home)
        shutil.copytree(tmp_path / "older", world.home)
        found = world.problems(witnesses=1)
        assert any("it was rolled back" in problem for problem in found), found
        assert any("it was rolled back" in problem for problem in world.problems()), "also where nobody asks for it"
        world.grow(6)  # grown past what was seen, with other leaves
        found = world.problems(witnesses=1)
        assert any("does not begin with what it has seen" in problem for problem in found), found
        logs = world.logs.read_text()
        world.logs.write_text("# none\n")
        found = world.problems(witnesses=1)
        assert any("does not begin with what it has seen" in problem for problem in found), "404 takes nothing back"
        world.logs.write_text(logs)
        assert '"event": "ALARM"' in one.kill(signal.SIGTERM)


def test_two_forks_of_one_size_are_told_apart(world: World, tmp_path: Path) -> None:
    with witnesses(world, tmp_path):
        world.grow()
        assert world.problems(witnesses=1) == ()
        shutil.copytree(world.home, tmp_path / "fork")
        world.grow()
        assert world.problems(witnesses=1) == ()
        shutil.rmtree(world.home)
        shutil.copytree(tmp_path / "fork", world.home)
        world.grow()
        found = world.problems(witnesses=1)
        assert any("a fork" in problem for problem in found), found


def test_what_answers_with_another_key_is_no_witness(world: World, tmp_path: Path) -> None:
    with witnesses(world, tmp_path, 2) as (one, other):
        world.list.write_text(f"{one.key} {other.url}\n")
        world.grow()
        found = world.problems(witnesses=1)
        assert found, "nobody cosigned"
        with world.open() as platform:
            (state,) = platform.call(ShowWitnesses())
        assert "may have been swapped" in state.refusal
        own = world.keys.replace("+AQ", "+BA")
        with pytest.raises(InvalidInput):
            world.problems(witnesses=1, key=own)


def test_a_witness_that_hangs_holds_up_no_append(world: World, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, witnesses(world, tmp_path) as (one,):
        world.list.write_text(f"{one.key} http://127.0.0.1:{deaf.getsockname()[1]}\n")
        settings = Settings.load(
            {"MACADAM_LEDGER_WITNESSES": str(world.list), "MACADAM_LEDGER_WITNESS_TIMEOUT": "1"}, home=world.home
        )
        with Platform(settings) as platform:
            began = time.monotonic()
            for _ in range(20):
                platform.call(CreateProject(project=f"p{uuid7()}"))
            assert time.monotonic() - began < 1.0
            closing = time.monotonic()
        assert time.monotonic() - closing < 5.0


def test_a_new_key_of_the_ledger_is_cosigned_once_the_witness_knows_it(world: World, tmp_path: Path) -> None:
    with witnesses(world, tmp_path):
        world.grow()
        with world.open() as platform:
            platform.call(RotateKey())
        assert world.problems(witnesses=1) == (), "both keys sign, and the witness knows the old one"
