"""Workloads: programs that prove who they are by a short-lived certificate instead of a token.

A workload is a service principal with a SPIFFE id. It is enrolled once, joins with a credential that works once, and from
then on renews its certificate by itself; revoking it takes effect on its next call. An external SPIFFE authority
(such as SPIRE) may issue the certificates instead: then only the id is enrolled.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from macadam.access import service as access
from macadam.access import spiffe
from macadam.access import state as access_state
from macadam.access.authentication import Reach
from macadam.access.schema import principals, tokens, workloads
from macadam.access.spiffe import Authority, Peer, SpiffeId
from macadam.access.token_service import add
from macadam.access.types import (
    Certified,
    CertifyWorkload,
    EnrollWorkload,
    Enrolment,
    ListWorkloads,
    RevokeWorkload,
    Workload,
)
from macadam.errors import Conflict, NotAuthenticated, NotAuthorised, NotFound
from macadam.operations import Actor, Transaction, operation
from macadam.ports import Ports

ROLE = "gateway"
"""The role under which a workload serves a project's endpoints."""
CERTIFY = "workloads:certify"
CONTROL_PLANE = "/control-plane"
"""The path of the control plane's own id."""
_HEARD = timedelta(days=2)
"""After which everyone who can still connect has heard of a new authority: certificates last half a day, and each renewal
brings the authorities in force."""
_PLATFORM = "platform:home"
_AUTHORITY = "workload-authority"
_log = logging.getLogger(__name__)


# --- the authority


def authorities(ports: Ports, now: datetime) -> list[Authority]:
    """The keys whose certificates are good, oldest first. Makes the first, and each successor.

    A successor is made half-way through the life of the newest, so that all hear of it before it signs (`signing`).
    """
    found = _stored(ports)
    if not found or found[-1].is_half_spent(now):
        made = Authority.create(ports.settings.link.trust_domain, now)
        try:
            ports.secrets.put(f"{_AUTHORITY}-{len(found) + 1}", made.pem)
        except Conflict:  # another process made it
            return [one for one in _stored(ports) if one.expires > now]
        _log.warning("there is a new authority for workloads, until %s", made.expires)
        found.append(made)
    return [one for one in found if one.expires > now]


def signing(ports: Ports, now: datetime) -> Authority:
    """The newest authority that everyone has heard of. One that signed at once would cut the link: neither end trusts it."""
    found = authorities(ports, now)
    heard = [one for one in found if one.certificate.not_valid_before_utc <= now - _HEARD]
    return heard[-1] if heard else found[0]


def _stored(ports: Ports) -> list[Authority]:
    found: list[Authority] = []
    try:
        while True:
            found.append(Authority(ports.secrets.get(f"{_AUTHORITY}-{len(found) + 1}")))
    except NotFound:
        return found


def trusted(ports: Ports, now: datetime) -> bytes:
    """The certificates (PEM) of all authorities in force."""
    return b"".join(one.public_pem for one in authorities(ports, now))


# --- who a certificate belongs to


def authenticate(sql: sa.Connection, peer: Peer, now: datetime) -> Actor:
    """Who holds the certificate. Raises NotAuthenticated, in the same words for an unknown and a revoked workload."""
    row = sql.execute(sa.select(workloads).where(workloads.c.spiffe_id == str(peer.id))).first()
    valid = row is not None and row.revoked is None and peer.expires > now
    holder = access_state.engine(sql).snapshot.principals.get(row.principal) if row is not None and valid else None
    if row is None or holder is None or not holder.active:
        raise NotAuthenticated(
            "The certificate is not valid: its workload is unknown or revoked, or it has expired.",
            next_step="Enroll the workload (`macadam workloads enroll`).",
        )
    return Actor(id=row.principal, kind=holder.kind)


# --- operations


@operation(EnrollWorkload, permission="workloads:enroll", http="POST /api/v1/workloads", cli="workloads enroll",
           resource=_PLATFORM, secret_answer=True)  # fmt: skip
def enroll_workload(tx: Transaction, request: EnrollWorkload) -> Enrolment:
    """Raises NotFound for an unknown project, Conflict if the name or the id belongs to somebody else."""
    principal = f"service:{request.workload}"
    _make_service(tx, principal)
    row = tx.sql.execute(sa.select(workloads).where(workloads.c.name == request.workload)).first()
    identity = _identity(tx, request, row)
    taken = tx.sql.execute(sa.select(workloads.c.name).where(workloads.c.spiffe_id == str(identity))).scalar()
    if taken not in (None, request.workload):
        raise Conflict(f"{identity} is the id of the workload {taken}.", next_step="Choose another name or id.")
    values = {"spiffe_id": str(identity), "external": bool(request.spiffe_id), "revoked": None}
    if row is None:
        made = {"name": request.workload, "principal": principal, "created": tx.now, "created_by": tx.actor.id}
        tx.sql.execute(sa.insert(workloads).values(**made, **values))
    else:
        tx.sql.execute(sa.update(workloads).where(workloads.c.name == request.workload).values(**values))
    for project in request.projects:
        access.require_project(tx.sql, project)
        access.give_role(tx.sql, project, principal, ROLE, at=tx.now, by=tx.actor.id)
    expires = tx.now + timedelta(minutes=request.minutes)
    token = join = ""
    if not request.spiffe_id:  # it can do one thing, once: ask for the first certificate
        issued = add(tx.sql, principal, Reach(scopes=(CERTIFY,)), issued=tx.now, expires=expires, by=tx.actor.id)
        token, join = issued.id, issued.token
    access_state.touch(tx.sql)
    tx.record(
        f"workload:{request.workload}",
        uses=[principal],
        spiffe_id=str(identity),
        projects=request.projects,
        role=ROLE,
        external=bool(request.spiffe_id),
        join_token=token or None,
        join_expires=expires if token else None,
    )
    return Enrolment(
        workload=request.workload,
        principal=principal,
        spiffe_id=str(identity),
        join=join,
        authorities=trusted(tx.ports, tx.now).decode(),
        expires=expires,
    )


def _identity(tx: Transaction, request: EnrollWorkload, row: sa.Row[Any] | None) -> SpiffeId:
    """A workload that was revoked comes back under another id: a certificate stolen before then stays nobody's."""
    if request.spiffe_id:
        return SpiffeId.parse(request.spiffe_id)
    path = f"/workload/{request.workload}"
    if row is not None and not row.external:
        path = SpiffeId.parse(row.spiffe_id).path
        if row.revoked is not None:
            number = path.removeprefix(f"/workload/{request.workload}").removeprefix("/")
            path = f"/workload/{request.workload}/{int(number or 1) + 1}"
    return SpiffeId(tx.ports.settings.link.trust_domain, path)


def _make_service(tx: Transaction, principal: str) -> None:
    row = tx.sql.execute(sa.select(principals).where(principals.c.id == principal)).first()
    if row is None:
        made = {"id": principal, "kind": "service", "created": tx.now, "created_by": tx.actor.id}
        tx.sql.execute(sa.insert(principals).values(**made))
    elif row.disabled is not None:
        raise Conflict(f"{principal} is disabled.", next_step="Choose another name: identities are not reused.")


@operation(CertifyWorkload, permission=CERTIFY, http="POST /api/v1/workloads/certify", cli="workloads certify",
           resource=_PLATFORM)  # fmt: skip
def certify_workload(tx: Transaction, request: CertifyWorkload) -> Certified:
    """Raises NotAuthorised for callers that are no workload, or whose certificates another authority issues."""
    row = tx.sql.execute(sa.select(workloads).where(workloads.c.principal == tx.actor.id)).first()
    if row is None or row.revoked is not None or row.external:
        raise NotAuthorised(
            f"{tx.actor.id} is no workload that this platform issues certificates for.",
            next_step="Enroll it (`macadam workloads enroll NAME`).",
        )
    authority = signing(tx.ports, tx.now)
    certificate = authority.certify(request.request, SpiffeId.parse(row.spiffe_id), tx.now)
    expires = tx.now + spiffe.SVID_LIFETIME
    tx.sql.execute(sa.update(workloads).where(workloads.c.name == row.name).values(certified=tx.now, expires=expires))
    if tx.actor.token:  # a joining token works once
        tx.sql.execute(sa.update(tokens).where(tokens.c.id == tx.actor.token).values(revoked=tx.now))
        access_state.touch(tx.sql)
    tx.record(
        f"workload:{row.name}",
        uses=[row.principal],
        spiffe_id=row.spiffe_id,
        key=spiffe.fingerprint(certificate),
        authority=spiffe.fingerprint(authority.public_pem),
        expires=expires,
        spent_token=tx.actor.token or None,
    )
    return Certified(certificate=certificate.decode(), authorities=trusted(tx.ports, tx.now).decode(), expires=expires)


@operation(RevokeWorkload, permission="workloads:revoke", http="POST /api/v1/workloads/{workload}/revoke",
           cli="workloads revoke", resource=_PLATFORM)  # fmt: skip
def revoke_workload(tx: Transaction, request: RevokeWorkload) -> Workload:
    """Raises NotFound."""
    row = tx.sql.execute(sa.select(workloads).where(workloads.c.name == request.workload)).first()
    if row is None:
        raise NotFound(f"There is no workload {request.workload!r}.", next_step="macadam workloads list")
    ended: list[str] = []
    if row.revoked is None:
        tx.sql.execute(sa.update(workloads).where(workloads.c.name == row.name).values(revoked=tx.now))
        ended = access.end_tokens(tx.sql, row.principal, tx.now)
    tx.record(f"workload:{row.name}", uses=[row.principal], spiffe_id=row.spiffe_id, revoked=True, revoked_tokens=ended)
    return _workload(tx.sql.execute(sa.select(workloads).where(workloads.c.name == row.name)).one())


@operation(ListWorkloads, permission="principals:read", http="GET /api/v1/workloads", cli="workloads list",
           resource=_PLATFORM)  # fmt: skip
def list_workloads(tx: Transaction, _request: ListWorkloads) -> tuple[Workload, ...]:
    return tuple(_workload(row) for row in tx.sql.execute(sa.select(workloads).order_by(workloads.c.name)))


def name_of(sql: sa.Connection, principal: str) -> str:
    """The workload that a principal is, '' for none."""
    return str(sql.execute(sa.select(workloads.c.name).where(workloads.c.principal == principal)).scalar() or "")


def _workload(row: sa.Row[tuple[object, ...]]) -> Workload:
    return Workload(**row._asdict())
