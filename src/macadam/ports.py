"""What Macadam needs from the world, as protocols, and `load()`, which finds the adapter for each.

A port exists because a second adapter does or will; the embedded adapter is the reference. Adapters are
named in a static table (then by entry point `macadam.adapters`), so nothing above imports one.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import msgspec

from macadam.errors import MissingExtra, SettingInvalid
from macadam.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa


T = TypeVar("T")


class Sql(Protocol):
    """Relational state. One writer at a time; readers see a snapshot."""

    def read(self) -> "AbstractContextManager[sa.Connection]":
        """A connection inside a read transaction: one snapshot for its whole life."""
        ...

    def write(self, work: "Callable[[sa.Connection], T]") -> T:
        """Runs `work` in a transaction and returns its value once that is durable.

        Concurrent callers may share one commit; an error in one undoes only its own work.
        Raises StorageFull, Busy, or what `work` raises. `work` must be quick and must not call write().
        """
        ...

    def migrate(self) -> None:
        """Brings the schema to this release's version. Safe to call at each start."""
        ...

    def close(self) -> None: ...


class Objects(Protocol):
    """Immutable bytes under their SHA-256, and a few mutable names (checkpoints, tiles, pointers)."""

    def put(self, data: bytes) -> str:
        """Stores `data` durably; returns its digest. The same bytes twice are stored once."""
        ...

    def put_file(self, path: Path) -> str:
        """Stores a file of any size without holding it in memory; returns its digest."""
        ...

    def get(self, digest: str) -> bytes:
        """Raises NotFound, or IntegrityError if the bytes are no longer those of the digest."""
        ...

    def get_range(self, digest: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` (both at least 0) on, fewer where it ends. Not checked against the
        digest, which is over the whole: for readers that check what they read by a hash of its own. Raises NotFound.
        """
        ...

    def fetch(self, digest: str, to: Path) -> None:
        """Copies an object to a file, checking it on the way. Raises like `get`."""
        ...

    def exists(self, digest: str) -> bool: ...

    def set_name(self, name: str, data: bytes) -> None:
        """Replaces the bytes under a name atomically and durably. name: relative, '/' between parts."""
        ...

    def get_name(self, name: str) -> bytes:
        """Raises NotFound."""
        ...

    def remove_name(self, name: str) -> None:
        """Forgets a name; one that is not there is no error."""
        ...

    def names(self, prefix: str) -> Iterator[str]: ...


class StagedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Table files that are written and durable but that nobody can see until the catalog points at them."""

    table: str
    snapshot_id: str
    metadata_location: str
    previous_location: str  # empty for a table's first snapshot
    rows_added: int
    rows_total: int
    digest: str  # over the snapshot's data files, in order: see the adapter
    files: tuple[str, ...]


class Tables(Protocol):
    """Columnar tables with snapshots. Staging writes files; publishing is a row in `macadam.catalog`."""

    def stage(
        self,
        table: str,
        rows: "pa.Table",
        *,
        current: str,
        mode: str = "append",
        properties: Mapping[str, str] | None = None,
    ) -> StagedSnapshot:
        """Writes `rows` as a new snapshot on top of the metadata at `current` ('' creates the table).

        table: 'project.name'. mode: 'append' or 'overwrite'. Raises StorageFull, InvalidInput on a schema that
        does not fit.
        """
        ...

    def scan(
        self,
        metadata_location: str,
        *,
        snapshot_id: str = "",
        columns: Sequence[str] = (),
        where: str = "",
    ) -> "pa.Table":
        """Reads a snapshot ('' = the metadata's current one). Raises NotFound, IntegrityError."""
        ...

    def verify(self, metadata_location: str, snapshot_id: str, digest: str) -> None:
        """Reads every file of a snapshot and raises IntegrityError, naming the file, if one is not as recorded."""
        ...


class OnlineStore(Protocol):
    """Small values by key, read on the request path, by several processes at once."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Writes all rows or none, durably."""
        ...

    def delete(self, keys: Sequence[bytes]) -> None: ...

    def scan(self, prefix: bytes, *, start: bytes = b"", limit: int = 0) -> list[tuple[bytes, bytes]]:
        """Rows whose key starts with `prefix`, in key order, from `start` on; limit 0 = all."""
        ...

    def close(self) -> None: ...


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One command to run apart from this process. Paths are absolute; timeout: seconds, 0 = none."""

    command: tuple[str, ...]
    directory: Path
    environment: dict[str, str] = {}
    requirements: str = ""  # text of a requirements file for an environment of its own; '' = the platform's
    timeout: float = 0


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished command cost. seconds: wall clock; cpu_seconds: user + system, children included;
    peak_bytes: resident memory; log: the end of stdout and stderr together.
    """

    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    log: str


class Runner(Protocol):
    """Runs a project's own code apart from the platform."""

    def run(self, job: Job, *, on_line: Callable[[str], None] | None = None) -> JobResult:
        """Blocks until the command ends. A failing command is a result, not an error.

        Raises UserCodeFailed if its environment cannot be made, StorageFull, and Unavailable once it is closed.
        """
        ...

    def close(self) -> None:
        """Ends the commands that still run; their callers get Unavailable. Closing twice does nothing."""
        ...


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or one MIG slice. id: as in telemetry, 'gpu:<uuid>' or 'gpu:<uuid>/mig:<id>'; index: among its node's, as CUDA
    counts them. model: the catalogue's name, '' if unknown. memory: bytes, 0 if unknown. virtual: declared and not there, for
    machines without any and for tests.
    """

    id: str
    index: int
    model: str = ""
    memory: int = 0
    virtual: bool = False


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that attempts may be put on. cpus: thousandths of a core; memory, disk: bytes.

    leaving: when it goes away (a spot interruption, maintenance), None if nobody said so. closed: what runs there goes on and nothing new
    is to start, as it is being drained or is likely to go soon.
    provider, region, zone, machine: where it was bought and as what (`aws`, `us-east-1`, `us-east-1a`, `p5.48xlarge`), as its provider
    names them; empty if not known. spot: whether it may be taken away for a lower price, None if not known.
    """

    name: str
    cpus: int
    memory: int
    disk: int = 0
    devices: tuple[Device, ...] = ()
    provider: str = ""
    region: str = ""
    zone: str = ""
    machine: str = ""
    spot: bool | None = None
    leaving: datetime | None = None
    closed: bool = False


class Allotment(msgspec.Struct, frozen=True, kw_only=True):
    """What one member of an attempt gets on one node. gpus: device's id → thousandths of it (1000: the whole GPU).

    cpus: thousandths of a core; memory: bytes, a hard limit; disk: bytes.
    """

    node: str
    gpus: dict[str, int] = {}
    cpus: int = 1000
    memory: int = 0
    disk: int = 0


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a job: all that an executor needs to carry it out once.

    id: unique for all time, '<job>.<number>'. allotments: one for each member of the gang, which start together or not at
    all; each member runs `command` with MACADAM_RANK and MACADAM_WORLD. image: of a container, '' for `requirements` on the
    platform's own Python. bundle: digest of a tar file with the working files, '' for none. checkpoint: whether the job has
    a directory (MACADAM_CHECKPOINT) that outlives this attempt and is the next one's. signal: what asks it to save and
    end; grace: seconds until it is ended. time_limit: seconds, 0 = none.
    """

    id: str
    job: str
    project: str
    command: tuple[str, ...]
    allotments: tuple[Allotment, ...]
    environment: dict[str, str] = {}
    requirements: str = ""
    image: str = ""
    bundle: str = ""
    checkpoint: bool = False
    signal: int = 15
    grace: float = 30
    time_limit: float = 0
    priority: int = 0
    group: str = ""


AttemptState = Literal["unknown", "starting", "running", "ended"]


Why = Literal["", "time limit", "memory", "stopped", "lost", "refused"]


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor sees of an attempt.

    state: 'unknown' if it was never started here. Of one that ended: exit_code (128 + N for signal N); why: '' if it ended by
    itself, else 'time limit', 'memory', 'stopped' (asked by `stop`), 'lost' (its supervisor or node died: how it ended cannot
    be known), 'refused' (it can never start, `message` says why). seconds, cpu_seconds: of all its processes. peak_bytes:
    resident. started, ended: UTC.
    """

    attempt: str
    state: AttemptState
    exit_code: int = 0
    why: Why = ""
    message: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    seconds: float = 0
    cpu_seconds: float = 0
    peak_bytes: int = 0


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a log. next: where to go on; ended: nothing will follow; cut: bytes that were dropped as the log was full."""

    text: str
    next: int
    ended: bool
    cut: int = 0


class Executor(Protocol):
    """Carries attempts out on machines. What was committed in SQL is asked of it again and again until it is seen done.

    So each verb may be repeated, by another process too, after a kill at any instant: what runs outlives whoever started it.
    """

    def nodes(self) -> tuple[Node, ...]:
        """The machines that there are now, and which of them are going away. Raises Unavailable."""
        ...

    def start(self, attempt: Attempt) -> None:
        """Starts it, unless it was started or stopped before: one id runs at most once, whoever asks how often.

        Returns before it has ended. What cannot ever start ends as 'refused'. Raises Unavailable, StorageFull: try again.
        """
        ...

    def look(self, attempts: Sequence[str]) -> dict[str, Sighting]:
        """How each of them is, by id. Raises Unavailable."""
        ...

    def stop(self, attempt: str, *, grace: float) -> None:
        """Sends its signal now, and ends all its processes after `grace` seconds. Returns at once.

        One that was not started yet never will be: it is then seen as ended, 'stopped'. Raises Unavailable.
        """
        ...

    def log(self, attempt: str, *, offset: int = 0, limit: int = 65536, rank: int = 0) -> LogPage:
        """At most `limit` bytes of what a member wrote to stdout and stderr, from `offset`. Raises NotFound, Unavailable."""
        ...

    def forget(self, attempt: str) -> None:
        """Removes what is kept of an attempt that has ended, its log too. Its id must not be started again."""
        ...

    def remove_checkpoint(self, job: str) -> None:
        """Removes a job's checkpoint directory; one that is not there is no error."""
        ...

    def close(self) -> None:
        """Lets go of everything; attempts go on. Closing twice does nothing."""
        ...


class Secrets(Protocol):
    """Private keys and credentials, never in SQL, logs or leaves."""

    def get(self, name: str) -> bytes:
        """Raises NotFound."""
        ...

    def put(self, name: str, value: bytes) -> None:
        """Stores a new secret durably. Raises Conflict if the name is taken, StorageFull."""
        ...

    def remove(self, name: str) -> None:
        """Forgets a secret, durably; one that is not there is no error. What it protected is gone with it."""
        ...

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, in order."""
        ...

    def encryption(self) -> str:
        """How they are kept at rest: 'none', 'sealing' (some are encrypted) or 'sealed'."""
        ...

    def encrypt(self) -> int:
        """Encrypts at rest what is not yet; returns how many. Safe to repeat, also after a kill.

        Raises SettingInvalid if nothing says how.
        """
        ...


class Kms(Protocol):
    """Wraps data keys under a key that the home does not hold. context: what it is for, bound to the wrapped key."""

    def wrap(self, key: bytes, context: str) -> bytes:
        """Raises SettingInvalid, Unavailable."""
        ...

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Raises SettingInvalid if the wrapping key is another one, Unavailable, IntegrityError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The adapters that one platform runs on, chosen by its settings."""

    settings: Settings
    sql: Sql
    objects: Objects
    tables: Tables
    online: OnlineStore
    runner: Runner
    executor: Executor
    secrets: Secrets


_ADAPTERS = {
    "sqlite": "macadam.adapters.sqlite:Sqlite",
    "postgres": "macadam.adapters.postgres:Postgres",
    "local_objects": "macadam.adapters.local_objects:LocalObjects",
    "iceberg": "macadam.adapters.iceberg:IcebergTables",
    "lmdb": "macadam.adapters.lmdb:LmdbStore",
    "subprocess": "macadam.adapters.subprocess_runner:SubprocessRunner",
    "local": "macadam.adapters.local_executor:LocalExecutor",
    "kubernetes": "macadam.adapters.kubernetes_executor:open_executor",
    "kubernetes_api": "macadam.adapters.kubernetes_api:open_api",
    "ray": "macadam.adapters.ray_executor:RayExecutor",
    "local_secrets": "macadam.adapters.local_secrets:LocalSecrets",
    "sealed_secrets": "macadam.adapters.sealed_secrets:SealedSecrets",
    "passphrase_kms": "macadam.adapters.passphrase_kms:PassphraseKms",
    "aws_kms": "macadam.adapters.aws_kms:AwsKms",
}
_EXTRAS: dict[str, str] = {"aws_kms": "aws"}


def load(name: str) -> Callable[..., object]:
    """Returns the adapter class called `name`.

    Raises MissingExtra with the install command, or SettingInvalid with the names that exist.
    """
    target = _ADAPTERS.get(name)
    if target is None:
        found = {e.name: e for e in importlib.metadata.entry_points(group="macadam.adapters")}
        if name not in found:
            raise SettingInvalid(
                f"There is no adapter called {name!r}.",
                next_step="Choose one of: " + ", ".join(sorted({*_ADAPTERS, *found})) + ".",
            )
        target = found[name].value
    module, _, attribute = target.partition(":")
    try:
        adapter: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("macadam"):
            raise  # a broken installation, not an extra that is absent
        extra = _EXTRAS.get(name, name)
        raise MissingExtra(
            f"The adapter {name!r} needs the package {error.name!r}, which is not installed.",
            next_step=f"pip install 'macadam-platform[{extra}]'",
        ) from error
    return adapter


def open_secrets(settings: Settings) -> Secrets:
    """The home's secrets, encrypted at rest if the settings say how. The directory must exist."""
    return cast("Secrets", load("sealed_secrets")(settings.home / "keys", settings.keys))
