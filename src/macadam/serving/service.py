"""Operations on endpoints: deploy, roll back, list, show.

A deployment's ledger leaf has the id that every record of its predictions names. Gateways learn of it through
`state`; predictions and their labels are in `prediction_service`.
"""

import msgspec
import sqlalchemy as sa

from macadam.access import service as access
from macadam.errors import Conflict, GateRefused, IntegrityError
from macadam.models import gates, supply
from macadam.models import registry as models
from macadam.models.gate_service import CHAMPION
from macadam.models.signature import Signature
from macadam.models.types import ModelVersion
from macadam.operations import Context, Transaction, operation
from macadam.personal import vault
from macadam.personal.types import PersonalFields
from macadam.serving import personal_fields, registry
from macadam.serving.personal_fields import Declared
from macadam.serving.types import Deploy, Deployment, Endpoint, ListEndpoints, Rollback, ShowEndpoint

_PROJECT = "/api/v1/projects/{project}"
_ENDPOINT = _PROJECT + "/endpoints/{endpoint}"
_HIGH = "high"


class _Checked(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    signature: Signature
    service: dict[str, object] | None
    personal: PersonalFields | None


def _check(context: Context, request: Deploy) -> _Checked:
    """The bytes that gateways will load are there and are those that were signed; personal fields are somebody's."""
    objects = context.ports.objects
    with context.read() as sql:
        version = models.version(sql, request.project, request.model, request.version)
    _, signature = supply.load(context, version)
    with context.read() as sql:
        service = registry.service_of(sql, version, signature.service)
        declared = Declared(subject=request.subject, names=request.personal)
        if service is None:
            personal = personal_fields.of_signature(signature.names, declared)
        else:
            about = personal_fields.about_tables(sql, objects, request.project)
            personal = personal_fields.of_service(service, about, declared)
    if personal is not None:
        vault.prepare(context.ports.settings.home, context.ports.secrets, request.project)
    return _Checked(version=version.ref, signature=signature, service=service, personal=personal)


@operation(
    Deploy,
    permission="endpoints:deploy",
    http=f"POST {_ENDPOINT}/deployments",
    cli="endpoints deploy",
    resource="endpoint:{endpoint}",
    prepare=_check,
)
def deploy(tx: Transaction, request: Deploy, checked: _Checked) -> Endpoint:
    version = models.version(tx.sql, request.project, request.model, request.version)
    if version.ref != checked.version:
        raise Conflict(
            f"{request.version!r} moved to {version.ref} while {checked.version} was checked.",
            next_step="Run the same call again.",
        )
    _refuse_unapproved(tx.sql, version)
    old = registry.current(tx.sql, request.project, request.endpoint)
    declared = models.thresholds(tx.sql, request.project, request.model)
    leaf = tx.record(
        f"endpoint:{request.endpoint}",
        uses=[version.ref],
        artifact=version.artifact,
        signature=version.signature,
        model_signature=version.model_signature,
        features=checked.signature.service if checked.service else None,
        personal=checked.personal,
        replaced=old.version if old else None,
    )
    new = Deployment(
        id=leaf,
        project=request.project,
        endpoint=request.endpoint,
        model=request.model,
        number=version.number,
        version=version.ref,
        artifact=version.artifact,
        signature=version.signature,
        model_signature=version.model_signature,
        service=checked.service,
        threshold=gates.parse(declared.text).threshold if declared else 0.5,
        replaced=old.id if old else "",
        actor=tx.actor.id,
        at=tx.now,
        personal=checked.personal,
    )
    registry.keep_deployment(tx.sql, new)
    registry.point(tx.sql, new, tx.now)
    return registry.shown(new)


def _refuse_unapproved(sql: sa.Connection, version: ModelVersion) -> None:
    """What decides about people is deployed only if the gate let it be champion, or a person approved it."""
    if access.project(sql, version.project).risk != _HIGH or CHAMPION in version.aliases:
        return
    if not models.approvals(sql, version.project, version.model, version.number):
        reason = f"{version.ref} is not the champion and nobody approved it"
        raise GateRefused(
            f"The project {version.project!r} is of high risk, and {reason}.",
            next_step=f"Approve it: macadam gates approve {version.project} {version.model} {version.number}.",
            details={"model": version.ref, "reasons": [reason]},
        )


@operation(
    Rollback,
    permission="endpoints:rollback",
    http=f"POST {_ENDPOINT}/rollback",
    cli="endpoints rollback",
    resource="endpoint:{endpoint}",
)
def rollback(tx: Transaction, request: Rollback) -> Endpoint:
    """Only the pointer moves: records name the deployment that answers again, which was decided and proved before."""
    present = registry.require(tx.sql, request.project, request.endpoint)
    if not present.replaced:
        raise Conflict(
            f"Nothing answered at {request.endpoint!r} before {present.version}.",
            next_step="Deploy another version: macadam endpoints deploy.",
        )
    before = registry.deployment(tx.sql, present.replaced)
    if present.personal is not None and before.personal is None:
        raise Conflict(
            f"{before.version} was deployed before fields of {request.endpoint!r} were personal: its records would show them.",
            next_step=f"Deploy it anew: macadam endpoints deploy {request.endpoint} --version {before.number}.",
        )
    if not tx.ports.objects.exists(before.artifact):
        raise IntegrityError(
            f"The model file {before.artifact} of {before.version} is gone.", next_step="Restore it from a backup."
        )
    registry.point(tx.sql, before, tx.now)
    tx.record(
        f"endpoint:{request.endpoint}",
        uses=[before.version],
        artifact=before.artifact,
        deployment=before.id,
        replaced=present.version,
    )
    return registry.shown(before)


@operation(ListEndpoints, permission="endpoints:read", http=f"GET {_PROJECT}/endpoints", cli="endpoints list")
def list_endpoints(tx: Transaction, request: ListEndpoints) -> tuple[Endpoint, ...]:
    return tuple(registry.shown(one) for one in registry.all_of(tx.sql, request.project))


@operation(
    ShowEndpoint,
    permission="endpoints:read",
    http=f"GET {_ENDPOINT}",
    cli="endpoints show",
    resource="endpoint:{endpoint}",
)
def show_endpoint(tx: Transaction, request: ShowEndpoint) -> Endpoint:
    return registry.shown(registry.require(tx.sql, request.project, request.endpoint))
