"""The writer: acknowledged records survive, segments change on time, and a full disk leaves a readable segment."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macadam.errors import Busy, Conflict, IntegrityError, StorageFull, TooLarge, Unavailable
from macadam.journal import layout
from macadam.journal import writer as writer_module
from macadam.journal.layout import MAX_PAYLOAD, NEWEST, SegmentHeader, read_answers
from macadam.journal.sealing import recover_dead
from macadam.journal.segment import SegmentReader, recover
from macadam.journal.writer import JournalWriter


def start(folder: Path, **changes: float) -> JournalWriter:
    return JournalWriter(folder, gateway="gw", worker=0, project="flights", **changes)  # type: ignore[arg-type]


def records(path: Path) -> list[bytes]:
    with SegmentReader(path) as reader:
        return [record.payload for record in reader]


def all_records(folder: Path) -> list[bytes]:
    return [payload for path in sorted(folder.glob("*.closed")) for payload in records(path)]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("fsync_every", [0.0, 0.005])
def test_appended_records_are_read_from_the_closed_segment(tmp_path: Path, fsync_every: float) -> None:
    with start(tmp_path, fsync_every=fsync_every) as writer:
        receipts = [writer.append(b'{"n":%d}' % n) for n in range(50)]
        path = writer.path.with_suffix(".closed")
    assert records(path) == [b'{"n":%d}' % n for n in range(50)]
    with SegmentReader(path) as reader:
        assert [reader.record_at(receipt.offset) for receipt in receipts] == records(path)
    assert [receipt.index for receipt in receipts] == list(range(50))
    assert {receipt.segment for receipt in receipts} == {path.stem}


def test_an_open_segment_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        writer.append(b"{}")
        assert records(writer.path) == [b"{}"]


def test_answers_are_counted_apart_from_records(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        receipts = [writer.append(b"{}") for _ in range(5)]
        for receipt in receipts[:3]:
            receipt.answered()
        path = writer.path
    assert read_answers(path) == 3


def test_an_answer_that_is_given_after_a_change_of_segments_counts_for_its_own(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        old = writer.path
        receipt = writer.append(b"{}")
        writer.rotate()
        receipt.answered()
        assert read_answers(old) == 1
        assert read_answers(writer.path) == 0


def test_a_record_is_durable_when_append_returns_even_if_segments_change_just_then(tmp_path: Path) -> None:
    writer = start(tmp_path, fsync_every=0.0)
    old, lock, here = writer._segment, writer._lock, threading.current_thread()

    class Turning:
        """A change of segments right behind the lock that the append lets go of."""

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            if threading.current_thread() is here and writer._segment is old:
                writer._segment = writer._begin()

    writer._lock = Turning()  # type: ignore[assignment]
    writer.append(b"{}")
    assert writer._segment is not old
    assert old.synced == old.size
    old.finish()
    writer._lock = lock
    writer.close()


def test_a_full_segment_is_followed_by_a_new_one(tmp_path: Path) -> None:
    records = [b'{"n":%d}' % n for n in range(40)]
    with start(tmp_path, fsync_every=0.001, segment_bytes=500) as writer:
        for record in records[:39]:
            writer.append(record)
            time.sleep(0.001)
        until(lambda: list(tmp_path.glob("*.closed")))
        writer.append(records[39])
    assert len(list(tmp_path.glob("*.closed"))) > 1
    assert all_records(tmp_path) == records


def test_an_old_segment_is_followed_by_a_new_one_without_further_records(tmp_path: Path) -> None:
    with start(tmp_path, fsync_every=0.001, segment_age=0.02) as writer:
        writer.append(b"{}")
        until(lambda: len(list(tmp_path.glob("*.closed"))) == 1)


def header(writer: JournalWriter) -> SegmentHeader:
    """What the writer's segment says about itself, wherever it is by now."""
    path = writer.path if writer.path.exists() else writer.path.with_suffix(".closed")
    with SegmentReader(path) as reader:
        return reader.header


def test_a_segment_that_says_nothing_leaves_no_files_and_no_gap(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        first.append(b"[1]")
    start(tmp_path).close()
    assert [path.suffix for path in sorted(tmp_path.iterdir()) if path.name != NEWEST] == [".answers", ".closed"]
    with start(tmp_path) as third:
        assert header(third).follows == header(first).segment


def test_a_segment_that_says_nothing_stays_if_another_follows_it(tmp_path: Path) -> None:
    empty = start(tmp_path)
    with start(tmp_path) as second:
        second.append(b"[1]")
        empty.close()
        assert header(second).follows == header(empty).segment
    assert len(list(tmp_path.glob("*.closed"))) == 2


def test_threads_that_append_while_segments_change_lose_and_double_nothing(tmp_path: Path) -> None:
    def work(name: int) -> None:
        for n in range(200):
            writer.append(b"[%d,%d]" % (name, n))

    with start(tmp_path, fsync_every=0.0, segment_bytes=2000) as writer:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(all_records(tmp_path)) == sorted(b"[%d,%d]" % (a, b) for a in range(3) for b in range(200))


def test_a_living_writer_holds_its_segment_against_recovery(tmp_path: Path) -> None:
    with start(tmp_path) as writer, pytest.raises(Busy):
        recover(writer.path)


def test_nothing_is_appended_once_closed(tmp_path: Path) -> None:
    writer = start(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(Conflict):
        writer.append(b"{}")


def test_a_record_over_the_limit_is_refused(tmp_path: Path) -> None:
    with start(tmp_path) as writer, pytest.raises(TooLarge):
        writer.append(bytes(MAX_PAYLOAD + 1))


def test_after_a_failed_fsync_no_record_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with start(tmp_path, fsync_every=0.0) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(writer_module, "sync_data", broken)
            with pytest.raises(Unavailable, match="Input/output error"):
                writer.append(b"{}")
        with pytest.raises(Unavailable):
            writer.append(b"{}")


def test_a_write_that_stops_half_way_leaves_no_part_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, []

    def half(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with start(tmp_path) as writer:
        writer.append(b'{"n":1}')
        with monkeypatch.context() as patch:
            patch.setattr(layout.os, "write", half)
            with pytest.raises(StorageFull):
                writer.append(b'{"n":2}')
        writer.append(b'{"n":3}')
        path = writer.path
    assert records(path.with_suffix(".closed")) == [b'{"n":1}', b'{"n":3}']


def test_a_part_that_cannot_be_removed_stops_the_gateway_and_is_dropped_by_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(layout.os, "write", refuse)
    monkeypatch.setattr(layout.os, "ftruncate", refuse)
    with pytest.raises(IntegrityError, match="A part of a record"):
        layout.append_whole(fd, b"abc", 0, path)
    os.close(fd)


def test_behind_a_part_of_a_record_nothing_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = start(tmp_path, fsync_every=60)
    writer.append(b"{}")
    real = os.write

    def stops_half_way(fd: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data[: len(data) - 5])

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(layout.os, "write", stops_half_way)
        patch.setattr(layout.os, "ftruncate", refuse)
        with pytest.raises(IntegrityError, match="A part of a record"):
            writer.append(b'{"half":"written"}')
    with pytest.raises(IntegrityError, match="A part of a record"):
        writer.append(b"{}")
    assert isinstance(writer.failure, IntegrityError)
    left = tmp_path / "left" / writer.path.name  # as a kill would leave it
    left.parent.mkdir()
    shutil.copy(writer.path, left)
    writer.close()  # not only its file: another would get the number, and the writer's thread would close that one
    assert recover(left).count == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root and mount")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a counter may be mapped until its writer is collected


def test_a_full_disk_is_a_clear_error_and_the_segment_stays_readable(small_disk: Path) -> None:
    writer = start(small_disk, fsync_every=0.001)
    taken = []
    with pytest.raises(StorageFull, match="full") as caught:  # noqa: PT012 - it fills up at some point
        for n in range(1000):
            payload = b'{"n":%d,"pad":"%s"}' % (n, b"x" * 1500)
            writer.append(payload)
            taken.append(payload)
    assert "Free space" in str(caught.value)
    assert len(taken) > 5
    assert records(writer.path) == taken
    writer.close()
    assert all_records(small_disk) == taken


def test_a_disk_that_is_full_at_the_start_is_a_clear_error_and_leaves_no_segment(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(64 * 1024))
    with pytest.raises(StorageFull):
        start(small_disk)
    assert sorted(path.name for path in small_disk.iterdir()) == [NEWEST, "other"]


_CHILD = """
import sys
from pathlib import Path
from macadam.journal.writer import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), gateway="gw", worker=0, project="p", fsync_every=0.002, segment_bytes=20000)
n = 0
while True:
    receipt = writer.append(b'{"n":%d,"pad":"%s"}' % (n, b"x" * (n % 300)))
    sys.stdout.write(f"{n}\\n"); sys.stdout.flush()
    receipt.answered()
    n += 1
"""


@pytest.mark.parametrize("after", [0.05, 0.11, 0.23])
def test_a_killed_writer_loses_no_acknowledged_record(tmp_path: Path, after: float) -> None:
    source = Path(writer_module.__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    threading.Timer(after, child.kill).start()
    seen = (first + child.stdout.read()).split(b"\n")[:-1]  # an unfinished line was not acknowledged
    child.wait()
    child.stdout.close()
    for path in list(tmp_path.glob("*.open")):
        recover(path)
    kept = all_records(tmp_path)
    assert len(kept) >= len(seen) > 0
    assert [b'{"n":%d,' % n for n in range(len(kept))] == [payload[: payload.index(b",") + 1] for payload in kept]
    answers = sum(read_answers(path) for path in tmp_path.glob("*.closed"))
    assert len(seen) - 1 <= answers <= len(kept)


def test_what_a_kill_leaves_of_a_segment_that_never_began_is_removed_after_a_minute(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, gateway="g", worker=0, project="p") as writer:
        writer.append(b"{}").answered()
        living = sorted(path.name for path in tmp_path.iterdir())
        for name in ("dead.new", "dead.answers", "orphan.answers", "young.new"):
            (tmp_path / name).write_bytes(bytes(8))
        old = time.time() - 61
        for path in tmp_path.iterdir():
            if path.name != "young.new":
                os.utime(path, (old, old))
        assert recover_dead(tmp_path) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*living, "young.new"])
