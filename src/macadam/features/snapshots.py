"""The stored rows that features are computed from: published snapshots, pinned by reference."""

from typing import TYPE_CHECKING

import sqlalchemy as sa

from macadam.data import registry as data
from macadam.data.types import Snapshot
from macadam.features import offline, relations
from macadam.features.define import FeatureService, Table
from macadam.ports import Ports

if TYPE_CHECKING:
    import pyarrow as pa


def pin(sql: sa.Connection, project: str, service: FeatureService) -> dict[str, Snapshot]:
    """The published snapshot of every table of a service, all at one instant. Raises NotFound."""
    return {name: data.snapshot(sql, project, name) for name in sorted(service.tables)}


def read(ports: Ports, service: FeatureService, pinned: dict[str, Snapshot]) -> "dict[str, pa.Table]":
    """The rows of pinned snapshots, only the columns that the service reads. Raises IntegrityError, ChecksFailed."""
    return {name: _read(ports, pinned[name], service, table) for name, table in service.tables.items()}


def schema(ports: Ports, snapshot: Snapshot) -> "pa.Schema":
    """The columns of a snapshot."""
    return ports.tables.scan(snapshot.metadata_location, snapshot_id=snapshot.snapshot_id, where="false").schema


def _read(ports: Ports, snapshot: Snapshot, service: FeatureService, table: Table) -> "pa.Table":
    wanted = offline.stored_columns(service, table)
    stored = schema(ports, snapshot).names
    relations.require_columns(table, stored, wanted)
    columns = [c for c in stored if c.lower() in wanted]
    return ports.tables.scan(snapshot.metadata_location, snapshot_id=snapshot.snapshot_id, columns=columns)
