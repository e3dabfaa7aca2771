"""Reading a journal segment: record by record, after a crash (`recover`), and for the ledger (`seal`).

Damage is told from a torn tail: only the end of an `.open` file may be torn (the record that was being written when
the machine or process stopped); anything else that does not check out raises IntegrityError with the offset. The
Merkle hashes are the ledger's, and are passed in. Writing is for `writer`.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import google_crc32c
import msgspec

from macadam.errors import Busy, IntegrityError, MacadamError, NotFound
from macadam.journal.layout import (
    FOOTER_FLAG,
    FRAME,
    MAGIC,
    MAX_PAYLOAD,
    OPEN,
    VERIFY,
    SegmentFooter,
    SegmentHeader,
    finish,
    mark_closed,
    read_answers,
)


class Record(msgspec.Struct, frozen=True):
    """One record and where it is. index: from 0; offset: of its frame, bytes from the start of the file."""

    index: int
    offset: int
    payload: bytes


class Torn(msgspec.Struct, frozen=True, kw_only=True):
    """The unfinished end of an open segment. offset and length in bytes."""

    offset: int
    length: int


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What recovery found. torn: None if the last record was whole."""

    path: Path
    count: int
    torn: Torn | None


class SealedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger records about a segment, and the leaf hashes that its proofs are made from."""

    id: str
    header: SegmentHeader
    root: bytes
    count: int
    answers: int
    """Answers that the gateway counted on its own. More answers than records means that records are missing."""
    first_at: str
    """Earliest `at` of its records; empty if there are none."""
    last_at: str
    torn: int
    """Bytes of an unfinished, never answered record that recovery dropped."""
    leaf_hashes: tuple[bytes, ...]


class _At(msgspec.Struct):
    at: str


_WINDOW = 1 << 18
"""Bytes read at once."""
_crc = google_crc32c.value
_header_decode = msgspec.json.Decoder(SegmentHeader).decode
_footer_decode = msgspec.json.Decoder(SegmentFooter).decode
_at_decode = msgspec.json.Decoder(_At).decode


class SegmentReader:
    """Reads a segment, as long as it was when opened; a context manager.

    Iterating yields the records in order and stops at the footer or at a torn end; afterwards `footer`, `torn`, `count`
    and `end` (offset behind the last whole record) say how it ended. `strict` (the default for anything but an `.open`
    file) takes a missing footer for damage. The digest in the footer is compared when it is reached: until the
    iteration has ended, a record is only known to match its own checksum.

    Raises NotFound, and IntegrityError with the offset in its details.
    """

    def __init__(self, path: Path, *, strict: bool | None = None) -> None:
        self.path = path
        self.strict = path.suffix != OPEN if strict is None else strict
        self.footer: SegmentFooter | None = None
        self.torn: Torn | None = None
        self.count = 0
        self.end = 0
        self._digest = hashlib.sha256()
        self._window: tuple[int, bytes] = (0, b"")
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFound(f"There is no segment {path}.", next_step="List the journal's folder.") from error
        try:
            self._size = os.fstat(self._fd).st_size
            self.header = self._read_header()
        except (MacadamError, OSError):
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    @property
    def digest(self) -> str:
        """`sha256:…` of the bytes up to `end`."""
        return f"sha256:{self._digest.hexdigest()}"

    def __iter__(self) -> Iterator[Record]:
        """Goes on from `end`."""
        while self.end < self._size:
            offset = self.end
            if self._torn_at(offset):
                if self.strict:
                    raise self._damage(offset, "the file ends inside a record")
                self.torn = Torn(offset=offset, length=self._size - offset)
                return
            start, payload, is_footer = self._frame_at(offset)
            if is_footer:
                self._finish(offset, payload)
                return
            self._advance(start, payload)
            yield Record(self.count, offset, payload)
            self.count += 1
        if self.strict:
            raise self._damage(self.end, "the file ends without its footer")

    def record_at(self, offset: int) -> bytes:
        """The payload of the record at this offset. Raises IntegrityError if there is none."""
        if not len(MAGIC) < offset < self._size or self._torn_at(offset):
            raise self._damage(offset, "no record begins there")
        _, payload, is_footer = self._frame_at(offset)
        if is_footer:
            raise self._damage(offset, "the footer is there, not a record")
        return payload

    def _bytes(self, offset: int, length: int) -> bytes:
        """So many bytes, fewer at the end: out of a window, since a system call for each costs more than the bytes."""
        start, data = self._window
        if offset < start or offset + length > start + len(data):
            wanted = max(length, min(_WINDOW, self._size - offset))
            start, data = self._window = offset, os.pread(self._fd, wanted, offset)
        return data[offset - start : offset - start + length]

    def _read_header(self) -> SegmentHeader:
        magic = self._bytes(0, len(MAGIC))
        if magic != MAGIC:
            raise self._damage(0, f"it begins with {magic!r}, expected {MAGIC!r}")
        start, payload, is_footer = self._frame_at(len(MAGIC))
        try:
            header = _header_decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damage(len(MAGIC), f"the header is unreadable ({error})") from error
        if is_footer or header.segment != self.path.stem:
            raise self._damage(len(MAGIC), f"the header is that of segment {header.segment}")
        self._advance(magic + start, payload)
        return header

    def _advance(self, start: bytes, payload: bytes) -> None:
        self._digest.update(start)
        self._digest.update(payload)
        self.end += len(start) + len(payload)

    def _torn_at(self, offset: int) -> bool:
        """Whether what begins here is a record that was not written to its end.

        Either fewer bytes are there than a frame needs, or (after a power cut, when the file's size reached the disk
        before its contents) NUL bytes stand at the end of the file, where JSON ends in a brace. A length that fails
        its own checksum is damage, never torn: nothing tells then where the tail begins.
        """
        left = self._size - offset
        start = self._bytes(offset, FRAME.size)
        if left < FRAME.size:
            return True
        if not any(start):
            return self._zeros_from(offset)
        length, _, check = FRAME.unpack(start)
        length &= ~FOOTER_FLAG
        if check != _crc(start[:8]) or length > MAX_PAYLOAD:
            return False
        needed = FRAME.size + length
        return bool(needed > left or (needed == left and self._bytes(self._size - 1, 1) == b"\0"))

    def _zeros_from(self, offset: int) -> bool:
        if self._size - offset > MAX_PAYLOAD + FRAME.size:
            return False
        return not any(self._bytes(offset, self._size - offset))

    def _frame_at(self, offset: int) -> tuple[bytes, bytes, bool]:
        start = self._bytes(offset, FRAME.size)
        if len(start) < FRAME.size:
            raise self._damage(offset, "the file ends inside a frame")
        length, crc, check = FRAME.unpack(start)
        if check != _crc(start[:8]):
            raise self._damage(offset, "a frame's length does not match its checksum")
        is_footer = bool(length & FOOTER_FLAG)
        length &= ~FOOTER_FLAG
        if length > MAX_PAYLOAD:
            raise self._damage(offset, f"a length of {length} bytes is over the limit of {MAX_PAYLOAD}")
        payload = self._bytes(offset + FRAME.size, length)
        if len(payload) != length or _crc(payload) != crc:
            raise self._damage(offset, "a payload does not match its checksum")
        return start, payload, is_footer

    def _finish(self, offset: int, payload: bytes) -> None:
        try:
            footer = _footer_decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damage(offset, f"the footer is unreadable ({error})") from error
        if offset + FRAME.size + len(payload) != self._size:
            raise self._damage(offset, "there are bytes behind the footer")
        if footer.count != self.count:
            raise self._damage(offset, f"it holds {self.count} records, its footer says {footer.count}")
        if footer.digest != self.digest:
            raise self._damage(offset, "its bytes do not match the digest in its footer")
        self.footer = footer

    def _damage(self, offset: int, what: str) -> IntegrityError:
        return IntegrityError(
            f"The journal segment {self.path} is damaged at offset {offset}: {what}.",
            next_step=VERIFY,
            details={"path": str(self.path), "offset": offset},
        )


_LONGEST_FOOTER = 4096
"""Bytes. Ours have some 150: a digest and two numbers."""


def footer_of(path: Path) -> SegmentFooter:
    """The footer of a closed segment, read from its end. Nothing before it is looked at: sealing checks every byte.

    Raises IntegrityError, FileNotFoundError.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_FOOTER))
        tail = file.read(_LONGEST_FOOTER)
    for at in reversed(range(len(tail) - FRAME.size + 1)):
        length, crc, check = FRAME.unpack_from(tail, at)
        payload = tail[at + FRAME.size :]
        whole = length == len(payload) | FOOTER_FLAG and check == _crc(tail[at : at + 8])
        if whole and crc == _crc(payload):
            try:
                return _footer_decode(payload)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                break
    raise IntegrityError(
        f"The journal segment {path} is damaged: it does not end in a footer.",
        next_step=VERIFY,
        details={"path": str(path), "offset": size},
    )


def recover(path: Path) -> Recovered:
    """Finishes the `.open` segment of a writer that is gone: drops a torn last record, adds the footer, renames.

    Returns what was found. Raises Busy while the writer lives, NotFound, StorageFull (nothing is lost), and
    IntegrityError if anything but the tail is damaged: then the file is left as it is.
    """
    with _writer_gone(path) as fd:
        with SegmentReader(path, strict=False) as reader:
            for _ in reader:
                pass
        if reader.footer:  # it stopped between footer and rename
            closed = mark_closed(path)
        else:
            torn = reader.torn.length if reader.torn else 0
            footer = SegmentFooter(count=reader.count, digest=reader.digest, torn=torn)
            closed = finish(fd, path, size=reader.end, footer=footer)
    return Recovered(path=closed, count=reader.count, torn=reader.torn)


def is_written(path: Path) -> bool:
    """Whether a living gateway holds this open segment."""
    try:
        with _writer_gone(path):
            return False
    except Busy:
        return True
    except NotFound:
        return False


@contextmanager
def _writer_gone(path: Path) -> Iterator[int]:
    """Holds the lock that a living writer would hold, and gives the file for appending."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError as error:
        raise NotFound(f"There is no segment {path}.", next_step="Look for it as .closed.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    except BlockingIOError as error:
        raise Busy(f"A gateway still writes {path}.", next_step="Stop that gateway first.") from error
    finally:
        os.close(fd)


def seal(
    path: Path,
    *,
    leaf_hash: Callable[[bytes], bytes],
    root: Callable[[Sequence[bytes]], bytes],
    each: Callable[[Record], None] | None = None,
) -> SealedSegment:
    """Reads a closed segment to its end, checking every byte, and returns what the ledger records about it.

    leaf_hash and root: `leaf_hash` and `root_of` of `macadam.ledger.tree`. each: called with every record; what it gathers
    counts only if this returns. Raises NotFound and IntegrityError.
    """
    hashes: list[bytes] = []
    first = last = ""
    with SegmentReader(path, strict=True) as reader:
        for record in reader:
            hashes.append(leaf_hash(record.payload))
            if each is not None:
                each(record)
            at = _at_of(path, record)
            first = min(first or at, at)
            last = max(last, at)
    return SealedSegment(
        id=reader.header.segment,
        header=reader.header,
        root=root(hashes),
        count=len(hashes),
        answers=read_answers(path),
        first_at=first,
        last_at=last,
        torn=reader.footer.torn if reader.footer else 0,
        leaf_hashes=tuple(hashes),
    )


def _at_of(path: Path, record: Record) -> str:
    try:
        return _at_decode(record.payload).at
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(
            f"The record at offset {record.offset} of {path} has no time: {error}",
            next_step=VERIFY,
            details={"path": str(path), "offset": record.offset},
        ) from error
