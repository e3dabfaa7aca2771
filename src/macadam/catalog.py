"""Which snapshot of each table is published: the pointer that a transaction moves, and nothing else does.

The rows have the layout of pyiceberg's SqlCatalog (`iceberg_tables`), so any Iceberg client that opens the
database sees exactly the published snapshots. Writing files is the Tables port's work.
"""

import sqlalchemy as sa

from macadam.errors import Conflict, NotFound
from macadam.ports import StagedSnapshot
from macadam.schema import metadata

CATALOG = "macadam"

iceberg_tables = sa.Table(
    "iceberg_tables",
    metadata,
    sa.Column("catalog_name", sa.String(255), primary_key=True),
    sa.Column("table_namespace", sa.String(255), primary_key=True),
    sa.Column("table_name", sa.String(255), primary_key=True),
    sa.Column("metadata_location", sa.String(1000)),
    sa.Column("previous_metadata_location", sa.String(1000)),
    sa.Column("iceberg_type", sa.String(5)),
)
iceberg_namespace_properties = sa.Table(
    "iceberg_namespace_properties",
    metadata,
    sa.Column("catalog_name", sa.String(255), primary_key=True),
    sa.Column("namespace", sa.String(255), primary_key=True),
    sa.Column("property_key", sa.String(255), primary_key=True),
    sa.Column("property_value", sa.String(1000), nullable=False),
)


def _row(namespace: str, name: str) -> sa.ColumnElement[bool]:
    t = iceberg_tables.c
    return sa.and_(t.catalog_name == CATALOG, t.table_namespace == namespace, t.table_name == name)


def location(sql: sa.Connection, project: str, name: str) -> str:
    """The metadata location that is published now, or '' if the table does not exist yet."""
    found = sql.execute(sa.select(iceberg_tables.c.metadata_location).where(_row(project, name))).scalar_one_or_none()
    return found or ""


def require(sql: sa.Connection, project: str, name: str) -> str:
    """Like `location`. Raises NotFound."""
    found = location(sql, project, name)
    if not found:
        raise NotFound(
            f"Project {project!r} has no table {name!r}.", next_step="Ingest a source into it, or list the tables."
        )
    return found


def tables(sql: sa.Connection, project: str) -> list[str]:
    """Names of the project's published tables, sorted."""
    t = iceberg_tables.c
    query = sa.select(t.table_name).where(t.catalog_name == CATALOG, t.table_namespace == project)
    return list(sql.execute(query.order_by(t.table_name)).scalars())


def publish(sql: sa.Connection, project: str, name: str, staged: StagedSnapshot) -> None:
    """Moves the pointer to a staged snapshot.

    Raises Conflict if the pointer is no longer where the snapshot was staged from: nothing is lost, the staged
    files are unreachable, and the caller stages again on the new base.
    """
    if staged.previous_location:
        moved = sql.execute(
            sa.update(iceberg_tables)
            .where(_row(project, name), iceberg_tables.c.metadata_location == staged.previous_location)
            .values(metadata_location=staged.metadata_location, previous_metadata_location=staged.previous_location)
        ).rowcount
    else:
        _ensure_namespace(sql, project)
        moved = _create(sql, project, name, staged.metadata_location)
    if moved != 1:
        raise Conflict(
            f"Table {name!r} got another snapshot while this one was prepared.", next_step="Run the same call again."
        )


def _create(sql: sa.Connection, project: str, name: str, metadata_location: str) -> int:
    if location(sql, project, name):
        return 0
    values = {
        "catalog_name": CATALOG,
        "table_namespace": project,
        "table_name": name,
        "metadata_location": metadata_location,
        "iceberg_type": "TABLE",
    }
    sql.execute(sa.insert(iceberg_tables).values(values))
    return 1


def _ensure_namespace(sql: sa.Connection, project: str) -> None:
    n = iceberg_namespace_properties
    if not sql.execute(sa.select(n.c.namespace).where(n.c.catalog_name == CATALOG, n.c.namespace == project)).first():
        values = {"catalog_name": CATALOG, "namespace": project, "property_key": "exists", "property_value": "true"}
        sql.execute(sa.insert(n).values(values))
