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

from macadam.errors import IntegrityError, InvalidInput, NotFound, StorageFull
from macadam.values import DIGEST_PATTERN, digest_of, uuid7

_CHUNK = 1 << 20
_DIGEST = re.compile(DIGEST_PATTERN)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")


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
                    while chunk := source.read(_CHUNK):
                        file.write(chunk)
        return digest

    def get(self, digest: str) -> bytes:
        data = self._read(self._content(digest), digest)
        if digest_of(data) != digest:
            raise _altered(digest)
        return data

    def fetch(self, digest: str, to: Path) -> None:
        hasher = hashlib.sha256()
        try:
            with self._content(digest).open("rb") as source, _replacing(to) as file:
                while chunk := source.read(_CHUNK):
                    hasher.update(chunk)
                    file.write(chunk)
                if "sha256:" + hasher.hexdigest() != digest:
                    raise _altered(digest)
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def exists(self, digest: str) -> bool:
        return self._content(digest).exists()

    def set_name(self, name: str, data: bytes) -> None:
        with _replacing(self._named(name)) as file:
            file.write(data)

    def get_name(self, name: str) -> bytes:
        return self._read(self._named(name), name)

    def names(self, prefix: str) -> Iterator[str]:
        root = self._directory / "names"
        for path in sorted((root / prefix).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(root).as_posix()

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


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A draft that takes the place of `path` when the block ends well and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid7()}.draft")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(
                f"The disk is full: {path.name} was not stored.", next_step="Free space and run the same call again."
            ) from error
        raise
    finally:
        draft.unlink(missing_ok=True)


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
