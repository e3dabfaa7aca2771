"""Rows of the serving room, read and written: deployments, endpoints and labels. What may be done is in `service`."""

from datetime import datetime

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, NotFound
from macadam.features import schema as features
from macadam.models import registry as models
from macadam.models.types import ModelVersion
from macadam.serving.schema import deployments, endpoints
from macadam.serving.types import Deployment, Endpoint
from macadam.values import uuid7

PREDICT = "/v1/projects/{project}/endpoints/{endpoint}/predict"


def keep_deployment(sql: sa.Connection, new: Deployment) -> None:
    sql.execute(
        sa.insert(deployments).values(
            id=new.id, project=new.project, endpoint=new.endpoint, at=new.at, document=msgspec.to_builtins(new)
        )
    )


def deployment(sql: sa.Connection, deployment_id: str) -> Deployment:
    """Raises NotFound."""
    document = sql.execute(sa.select(deployments.c.document).where(deployments.c.id == deployment_id)).scalar()
    if document is None:
        raise NotFound(f"There is no deployment {deployment_id}.", next_step="Look at: macadam endpoints list.")
    return msgspec.convert(document, Deployment)


def current(sql: sa.Connection, project: str, endpoint: str) -> Deployment | None:
    """What answers at an endpoint now, if it exists."""
    query = sa.select(endpoints.c.deployment).where(endpoints.c.project == project, endpoints.c.name == endpoint)
    found = sql.execute(query).scalar()
    return None if found is None else deployment(sql, found)


def require(sql: sa.Connection, project: str, endpoint: str) -> Deployment:
    """Raises NotFound."""
    found = current(sql, project, endpoint)
    if found is None:
        raise NotFound(
            f"Project {project!r} has no endpoint {endpoint!r}.",
            next_step="Deploy a version there: macadam endpoints deploy, or list them: macadam endpoints list.",
        )
    return found


def all_of(sql: sa.Connection, project: str) -> tuple[Deployment, ...]:
    """What answers at the project's endpoints, by name."""
    query = (
        sa.select(deployments.c.document)
        .join(endpoints, endpoints.c.deployment == deployments.c.id)
        .where(endpoints.c.project == project)
        .order_by(endpoints.c.name)
    )
    return tuple(msgspec.convert(document, Deployment) for document in sql.execute(query).scalars())


def point(sql: sa.Connection, to: Deployment, at: datetime) -> None:
    """Moves the endpoint's pointer."""
    e = endpoints
    values = {"deployment": to.id, "generation": uuid7(), "at": at}
    where = (e.c.project == to.project, e.c.name == to.endpoint)
    if not sql.execute(sa.update(e).where(*where).values(values)).rowcount:
        sql.execute(sa.insert(e).values(project=to.project, name=to.endpoint, **values))


def shown(one: Deployment) -> Endpoint:
    """An endpoint as people see it."""
    return Endpoint(
        project=one.project,
        name=one.endpoint,
        model=one.model,
        number=one.number,
        version=one.version,
        artifact=one.artifact,
        deployment=one.id,
        previous=one.replaced,
        features=str(one.service["name"]) if one.service else "",
        path=PREDICT.format(project=one.project, endpoint=one.endpoint),
        at=one.at,
        personal=one.personal,
    )


def service_of(sql: sa.Connection, version: ModelVersion, name: str) -> dict[str, object] | None:
    """The definition of the feature service that a version was trained with, as it was then.

    name: the service that the model's signature names. None if the version's training set came from elsewhere, and
    requests bring the features. Raises IntegrityError if the definitions do not hold it.
    """
    if not name:
        return None
    run = models.run(sql, version.project, version.run)
    ref = run.training_sets.get("train", "")
    set_name, _, set_version = ref.partition(":")[2].partition("@")
    t = features.training_sets.c
    where = (t.project == version.project, t.name == set_name, t.version == set_version)
    built = sql.execute(sa.select(t.document).where(*where)).scalar()
    if not isinstance(built, dict):
        return None
    views = str(built["views"]).rpartition("@")[2]
    v = features.views.c
    found = sql.execute(sa.select(v.definitions).where(v.project == version.project, v.version == views)).scalar()
    services = found.get("services", ()) if isinstance(found, dict) else ()
    for service in services:
        if service["name"] == name:
            return dict(service)
    raise IntegrityError(
        f"The definitions {built['views']} hold no feature service {name!r}, which {version.ref} was trained with.",
        next_step="Run macadam ledger verify.",
    )
