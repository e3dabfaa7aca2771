"""The keys of a project's subjects, where destroying one is real: a database of its own under `subjects/PROJECT`.

Gateways make keys here without the control plane; whoever erases takes the same lock. Rows hold wrapped keys only; the
keys that wrap them, and the one that tags are made with, are `Secrets`. SQLite overwrites what is deleted
(`secure_delete`), and its log is truncated; what a disk or a backup still holds of it is worth nothing after the
project's key was changed (`rewrap`).
"""

import fcntl
import mmap
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from macadam.errors import Busy, Conflict, IntegrityError, MacadamError, NotFound, StorageFull, Unavailable
from macadam.personal import cipher
from macadam.personal.cipher import SubjectKey
from macadam.ports import Secrets

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    tag BLOB PRIMARY KEY, subject BLOB NOT NULL UNIQUE, kek TEXT NOT NULL, wrapped BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    subject BLOB NOT NULL, segment TEXT NOT NULL, PRIMARY KEY (subject, segment)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
    tag BLOB PRIMARY KEY, erasure TEXT NOT NULL, subjects BLOB NOT NULL, counts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_GENERATION = struct.Struct("<Q")
_WAIT = 10.0
"""Seconds that one writer waits for another: each holds the database for milliseconds."""
_AGAIN = 0.01
"""Seconds until emptying the log is tried again."""
_REWRAP = 1000
"""Keys per transaction: some 10 ms, so that a gateway with a new subject does not wait for all of them."""
_KEK = "kek"
_OLD = "old kek"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure that is under way. subjects: names of 16 bytes; counts: what it found before it deleted."""

    tag: bytes
    erasure: str
    subjects: frozenset[bytes]
    counts: dict[str, int]


def folder_of(home: Path, project: str) -> Path:
    return home / "subjects" / project


def exists(home: Path, project: str) -> bool:
    """Whether the project has ever had personal fields."""
    return (folder_of(home, project) / "keys.sqlite").exists()


def _tag_secret(project: str) -> str:
    return f"subject-tags.{project}"


def prepare(home: Path, secrets: Secrets, project: str) -> None:
    """Makes what the project's gateways need, once: folder, tag key, first wrapping key. Safe to call at each deploy."""
    folder = folder_of(home, project)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(Conflict):  # it is made once, and kept: tags must stay the same
        secrets.put(_tag_secret(project), os.urandom(cipher.KEY_BYTES))
    with _only_one(folder / "files.lock"):
        vault = Vault(home, secrets, project)
        try:
            if not vault.wrapping_key():
                vault.begin_wrapping_key()
        finally:
            vault.close()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Vault:
    """One project's keys, for one process. Not for two threads at once. Call `close()`.

    Raises Unavailable where `prepare` was never called.
    """

    def __init__(self, home: Path, secrets: Secrets, project: str) -> None:
        self.project = project
        self._secrets = secrets
        self._folder = folder_of(home, project)
        self._keks: dict[str, bytes] = {}
        try:
            with ExitStack() as undone:  # a gateway tries again with each request: a failure must leave no file open
                self._tag_key = secrets.get(_tag_secret(project))
                self._lock = os.open(self._folder / "generation", os.O_RDWR | os.O_CREAT, 0o600)
                undone.callback(os.close, self._lock)
                if os.fstat(self._lock).st_size < _GENERATION.size:
                    os.ftruncate(self._lock, _GENERATION.size)
                self._map = mmap.mmap(self._lock, _GENERATION.size)
                undone.callback(self._map.close)
                self._sql = _open(self._folder / "keys.sqlite")
                undone.pop_all()
        except (NotFound, OSError, sqlite3.Error) as error:
            raise Unavailable(
                f"The keys of the subjects of project {project!r} cannot be opened: {error}.",
                next_step="Restore the folder subjects of the home, or deploy the endpoint again.",
            ) from error

    def close(self) -> None:
        """Closing twice does nothing."""
        if self._lock >= 0:
            self._sql.close()
            self._map.close()
            os.close(self._lock)
            self._lock = -1

    def forget_wrapping_keys(self) -> None:
        """After an erasure: those before it are destroyed, and must not live on in memory."""
        self._keks.clear()

    # --- one at a time

    @property
    def generation(self) -> int:
        """Changes with each erasure: whoever kept a key in memory from before must forget it."""
        return int(_GENERATION.unpack_from(self._map)[0])

    @contextmanager
    def using(self) -> Iterator[int]:
        """Holds off erasures while keys are used and what they encrypted is written. Gives the generation."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        try:
            yield self.generation
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def _ending_use(self) -> Iterator[None]:
        """Waits for all who use keys, and has them forget what they know before they go on."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            _GENERATION.pack_into(self._map, 0, self.generation + 1)  # first: a kill after it has no consequence
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def files(self) -> Iterator[None]:
        """For one process at a time: moving ciphertext from files into objects, or erasing it there."""
        with _only_one(self._folder / "files.lock"):
            yield

    # --- keys

    def tag(self, subject_id: str) -> bytes:
        return cipher.tag(self._tag_key, subject_id)

    def require(self, ids: Sequence[str]) -> dict[str, SubjectKey]:
        """The key of each person, made and durable if there was none. Within `using`. Raises Unavailable, StorageFull."""
        tags = {self.tag(one): one for one in ids}
        found = self._known(list(tags))
        missing = [one for one in tags if one not in found]
        if missing:
            with self._writing() as sql:
                found |= self._known(missing)  # another gateway may have met them meanwhile
                for one in missing:
                    if one not in found:
                        found[one] = self._make(sql, one)
        return {tags[one]: key for one, key in found.items()}

    def of_subject(self, subject: bytes) -> SubjectKey | None:
        """The key behind a record's name of a person; None once it is destroyed."""
        rows = self._rows("SELECT tag, subject, kek, wrapped FROM keys WHERE subject = ?", (subject,))
        return self._key(*rows[0]) if rows else None

    def count(self) -> int:
        """How many people have a key."""
        return int(self._rows("SELECT count(*) FROM keys")[0][0])

    def _known(self, tags: Sequence[bytes]) -> dict[bytes, SubjectKey]:
        found = {}
        for one in tags:
            for row in self._rows("SELECT tag, subject, kek, wrapped FROM keys WHERE tag = ?", (one,)):
                found[one] = self._key(*row)
        return found

    def _make(self, sql: sqlite3.Connection, tag: bytes) -> SubjectKey:
        kek = self._meta(_KEK)
        subject, key = os.urandom(cipher.SUBJECT_BYTES), os.urandom(cipher.KEY_BYTES)
        wrapped = cipher.wrap(self._kek(kek), self.project, tag, subject, key)
        sql.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (tag, subject, kek, wrapped))
        return SubjectKey(subject, key)

    def _key(self, tag: bytes, subject: bytes, kek: str, wrapped: bytes) -> SubjectKey:
        try:
            secret = self._kek(kek)
        except NotFound:
            # Wrapped anew between reading the row and asking for the key: then the row says so now.
            rows = self._rows("SELECT kek, wrapped FROM keys WHERE tag = ? AND kek != ?", (tag, kek))
            if not rows:
                raise
            (kek, wrapped), secret = rows[0], self._kek(rows[0][0])
        return SubjectKey(subject, cipher.unwrap(secret, self.project, tag, subject, wrapped))

    def _kek(self, name: str) -> bytes:
        if name not in self._keks:
            self._keks[name] = self._secrets.get(name)
        return self._keks[name]

    # --- the project's key

    def wrapping_key(self) -> str:
        """Name of the secret that new keys are wrapped with; '' before the first."""
        return self._meta(_KEK)

    def begin_wrapping_key(self) -> str:
        """Makes a new project key, for keys from now on; the one before is to be retired by `rewrap`."""
        name = f"subject-keys.{self.project}.{os.urandom(8).hex()}"
        self._secrets.put(name, os.urandom(cipher.KEY_BYTES))
        with self._writing() as sql:
            old = [one for one in (*self._meta(_OLD).split(), self._meta(_KEK)) if one]
            sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_OLD, " ".join(old)))
            sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEK, name))
        return name

    def rewrap(self) -> int:
        """Wraps every key with the present project key, then destroys those before it. Returns how many keys.

        Can be killed anywhere and called again.
        """
        old, kek = self._meta(_OLD).split(), self._meta(_KEK)
        done, last = 0, b""
        while True:
            with self._writing() as sql:
                query = "SELECT tag, subject, kek, wrapped FROM keys WHERE tag > ? AND kek != ? ORDER BY tag LIMIT ?"
                rows = sql.execute(query, (last, kek, _REWRAP)).fetchall()
                for tag, subject, name, wrapped in rows:
                    key = cipher.unwrap(self._kek(name), self.project, tag, subject, wrapped)
                    anew = cipher.wrap(self._kek(kek), self.project, tag, subject, key)
                    sql.execute("UPDATE keys SET kek = ?, wrapped = ? WHERE tag = ?", (kek, anew, tag))
            if not rows:
                break
            done, last = done + len(rows), rows[-1][0]
        # Also those that no row has ever named: a kill came between making one and saying so, or a secret was put back by
        # an encryption of all secrets that ran at the same time.
        for name in sorted({*old, *self._secrets.names(f"subject-keys.{self.project}.")} - {kek}):
            self._secrets.remove(name)
            self._keks.pop(name, None)
        with self._writing() as sql:
            sql.execute("DELETE FROM meta WHERE name = ?", (_OLD,))
        self._truncate()
        return done

    # --- erasing: `destroy`, then `settle` what was found, then `finish`

    def erasure_of(self, subject_id: str) -> str:
        """The erasure of this person that is under way; '' if none is."""
        found = self._pending(self.tag(subject_id))
        return found.erasure if found is not None else ""

    def destroy(self, subject_id: str, erasure: str) -> Pending:
        """Destroys a person's key. From here on the erasure is under way, until `finish`; calling again resumes it.

        erasure: id of a new one.
        """
        tag = self.tag(subject_id)
        with self._ending_use(), self._writing() as sql:
            known = self._pending(tag)
            subjects = b"".join(row[0] for row in sql.execute("SELECT subject FROM keys WHERE tag = ?", (tag,)))
            if known is None:
                sql.execute("INSERT INTO pending VALUES (?, ?, ?, '{}')", (tag, erasure, subjects))
            elif subjects:  # the person came back while the erasure waited to be resumed
                sql.execute("UPDATE pending SET subjects = CAST(subjects || ? AS BLOB) WHERE tag = ?", (subjects, tag))
            sql.execute("DELETE FROM keys WHERE tag = ?", (tag,))
        self._truncate()
        found = self._pending(tag)
        if found is None:
            raise Busy("Another process has just finished this erasure.", next_step="Run the same call again.")
        return found

    def settle(self, tag: bytes, counts: Mapping[str, int]) -> None:
        """Remembers what is about to be deleted, so that a resumed erasure can still say it."""
        with self._writing() as sql:
            text = msgspec.json.encode(dict(counts)).decode()
            sql.execute("UPDATE pending SET counts = ? WHERE tag = ?", (text, tag))

    def finish(self, pending: Pending) -> None:
        """Forgets the erasure itself: from here on nothing leads from the person to what was erased.

        One that has grown meanwhile, as the person came back and is erased again, stays for that call to finish.
        """
        with self._writing() as sql:
            known = self._pending(pending.tag)
            if known is not None and known.subjects == pending.subjects:
                sql.execute("DELETE FROM pending WHERE tag = ?", (pending.tag,))
        self._truncate()

    def under_way(self) -> list[str]:
        """Ids of erasures that began and have not ended."""
        return [row[0] for row in self._rows("SELECT erasure FROM pending ORDER BY erasure")]

    def _pending(self, tag: bytes) -> Pending | None:
        rows = self._rows("SELECT erasure, subjects, counts FROM pending WHERE tag = ?", (tag,))
        if not rows:
            return None
        erasure, joined, counts = rows[0]
        step = cipher.SUBJECT_BYTES
        subjects = frozenset(joined[at : at + step] for at in range(0, len(joined), step))
        return Pending(tag=tag, erasure=erasure, subjects=subjects, counts=msgspec.json.decode(counts))

    # --- where ciphertext lies

    def keep_places(self, segment: str, subjects: Sequence[bytes]) -> None:
        """Remembers that a sealed segment holds ciphertext of these people."""
        with self._writing() as sql:
            sql.executemany("INSERT OR IGNORE INTO places VALUES (?, ?)", [(one, segment) for one in subjects])

    def places(self, subjects: frozenset[bytes]) -> list[str]:
        """Sealed segments with ciphertext of any of these people, sorted."""
        found = set()
        for one in subjects:
            found |= {row[0] for row in self._rows("SELECT segment FROM places WHERE subject = ?", (one,))}
        return sorted(found)

    def forget_places(self, subjects: frozenset[bytes]) -> None:
        with self._writing() as sql:
            sql.executemany("DELETE FROM places WHERE subject = ?", [(one,) for one in subjects])

    # --- SQLite

    def _meta(self, name: str) -> str:
        rows = self._rows("SELECT value FROM meta WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else ""

    def _rows(self, query: str, values: Sequence[bytes | str] = ()) -> list[Any]:
        with _translated(self.project):
            return self._sql.execute(query, tuple(values)).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction; no other process writes meanwhile."""
        with _translated(self.project):
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                raise

    def _truncate(self) -> None:
        """Empties the log, which holds pages as they were. Raises Busy if a reader keeps it.

        SQLite does not wait for another process that does the same at this moment, only for readers.
        """
        end = time.monotonic() + _WAIT
        while True:
            with _translated(self.project):
                busy, _, _ = self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            if time.monotonic() >= end:
                raise Busy("The database of the subjects' keys is being read.", next_step="Run the same call again.")
            time.sleep(_AGAIN)


def _open(path: Path) -> sqlite3.Connection:
    # autocommit: transactions begin where they are written; any thread: the caller sees to it that one uses it at a time.
    sql = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    with ExitStack() as undone:
        undone.callback(sql.close)
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("PRAGMA synchronous = FULL")
        sql.execute("PRAGMA secure_delete = ON")
        sql.executescript(_SCHEMA)
        path.chmod(0o600)
        undone.pop_all()
    return sql


@contextmanager
def _translated(project: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _error(project, error) from error


def _error(project: str, error: sqlite3.Error) -> MacadamError:
    what = f"The keys of the subjects of project {project!r}"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{what} cannot be written: the disk is full.", next_step="Free space there.")
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return IntegrityError(f"{what} are damaged: {error}.", next_step="Restore the folder subjects from a backup.")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Busy(f"{what} are in use for more than {_WAIT:.0f} s.", next_step="Run the same call again.")
    return Unavailable(f"{what} cannot be used: {error}.", next_step="Look at the disk and the folder's permissions.")
