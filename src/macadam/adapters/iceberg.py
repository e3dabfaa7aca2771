"""Iceberg tables in a local directory, written through pyiceberg, with no catalog of their own.

Staging writes data files, manifests and table metadata, all new and all durable; they become visible only when
`macadam.catalog` points at the metadata. Beside the metadata of each snapshot lies its file list (`FileList`), and
the snapshot's digest is over that: what the ledger names can be checked byte by byte. Reading goes by the same
list, checks every file against it and needs no pyiceberg.
"""

import errno
import hashlib
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from macadam.adapters.iceberg_schema import fitted, from_text, plain_schema, to_text
from macadam.errors import IntegrityError, InvalidInput, NotFound, StorageFull
from macadam.lazy import lazy
from macadam.ports import StagedSnapshot
from macadam.values import digest_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as arrow_dataset
    import pyiceberg.catalog as ice_catalog
    import pyiceberg.catalog.noop as ice_noop
    import pyiceberg.io.pyarrow as ice_io
    import pyiceberg.partitioning as ice_partitioning
    import pyiceberg.serializers as ice_serializers
    import pyiceberg.table as ice_table
    import pyiceberg.table.locations as ice_locations
    import pyiceberg.table.metadata as ice_metadata
    import pyiceberg.table.sorting as ice_sorting
    import pyiceberg.table.update as ice_update
    from pyiceberg.io import OutputFile
    from pyiceberg.manifest import DataFile
else:
    duckdb = lazy("duckdb")
    pa = lazy("pyarrow")
    arrow_dataset = lazy("pyarrow.dataset")
    ice_catalog = lazy("pyiceberg.catalog")
    ice_noop = lazy("pyiceberg.catalog.noop")
    ice_io = lazy("pyiceberg.io.pyarrow")
    ice_partitioning = lazy("pyiceberg.partitioning")
    ice_serializers = lazy("pyiceberg.serializers")
    ice_table = lazy("pyiceberg.table")
    ice_locations = lazy("pyiceberg.table.locations")
    ice_metadata = lazy("pyiceberg.table.metadata")
    ice_sorting = lazy("pyiceberg.table.sorting")
    ice_update = lazy("pyiceberg.table.update")

_FILES_PROPERTY = "macadam.files"  # in a snapshot's summary: the name of its file list
_DIGEST_PROPERTY = "macadam.digest"
_ROW = "__macadam_row"
_TABLE_PROPERTIES = {
    # Many small appends (sealed journal segments) would otherwise leave one manifest each to read.
    "commit.manifest-merge.enabled": "true",
    "write.parquet.compression-codec": "zstd",
}


class LiveFile(msgspec.Struct, frozen=True, array_like=True):
    """One data file of a snapshot. path: relative to the table's directory."""

    path: str
    sha256: str
    rows: int


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """All live data files of a snapshot, oldest first. schema: Arrow IPC schema message in base64."""

    snapshot_id: str
    files: tuple[LiveFile, ...]
    schema: str

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON `[[path, sha256, rows], …]`."""
        return digest_of(msgspec.json.encode(self.files))


class IcebergTables:
    """directory: made if missing. A table `project.name` lies in `directory/project/name`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._checked = _CheckedFiles()

    def stage(
        self,
        table: str,
        rows: "pa.Table",
        *,
        current: str,
        mode: str = "append",
        properties: Mapping[str, str] | None = None,
    ) -> StagedSnapshot:
        if mode not in {"append", "overwrite"}:
            raise InvalidInput(f"{mode!r} is no mode of writing.", next_step="Use 'append' or 'overwrite'.")
        root = self._directory / _relative(table)
        recorder = _Recorder()
        with _whole_or_nothing(recorder, table):
            return _Staging(root, table, recorder, current).write(rows, mode, properties or {})

    def scan(
        self,
        metadata_location: str,
        *,
        snapshot_id: str = "",
        columns: Sequence[str] = (),
        where: str = "",
    ) -> "pa.Table":
        """where: a DuckDB boolean expression over the table's columns, in which instants are zoneless UTC times.

        Rows come in the order in which they were written.
        """
        root, listed = _file_list(metadata_location, snapshot_id)
        for file in listed.files:
            self._checked.require(root, file)
        schema = from_text(listed.schema)
        _require_columns(schema, columns)
        paths = [str(root / file.path) for file in listed.files]
        if where:
            return _filtered(schema, paths, columns, where)
        return _read(schema, paths, list(columns) or schema.names)

    def verify(self, metadata_location: str, snapshot_id: str, digest: str) -> None:
        root, listed = _file_list(metadata_location, snapshot_id)
        if listed.digest != digest:
            raise _altered(f"The file list of snapshot {snapshot_id}", "names other files, or in another order", root)
        for file in listed.files:
            _require_bytes(root, file)
        _require_same_files(metadata_location, root, listed)


class _Recorder:
    """A pyiceberg FileIO that remembers what was written, so that it can be made durable or removed."""

    def __init__(self) -> None:
        self._io = ice_io.PyArrowFileIO()
        self.properties = self._io.properties
        self.written: list[Path] = []

    def new_input(self, location: str) -> Any:
        return self._io.new_input(location)

    def new_output(self, location: str) -> "OutputFile":
        path = Path(location)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.written.append(path)  # list.append is atomic: pyiceberg writes from several threads
        return self._io.new_output(location)

    def delete(self, location: str) -> None:
        self._io.delete(location)

    def make_durable(self) -> None:
        """Syncs every file and each directory on the way to it, so that a later pointer finds all of it."""
        directories: dict[Path, None] = {}
        for path in self.written:
            _sync(path)
            directories.update(dict.fromkeys((path.parent, *path.parent.parents[:3])))
        for directory in directories:
            _sync(directory)

    def remove(self) -> None:
        for path in self.written:
            path.unlink(missing_ok=True)


class _Staging:
    """One snapshot being written: the base metadata, a pyiceberg transaction on it, and its new files."""

    def __init__(self, root: Path, table: str, recorder: _Recorder, current: str) -> None:
        self._root = root
        self._table = table
        self._io = recorder
        self._current = current

    def write(self, rows: "pa.Table", mode: str, properties: Mapping[str, str]) -> StagedSnapshot:
        before = _file_list(self._current, "")[1] if self._current else None
        rows = fitted(rows, from_text(before.schema) if before else None, self._table)
        base = _metadata(self._current) if self._current else _first_metadata(self._root, rows.schema)
        transaction = self._open(base)
        if before and rows.schema != from_text(before.schema):
            transaction.update_schema().union_by_name(rows.schema).commit()
        data = self._data_files(transaction.table_metadata, rows)
        added = [_live(self._root, file) for file in data]
        kept = before.files if before and mode == "append" else ()
        producer = self._producer(transaction, mode, data)
        listed = FileList(
            snapshot_id=str(producer.snapshot_id), files=(*kept, *added), schema=to_text(plain_schema(rows.schema))
        )
        producer.snapshot_properties = {
            **properties,
            _DIGEST_PROPERTY: listed.digest,
            _FILES_PROPERTY: self._write_file_list(listed),
        }
        producer.commit()
        location = self._write_metadata(base, transaction._updates)  # noqa: SLF001 - a commit elsewhere than in a catalog
        self._io.make_durable()
        return StagedSnapshot(
            table=self._table,
            snapshot_id=listed.snapshot_id,
            metadata_location=location,
            previous_location=self._current,
            rows_added=rows.num_rows,
            rows_total=sum(file.rows for file in listed.files),
            digest=listed.digest,
            files=tuple(file.path for file in added),
        )

    def _open(self, base: "ice_metadata.TableMetadata") -> "ice_table.Transaction":
        identifier = tuple(self._table.split("."))
        catalog = ice_noop.NoopCatalog("staging")
        return ice_table.Transaction(ice_table.Table(identifier, base, self._current, cast("Any", self._io), catalog))

    def _data_files(self, metadata: "ice_metadata.TableMetadata", rows: "pa.Table") -> "list[DataFile]":
        if rows.num_rows == 0:
            return []
        files: Iterable[DataFile] = ice_io._dataframe_to_data_files(metadata, rows, cast("Any", self._io))  # noqa: SLF001
        return list(files)

    def _producer(self, transaction: "ice_table.Transaction", mode: str, data: "list[DataFile]") -> Any:
        update = transaction.update_snapshot()
        if mode == "append":
            producer: Any = update.merge_append()
        else:
            producer = update.overwrite()
            for old in _live_data_files(transaction.table_metadata, "", self._io):
                producer.delete_data_file(old)
        for file in data:
            producer.append_data_file(file)
        return producer

    def _write_file_list(self, listed: FileList) -> str:
        """Returns its name, which holds the SHA-256 of its bytes."""
        data = msgspec.json.encode(listed)
        name = f"files-{listed.snapshot_id}-{hashlib.sha256(data).hexdigest()}.json"
        path = self._root / "metadata" / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._io.written.append(path)
        path.write_bytes(data)
        return name

    def _write_metadata(self, base: "ice_metadata.TableMetadata", updates: tuple[Any, ...]) -> str:
        new = ice_update.update_table_metadata(base, updates, metadata_location=self._current or None)
        version = ice_catalog.MetastoreCatalog._parse_metadata_version(self._current) + 1 if self._current else 0  # noqa: SLF001
        provider = ice_locations.load_location_provider(new.location, new.properties)
        location = provider.new_table_metadata_file_location(version)
        ice_serializers.ToOutputFile.table_metadata(new, self._io.new_output(location))
        return location


class _CheckedFiles:
    """Remembers which files had their recorded bytes, so that each is hashed once a process, not at each scan."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, int, str]] = {}
        self._lock = threading.Lock()

    def require(self, root: Path, file: LiveFile) -> None:
        """Raises IntegrityError if the file is missing or altered."""
        path = root / file.path
        try:
            at = path.stat()
        except FileNotFoundError as error:
            raise _missing(root, file) from error
        state = (at.st_ino, at.st_size, at.st_mtime_ns, file.sha256)
        if self._seen.get(str(path)) != state:
            _require_bytes(root, file)
            with self._lock:
                self._seen[str(path)] = state


def _relative(table: str) -> Path:
    parts = table.split(".")
    if len(parts) != 2 or not all(p.replace("_", "").replace("-", "").isalnum() for p in parts):  # noqa: PLR2004
        raise InvalidInput(f"{table!r} does not name a table.", next_step="Write it as project.name.")
    return Path(*parts)


def _first_metadata(root: Path, schema: "pa.Schema") -> "ice_metadata.TableMetadata":
    return ice_metadata.new_table_metadata(
        schema=ice_catalog.Catalog._convert_schema_if_needed(schema),  # noqa: SLF001
        partition_spec=ice_partitioning.UNPARTITIONED_PARTITION_SPEC,
        sort_order=ice_sorting.UNSORTED_SORT_ORDER,
        location=str(root),
        properties=dict(_TABLE_PROPERTIES),
        table_uuid=uuid.uuid4(),
    )


def _metadata(location: str) -> "ice_metadata.TableMetadata":
    return ice_serializers.FromInputFile.table_metadata(ice_io.PyArrowFileIO().new_input(location))


def _live(root: Path, file: "DataFile") -> LiveFile:
    path = Path(file.file_path)
    return LiveFile(path.relative_to(root).as_posix(), _hash(path), file.record_count)


def _live_data_files(metadata: "ice_metadata.TableMetadata", snapshot_id: str, io: Any) -> "Iterator[DataFile]":
    found = metadata.snapshot_by_id(int(snapshot_id)) if snapshot_id else metadata.current_snapshot()
    if found is not None:
        for manifest in found.manifests(io):
            for entry in manifest.fetch_manifest_entry(io, discard_deleted=True):
                yield entry.data_file


def _file_list(metadata_location: str, snapshot_id: str) -> tuple[Path, FileList]:
    """The table's directory and the file list of one of its snapshots ('' = the current one).

    Raises NotFound, IntegrityError.
    """
    path = Path(metadata_location)
    root = path.parent.parent
    try:
        metadata = msgspec.json.decode(path.read_bytes())
        wanted = int(snapshot_id or metadata["current-snapshot-id"])
        summaries = {s["snapshot-id"]: s["summary"] for s in metadata["snapshots"]}
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no table metadata at {metadata_location}.", next_step="Restore the home's warehouse directory."
        ) from error
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise _altered(f"The table metadata {path.name}", "cannot be read", root) from error
    if wanted not in summaries:
        raise NotFound(f"The table has no snapshot {wanted}.", next_step="List its snapshots: `macadam tables`.")
    name = str(summaries[wanted].get(_FILES_PROPERTY, ""))
    return root, _read_file_list(root, name, str(wanted))


def _read_file_list(root: Path, name: str, snapshot_id: str) -> FileList:
    what = f"The file list of snapshot {snapshot_id}"
    if not name or "/" in name:
        raise _altered(what, "is not named in its metadata", root)
    try:
        data = (root / "metadata" / name).read_bytes()
        listed = msgspec.json.decode(data, type=FileList)
    except FileNotFoundError as error:
        raise _altered(what, "is missing", root) from error
    except msgspec.MsgspecError as error:
        raise _altered(what, "cannot be read", root) from error
    if hashlib.sha256(data).hexdigest() not in name or listed.snapshot_id != snapshot_id:
        raise _altered(what, "no longer has the bytes that were recorded", root)
    return listed


def _filtered(schema: "pa.Schema", paths: list[str], columns: Sequence[str], where: str) -> "pa.Table":
    wanted = list(columns) or schema.names
    # A column that the condition uses stands in its text; DuckDB's names know no case.
    needed = [name for name in schema.names if name in wanted or name.lower() in where.lower()]
    rows = _read(schema, paths, needed)
    with duckdb.connect() as connection:
        connection.register("rows", _without_zones(rows).append_column(_ROW, pa.array(range(rows.num_rows))))
        try:
            found = connection.sql(f"SELECT {_ROW} FROM rows WHERE ({where}\n) ORDER BY {_ROW}").to_arrow_table()  # noqa: S608
        except (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError) as error:
            raise InvalidInput(
                f"The condition {where!r} does not fit the table: {error}.",
                next_step=f"Use its columns: {', '.join(schema.names)}.",
            ) from error
    return rows.select(wanted).take(found.column(0))


def _read(schema: "pa.Schema", paths: list[str], columns: list[str]) -> "pa.Table":
    if not paths:
        return schema.empty_table().select(columns)
    return arrow_dataset.dataset(paths, schema=schema, format="parquet").to_table(columns=columns)


def _without_zones(rows: "pa.Table") -> "pa.Table":
    """Instants as zoneless UTC times: DuckDB handles zones only with an extension that it would have to download."""
    plain = [pa.timestamp("us") if f.type == pa.timestamp("us", tz="UTC") else f.type for f in rows.schema]
    return rows.cast(pa.schema(list(zip(rows.schema.names, plain, strict=True))))


def _require_columns(schema: "pa.Schema", columns: Sequence[str]) -> None:
    unknown = [name for name in columns if name not in schema.names]
    if unknown:
        raise InvalidInput(
            f"The table has no column {', '.join(map(repr, unknown))}.",
            next_step=f"Choose among: {', '.join(schema.names)}.",
        )


def _require_bytes(root: Path, file: LiveFile) -> None:
    try:
        same = _hash(root / file.path) == file.sha256
    except FileNotFoundError as error:
        raise _missing(root, file) from error
    if not same:
        raise _altered(f"The data file {file.path}", "no longer has the bytes that were recorded", root)


def _require_same_files(metadata_location: str, root: Path, listed: FileList) -> None:
    """Other Iceberg readers go by the manifests: they must name the same files."""
    try:
        metadata = _metadata(metadata_location)
        found = {
            (Path(f.file_path).relative_to(metadata.location).as_posix(), f.record_count)
            for f in _live_data_files(metadata, listed.snapshot_id, ice_io.PyArrowFileIO())
        }
    except Exception as error:
        # Whatever the Avro and JSON readers stumble over, it is the same finding.
        raise _altered(f"The manifests of snapshot {listed.snapshot_id}", f"cannot be read ({error})", root) from error
    if found != {(file.path, file.rows) for file in listed.files}:
        raise _altered(f"The manifests of snapshot {listed.snapshot_id}", "name other files than were recorded", root)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _whole_or_nothing(recorder: _Recorder, table: str) -> Iterator[None]:
    """Removes what was written when the block fails; turns a full disk into StorageFull."""
    try:
        yield
    except BaseException as error:
        recorder.remove()
        if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left" in str(error)):
            raise StorageFull(
                f"The disk is full: no snapshot of {table} was written.",
                next_step="Free space on the disk of the home directory and run the same call again.",
            ) from error
        raise


def _missing(root: Path, file: LiveFile) -> IntegrityError:
    return _altered(f"The data file {file.path}", "is missing", root)


def _altered(what: str, how: str, root: Path) -> IntegrityError:
    return IntegrityError(
        f"{what} of table {root.parent.name}.{root.name} {how}.",
        next_step="Restore the warehouse from a backup; do not use what was made from it.",
        details={"table": f"{root.parent.name}.{root.name}", "what": what},
    )
