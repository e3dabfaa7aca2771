"""What a witness must not forget: its key, and the newest checkpoint that it has cosigned of each log.

One directory, one process. The state is replaced as a whole and durable before a cosignature leaves; a witness whose
state is gone does not start, since with nothing remembered it would cosign a log that was rewritten.
"""

import base64
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macadam_witness.notes import Checkpoint, Malformed, WitnessKey, read_base64

_KEY, _STATE, _LOCK, _EVIDENCE = "key", "state.json", "lock", "evidence.jsonl"
_MOST_EVIDENCE = 16 * 1024 * 1024
"""Bytes kept of signed checkpoints that were refused: one is proof enough, a flood must not fill the disk."""
_MOST_SUSPECT = _MOST_EVIDENCE // 2
"""Bytes after which only what contradicts itself is kept: anybody can send a good checkpoint with a false proof."""
_ROOT_OF_NOTHING = hashlib.sha256(b"").digest()
"""Of a log without leaves (RFC 9162, 2.1.1)."""


class Unusable(Exception):
    """The witness's directory cannot be worked with; the text says why and what to do."""


@dataclass(frozen=True)
class Seen:
    """The newest checkpoint that was cosigned. note: with the log's own signatures; '' if that was not kept."""

    size: int
    root: bytes
    note: str = ""


class Memory:
    """Raises Unusable if another process holds the directory, or if what is in it cannot be."""

    def __init__(self, directory: Path, name: str) -> None:
        """name: of the key, made in an empty directory; '' takes the one that is there."""
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise Unusable(f"another witness works in {directory}: stop it, or name another --directory") from error
        try:
            self.key = self._open_key(name)
            self._seen = self._read()
            self._kept = {_digest(line) for line in self._evidence()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._lock)

    def seen(self, origin: str) -> Seen:
        """The newest cosigned checkpoint; size 0 if there is none."""
        return self._seen.get(origin, Seen(0, _ROOT_OF_NOTHING))

    def remember(self, checkpoint: Checkpoint, note: str) -> None:
        """Durable when this returns. note: the checkpoint with the log's own signatures. Raises OSError, with nothing changed."""
        seen = self._seen | {checkpoint.origin: Seen(checkpoint.size, checkpoint.root, note)}
        self._write(seen)
        self._seen = seen

    def keep_evidence(self, why: str, note: str, seen: Seen, *, certain: bool) -> None:
        """Keeps a signed checkpoint that was not cosigned, beside the one that was, once. Raises OSError.

        certain: the two contradict each other, whoever sent the second.
        """
        path = self._directory / _EVIDENCE
        line = json.dumps({"why": why, "note": note, "seen": seen.note}) + "\n"
        held = path.stat().st_size if path.exists() else 0
        if _digest(line) in self._kept or held + len(line) > (_MOST_EVIDENCE if certain else _MOST_SUSPECT):
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._kept.add(_digest(line))

    def _evidence(self) -> list[str]:
        path = self._directory / _EVIDENCE
        return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []

    def _open_key(self, name: str) -> WitnessKey:
        path = self._directory / _KEY
        if not path.exists():
            if (self._directory / _STATE).exists():
                raise Unusable(f"{path} is gone and the state is there: put it back, or begin in an empty directory")
            if not name:
                raise Unusable("a new witness needs a name: give --name, such as witness.example.org/1")
            self._write({})
            _replace(path, WitnessKey(name, os.urandom(32)).secret.encode() + b"\n")
        try:
            key = WitnessKey.read(path.read_text(encoding="utf-8"))
        except Malformed as error:
            raise Unusable(str(error)) from error
        if name not in ("", key.name):
            raise Unusable(f"the witness in {self._directory} is called {key.name!r}, not {name!r}")
        return key

    def _read(self) -> dict[str, Seen]:
        path = self._directory / _STATE
        try:
            state: Any = json.loads(path.read_text(encoding="utf-8"))
            return {origin: _seen(entry) for origin, entry in state.items()}
        except FileNotFoundError as error:
            raise Unusable(
                f"{path} is gone: a witness that forgets what it saw is none. Put it back, or begin in an empty directory"
            ) from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise Unusable(f"{path} is damaged: put a whole copy back ({error})") from error

    def _write(self, seen: dict[str, Seen]) -> None:
        state = {
            origin: {"size": one.size, "root": base64.b64encode(one.root).decode(), "note": one.note}
            for origin, one in seen.items()
        }
        _replace(self._directory / _STATE, json.dumps(state, indent=1, sort_keys=True).encode() + b"\n")


def _seen(entry: Any) -> Seen:
    size, root = entry["size"], read_base64(entry["root"], "a root")
    note = entry.get("note", "")
    if type(size) is not int or size < 0 or len(root) != 32 or type(note) is not str:
        raise ValueError("a size, a root or a note cannot be")
    return Seen(size, root, note)


def _digest(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()


def _replace(path: Path, data: bytes) -> None:
    """Readers, and a power cut, find the old bytes or the new ones."""
    draft = path.with_name(f".{path.name}.draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
