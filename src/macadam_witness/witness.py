"""The witness's one decision: to cosign a checkpoint or not (https://c2sp.org/tlog-witness, add-checkpoint).

The checks come in the order of the specification, under one lock, so that what was seen never goes back.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from macadam_witness.memory import Memory, Seen
from macadam_witness.notes import Checkpoint, LogKey, Malformed, is_consistent, read_log_keys, read_request

TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"


@dataclass(frozen=True)
class Answer:
    """status: of HTTP. alarm: why it was refused, where that means that the log contradicts itself; '' otherwise."""

    status: int
    body: str
    kind: str = TEXT
    alarm: str = ""


class Logs:
    """The logs that are witnessed: a file of their keys, read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, Malformed."""
        self._path = path
        self._stamp = (0, 0)
        self._keys: tuple[LogKey, ...] = ()
        self.keys()

    def keys(self) -> tuple[LogKey, ...]:
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._keys = read_log_keys(self._path.read_text(encoding="utf-8"))
            self._stamp = stamp
        return self._keys


class Witness:
    def __init__(self, memory: Memory, logs: Logs, clock: Callable[[], float]) -> None:
        """clock: seconds since 1970."""
        self._memory, self._logs, self._clock = memory, logs, clock
        self._one_at_a_time = threading.Lock()

    @property
    def verifier(self) -> str:
        return self._memory.key.verifier

    def add_checkpoint(self, body: bytes) -> Answer:
        """Raises OSError if what was seen cannot be made durable: then nothing was cosigned."""
        try:
            request = read_request(body)
        except Malformed as error:
            return Answer(400, f"{error}\n")
        new = request.checkpoint
        with self._one_at_a_time:
            keys = [key for key in self._logs.keys() if key.name == new.origin]  # noqa: SIM118 - a method of Logs
            if not keys:
                return Answer(404, "this log is not witnessed here\n")
            if not _is_signed(new, keys):
                return Answer(403, "no key known here has signed it\n")
            if request.old > new.size:
                return Answer(400, "the old size is greater than the checkpoint's\n")
            seen, note = self._memory.seen(new.origin), new.with_lines_of({key.id for key in keys})
            if request.old != seen.size:
                return Answer(409, f"{seen.size}\n", SIZE)
            if new.size == seen.size and new.root != seen.root:
                alarm = self._alarm("two checkpoints of one size", note, seen, certain=True)
                return Answer(409, f"{seen.size}\n", SIZE, alarm)
            if not is_consistent(seen.size, seen.root, new.size, new.root, request.proof):
                why = "it is not shown that it begins with what was seen"
                return Answer(422, f"{why}\n", TEXT, self._alarm(why, note, seen, certain=False))
            self._memory.remember(new, note)
            return Answer(200, self._memory.key.cosign(new.text, int(self._clock())))

    def _alarm(self, why: str, note: str, seen: Seen, *, certain: bool) -> str:
        """Keeps the evidence. A disk that is full must not make a contradiction look like a witness that is down."""
        try:
            self._memory.keep_evidence(why, note, seen, certain=certain)
        except OSError as error:
            return f"{why}; the evidence could not be kept ({error}): {note!r}"
        return why


def _is_signed(checkpoint: Checkpoint, keys: list[LogKey]) -> bool:
    """By at least one key in force, and by none that is known and does not fit."""
    known = {key.id: key for key in keys}
    lines = [
        (known[key_id], signature)
        for name, key_id, signature in checkpoint.signatures
        if name == checkpoint.origin and key_id in known
    ]
    fits = [key.signed(checkpoint.text, signature) and key.signs(checkpoint.size) for key, signature in lines]
    return bool(fits) and all(fits)
