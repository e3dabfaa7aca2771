"""The sequencer: whatever happens between its steps and beside it, the log stays valid and nothing is lost."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from unit.ledger.worlds import Fragile, Killed, open_ports, queue, verify, with_port

from macadam.errors import IntegrityError, StorageFull
from macadam.ledger import sequencer
from macadam.ledger import service as ledger
from macadam.ledger.publishing import CHECKPOINT_NAME
from macadam.ledger.schema import checkpoints, leaves
from macadam.ledger.sequencer import Sequencer, integrate, integrate_all
from macadam.ledger.tree import leaf_hash, verify_inclusion
from macadam.ports import Ports


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    opened = open_ports(tmp_path / "home")
    yield opened
    opened.sql.close()


def wait_for(holds: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def sizes(ports: Ports) -> list[int]:
    with ports.sql.read() as sql:
        return list(sql.execute(sa.select(checkpoints.c.size).order_by(checkpoints.c.size)).scalars())


def test_each_growth_is_a_valid_log_whose_leaves_prove(ports: Ports) -> None:
    for count in (1, 3, 252, 1, 300, 255, 1):
        queue(ports, count)
        integrate_all(ports)
    assert sizes(ports) == [1, 4, 256, 257, 557, 812, 813]
    found = verify(ports)
    assert (found.problems, found.size, found.queued) == ((), 813, 0)
    prover = ledger.Prover(ports, 813)
    with ports.sql.read() as sql:
        for entry in ledger.find(sql):
            path = prover.path(entry.index)
            verify_inclusion(leaf_hash(entry.text), entry.index, 813, path, bytes.fromhex(found.root))


def test_leaves_are_numbered_in_the_order_of_their_commits(ports: Ports) -> None:
    queue(ports, 20, subject="first")
    queue(ports, 20, subject="second")
    integrate_all(ports)
    with ports.sql.read() as sql:
        named = [entry.leaf.subject for entry in reversed(ledger.find(sql))]
        places = [entry.index for entry in reversed(ledger.find(sql))]
    assert named == [f"first:{n}" for n in range(20)] + [f"second:{n}" for n in range(20)]
    assert places == list(range(40))


@pytest.mark.parametrize(
    ("port", "method", "call"),
    [
        ("objects", "set_name", 1),
        ("objects", "set_name", 2),
        ("secrets", "get", 1),
        ("sql", "write", 1),
        ("objects", "set_name", 3),
        ("objects", "remove_name", 1),
        ("objects", "remove_name", 2),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_between_any_two_steps_leaves_a_valid_log(
    ports: Ports, port: str, method: str, call: int, *, after: bool
) -> None:
    for _ in range(4):
        queue(ports, 62)
        integrate_all(ports)
    queue(ports, 10)  # 258 leaves: a full tile and its parent are written, and partial ones removed
    dying = with_port(ports, port, Fragile(getattr(ports, port), method, call, after=after))
    with pytest.raises(Killed):
        integrate(dying)
    assert verify(ports).problems == ()
    integrate_all(ports)
    queue(ports, 1)
    integrate_all(ports)
    found = verify(ports)
    assert (found.problems, found.size, found.queued) == ((), 259, 0)


def test_two_processes_that_integrate_at_once_agree(ports: Ports) -> None:
    other = open_ports(ports.settings.home)
    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(queue, ports if n % 2 else other, 5) for n in range(30)]
        readers = [pool.submit(integrate_all, ports if n % 2 else other) for n in range(30)]
        for done in (*writers, *readers):
            done.result()
    integrate_all(other)
    other.sql.close()
    found = verify(ports)
    assert (found.problems, found.size, found.queued) == ((), 150, 0)


def test_the_slower_of_two_processes_does_not_publish_an_older_checkpoint(ports: Ports) -> None:
    queue(ports, 3)

    class Slow:
        """Between this process's commit and its publishing, another one integrates more."""

        def __getattr__(self, name: str) -> object:
            return getattr(ports.sql, name)

        def write(self, work: Callable[[sa.Connection], object]) -> object:
            answer = ports.sql.write(work)
            queue(ports, 2)
            integrate_all(ports)
            return answer

    integrate(with_port(ports, "sql", Slow()))
    with ports.sql.read() as sql:
        size, note = ledger.newest_checkpoint(sql)
    assert size == 5
    assert ports.objects.get_name(CHECKPOINT_NAME).decode() == note


def test_partial_tiles_go_once_the_full_one_is_there(ports: Ports) -> None:
    for count in (200, *[1] * 100):
        queue(ports, count)
        integrate_all(ports)
    names = [name.removeprefix("ledger/tile/") for name in ports.objects.names("ledger/tile/")]
    assert "0/000" in names
    assert not [name for name in names if name.startswith("0/000.p/")]
    assert len([name for name in names if name.startswith("0/001.p/")]) == 44
    assert verify(ports).problems == ()


def test_a_reader_of_an_old_checkpoint_still_gets_its_proofs(ports: Ports) -> None:
    queue(ports, 200)
    integrate_all(ports)
    root = bytes.fromhex(verify(ports).root)
    old = ledger.Prover(ports, 200)
    queue(ports, 100)
    integrate_all(ports)
    with ports.sql.read() as sql:
        entry = ledger.find(sql, subject="thing:150")[0]
    verify_inclusion(leaf_hash(entry.text), 150, 200, old.path(150), root)


def test_a_damaged_frontier_stops_the_log_from_growing(ports: Ports) -> None:
    queue(ports, 3)
    integrate_all(ports)
    ports.sql.write(lambda sql: sql.execute(sa.update(checkpoints).values(frontier=b"\x00" * 8)))
    queue(ports, 1)
    with pytest.raises(IntegrityError, match="frontier"):
        integrate_all(ports)
    assert sizes(ports) == [3]


def test_a_queued_leaf_that_vanishes_meanwhile_is_said_and_nothing_is_signed(ports: Ports) -> None:
    queue(ports, 5)

    class Interfered:
        def __getattr__(self, name: str) -> object:
            return getattr(ports.secrets, name)

        def get(self, name: str) -> bytes:
            ports.sql.write(lambda sql: sql.execute(sa.delete(leaves).where(leaves.c.seq == 3)))
            return ports.secrets.get(name)

    with pytest.raises(IntegrityError, match="5 queued leaves were read and 4"):
        integrate(with_port(ports, "secrets", Interfered()))
    assert sizes(ports) == []


def test_a_nudge_gives_leaves_their_checkpoint_soon(ports: Ports) -> None:
    running = Sequencer(ports)
    queue(ports, 2)
    running.nudge()
    wait_for(lambda: sizes(ports) == [2])
    queue(ports, 2)
    running.nudge()
    wait_for(lambda: sizes(ports) == [2, 4])
    running.close()
    running.close()


def test_closing_integrates_what_is_queued_and_later_nudges_start_nothing(ports: Ports) -> None:
    running = Sequencer(ports)
    queue(ports, 2)
    running.close()
    assert sizes(ports) == [2]
    before = threading.active_count()
    running.nudge()
    assert threading.active_count() == before


def test_closing_while_it_runs_loses_nothing(ports: Ports) -> None:
    for _ in range(5):
        running = Sequencer(ports)
        queue(ports, 300)
        running.nudge()
        running.close()
    found = verify(ports)
    assert (found.problems, found.size, found.queued) == ((), 1500, 0)


@pytest.mark.parametrize(
    ("error", "level"),
    [(OSError("the disk is on fire"), logging.ERROR), (StorageFull("The disk is full."), logging.WARNING)],
)
def test_an_error_is_logged_and_tried_again_and_stops_nothing(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, level: int
) -> None:
    monkeypatch.setattr(sequencer, "FIRST_RETRY", 0.05)
    failing = threading.Event()
    failing.set()
    real = ports.objects.set_name

    def set_name(name: str, data: bytes) -> None:
        if failing.is_set():
            raise error
        real(name, data)

    monkeypatch.setattr(ports.objects, "set_name", set_name)
    running = Sequencer(ports)
    queue(ports, 2)
    running.nudge()
    wait_for(lambda: running.failure)
    assert str(error) in running.failure
    assert sizes(ports) == []
    failing.clear()
    wait_for(lambda: sizes(ports) == [2])  # by itself, without a nudge
    wait_for(lambda: not running.failure)
    assert {record.levelno for record in caplog.records if record.name == sequencer.__name__} == {level}
    running.close()


def test_a_temporary_error_at_closing_leaves_the_leaves_for_the_next_start(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(ports, 2)
    with monkeypatch.context() as patch:

        def full(_name: str, _data: bytes) -> None:
            raise StorageFull("The disk is full.")

        patch.setattr(ports.objects, "set_name", full)
        Sequencer(ports).close()
    assert (sizes(ports), verify(ports).queued) == ([], 2)
    Sequencer(ports).close()
    assert sizes(ports) == [2]


def test_a_checkpoint_that_is_about_to_be_published_is_no_problem_and_an_old_one_put_back_is(ports: Ports) -> None:
    """A kill before publishing leaves the copy one behind; whoever goes on has two, until the copy is written."""
    queue(ports, 1)
    integrate_all(ports)
    old = ports.objects.get_name(CHECKPOINT_NAME)
    for _ in range(2):
        queue(ports, 1)
        integrate_all(ports)
    newest = ports.objects.get_name(CHECKPOINT_NAME)
    ports.objects.set_name(CHECKPOINT_NAME, old)
    publishing = threading.Timer(0.2, ports.objects.set_name, (CHECKPOINT_NAME, newest))
    publishing.start()
    assert verify(ports).problems == ()
    publishing.join()
    ports.objects.set_name(CHECKPOINT_NAME, old)
    assert "an old one was put back" in verify(ports).problems[0]
