"""Many processes append, two integrate, and all of them are killed at random: the ledger keeps what it acknowledged.

MACADAM_SOAK=1 kills hundreds; MACADAM_SEED chooses others.
"""

import multiprocessing
import os
import random
import sys
import time
from collections import defaultdict
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import KINDS, server, wait_until
from unit.ledger.crowd import append, hold, integrate
from unit.ledger.worlds import leaf, open_ports, verify

from macadam.errors import IntegrityError
from macadam.ledger import service as ledger
from macadam.ledger.sequencer import integrate_all
from macadam.ports import Ports

KILLS = 300 if os.environ.get("MACADAM_SOAK") == "1" else 8
SEED = int(os.environ.get("MACADAM_SEED", "7"))
PROCESSES = 3

# New processes come from a server that has imported everything: one starts in milliseconds, so many can be killed.
_spawn = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _spawning() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # what it imports is found there
        _spawn.set_forkserver_preload(["unit.ledger.crowd"])
        forkserver.ensure_running()


class Crowd:
    """The processes at work on one home."""

    def __init__(self, home: Path, database: str) -> None:
        self._where = (home, database)
        self._working: dict[str, tuple[Any, Any]] = {}
        self._born = 0

    def start(self, work: Any) -> None:
        self._born += 1
        name = f"p{self._born}"
        process = _spawn.Process(target=work, args=(*self._where, name))
        process.start()
        self._working[name] = (work, process)

    def kill(self, name: str) -> Any:
        """As the kernel does, in the middle of anything. Returns what it did, so that another one can be started."""
        work, process = self._working.pop(name)
        assert process.is_alive(), f"{name} ended by itself with {process.exitcode}"
        process.kill()
        process.join()
        return work

    def names(self) -> list[str]:
        return sorted(self._working)


def kept_checkpoint(ports: Ports) -> tuple[int, str]:
    with ports.sql.read() as sql:
        return ledger.newest_checkpoint(sql)


def acknowledged(home: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for path in home.glob("*.said"):
        for line in path.read_text().splitlines():
            caller, number = line.split()
            found[caller].append(int(number))
    return found


def in_the_tree(ports: Ports) -> dict[str, list[int]]:
    """Each caller's numbers, in the order of the tree."""
    found: dict[str, list[int]] = defaultdict(list)
    with ports.sql.read() as sql:
        for entry in reversed(ledger.find(sql)):
            caller, _, number = entry.leaf.subject.removeprefix("thing:").rpartition(".")
            found[caller].append(int(number))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_acknowledged_leaf_is_in_the_tree_once_and_in_its_callers_order(kind: str, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    database = server().database() if kind == "postgres" else ""
    ports = open_ports(tmp_path, database)
    ports.sql.write(lambda sql: ledger.queue(sql, leaf("thing:first.0.0")))
    integrate_all(ports)
    crowd = Crowd(tmp_path, database)
    for work in (*[append] * PROCESSES, integrate, integrate):
        crowd.start(work)
    kept = [kept_checkpoint(ports)]
    for _ in range(KILLS):
        wanted = sum(map(len, acknowledged(tmp_path).values())) + chance.randrange(10, 60)
        wait_until(lambda wanted=wanted: sum(map(len, acknowledged(tmp_path).values())) >= wanted)
        wait_until(lambda last=kept[-1]: kept_checkpoint(ports) != last)  # a busy machine starts processes late
        crowd.start(crowd.kill(chance.choice(crowd.names())))
        kept.append(kept_checkpoint(ports))
    for name in crowd.names():
        crowd.kill(name)
    integrate_all(ports)
    told, there = acknowledged(tmp_path), in_the_tree(ports)
    assert sum(map(len, told.values())) >= KILLS * 10
    assert there.pop("first.0") == [0]
    for caller, numbers in there.items():
        # One more than was acknowledged may be there: the one that its caller was killed over.
        assert numbers in (told[caller], list(range(len(told[caller]) + 1))), caller
        assert told[caller] == list(range(len(told[caller])))
    assert told.keys() <= there.keys()
    size = 1 + sum(map(len, there.values()))
    assert [size for size, _ in kept] == sorted(size for size, _ in kept)
    assert len(set(kept)) > 3
    for since in ("", kept[0][1], kept[len(kept) // 2][1], kept[-1][1]):
        found = verify(ports, since=since)
        assert (found.problems, found.queued, found.size) == ((), 0, size)
    ports.sql.close()


def test_a_leaf_that_was_written_beside_the_writers_lock_is_refused_and_not_put_in_front(tmp_path: Path) -> None:
    """The trap: a sequence gives numbers in one order, and commits happen in another."""
    database = server().database()
    ports = open_ports(tmp_path, database)
    columns = "id, at, kind, outcome, actor, project, subject, leaf, hash"
    with psycopg.connect(database) as other:  # a transaction that takes its number now and commits later
        other.execute(
            f"INSERT INTO ledger_leaves ({columns}) VALUES ('late', '', '', '', '', '', '', '', %s)", [bytes(32)]
        )
        ports.sql.write(lambda sql: [ledger.queue(sql, leaf()) for _ in range(3)])
        integrate_all(ports)
        assert verify(ports).problems == ()
        other.commit()
    with pytest.raises(IntegrityError, match="was committed after leaf 4"):
        integrate_all(ports)
    with ports.sql.read() as sql:
        assert ledger.newest_checkpoint(sql)[0] == 3
    ports.sql.close()


def test_a_writer_that_is_killed_with_the_lock_holds_nobody_up(tmp_path: Path) -> None:
    database = server().database()
    ports = open_ports(tmp_path, database)
    holding = _spawn.Process(target=hold, args=(tmp_path, database))
    holding.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    holding.kill()
    holding.join()
    began = time.monotonic()
    ports.sql.write(lambda sql: ledger.queue(sql, leaf("thing:after.0.0")))
    assert time.monotonic() - began < 5
    integrate_all(ports)
    assert in_the_tree(ports).keys() == {"after.0"}
    ports.sql.close()
