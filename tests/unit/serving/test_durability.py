"""Where a project asks for it, no answer leaves before its record is on the disk; and the loop never waits for the disk.

The disk is this one, with an fsync that is told to wait or to fail.
"""

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from unit.serving.leave import to_ask

from macadam.errors import Busy, MacadamError, Unavailable
from macadam.journal import layout
from macadam.journal import writer as writer_module
from macadam.journal.types import JournalPolicy
from macadam.journal.writer import JournalWriter
from macadam.serving import outbox as outbox_module
from macadam.serving.batch import Ask
from macadam.serving.journals import ProjectJournal, working
from macadam.serving.outbox import Entry, Outbox

ANSWER = b'HTTP/1.1 200 OK\r\n\r\n{"output":{"score":0.5}}'


class Disk:
    """An fsync that waits while `held` is set, and fails if `error` is. calls: how many ended."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.error: OSError | None = None
        self.calls = 0
        self.entered = 0

    def sync(self, descriptor: int) -> None:
        self.entered += 1
        assert self.free.wait(20)
        if self.error is not None:
            raise self.error
        layout.os.fsync(descriptor)
        self.calls += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(writer_module, "sync_data", made.sync)
    return made


@pytest.fixture
def journal(tmp_path: Path, disk: Disk) -> Iterator[ProjectJournal]:
    writer = JournalWriter(tmp_path, gateway="g", worker=0, project="flights", fsync_every=60)
    yield working(writer, JournalPolicy(durability="answer-after-fsync"))
    disk.free.set()
    disk.error = None
    if writer.failure is None:
        writer.close()


class Client:
    """Stands for a connection: keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[bytes] = []


class Request:
    def __init__(self, client: Client, answer: bytes) -> None:
        self.connection = client
        self.answer = answer


def deliver(connection: Any, entries: Sequence[Entry]) -> None:
    connection.got += [request.answer for request, _ in entries]


def answered(journal: ProjectJournal, client: Client, number: int = 0) -> Any:
    """A journaled answer on its way: what the batcher leaves."""
    receipt = journal.append_many([b'{"n":%d}' % number])
    ask = Ask(serving=None, actor="a", granted=to_ask("e"), inputs={}, receipt=receipt, journal=journal, answer=ANSWER)  # type: ignore[arg-type]
    return Request(client, ANSWER), ask


def run(test: Callable[[Outbox], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await test(Outbox(asyncio.get_running_loop(), deliver))

    asyncio.run(whole())


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.002)


def test_no_answer_leaves_before_its_record_is_durable_and_the_loop_goes_on(
    journal: ProjectJournal, disk: Disk
) -> None:
    async def test(outbox: Outbox) -> None:
        disk.free.clear()
        client = Client()
        outbox.put([(client, [answered(journal, client)])])  # type: ignore[list-item]
        await until(lambda: disk.entered > 0)
        began, turns = time.monotonic(), 0
        while time.monotonic() - began < 0.1:
            await asyncio.sleep(0)
            turns += 1
        assert (client.got, outbox.held) == ([], 1)
        assert turns > 100  # the loop is not the one that waits
        assert journal.writer is not None
        assert journal.writer.unsynced > 0
        disk.free.set()
        await until(lambda: bool(client.got))
        assert (client.got, outbox.held, journal.writer.unsynced) == ([ANSWER], 0, 0)

    run(test)


def test_without_the_declaration_nothing_waits(journal: ProjectJournal, disk: Disk) -> None:
    async def test(outbox: Outbox) -> None:
        disk.free.clear()
        client = Client()
        request, ask = answered(journal, client)
        ask.journal = None
        outbox.put([(client, [(request, ask)])])  # type: ignore[list-item]
        assert client.got == [ANSWER]

    run(test)


def test_an_fsync_that_fails_turns_what_waits_for_it_into_refusals(journal: ProjectJournal, disk: Disk) -> None:
    async def test(outbox: Outbox) -> None:
        disk.error = OSError(errno.EIO, "Input/output error")
        first, second = Client(), Client()
        outbox.put([(one, [answered(journal, one)]) for one in (first, second)])  # type: ignore[misc]
        await until(lambda: bool(first.got and second.got))
        for client in (first, second):
            assert b"503" in client.got[0]
            assert b"journal-unavailable" in client.got[0]
            assert b"score" not in client.got[0]
        assert journal.refused["unavailable"] == 2
        client = Client()
        with pytest.raises(Exception, match="Input/output error"):
            answered(journal, client)

    run(test)


def test_callers_that_wait_share_one_fsync(journal: ProjectJournal, disk: Disk) -> None:
    async def test(outbox: Outbox) -> None:
        clients = [Client() for _ in range(50)]
        disk.free.clear()
        for number, client in enumerate(clients):
            outbox.put([(client, [answered(journal, client, number)])])  # type: ignore[list-item]
            if not number:
                await until(lambda: disk.entered == 1)  # the first one's is under way; the others share the next
        disk.free.set()
        await until(lambda: all(client.got for client in clients))
        assert disk.calls == 2

    run(test)


def test_a_connection_keeps_its_order_and_others_do_not_wait_for_it(journal: ProjectJournal, disk: Disk) -> None:
    async def test(outbox: Outbox) -> None:
        disk.free.clear()
        one, other = Client(), Client()
        outbox.put([(one, [answered(journal, one)])])  # type: ignore[list-item]
        outbox.put([(one, [(Request(one, b"later"), None)]), (other, [(Request(other, b"now"), None)])])  # type: ignore[list-item]
        assert (one.got, other.got) == ([], [b"now"])
        disk.free.set()
        await until(lambda: len(one.got) == 2)
        assert one.got == [ANSWER, b"later"]

    run(test)


def test_an_fsync_that_hangs_becomes_refusals_and_back_pressure(
    journal: ProjectJournal, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(outbox: Outbox) -> None:
        monkeypatch.setattr(outbox_module, "LONGEST_WAIT", 0.05)
        monkeypatch.setattr(writer_module, "_STALLED", 0.05)
        disk.free.clear()
        client = Client()
        outbox.put([(client, [answered(journal, client)])])  # type: ignore[list-item]
        await until(lambda: disk.entered == 1)
        await asyncio.sleep(0.1)
        outbox.sweep()
        assert b"503" in client.got[0]
        assert outbox.held == 0
        with pytest.raises(Busy, match="not confirmed"):
            answered(journal, client)
        disk.free.set()
        await until(lambda: journal.writer is not None and not journal.writer.stalled)
        outbox.put([(client, [answered(journal, client)])])  # type: ignore[list-item]
        await until(lambda: len(client.got) == 2)
        assert client.got[1] == ANSWER

    run(test)


def test_more_bytes_than_may_wait_for_the_disk_are_not_taken(tmp_path: Path, disk: Disk) -> None:
    with JournalWriter(
        tmp_path / "j", gateway="g", worker=0, project="p", fsync_every=60, most_unsynced=2000
    ) as writer:
        journal = working(writer)
        with pytest.raises(Busy, match="wait for the disk"):  # noqa: PT012 - it fills up at some point
            for _ in range(50):
                journal.append_many([b"[%s]" % (b"1" * 100)])
        writer.sync()
        journal.append_many([b"[]"])
        assert journal.failing == ""


def test_records_of_a_segment_that_is_left_are_confirmed_too(journal: ProjectJournal, disk: Disk) -> None:
    async def test(outbox: Outbox) -> None:
        assert journal.writer is not None
        client = Client()
        disk.free.clear()
        outbox.put([(client, [answered(journal, client)])])  # type: ignore[list-item]
        await until(lambda: disk.entered > 0)
        turning = asyncio.create_task(asyncio.to_thread(journal.writer.rotate))
        await asyncio.sleep(0.02)
        assert client.got == []
        disk.free.set()
        await turning
        await until(lambda: bool(client.got))
        assert client.got == [ANSWER]

    run(test)


def test_a_record_of_a_segment_that_is_left_is_not_confirmed_by_the_next_one_when_its_fsync_fails(
    journal: ProjectJournal, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = journal.writer
    assert writer is not None
    told: list[MacadamError | None] = []
    journal.append_many([b"{}"])

    def fails(_: int) -> None:
        writer.when_durable(told.append)  # as the loop does, that has appended just before the change of segments
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer_module, "sync_data", fails)
    with pytest.raises(MacadamError):
        writer.rotate()
    with contextlib.suppress(MacadamError):
        writer.close()
    assert [type(error) for error in told] == [Unavailable]
