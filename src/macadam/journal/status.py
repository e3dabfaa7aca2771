"""What a gateway says about its journals while it runs, in a file that whoever looks can read without asking it.

A `.status` file has 4096 bytes that are there from the start, so that a gateway can say that its disk is full: length and
CRC32C of a JSON text (u32, little-endian), then the text. Its writer holds a lock on it while it lives.
"""

import fcntl
import hashlib
import mmap
import os
import struct
from pathlib import Path

import google_crc32c
import msgspec

STATUS = ".status"
_HEAD = struct.Struct("<II")
_SIZE = 4096


class WriterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway's journal of one project, at one moment. condition: why it takes no records ('' if it does); unsynced:
    bytes; unrecorded, refused: answers since it started; untold: of those without a record, how many no segment tells yet.
    """

    project: str
    gateway: str
    at: str
    durability: str
    on_journal_failure: str
    condition: str
    records: int
    unsynced: int
    last_fsync: str
    unrecorded: int
    untold: int
    refused: int


class StatusFile:
    """The gateway's side."""

    def __init__(self, folder: Path, gateway: str) -> None:
        """Raises OSError."""
        self._path = folder / f"{hashlib.sha256(gateway.encode()).hexdigest()[:16]}{STATUS}"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._fd, bytes(_SIZE), 0)
            os.fsync(self._fd)
            self._map = mmap.mmap(self._fd, _SIZE)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, status: WriterStatus) -> None:
        """Replaces what it says. A reader that comes in between sees a checksum that does not fit, and looks again."""
        text = msgspec.json.encode(status)[: _SIZE - _HEAD.size]
        self._map[: _HEAD.size + len(text)] = _HEAD.pack(len(text), google_crc32c.value(text)) + text

    def close(self) -> None:
        """Takes the file away: a gateway that has ended says nothing."""
        self._map.close()
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def read(folder: Path) -> list[tuple[WriterStatus, bool]]:
    """What the gateways of a folder said last, and whether each still lives. One that was killed left its last words."""
    found = []
    for path in sorted(folder.glob(f"*{STATUS}")):
        status = _decode(path)
        if status is not None:
            found.append((status, _is_held(path)))
    return found


def _decode(path: Path) -> WriterStatus | None:
    for _ in range(3):
        try:
            data = path.read_bytes()
            length, crc = _HEAD.unpack_from(data)
            text = data[_HEAD.size : _HEAD.size + length]
            if length and len(text) == length and google_crc32c.value(text) == crc:
                return msgspec.json.decode(text, type=WriterStatus)
        except (FileNotFoundError, struct.error, msgspec.MsgspecError, UnicodeDecodeError):
            return None
    return None


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
