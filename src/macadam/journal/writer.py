"""Appends prediction records to segments: before the answer is sent, so that no answer is without its record.

One writer per gateway worker and project. `append` is one write to the file (it survives `kill -9` from then on); a
thread makes what was written durable every few milliseconds, at once where somebody waits for it, and changes to a new
segment when one is full or old.
Each segment has a counter of answers of its own beside it, which the gateway raises after it has handed an answer to
the transport: two counts, made in two places, show an omission.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import msgspec

from macadam.errors import Busy, Conflict, IntegrityError, MacadamError, StorageFull, TooLarge, Unavailable
from macadam.journal import gaps
from macadam.journal.beside import BESIDE, Beside
from macadam.journal.gaps import GapCounter
from macadam.journal.layout import (
    ANSWERS,
    CLOSED,
    COUNTER,
    DRAFT,
    MAX_PAYLOAD,
    NEWEST,
    OPEN,
    SegmentFooter,
    SegmentHeader,
    append_whole,
    finish,
    frame,
    opening,
    storage_error,
    sync_data,
    sync_directory,
)
from macadam.values import instant, utc_now, uuid7

_log = logging.getLogger(__name__)
_RETRY = 1.0
"""Seconds until a failed change of segments is tried again."""
_PAUSE = 0.020
"""Seconds between looks at size and age where no group fsync sets the pace."""
_STALLED = 5.0
"""Seconds of one fsync after which nothing more is taken: a disk that hangs must not be promised to."""

Told = Callable[[MacadamError | None], None]
"""Called once it is known whether records are durable; with the error if they may not be."""


class AnswerCounter:
    """Counts answers in eight bytes of a mapped file: a count survives the process, not a power cut."""

    def __init__(self, path: Path) -> None:
        """Creates the file. Raises OSError."""
        self._path = path
        self._count = 0
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Written, not just grown: a page without a block behind it would end the process on a full disk.
            os.write(fd, bytes(COUNTER.size))
            os.fsync(fd)
            self._map = mmap.mmap(fd, COUNTER.size)
        finally:
            os.close(fd)

    @property
    def count(self) -> int:
        """Answers so far."""
        return self._count

    def add(self, answers: int = 1) -> None:
        """Counts answers. From one thread only."""
        self._count += answers
        COUNTER.pack_into(self._map, 0, self._count)

    def flush(self) -> None:
        """Makes the count durable."""
        self._map.flush()


@contextmanager
def _newest(folder: Path) -> Iterator[BinaryIO]:
    """The file that names the folder's newest segment, for one writer at a time. An id always has the same length."""
    try:
        with os.fdopen(os.open(folder / NEWEST, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    except OSError as error:
        raise storage_error(error, folder / NEWEST) from error


def _last_there(folder: Path) -> str:
    """For a folder whose first writer was killed before it had named its segment. Ids sort by time."""
    return max((path.stem for suffix in (OPEN, CLOSED) for path in folder.glob(f"*{suffix}")), default="")


class _Segment:
    """The segment that is being written. Its caller sees to it that one thread appends at a time."""

    def __init__(self, folder: Path, header: SegmentHeader) -> None:
        self.path = folder / f"{header.segment}{OPEN}"
        self.id = header.segment
        self._follows = header.follows
        self._gaps = bool(header.gaps)
        self.born = time.monotonic()
        self.count = 0
        data = opening(header)
        self.size = len(data)
        self._digest = hashlib.sha256(data)
        self._disk = threading.Lock()  # nobody syncs a file that another thread is closing
        self._beside = Beside(self.path.with_suffix(BESIDE))
        try:
            self.answers = AnswerCounter(self.path.with_suffix(ANSWERS))
            self.fd = self._create(data)
        except OSError as error:
            self._remove()
            raise storage_error(error, self.path) from error
        self.synced = self.size

    def _create(self, data: bytes) -> int:
        """Under another name first: an `.open` file has a whole header and a locked writer, always."""
        draft = self.path.with_suffix(DRAFT)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            append_whole(fd, data, 0, draft)
            os.fsync(fd)
            draft.rename(self.path)
            sync_directory(self.path.parent)
        except (OSError, MacadamError):
            os.close(fd)
            self._remove()
            raise
        return fd

    def discard(self) -> None:
        """Takes back a segment that holds no record."""
        os.close(self.fd)
        self._remove()

    def _remove(self) -> None:
        for suffix in (DRAFT, OPEN, ANSWERS):
            self.path.with_suffix(suffix).unlink(missing_ok=True)

    def append(self, payloads: Sequence[bytes], beside: bytes = b"") -> int:
        """All of them, or none; what lies beside them first. Returns the offset of the first."""
        if beside:
            self._beside.append(beside)
        data = frame(payloads[0]) if len(payloads) == 1 else b"".join([frame(payload) for payload in payloads])
        append_whole(self.fd, data, self.size, self.path)
        offset = self.size
        self.size = offset + len(data)
        self.count += len(payloads)
        self._digest.update(data)
        return offset

    @property
    def says_something(self) -> bool:
        return bool(self.count or self.answers.count or self._gaps)

    def sync(self) -> None:
        with self._disk:
            size = self.size
            if size > self.synced:
                self._beside.sync()
                sync_data(self.fd)
                self.synced = size

    def finish(self) -> None:
        """Adds the footer and renames. A segment that says nothing is removed, unless another follows it already."""
        with self._disk:
            try:
                if self.says_something or not self._withdrawn():
                    self._close_off()
            finally:
                os.close(self.fd)
                self._beside.close()

    def _withdrawn(self) -> bool:
        """Takes the segment out of the order again, then away, if it is still the newest."""
        with _newest(self.path.parent) as newest:
            if newest.read().decode() != self.id:
                return False
            newest.seek(0)
            newest.truncate()
            newest.write(self._follows.encode())
        self._remove()
        return True

    def _close_off(self) -> None:
        try:
            if self.size > self.synced:
                self._beside.sync()
                sync_data(self.fd)  # first: the records must be safe even where the footer finds no room
                self.synced = self.size
            self.answers.flush()
        except OSError as error:
            raise storage_error(error, self.path) from error
        footer = SegmentFooter(count=self.count, digest=f"sha256:{self._digest.hexdigest()}")
        finish(self.fd, self.path, size=self.size, footer=footer)


class Receipt(msgspec.Struct, frozen=True):
    """Where a record, or the first of several, was written. index: from 0 in its segment; offset: of its frame, bytes."""

    segment: str
    index: int
    offset: int
    answers: AnswerCounter

    def answered(self, answers: int = 1) -> None:
        """Counts answers: called by the thread that sends, after the transport has taken them."""
        self.answers.add(answers)


class _Waiter(NamedTuple):
    """Wants to be told when a segment is durable up to `size`. leaving: the one before it, if that was still being
    finished: a record may have gone there just before the change.
    """

    segment: _Segment
    size: int
    leaving: _Segment | None
    told: Told

    @property
    def is_durable(self) -> bool:
        old = self.leaving
        return self.segment.synced >= self.size and (old is None or old.synced >= old.size)


class JournalWriter:
    """Writes one worker's records of one project; a context manager.

    fsync_every: seconds between group fsyncs; 0 makes every append durable before it returns. segment_bytes and
    segment_age (seconds): when a new segment is begun; the first is soft, since the thread does it. most_unsynced:
    bytes that may wait for their fsync; beyond, nothing is taken. gap: counts answers without a record, which the next
    segment's header then tells, and so do those of writers that are gone.

    Raises StorageFull or Unavailable if the first segment cannot be made.
    """

    def __init__(  # noqa: PLR0913 - one number of the settings each
        self,
        folder: Path,
        *,
        gateway: str,
        worker: int,
        project: str,
        fsync_every: float = 0.020,
        segment_bytes: int = 64 * 1024 * 1024,
        segment_age: float = 30.0,
        most_unsynced: int = 64 * 1024 * 1024,
        gap: GapCounter | None = None,
    ) -> None:
        self._folder = folder
        self._gap = gap
        self._most_unsynced = most_unsynced
        self._names = (gateway, worker, project)
        self._fsync_every = fsync_every
        self._limits = (segment_bytes, segment_age)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._failure: MacadamError | None = None
        self._closed = False
        self._not_before = 0.0
        self._said = ""
        self._waiters: list[_Waiter] = []
        self._leaving: _Segment | None = None
        self._sync_began = 0.0
        self.last_fsync = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder) from error
        self._segment = self._begin()
        self._thread = threading.Thread(target=self._run, name=f"journal-{project}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The segment that is being written."""
        return self._segment.path

    @property
    def failure(self) -> MacadamError | None:
        """Why nothing is written any more, if so: only a new process can go on."""
        return self._failure

    @property
    def unsynced(self) -> int:
        """Bytes that were written and are not yet known to be durable."""
        old, now = self._leaving, self._segment
        return now.size - now.synced + (old.size - old.synced if old is not None else 0)

    @property
    def stalled(self) -> float:
        """Seconds that the fsync under way has taken so far; 0 without one."""
        began = self._sync_began
        return time.monotonic() - began if began else 0.0

    def append(self, payload: bytes) -> Receipt:
        """Writes one record; when it returns, the record survives the end of this process.

        Raises StorageFull or Unavailable (nothing was written; later calls may succeed), Unavailable for good after
        an fsync failed (what the disk then holds is not known), IntegrityError for good after a part of a record could
        not be taken back, Busy while too much waits for its fsync, TooLarge, and
        Conflict once closed.
        """
        return self.append_many((payload,))

    def append_many(self, payloads: Sequence[bytes], *, beside: bytes = b"") -> Receipt:
        """Like `append` for at least one record, with one write: all are there afterwards, or none.

        beside: goes into the file beside the same segment, first, and is durable before the records are.
        """
        for payload in payloads:
            if len(payload) > MAX_PAYLOAD:
                raise TooLarge(
                    f"A journal record of {len(payload)} bytes is over the limit of {MAX_PAYLOAD}.",
                    next_step="Send smaller inputs, or pass large ones by reference.",
                )
        with self._lock:
            if self._failure:
                raise self._failure
            if self._closed:
                raise Conflict("The journal is closed.", next_step="Start the gateway again.")
            segment = self._segment
            if self._sync_began or self._leaving is not None or segment.size - segment.synced > self._most_unsynced:
                self._require_keeping_up()
            try:
                receipt = Receipt(segment.id, segment.count, segment.append(payloads, beside), segment.answers)
            except IntegrityError as error:
                # A part of a record could not be cut off again: whatever came behind it could never be read.
                self._failure = error
                raise
        if not self._fsync_every:
            self._sync(segment)  # the one that was written to, whichever is the present one by now
        return receipt

    @property
    def is_behind(self) -> bool:
        """Whether appends are refused until the disk has caught up."""
        return self.unsynced > self._most_unsynced or self.stalled > _STALLED

    def _require_keeping_up(self) -> None:
        """Raises Busy."""
        waiting = self.unsynced
        if waiting > self._most_unsynced:
            raise Busy(
                f"{waiting} bytes of the journal wait for the disk, more than {self._most_unsynced}.",
                next_step="The gateway goes on by itself once the disk has caught up.",
            )
        if self._sync_began and self.stalled > _STALLED:
            raise Busy(
                f"The disk has not confirmed the journal for {self.stalled:.0f} s.",
                next_step="Look at the disk; the gateway goes on by itself once it answers.",
            )

    def when_durable(self, told: Told) -> None:
        """Has `told` called once everything appended so far is durable, or with the error that leaves that open.

        Never blocks. Callers that wait share one fsync, which begins at once or when the one under way has ended. `told`
        is called by the journal's thread, or by this one if the journal has failed or is closed.
        """
        with self._lock:
            failure = self._failure
            if failure is None and not self._closed:
                self._waiters.append(_Waiter(self._segment, self._segment.size, self._leaving, told))
        if failure is None and self._closed:
            failure = Conflict("The journal is closed.", next_step="Start the gateway again.")
        if failure is not None:
            told(failure)
        else:
            self._wake.set()

    def sync(self) -> None:
        """Makes durable what has been appended. Raises Unavailable or StorageFull, then and at every later append."""
        with self._lock:
            segment = self._segment
        self._sync(segment)

    def _sync(self, segment: _Segment) -> None:
        if segment.size == segment.synced:
            return
        self._sync_began = time.monotonic()
        try:
            segment.sync()
        except OSError as error:
            # After a failed fsync the kernel may have dropped the pages: no later fsync can vouch for them.
            self._failure = storage_error(error, segment.path)
            raise self._failure from error
        finally:
            self._sync_began = 0.0
        self.last_fsync = instant(utc_now())

    def rotate(self) -> None:
        """Begins a new segment and finishes the present one. Raises StorageFull or Unavailable; records go on then."""
        fresh = self._begin()
        with self._lock:
            old, self._segment = self._segment, fresh
            self._leaving = old
        try:
            self._sync(old)
            old.finish()
        finally:
            self._leaving = None

    def close(self) -> None:
        """Ends the thread and finishes the segment. Raises StorageFull or Unavailable: recovery finishes it then."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        self._thread.join()
        self._tell_gap()
        try:
            self._sync(self._segment)
        finally:
            self._tell_waiting(last=True)
            self._segment.finish()

    def _tell_gap(self) -> None:
        """What is counted is told by a last segment; where that finds no room, its file waits for the next writer."""
        if self._failure is None and self._gap is not None and self._gap.answers:
            try:
                self.rotate()
            except (StorageFull, Unavailable) as error:
                _log.warning("The journal ends before it could tell of answers without a record: %s", error)

    def _begin(self) -> _Segment:
        gateway, worker, project = self._names
        with _newest(self._folder) as newest:
            left = list(gaps.orphans(self._folder))
            own = self._gap.pending() if self._gap is not None else None
            header = SegmentHeader(
                gateway=gateway,
                worker=worker,
                segment=uuid7(),
                project=project,
                created=instant(utc_now()),
                follows=newest.read().decode() or _last_there(self._folder),
                gaps=tuple(gap for gap in (*(gap for _, gap in left), own) if gap is not None),
            )
            segment = _Segment(self._folder, header)
            # After the segment is there: a kill in between gives it a sibling, never a successor without it.
            try:
                newest.seek(0)
                newest.write(header.segment.encode())
                newest.flush()
            except OSError:
                segment.discard()
                raise
            # The header is durable and names them: a kill in between tells a gap twice, under one id, never not at all.
            if self._gap is not None and own is not None:
                self._gap.told(own)
            for path, _ in left:
                path.unlink(missing_ok=True)
        return segment

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wake.wait(self._fsync_every or _PAUSE)
                self._wake.clear()
                self._tick()
        except MacadamError as error:
            _log.error("The journal ends: %s", error)
        finally:
            if not self._closed and not self._failure:
                self._failure = Unavailable("The journal's thread has stopped.", next_step="Start the gateway again.")
            if self._failure:
                self._tell_waiting(last=True)

    def _tick(self) -> None:
        self.sync()
        self._tell_waiting()
        if not self._is_due():
            return
        try:
            self.rotate()
            self._said = ""
        except (StorageFull, Unavailable) as error:
            if self._failure:
                raise
            self._not_before = time.monotonic() + _RETRY
            if str(error) != self._said:  # each second the same would fill the log, on a disk that is full
                self._said = str(error)
                _log.warning("The journal did not change segments cleanly, and goes on: %s", error)

    def _tell_waiting(self, *, last: bool = False) -> None:
        """Calls those whose records are durable. last: the others too, with what went wrong."""
        with self._lock:
            waiting, self._waiters = self._waiters, []
        for one in waiting:
            if one.is_durable:
                one.told(None)
            elif last:
                one.told(self._failure or Unavailable("The journal ended.", next_step="Start the gateway again."))
            else:
                with self._lock:
                    self._waiters.append(one)

    def _is_due(self) -> bool:
        segment, now = self._segment, time.monotonic()
        size, age = self._limits
        if now < self._not_before:
            return False
        if self._gap is not None and self._gap.answers:
            return True
        return segment.says_something and (segment.size >= size or now - segment.born >= age)
