"""The rows of published tables: the one place that reads them, so that the check stands at the table.

Which snapshot is read is for the callers; that they may is decided here, by what they bring.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from macadam.data import registry
from macadam.data.types import Snapshot
from macadam.operations import Granted
from macadam.ports import Tables

if TYPE_CHECKING:
    import pyarrow as pa

READS = ("tables:read", "tables:ingest")
"""Ingesting compares new rows with those that are published."""
READS_QUARANTINE = ("quarantine:read",)
READS_PREDICTIONS = ("predictions:read",)


def rows(
    granted: Granted, tables: Tables, snapshot: Snapshot, *, columns: Sequence[str] = (), where: str = ""
) -> "pa.Table":
    """A snapshot's rows. Raises NotAuthorised, IntegrityError."""
    granted.require(f"table:{snapshot.table}", *_permissions(snapshot.table))
    return tables.scan(snapshot.metadata_location, snapshot_id=snapshot.snapshot_id, columns=columns, where=where)


def newest(granted: Granted, tables: Tables, table: str, location: str, *, columns: Sequence[str]) -> "pa.Table":
    """The rows of a table as it is, some columns of them. Raises NotAuthorised, IntegrityError."""
    granted.require(f"table:{table}", *READS)
    return tables.scan(location, columns=columns)


def whole(granted: Granted, tables: Tables, table: str, location: str) -> "pa.Table":
    """The rows of a table as it is. Raises NotAuthorised, IntegrityError."""
    granted.require(f"table:{table}", *_permissions(table))
    return tables.scan(location)


def _permissions(table: str) -> tuple[str, ...]:
    return READS_QUARANTINE if table.endswith(registry.QUARANTINE_SUFFIX) else READS


def predictions(
    granted: Granted, tables: Tables, endpoint: str, location: str, *, columns: Sequence[str]
) -> "pa.Table":
    """The sealed answers of one endpoint that have a score. Raises NotAuthorised, IntegrityError."""
    granted.require(f"endpoint:{endpoint}", *READS_PREDICTIONS)
    where = f"endpoint = '{endpoint}' AND outcome = 'ok' AND score IS NOT NULL"
    return tables.scan(location, columns=columns, where=where)
