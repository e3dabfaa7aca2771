"""Answers that left without a record, because their project wants to go on when its journal cannot: counted at once, in
a file that needs no space, until a segment can say how many they were and when.

A `.gap` file is 64 bytes, mapped: a count survives `kill -9` and a disk that stays full. Its owner holds a lock on it;
one without an owner is taken over by the next writer of the folder. The next segment's header names what was counted,
and is durable before the count goes back to zero.
"""

import fcntl
import logging
import mmap
import os
import struct
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from macadam.values import instant, uuid7

_log = logging.getLogger(__name__)
CAUSES = ("disk-full", "unavailable", "back-pressure")
GAP = ".gap"
MAGIC = b"MCDMGAP1"
FORM = struct.Struct("<8s16sQQQQQ")
"""Magic, id, first and last instant in µs of the epoch, and one count for each of CAUSES; little-endian."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Answers without a record. id: UUIDv7, so that a gap that was told twice counts once; first_at, last_at: when the
    first and the last of them were given, RFC 3339; causes: how many of them, by why there was no record.
    """

    id: str
    first_at: str
    last_at: str
    causes: dict[str, int]

    @property
    def answers(self) -> int:
        return sum(self.causes.values())


class GapCounter:
    """Counts one gateway's unrecorded answers of one project."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._counts = [0] * len(CAUSES)
        self._first = self._last = 0
        self._id = uuid.UUID(uuid7())
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._path = folder / f"{self._id}{GAP}"

    @property
    def answers(self) -> int:
        """How many no segment has told yet."""
        return sum(self._counts)

    def prepare(self) -> None:
        """Makes the file, while there is space. Raises OSError; counting goes on in memory without it."""
        if self._map is not None:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Written, not just grown: a page without a block behind it would end the process on a full disk.
            os.write(fd, self._packed())
            os.fsync(fd)
            made = mmap.mmap(fd, FORM.size)
        except OSError:
            os.close(fd)
            self._path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._fd, self._map = fd, made
            self._write()

    def add(self, cause: str, answers: int, now: datetime) -> None:
        """Counts answers. cause: one of CAUSES; now: UTC."""
        at = int(now.timestamp() * 1e6)
        with self._lock:
            self._counts[CAUSES.index(cause)] += answers
            self._first = self._first or at
            self._last = max(self._last, at)
            self._write()

    def pending(self) -> Gap | None:
        """What is to be told, if anything."""
        with self._lock:
            return _gap(self._id, self._first, self._last, self._counts)

    def told(self, gap: Gap) -> None:
        """A segment names this gap, durably: what was counted since then is another one."""
        with self._lock:
            self._counts = [count - gap.causes.get(cause, 0) for cause, count in zip(CAUSES, self._counts, strict=True)]
            self._id = uuid.UUID(uuid7())
            self._first = self._last if any(self._counts) else 0
            self._write()

    def close(self) -> None:
        """Leaves the file to the next writer if it still counts something."""
        with self._lock:
            if self._map is None:
                if any(self._counts):
                    _log.error("%d unrecorded answers could be told nowhere", sum(self._counts))
                return
            self._map.close()
            self._map = None
            if not any(self._counts):
                self._path.unlink(missing_ok=True)
            os.close(self._fd)

    def _write(self) -> None:
        if self._map is not None:
            self._map[: FORM.size] = self._packed()

    def _packed(self) -> bytes:
        return FORM.pack(MAGIC, self._id.bytes, self._first, self._last, *self._counts)


def _gap(identity: uuid.UUID, first: int, last: int, counts: list[int]) -> Gap | None:
    if not any(counts):
        return None
    return Gap(
        id=str(identity),
        first_at=_instant(first),
        last_at=_instant(last),
        causes={cause: count for cause, count in zip(CAUSES, counts, strict=True) if count},
    )


def _instant(microseconds: int) -> str:
    try:
        return instant(datetime.fromtimestamp(microseconds / 1e6, UTC))
    except (OverflowError, ValueError, OSError):
        return instant(datetime.fromtimestamp(0, UTC))


def read(path: Path) -> Gap | None:
    """What a gap file counts; None if nothing, or if it is none."""
    data = path.read_bytes()[: FORM.size]
    if len(data) != FORM.size:
        return None
    magic, identity, first, last, *counts = FORM.unpack(data)
    return _gap(uuid.UUID(bytes=identity), first, last, counts) if magic == MAGIC else None


def orphans(folder: Path) -> Iterator[tuple[Path, Gap | None]]:
    """Gap files whose gateway is gone. Each is locked while it is looked at, so that two writers do not take one."""
    for path in sorted(folder.glob(f"*{GAP}")):
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():  # another writer may have taken it between the two calls
                yield path, read(path)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
