"""The files of the series, under the home: deliveries as they come in, and the sealed files that SQL points at.

    telemetry/incoming/2026-11-21T14/<digest>.parquet   one delivery's samples of one hour, until they are sealed
    telemetry/raw/2026-11-21T14-<digest>.parquet        all samples of the hour, each once
    telemetry/minute/2026-11-21T14-<digest>.parquet     usage by minute
    telemetry/hour/2026-11-21-<digest>.parquet          usage by hour, of a day
    telemetry/set-aside/2026-11-21T14-<id>-<name>       a delivery that could not be sealed

A file is named by its content and written whole or not at all, so that a delivery that comes twice is one file, and a reader
never meets half of one.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.telemetry.types import brought_up, sample_schema, usage_schema
from macadam.errors import IntegrityError, InvalidInput, StorageFull
from macadam.lazy import lazy
from macadam.values import uuid7

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")
pq: Any = lazy("pyarrow.parquet")

HOUR = timedelta(hours=1)
AHEAD = timedelta(hours=1)
"""How far ahead of ours an instant may be to be kept (and suspected) at all: what is further belongs to no hour of ours."""
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""A clock that says less was never set."""
_LEVELS = ("raw", "minute", "hour")
_SUFFIX = ".parquet"
_HOUR_FORMAT, _DAY_FORMAT = "%Y-%m-%dT%H", "%Y-%m-%d"
_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2})?-[0-9a-f]{32}\.parquet")
_MANY, _SMALL = 24, 4 * 1024 * 1024
"""Deliveries of fewer bytes than that are merged when there are so many of them in an hour."""
_ROW_GROUP, _OF_USAGE = 16_384, 4_096
"""Rows: small enough that one device's are found without reading the others'. Usage is in order of devices, so its groups are
smaller: a device's hour is found in half the time, in files that are 3% larger.
"""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A durable file that nothing points at yet. level: 'raw', 'minute' or 'hour'; start: of its hour or day, UTC."""

    level: str
    start: datetime
    name: str
    digest: str
    rows: int


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What became of delivered samples. hours: the hours that they are of; digests: of the files that hold them. refused:
    by reason: 'ahead' of our clock by more than an hour, too 'early' to be a time, or too 'late' to be merged.
    """

    samples: int
    hours: tuple[datetime, ...]
    digests: tuple[str, ...]
    refused: dict[str, int]


class Store:
    """home: the platform's. Nothing is made before the first delivery."""

    def __init__(self, home: Path) -> None:
        self._root = home / "telemetry"

    # --- deliveries

    def deliver(self, samples: "pa.Table", *, now: datetime, closed: frozenset[datetime] = frozenset()) -> Delivery:
        """Keeps samples durably. closed: hours into which nothing can be merged any more. Raises StorageFull, InvalidInput.

        samples: of `sample_schema`, any order.
        """
        if not samples.schema.equals(sample_schema()):
            raise InvalidInput("The samples have other columns.", next_step="Send columns of `sample_schema()`.")
        ahead = pc.greater(samples.column("at"), pa.scalar(now + AHEAD, sample_schema().field("at").type))
        begun = pc.floor_temporal(samples.column("at"), unit="hour")
        early = pc.less(samples.column("at"), pa.scalar(EARLIEST, sample_schema().field("at").type))
        late = pc.is_in(begun, value_set=pa.array(sorted(closed), begun.type))
        reasons = {"ahead": ahead, "early": early, "late": late}
        refused = {reason: pc.sum(hit).as_py() or 0 for reason, hit in reasons.items()}
        if any(refused.values()):
            samples = samples.filter(pc.invert(pc.or_(pc.or_(ahead, early), late)))
        digests, hours = [], []
        for hour, part in _by_hour(samples):
            folder = self._incoming / hour.strftime(_HOUR_FORMAT)
            digests.append(self._write(part, folder, "").digest)
            hours.append(hour)
            self._merge(folder)
        return Delivery(
            samples=len(samples),
            hours=tuple(hours),
            digests=tuple(digests),
            refused={reason: count for reason, count in refused.items() if count},
        )

    def _merge(self, folder: Path) -> None:
        """Makes one of many small deliveries, so that an open hour is read in a few files. A kill leaves both: no harm."""
        sizes = {}
        for path in folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        small = sorted(path for path, size in sizes.items() if size < _SMALL)
        if len(small) < _MANY:
            return
        try:
            small = [path for path in small if not fault(path)]  # what is damaged is the sealer's to set aside
            merged = pa.concat_tables([read(path) for path in small]) if small else sample_schema().empty_table()
        except FileNotFoundError:
            return  # sealed, or merged by another process
        if not small:
            return
        written = folder / self._write(merged, folder, "").name
        self.forget([path for path in small if path != written])

    def waiting(self) -> dict[datetime, tuple[Path, ...]]:
        """Deliveries that are not sealed, by hour."""
        found: dict[datetime, tuple[Path, ...]] = {}
        if not self._incoming.is_dir():
            return found
        for folder in sorted(self._incoming.iterdir()):
            with contextlib.suppress(ValueError):  # not one of ours
                hour = datetime.strptime(folder.name, _HOUR_FORMAT).replace(tzinfo=UTC)
                parts = tuple(sorted(folder.glob(f"*{_SUFFIX}")))
                if parts:
                    found[hour] = parts
        return found

    def forget(self, parts: Iterable[Path]) -> None:
        """Removes deliveries that are sealed; their emptied folders go too."""
        folders = set()
        for part in parts:
            part.unlink(missing_ok=True)
            folders.add(part.parent)
        for folder in folders:
            with contextlib.suppress(OSError):  # a new delivery is in it
                folder.rmdir()

    def set_aside(self, parts: Iterable[Path]) -> None:
        """Moves deliveries out of the sealer's way, and keeps them as they are."""
        folder = self._root / "set-aside"
        for part in parts:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                part.rename(folder / f"{part.parent.name}-{uuid7()}-{part.name}")
            with contextlib.suppress(OSError):  # there is more in it
                part.parent.rmdir()

    # --- sealed files

    def write(self, table: "pa.Table", level: str, start: datetime) -> Written:
        """A new sealed file. Raises StorageFull."""
        prefix = start.strftime(_DAY_FORMAT if level == "hour" else _HOUR_FORMAT)
        done = self._write(table, self._root / level, f"{prefix}-", group=_ROW_GROUP if level == "raw" else _OF_USAGE)
        return msgspec.structs.replace(done, level=level, start=start)

    def adopt(self, part: Path, rows: int, start: datetime) -> Written:
        """The only delivery of an hour is the hour's raw file as it is."""
        digest = part.stem
        name = f"{start.strftime(_HOUR_FORMAT)}-{digest}{_SUFFIX}"
        target = self._root / "raw" / name
        temporary = target.with_name(f".{uuid7()}.writing")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(part, temporary)
            temporary.replace(target)  # also over what a killed seal left
            _sync(target.parent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageFull(
                f"{target} cannot be made: {error.strerror or error}.", next_step=f"Free space: df -h {target.parent}"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)  # replacing a file by itself leaves both
        whole = hashlib.sha256(target.read_bytes()).hexdigest()
        if whole[:32] != digest:
            raise IntegrityError(
                f"{part} is not what was delivered.", next_step="Deliver it again, and look at the disk."
            )
        return Written(level="raw", start=start, name=name, digest=f"sha256:{whole}", rows=rows)

    def path(self, level: str, name: str) -> Path:
        """Raises IntegrityError for a name that is none of ours."""
        if not _NAME.fullmatch(name):
            raise IntegrityError(f"{name!r} is no file of the series.", next_step="Run macadam ledger verify.")
        return self._root / level / name

    def remove(self, level: str, name: str) -> None:
        self.path(level, name).unlink(missing_ok=True)

    def sweep(self, known: frozenset[tuple[str, str]], before: datetime) -> int:
        """Removes what kills left: files that nothing points at and halves of files, unchanged since then. How many there were.

        known: level and name of each file that is pointed at.
        """
        loose = [
            path for level in _LEVELS for path in (self._root / level).glob("*") if (level, path.name) not in known
        ]
        removed = 0
        for path in (*loose, *self._incoming.glob("*/.*.writing")):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                # Not by when it was written: a delivery that is adopted is as old as its delivery.
                if path.lstat().st_ctime < before.timestamp():
                    path.unlink()
                    removed += 1
        return removed

    def _write(self, table: "pa.Table", folder: Path, prefix: str, *, group: int = _ROW_GROUP) -> Written:
        temporary = folder / f".{uuid7()}.writing"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            texts = [f.name for f in table.schema if pa.types.is_string(f.type)]
            pq.write_table(
                table,
                temporary,
                compression="zstd",
                compression_level=1,
                use_dictionary=texts,
                row_group_size=group,
                write_page_index=True,
            )
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            name = f"{prefix}{digest[:32]}{_SUFFIX}"
            temporary.replace(folder / name)
            _sync(folder)
        except OSError as error:
            raise StorageFull(
                f"{folder} cannot be written: {error.strerror or error}.", next_step=f"Free space: df -h {folder}"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return Written(
            level="", start=datetime.min.replace(tzinfo=UTC), name=name, digest=f"sha256:{digest}", rows=len(table)
        )

    @property
    def _incoming(self) -> Path:
        return self._root / "incoming"


def read(
    path: Path, *, device: str = "", between: tuple[datetime, datetime] | None = None, columns: tuple[str, ...] = ()
) -> "pa.Table":
    """A file of the series. device: only its rows. between: only samples of that time, end excluded. columns: only these,
    which every release has written; else all, those that are missing as null.

    Raises FileNotFoundError, IntegrityError.
    """
    filters: list[tuple[str, str, object]] = [("device", "==", device)] if device else []
    if between is not None:
        filters += [("at", ">=", between[0]), ("at", "<", between[1])]
    try:
        if filters:
            found: pa.Table = pq.read_table(path, columns=list(columns) or None, filters=filters, partitioning=None)
        else:
            found = pq.ParquetFile(path).read(columns=list(columns) or None)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(
            f"{path} cannot be read: {error}.",
            next_step="Run macadam gpu seal, which sets damaged deliveries aside, and macadam gpu verify.",
        ) from error
    if columns:
        return found.select(columns)
    return brought_up(found, sample_schema() if "at" in found.column_names else usage_schema())


def fault(part: Path) -> str:
    """What is wrong with a delivery that waits; '' if nothing is. Raises FileNotFoundError."""
    if part.is_symlink():
        return "it is a link"
    if digest_of_file(part).removeprefix("sha256:")[:32] != part.stem:
        return "it is not what was delivered"
    try:
        known = brought_up(pq.read_schema(part).empty_table(), sample_schema()).schema.equals(sample_schema())
    except (pa.ArrowException, OSError):
        known = False
    return "" if known else "it is no table of samples"


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def hour_of(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def day_of(at: datetime) -> datetime:
    return hour_of(at).replace(hour=0)


def hours_in(samples: "pa.Table") -> list[datetime]:
    """The hours that samples are of."""
    distinct = pc.unique(pc.divide(samples.column("at").cast(pa.int64()), 3_600_000_000)).to_pylist()
    return sorted(datetime.fromtimestamp(hour * 3600, UTC) for hour in distinct)


def _by_hour(samples: "pa.Table") -> "Iterator[tuple[datetime, pa.Table]]":
    if not len(samples):
        return
    hours = pc.divide(samples.column("at").cast(pa.int64()), 3_600_000_000)
    distinct = sorted(pc.unique(hours).to_pylist())
    for hour in distinct:
        part = samples if len(distinct) == 1 else samples.filter(pc.equal(hours, hour))
        yield datetime.fromtimestamp(hour * 3600, UTC), part


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
