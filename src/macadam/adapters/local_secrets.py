"""Secrets as files that only their owner can read, one a name, in a directory of mode 0700."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

from macadam.errors import Conflict, InvalidInput, NotFound, SettingInvalid, StorageFull
from macadam.values import uuid7

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,100}\Z")


class LocalSecrets:
    """directory: must exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(
                f"There is no secret {name!r}.", next_step="Open the home once to create its keys."
            ) from error

    def put(self, name: str, value: bytes) -> None:
        try:
            self._store(name, value, os.link)  # fails if the name is taken, also by another process
        except FileExistsError as error:
            raise Conflict(f"The secret {name!r} exists.", next_step="Use it, or choose another name.") from error

    def replace(self, name: str, value: bytes) -> None:
        """Takes the place of what is under the name, if anything is: a reader finds the old value or the new one.

        Not part of the port: only who encrypts or encrypts anew what is there may put something in a secret's place.
        """
        self._store(name, value, os.replace)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        for draft in self._directory.glob(f".{name}.*.draft"):  # a kill between placing it and taking the draft away
            draft.unlink(missing_ok=True)
        self.settle()

    def names(self, prefix: str = "") -> list[str]:
        found = (path.name for path in self._directory.iterdir())  # a draft's name begins with a dot
        return sorted(name for name in found if name.startswith(prefix) and _NAME.match(name))

    def _store(self, name: str, value: bytes, place: Callable[[Path, Path], None]) -> None:
        path = self._path(name)
        draft = path.with_name(f".{name}.{uuid7()}.draft")
        try:
            _write(draft, value)
            place(draft, path)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StorageFull(
                f"The disk is full: the secret {name!r} was not stored.",
                next_step="Free space and run the same call again.",
            ) from error
        finally:
            draft.unlink(missing_ok=True)
        self.settle()

    def encryption(self) -> str:
        return "none"

    def encrypt(self) -> int:
        raise SettingInvalid(
            "These secrets are plain files.", next_step="Open them through macadam, which can encrypt them."
        )

    def settle(self) -> None:
        """Makes what was put under a name, or removed, outlive a power cut."""
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _path(self, name: str) -> Path:
        if not _NAME.match(name):
            raise InvalidInput(f"{name!r} is not a secret's name.", next_step="Use a-z, 0-9, '.', '_' and '-'.")
        return self._directory / name


def _write(path: Path, value: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
