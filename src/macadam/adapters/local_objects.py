"""Objects in a local directory: `sha256/ab/cdef…` for content, `names/…` for the few mutable names.

Every write goes to a draft file, is fsynced, renamed and its directory fsynced, so that a name never shows half
of its bytes. Reading content always checks it against its digest.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from macadam.errors import Conflict, IntegrityError, InvalidInput, NotFound, StorageFull
from macadam.values import DIGEST_PATTERN, digest_of, uuid7

_CHUNK = 1 << 20
_DIGEST = re.compile(DIGEST_PATTERN)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*\Z")


class LocalObjects:
    """directory: must exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        path = self._content(digest)
        if not path.exists():
            with _replacing(path) as file:
                file.write(data)
        return digest

    def put_file(self, path: Path) -> str:
        with path.open("rb") as source:
            digest = "sha256:" + hashlib.file_digest(source, "sha256").hexdigest()
            target = self._content(digest)
            if not target.exists():
                source.seek(0)
                with _replacing(target) as file:
                    if _copied(source, file) != digest:
                        raise Conflict(
                            f"The file {path} changed while it was stored.",
                            next_step="Run the same call again once nobody writes to it.",
                        )
        return digest

    def get(self, digest: str) -> bytes:
        data = self._read(self._content(digest), digest)
        if digest_of(data) != digest:
            raise _altered(digest)
        return data

    def get_range(self, digest: str, start: int, length: int) -> bytes:
        try:
            descriptor = os.open(self._content(digest), os.O_RDONLY)
        except FileNotFoundError as error:
            raise _missing(digest) from error
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def fetch(self, digest: str, to: Path) -> None:
        try:
            source = self._content(digest).open("rb")
        except FileNotFoundError as error:
            raise _missing(digest) from error
        with source, _replacing(to) as file:
            if _copied(source, file) != digest:
                raise _altered(digest)

    def exists(self, digest: str) -> bool:
        return self._content(digest).exists()

    def set_name(self, name: str, data: bytes) -> None:
        with _replacing(self._named(name)) as file:
            file.write(data)

    def get_name(self, name: str) -> bytes:
        return self._read(self._named(name), name)

    def remove_name(self, name: str) -> None:
        self._named(name).unlink(missing_ok=True)

    def names(self, prefix: str) -> Iterator[str]:
        """The names that start with `prefix`, sorted."""
        if prefix:
            self._named(prefix.rstrip("/"))  # raises for what no name can start with, such as '/' and '..'
        root = self._directory / "names"
        found = (path for path in (root / prefix.rpartition("/")[0]).rglob("*") if path.is_file())
        names = (path.relative_to(root).as_posix() for path in found if not path.name.startswith("."))
        yield from sorted(name for name in names if name.startswith(prefix))

    def _content(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            raise InvalidInput(f"{digest!r} is not a digest.", next_step="Give it as sha256:<64 hex digits>.")
        return self._directory / "sha256" / digest[7:9] / digest[9:]

    def _named(self, name: str) -> Path:
        if not _NAME.match(name):
            raise InvalidInput(f"{name!r} is not an object's name.", next_step="Use parts of a-z, 0-9, '.', '_', '-'.")
        return self._directory / "names" / name

    def _read(self, path: Path, what: str) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise _missing(what) from error


def _copied(source: IO[bytes], target: IO[bytes]) -> str:
    """Copies what is left of `source` and returns its digest."""
    hasher = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        hasher.update(chunk)
        target.write(chunk)
    return "sha256:" + hasher.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A draft that takes the place of `path` when the block ends well and is removed when it does not."""
    draft = path.with_name(f".{path.name}.{uuid7()}.draft")
    try:
        _make_directory(path.parent)
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull(
                f"The disk is full: {path.name} was not stored.", next_step="Free space and run the same call again."
            ) from error
        raise
    finally:
        draft.unlink(missing_ok=True)


def _make_directory(directory: Path) -> None:
    """Makes it and its parents; each new one is durable in its parent, or a power cut could take files with it."""
    if not directory.exists():
        _make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _missing(what: str) -> NotFound:
    return NotFound(f"There is no object {what}.", next_step="Restore it from a backup: it was recorded once.")


def _altered(digest: str) -> IntegrityError:
    return IntegrityError(
        f"The object {digest} no longer has the bytes that were recorded.",
        next_step="Restore it from a backup; do not use what was made from it.",
        details={"object": digest},
    )
