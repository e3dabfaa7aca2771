"""What a gateway refused, counted per minute in small files that the control plane turns into leaves.

A flood costs the ledger one leaf a minute and gateway, however many callers it has: counts are by caller, asset and
reason, a bounded number of them, the rest as one sum. A gateway that is killed loses at most the last second's counts;
that something was refused, and to whom, is in the file at once.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from macadam.values import utc_now, uuid7

_log = logging.getLogger(__name__)
FOLDER = "denials"
OPEN, DONE = ".open", ".done"
MOST = 100
"""Different denials per minute that are told apart: their leaf stays under the 64 KiB that one may have."""
LEFT_AFTER = 150.0
"""Seconds after which an open file belongs to nobody: its minute and its gateway are over."""
_MINUTE = 60.0
_FLUSH_SECONDS = 0.5
_encode = msgspec.json.Encoder().encode


class Denial(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What was refused. actor: '' for nobody known; asset: a reference, '' where that is for the caller to choose."""

    actor: str
    project: str
    asset: str
    reason: str
    status: int


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a file: a denial and how often it happened so far, in the file's minute. None: all others."""

    denial: Denial | None
    count: int


_decode = msgspec.json.Decoder(Counted).decode


class Denials:
    """One gateway's. For one thread. folder: made at the first denial; clock: monotonic seconds."""

    def __init__(
        self, folder: Path, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._now = now
        self._counts: dict[Denial | None, int] = {}
        self._changed: set[Denial | None] = set()
        self._path: Path | None = None
        self._ends = self._flushed = 0.0

    def note(self, denial: Denial) -> None:
        """Counts one; writes at once that it happened, the first time in its minute."""
        if self._clock() >= self._ends:
            self.close()
            self._begin()
        key = denial if denial in self._counts or len(self._counts) < MOST else None
        count = self._counts[key] = self._counts.get(key, 0) + 1
        self._changed.add(key)
        if count == 1:
            self._write()

    def tend(self) -> None:
        """Writes what was counted, and ends the file when its minute is over. Call it about once a second."""
        if self._path is None:
            return
        if self._clock() >= self._ends:
            self.close()
        elif self._changed and self._clock() - self._flushed >= _FLUSH_SECONDS:
            self._write()

    def close(self) -> None:
        """Ends the file: one line per denial, under the name that says it is complete."""
        path, self._path, self._ends = self._path, None, 0.0
        if path is None:
            return
        counts, self._counts, self._changed = self._counts, {}, set()
        draft = path.with_suffix(".draft")
        with _said():
            draft.write_bytes(_lines(Counted(denial=denial, count=count) for denial, count in counts.items()))
            draft.replace(path.with_suffix(DONE))
            path.unlink(missing_ok=True)

    def _begin(self) -> None:
        now = self._now()
        self._ends = self._clock() + _MINUTE - now.timestamp() % _MINUTE
        self._path = self._folder / f"{now.astimezone(UTC):%Y%m%dT%H%M}Z-{uuid7()}{OPEN}"
        with _said():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write(self) -> None:
        changed, self._changed = self._changed, set()
        self._flushed = self._clock()
        if self._path is None:
            return
        with _said():
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, _lines(Counted(denial=one, count=self._counts[one]) for one in changed))
            finally:
                os.close(file)


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """A full disk must not end answering: the refusal itself holds, its count is said to be lost."""
    try:
        yield
    except OSError as error:
        _log.error("denials are not counted: %s", error)


def _lines(counted: Iterable[Counted]) -> bytes:
    return b"".join(_encode(one) + b"\n" for one in counted)


def finished(folder: Path, now: float) -> list[Path]:
    """The reports that nobody writes any more, oldest first. now: seconds since the epoch.

    A report whose gateway ended between its two names is there once: under the complete one.
    """
    done = {path.stem for path in folder.glob(f"*{DONE}")}
    left = [path for path in folder.glob(f"*{OPEN}") if path.stem not in done and _age(path, now) > LEFT_AFTER]
    for path in folder.glob(f"*{OPEN}"):
        if path.stem in done:
            path.unlink(missing_ok=True)
    return sorted([*folder.glob(f"*{DONE}"), *left])


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # its gateway has just finished it under the other name


def read(path: Path) -> tuple[dict[Denial, int], int]:
    """The counts of a report, and the sum of those that are not told apart. A torn or foreign line is left out."""
    counts: dict[Denial, int] = {}
    others = 0
    for line in path.read_bytes().splitlines():
        try:
            one = _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if one.denial is None:
            others = max(others, one.count)
        elif one.denial in counts or len(counts) < MOST:
            counts[one.denial] = max(counts.get(one.denial, 0), one.count)
    return counts, others
