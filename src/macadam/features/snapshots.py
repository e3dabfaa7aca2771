"""The stored rows that features are computed from: published snapshots, pinned by reference."""

from typing import TYPE_CHECKING

import sqlalchemy as sa

from macadam.data import reading
from macadam.data import registry as data
from macadam.data.types import Snapshot
from macadam.features import offline, relations
from macadam.features.define import FeatureService, Table
from macadam.operations import Context, Granted
from macadam.ports import Ports

if TYPE_CHECKING:
    import pyarrow as pa


def pin(sql: sa.Connection, project: str, service: FeatureService) -> dict[str, Snapshot]:
    """The published snapshot of every table of a service, all at one instant. Raises NotFound."""
    return {name: data.snapshot(sql, project, name) for name in sorted(service.tables)}


def read(context: Context, service: FeatureService, pinned: dict[str, Snapshot]) -> "dict[str, pa.Table]":
    """The rows of pinned snapshots, only the columns that the service reads.

    Raises NotAuthorised for a table that the caller may not read, IntegrityError, ChecksFailed.
    """
    granted = {name: context.authorise("tables:read", f"table:{name}") for name in service.tables}
    return {
        name: _read(granted[name], context.ports, pinned[name], service, table)
        for name, table in service.tables.items()
    }


def schema(context: Context, snapshot: Snapshot) -> "pa.Schema":
    """The columns of a snapshot. Raises NotAuthorised."""
    return _schema(context.authorise("tables:read", f"table:{snapshot.table}"), context.ports, snapshot)


def _schema(granted: Granted, ports: Ports, snapshot: Snapshot) -> "pa.Schema":
    return reading.rows(granted, ports.tables, snapshot, where="false").schema


def _read(granted: Granted, ports: Ports, snapshot: Snapshot, service: FeatureService, table: Table) -> "pa.Table":
    wanted = offline.stored_columns(service, table)
    stored = _schema(granted, ports, snapshot).names
    relations.require_columns(table, stored, wanted)
    columns = [c for c in stored if c.lower() in wanted]
    return reading.rows(granted, ports.tables, snapshot, columns=columns)
