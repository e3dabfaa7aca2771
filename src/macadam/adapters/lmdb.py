"""LMDB as the online store: a memory-mapped B+tree that several processes read at once without locks.

The gateway reads while the control plane writes. A put is one durable transaction. The map's size is an address
range, not memory; when it is full the writer doubles it, and processes that still map the old size follow.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from macadam.errors import Busy, IntegrityError, InvalidInput, MacadamError, StorageFull, Temporary
from macadam.lazy import lazy

if TYPE_CHECKING:
    import lmdb
else:
    lmdb = lazy("lmdb")

T = TypeVar("T")
_FIRST_SIZE = 64 << 20  # bytes of address space; sparse on disk, so a small store stays small
_LARGEST_SIZE = 1 << 40
_MAX_KEY = 511  # bytes, fixed when liblmdb is compiled
_MAX_READERS = 512  # threads of all processes that may read at once; the default 126 is few for a large gateway


class LmdbStore:
    """directory: made if missing. first_size: bytes of the map of a new store. Opened at first use."""

    def __init__(self, directory: Path, *, first_size: int = _FIRST_SIZE) -> None:
        self._directory = directory
        self._first_size = first_size
        self._opening = threading.Lock()
        self._map: _Map | None = None

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        for key in keys:
            _checked(key)

        def read(environment: "lmdb.Environment") -> list[bytes | None]:
            with environment.begin() as transaction:
                return [transaction.get(key) for key in keys]

        return self._run(read)

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        for key, _ in rows:
            _checked(key)

        def write(environment: "lmdb.Environment") -> None:
            with environment.begin(write=True) as transaction:
                for key, value in rows:
                    transaction.put(key, value)

        self._run(write)

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            _checked(key)

        def write(environment: "lmdb.Environment") -> None:
            with environment.begin(write=True) as transaction:
                for key in keys:
                    transaction.delete(key)

        self._run(write)

    def scan(self, prefix: bytes, *, start: bytes = b"", limit: int = 0) -> list[tuple[bytes, bytes]]:
        first = max(prefix, start)

        def read(environment: "lmdb.Environment") -> list[tuple[bytes, bytes]]:
            rows: list[tuple[bytes, bytes]] = []
            with environment.begin() as transaction, transaction.cursor() as cursor:
                found = cursor.set_range(first) if first else cursor.first()
                while found and (key := cursor.key()).startswith(prefix):
                    rows.append((key, cursor.value()))
                    if len(rows) == limit:
                        break
                    found = cursor.next()
            return rows

        return self._run(read)

    def close(self) -> None:
        """Waits for calls that are running. Closing twice does nothing; a later call opens the store again."""
        with self._opening:
            if self._map is not None:
                _release(self._map)
                self._map = None

    def _run(self, work: "Callable[[lmdb.Environment], T]") -> T:
        shared = self._map
        if shared is None:
            with self._opening:
                if self._map is None:
                    self._map = _acquire(self._directory, self._first_size)
                shared = self._map
        try:
            return shared.run(work)
        except lmdb.Error as error:
            raise _translated(error, self._directory) from error


class _Map:
    """One store's map, shared by all that open it in this process: LMDB allows one environment a process.

    LMDB forbids changing the map's size while this process has a transaction open, so calls register at the door
    and the one that must resize waits until the others have left.
    """

    def __init__(self, directory: Path, first_size: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.key = directory.resolve()
        self.users = 0
        self._turn = threading.Condition()
        self._inside = 0
        self._resizing = False
        # readahead off: lookups are random, and reading around them would evict what is warm.
        self._environment = lmdb.open(
            str(directory), map_size=first_size, max_readers=_MAX_READERS, readahead=False, mode=0o600
        )
        self._environment.reader_check()  # frees what killed readers held, which would keep old pages from reuse
        self._size: int = self._environment.info()["map_size"]

    def run(self, work: "Callable[[lmdb.Environment], T]") -> T:
        """Runs one whole transaction, again after each resize that it turns out to need."""
        while True:
            size = self._enter()
            try:
                return work(self._environment)
            except lmdb.MapFullError:
                wanted = size * 2
            except lmdb.MapResizedError:
                wanted = 0
            finally:
                self._leave()
            self._resize(size, wanted)

    def close(self) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._inside == 0)
            self._environment.close()

    def _enter(self) -> int:
        with self._turn:
            while self._resizing:
                self._turn.wait()
            self._inside += 1
            return self._size

    def _leave(self) -> None:
        with self._turn:
            self._inside -= 1
            if self._inside == 0:
                self._turn.notify_all()

    def _resize(self, seen: int, wanted: int) -> None:
        """Takes over the size that another process set, or grows to `wanted`; 0: only the former."""
        if wanted > _LARGEST_SIZE:
            raise StorageFull(
                f"The online store has reached {seen} bytes, its largest size.",
                next_step="Delete feature values that no endpoint reads.",
            )
        with self._turn:
            self._turn.wait_for(lambda: not self._resizing)
            if wanted and self._size > seen:
                return  # another thread has grown it meanwhile
            self._resizing = True
            try:
                self._turn.wait_for(lambda: self._inside == 0)
                self._environment.reader_check()
                self._environment.set_mapsize(0)
                if wanted and self._environment.info()["map_size"] < wanted:
                    self._environment.set_mapsize(wanted)
                self._size = self._environment.info()["map_size"]
            finally:
                self._resizing = False
                self._turn.notify_all()


_maps: dict[Path, _Map] = {}
_maps_lock = threading.Lock()


def _acquire(directory: Path, first_size: int) -> _Map:
    with _maps_lock:
        shared = _maps.get(directory.resolve())
        if shared is None:
            try:
                shared = _Map(directory, first_size)
            except lmdb.Error as error:
                raise _translated(error, directory) from error
            _maps[shared.key] = shared
        shared.users += 1
        return shared


def _release(shared: _Map) -> None:
    with _maps_lock:
        shared.users -= 1
        if shared.users == 0:
            del _maps[shared.key]
            shared.close()


def _checked(key: bytes) -> None:
    if not 0 < len(key) <= _MAX_KEY:
        raise InvalidInput(
            f"A key of {len(key)} bytes does not fit the online store.",
            next_step=f"Use keys of 1 to {_MAX_KEY} bytes: hash what is longer.",
        )


def _translated(error: "lmdb.Error", directory: Path) -> MacadamError:
    text = str(error)
    if "No space left" in text:
        return StorageFull(
            "The online store's disk is full: nothing was written.", next_step="Free space and run the same call again."
        )
    if isinstance(error, (lmdb.ReadersFullError, lmdb.LockError)):
        return Busy(f"The online store takes no more readers: {text}.", next_step="Run the same call again.")
    if isinstance(error, (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.BadChecksumError)):
        return IntegrityError(
            f"The online store at {directory} is damaged: {text}.",
            next_step="Move the directory away and materialise the features again.",
        )
    return Temporary(
        f"The online store at {directory} refused the work: {text}.", next_step="Look at its disk and permissions."
    )
