"""What is registered: definitions, training sets, and what the online store holds. Reads and writes rows, no more."""

from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.errors import NotFound
from macadam.features import define
from macadam.features.define import Definitions, FeatureService
from macadam.features.schema import online, training_sets, views
from macadam.features.types import Materialisation, TrainingSet, Views


def find_views(sql: sa.Connection, project: str, version: str = "") -> tuple[Views, Definitions]:
    """Registered definitions; version '' is the newest. Raises NotFound."""
    query = sa.select(views.c.document, views.c.definitions).where(views.c.project == project)
    if version:
        query = query.where(views.c.version == version)
    row = sql.execute(query.order_by(views.c.at.desc(), views.c.version).limit(1)).first()
    if row is None:
        raise NotFound(
            f"Project {project!r} has no feature definitions{f' {version}' if version else ''}.",
            next_step="Register its features.py: macadam views register.",
        )
    return msgspec.convert(row.document, Views), define.decode(row.definitions)


def service(sql: sa.Connection, project: str, name: str, version: str = "") -> FeatureService:
    """A feature service of registered definitions. Raises NotFound, InvalidInput with the names that exist."""
    return find_views(sql, project, version)[1].service(name)


def service_spec(sql: sa.Connection, project: str, name: str, version: str = "") -> dict[str, Any]:
    """A feature service as plain values: what `online.compile_service` takes. version may be a `views:` reference."""
    spec: dict[str, Any] = msgspec.to_builtins(service(sql, project, name, version.rpartition("@")[2]))
    return spec


def training_set(sql: sa.Connection, project: str, ref: str) -> TrainingSet:
    """A training set by its reference. Raises NotFound."""
    name, _, version = ref.removeprefix("training_set:").partition("@")
    t = training_sets.c
    query = sa.select(t.document).where(t.project == project, t.name == name, t.version == version)
    found = sql.execute(query).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"Project {project!r} has no training set {ref!r}.", next_step="List them: macadam training-sets list."
        )
    return msgspec.convert(found, TrainingSet)


def materialised(sql: sa.Connection, project: str) -> list[tuple[Materialisation, dict[str, str]]]:
    """What the online store holds, and the Arrow schema (base64) of each table that it came from."""
    query = sa.select(online.c.document, online.c.columns).where(online.c.project == project)
    rows = sql.execute(query.order_by(online.c.service, online.c.version))
    return [(msgspec.convert(r.document, Materialisation), msgspec.convert(r.columns, dict[str, str])) for r in rows]


def keep_views(sql: sa.Connection, new: Views, definitions: Definitions) -> None:
    row = {"project": new.project, "version": new.version, "at": new.at, "document": msgspec.to_builtins(new)}
    sql.execute(sa.insert(views).values(**row, definitions=msgspec.to_builtins(definitions)))


def keep_training_set(sql: sa.Connection, new: TrainingSet) -> None:
    version = new.ref.rpartition("@")[2]
    row = {"project": new.project, "name": new.name, "version": version, "at": new.at}
    sql.execute(sa.insert(training_sets).values(**row, document=msgspec.to_builtins(new)))


def keep_materialisation(sql: sa.Connection, new: Materialisation, schemas: dict[str, str]) -> None:
    version = new.views.rpartition("@")[2]
    key = {"project": new.project, "service": new.service, "version": version}
    o = online.c
    sql.execute(sa.delete(online).where(o.project == new.project, o.service == new.service, o.version == version))
    sql.execute(sa.insert(online).values(**key, at=new.at, columns=schemas, document=msgspec.to_builtins(new)))
