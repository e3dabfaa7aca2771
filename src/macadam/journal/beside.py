"""A file beside a segment, for what belongs to its records and must not be in them: ciphertext of personal values.

Bytes in, in the order of the records and before them: a record that is durable has what lies beside it. What the bytes
mean is for `macadam.personal`.
"""

import os
from pathlib import Path

from macadam.journal.layout import append_whole, storage_error, sync_data, sync_directory

BESIDE = ".personal"


class Beside:
    """Made by the first append: most segments have none. Not for two threads at once, but for `sync`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._synced = 0
        self._is_named = False

    def append(self, data: bytes) -> None:
        """All of it, or nothing. Raises StorageFull, Unavailable."""
        if self._fd < 0:
            self._fd = self._made()
        append_whole(self._fd, data, self._size, self._path)
        self._size += len(data)

    def sync(self) -> None:
        """Makes durable what was appended. Raises OSError."""
        size = self._size
        if size > self._synced:
            sync_data(self._fd)
            if not self._is_named:  # here, not when it is made: whoever appends must not wait for the disk
                sync_directory(self._path.parent)
                self._is_named = True
            self._synced = size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _made(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as error:
            raise storage_error(error, self._path) from error
