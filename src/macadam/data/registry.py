"""Rows of this room's SQL tables as values: contracts, sources, taken files and snapshots.

Only reading and writing rows; what may be written, and the evidence for it, is decided by the operations.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from macadam import catalog
from macadam.data import schema
from macadam.data.types import ContractVersion, FileReport, Snapshot, Source
from macadam.errors import NotFound
from macadam.values import Ref

QUARANTINE_SUFFIX = "__quarantine"


def quarantine_of(table: str) -> str:
    """The name of the table that a table's refused rows are in."""
    return table + QUARANTINE_SUFFIX


# --- Contracts


def contract(sql: sa.Connection, project: str, text: str) -> ContractVersion:
    """Finds a contract by ID, ID@VERSION or contract:ID@VERSION; without version the newest. Raises NotFound."""
    name, _, version = text.removeprefix("contract:").partition("@")
    c = schema.contracts.c
    query = sa.select(c.document).where(c.project == project, c.id == name).order_by(c.at.desc(), c.version.desc())
    if version:
        query = query.where(c.version == version)
    found = sql.execute(query.limit(1)).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"Project {project!r} has no contract {text!r}.",
            next_step="Register it (macadam contracts register) or list the contracts.",
        )
    return msgspec.convert(found, ContractVersion)


def contracts(sql: sa.Connection, project: str) -> tuple[ContractVersion, ...]:
    """Newest first."""
    c = schema.contracts.c
    query = sa.select(c.document).where(c.project == project).order_by(c.at.desc(), c.id, c.version.desc())
    return tuple(msgspec.convert(found, ContractVersion) for found in sql.execute(query).scalars())


def keep_contract(sql: sa.Connection, new: ContractVersion) -> None:
    values = {"project": new.project, "id": new.id, "version": new.version, "at": new.at}
    sql.execute(sa.insert(schema.contracts).values(**values, document=msgspec.to_builtins(new)))


# --- Sources


def source(sql: sa.Connection, project: str, name: str) -> Source:
    """Raises NotFound."""
    c = schema.sources.c
    found = sql.execute(sa.select(c.document).where(c.project == project, c.name == name)).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"Project {project!r} has no source {name!r}.",
            next_step="Register it (macadam sources register) or list the sources.",
        )
    return msgspec.convert(found, Source)


def sources(sql: sa.Connection, project: str) -> tuple[Source, ...]:
    """By name."""
    c = schema.sources.c
    query = sa.select(c.document).where(c.project == project).order_by(c.name)
    return tuple(msgspec.convert(found, Source) for found in sql.execute(query).scalars())


def keep_source(sql: sa.Connection, new: Source) -> None:
    """Writes a source, in place of the one of its name."""
    t = schema.sources
    values = {"table_name": new.table, "at": new.at, "document": msgspec.to_builtins(new)}
    known = sa.and_(t.c.project == new.project, t.c.name == new.name)
    if sql.execute(sa.update(t).where(known).values(values)).rowcount == 0:
        sql.execute(sa.insert(t).values(project=new.project, name=new.name, **values))


# --- Files that were taken


def taken(sql: sa.Connection, source: Source) -> dict[str, str]:
    """Path → SHA-256 of each file of the source that is in a published snapshot."""
    c = schema.offsets.c
    query = sa.select(c.path, c.sha256).where(c.project == source.project, c.source == source.name)
    return dict(sql.execute(query).all())


def in_table(sql: sa.Connection, source: Source) -> dict[str, str]:
    """SHA-256 → path of each file, of whichever source, whose rows are in the source's table."""
    o, s = schema.offsets.c, schema.sources.c
    of_table = sa.and_(s.project == o.project, s.name == o.source, s.table_name == source.table)
    query = sa.select(o.sha256, o.path).where(o.project == source.project).join(schema.sources, of_table)
    return dict(sql.execute(query).all())


def keep_files(sql: sa.Connection, snapshot: Snapshot, source: Source, files: tuple[FileReport, ...]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "project": source.project,
            "source": source.name,
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "snapshot_id": snapshot.snapshot_id,
            "at": snapshot.at,
        }
        for file in files
    ]
    sql.execute(sa.insert(schema.offsets), rows)


# --- Snapshots


def keep_snapshot(sql: sa.Connection, new: Snapshot) -> None:
    values = {
        "project": new.project,
        "table_name": new.table,
        "snapshot_id": new.snapshot_id,
        "metadata_location": new.metadata_location,
        "at": new.at,
    }
    sql.execute(sa.insert(schema.snapshots).values(**values, document=msgspec.to_builtins(new)))


def snapshot(sql: sa.Connection, project: str, table: str, ref: str = "") -> Snapshot:
    """A snapshot of a table. ref: table:NAME@ID or ID; '' is the published one. Raises NotFound."""
    published = catalog.require(sql, project, table)
    c = schema.snapshots.c
    query = sa.select(c.document).where(c.project == project, c.table_name == table)
    wanted = ref.rpartition("@")[2]
    if ref not in {"", wanted, str(Ref(kind="table", name=table, version=wanted))}:
        raise NotFound(f"{ref} is no snapshot of table {table!r}.", next_step=f"Write table:{table}@ID.")
    query = query.where(c.snapshot_id == wanted) if wanted else query.where(c.metadata_location == published)
    found = sql.execute(query).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"Table {table!r} of project {project!r} has no snapshot {wanted}."
            if wanted
            else f"Table {table!r} of project {project!r} is not written by ingesting.",
            next_step="List the table's snapshots: macadam tables snapshots.",
        )
    return _snapshot(found, published)


def snapshots(sql: sa.Connection, project: str, table: str, limit: int) -> tuple[Snapshot, ...]:
    """Newest first. Raises NotFound if there is no such table."""
    published = catalog.require(sql, project, table)
    c = schema.snapshots.c
    query = sa.select(c.document).where(c.project == project, c.table_name == table)
    rows = sql.execute(query.order_by(c.at.desc(), c.snapshot_id).limit(limit)).scalars()
    return tuple(_snapshot(found, published) for found in rows)


def _snapshot(document: object, published: str) -> Snapshot:
    found = msgspec.convert(document, Snapshot)
    return msgspec.structs.replace(found, published=found.metadata_location == published)
