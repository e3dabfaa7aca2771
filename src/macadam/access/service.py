"""Who calls, what they may do, and the operations on projects, principals and roles; tokens are for `token_service`.

A rule that no policy text can express is here: the platform keeps one active administrator.
"""

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.authentication import KnownToken, Reach
from macadam.access.bootstrap import bootstrap
from macadam.access.engine import AccessSnapshot
from macadam.access.rates import Limit
from macadam.access.schema import grants, principals, projects, tokens
from macadam.access.types import (
    CreatePrincipal,
    CreateProject,
    DisablePrincipal,
    Grant,
    GrantRole,
    Identity,
    ListPrincipals,
    ListProjects,
    ListRoles,
    Principal,
    Project,
    RevokeRole,
    ShowProject,
    WhoAmI,
)
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.operations import UNDECLARED, Actor, Decision, Declared, Transaction, operation

__all__ = ["authenticate", "bootstrap", "decide", "project", "require_project", "snapshot"]

PLATFORM = "platform:home"
_EVERYWHERE = ("", "*")


# --- For the dispatcher and the other rooms -------------------------------------------------------------------


def authenticate(sql: sa.Connection, token: str, now: datetime) -> Actor:
    """Who holds `token`. Raises NotAuthenticated."""
    return access.engine(sql).authenticate(token, now)


def decide(
    sql: sa.Connection,
    actor: Actor,
    permission: str,
    resource: str,
    project: str,
    now: datetime,
    declared: Declared = UNDECLARED,
) -> Decision:
    """Whether `actor` may, by the policies in force as `sql` sees them. now: the call's instant, for policies that ask.

    Raises NotFound if that is allowed in a project that does not exist: only who may see it learns that.
    """
    engine = access.engine(sql)
    decision = engine.decide(actor, permission, resource, project, declared=declared, now=now)
    elsewhere = project not in _EVERYWHERE and permission != "projects:create" and not engine.knows_project(project)
    if decision.allowed and elsewhere:
        raise _no_project(project)
    return decision


def rates(sql: sa.Connection) -> Mapping[str, Limit]:
    """The principals whose limit differs from the settings'."""
    return access.engine(sql).snapshot.rates


def snapshot(sql: sa.Connection) -> AccessSnapshot:
    """What a gateway needs to authenticate and decide by itself. Holds no secret."""
    return access.snapshot(sql)


def project(sql: sa.Connection, name: str) -> Project:
    """Raises NotFound."""
    row = sql.execute(sa.select(projects).where(projects.c.name == name)).first()
    if row is None:
        raise _no_project(name)
    return _project(row)


def require_project(sql: sa.Connection, name: str) -> None:
    """Raises NotFound."""
    project(sql, name)


def _no_project(name: str) -> NotFound:
    return NotFound(
        f"There is no project {name!r}.",
        next_step=f"Create it (`macadam projects create {name}`) or list the projects.",
    )


# --- Projects -------------------------------------------------------------------------------------------------


def _project(row: sa.Row[tuple[object, ...]]) -> Project:
    return Project(**row._asdict())


@operation(CreateProject, permission="projects:create", http="POST /api/v1/projects", cli="projects create",
           resource=PLATFORM)  # fmt: skip
def create_project(tx: Transaction, request: CreateProject) -> Project:
    """Raises Conflict if the name is taken, NotFound if the owner is unknown."""
    owner = find_principal(tx.sql, request.owner).id if request.owner else tx.actor.id
    made = Project(
        name=request.project,
        owner=owner,
        description=request.description,
        risk=request.risk,
        location=request.location,
        created=tx.now,
        created_by=tx.actor.id,
    )
    if tx.sql.execute(sa.select(projects.c.name).where(projects.c.name == made.name)).first():
        raise Conflict(f"Project {made.name!r} exists.", next_step="Use it, or choose another name.")
    tx.sql.execute(sa.insert(projects).values(_columns(made)))
    access.touch(tx.sql)
    facts = {
        "owner": made.owner,
        "description": made.description,
        "risk": made.risk,
        "location": made.location,
    }
    tx.record(f"project:{made.name}", uses=[made.owner], **facts)
    return made


@operation(ListProjects, permission="projects:list", http="GET /api/v1/projects", cli="projects list",
           resource=PLATFORM)  # fmt: skip
def list_projects(tx: Transaction, _request: ListProjects) -> tuple[Project, ...]:
    engine = access.engine(tx.sql)
    rows = tx.sql.execute(sa.select(projects).order_by(projects.c.name))
    return tuple(
        _project(row)
        for row in rows
        if engine.decide(tx.actor, "projects:read", f"project:{row.name}", row.name).allowed
    )


@operation(ShowProject, permission="projects:read", http="GET /api/v1/projects/{project}", cli="projects show")
def show_project(tx: Transaction, request: ShowProject) -> Project:
    return project(tx.sql, request.project)


# --- Principals -----------------------------------------------------------------------------------------------


def find_principal(sql: sa.Connection, text: str) -> Principal:
    """Finds 'principal:alice', 'service:replay', or a bare name (people before services). Raises NotFound."""
    wanted = [text] if ":" in text else [f"principal:{text}", f"service:{text}"]
    rows = sql.execute(sa.select(principals).where(principals.c.id.in_(wanted)).order_by(principals.c.id)).all()
    if not rows:
        raise NotFound(f"There is no principal {text!r}.", next_step=f"Create it (`macadam principals create {text}`).")
    return Principal(**rows[0]._asdict())


def _identity(text: str, kind: str) -> tuple[str, str]:
    """(id, kind) of a principal to be made. Raises InvalidInput if the prefix and the kind disagree."""
    prefix, colon, name = text.rpartition(":")
    implied = {"principal": "person", "service": "service", "": kind or "person"}[prefix]
    if kind and kind != implied:
        raise InvalidInput(
            f"{text!r} names a {implied}, but the kind is {kind!r}.",
            next_step="Write principal:NAME for a person and service:NAME for a service.",
        )
    return (text if colon else f"{'principal' if implied == 'person' else 'service'}:{name}"), implied


@operation(CreatePrincipal, permission="principals:create", http="POST /api/v1/principals", cli="principals create",
           resource=PLATFORM)  # fmt: skip
def create_principal(tx: Transaction, request: CreatePrincipal) -> Principal:
    """Raises Conflict if it exists: an identity is never handed to somebody else, also not after it was disabled."""
    identity, kind = _identity(request.principal, request.kind)
    made = Principal(id=identity, kind=kind, created=tx.now, created_by=tx.actor.id)
    if tx.sql.execute(sa.select(principals.c.id).where(principals.c.id == identity)).first():
        raise Conflict(f"{identity} exists.", next_step="Use it, or choose another name.")
    tx.sql.execute(sa.insert(principals).values(_columns(made)))
    access.touch(tx.sql)
    tx.record(identity, kind=kind)
    return made


@operation(DisablePrincipal, permission="principals:disable", http="POST /api/v1/principals/{principal}/disable",
           cli="principals disable", resource=PLATFORM)  # fmt: skip
def disable_principal(tx: Transaction, request: DisablePrincipal) -> Principal:
    """Raises Conflict for the last active administrator. Its grants stay on record, without effect."""
    found = find_principal(tx.sql, request.principal)
    _keep_an_administrator(tx.sql, without=found.id)
    if found.disabled is None:
        tx.sql.execute(sa.update(principals).where(principals.c.id == found.id).values(disabled=tx.now))
    tx.record(found.id, disabled=True, revoked_tokens=end_tokens(tx.sql, found.id, tx.now))
    return find_principal(tx.sql, found.id)


@operation(ListPrincipals, permission="principals:read", http="GET /api/v1/principals", cli="principals list",
           resource=PLATFORM)  # fmt: skip
def list_principals(tx: Transaction, _request: ListPrincipals) -> tuple[Principal, ...]:
    rows = tx.sql.execute(sa.select(principals).order_by(principals.c.id))
    return tuple(Principal(**row._asdict()) for row in rows)


@operation(WhoAmI, permission="principals:self", http="GET /api/v1/principals/self", cli="principals whoami",
           resource=PLATFORM)  # fmt: skip
def who_am_i(tx: Transaction, _request: WhoAmI) -> Identity:
    engine = access.engine(tx.sql)
    held = engine.snapshot.principals[tx.actor.id].roles
    own = engine.credentials.reach(tx.actor) or Reach()
    return Identity(
        id=tx.actor.id,
        kind=tx.actor.kind,
        token=tx.actor.token,
        scopes=own.scopes,
        projects=own.projects,
        assets=own.assets,
        expires=own.expires if isinstance(own, KnownToken) else None,
        roles=tuple(f"{place}: {role}" for place, roles in sorted(held.items()) for role in roles),
    )


# --- Roles ----------------------------------------------------------------------------------------------------


@operation(GrantRole, permission="roles:grant", http="POST /api/v1/projects/{project}/roles", cli="roles grant")
def grant_role(tx: Transaction, request: GrantRole) -> Grant:
    """Raises NotFound for an unknown principal, Conflict for a disabled one.

    A role everywhere ('*') asks for roles:grant everywhere: an administrator of one project cannot give it.
    """
    holder = find_principal(tx.sql, request.principal)
    if holder.disabled is not None:
        raise Conflict(f"{holder.id} is disabled.", next_step="Create another principal and grant the role to it.")
    known = give_role(tx.sql, request.project, holder.id, request.role, at=tx.now, by=tx.actor.id)
    tx.record(holder.id, granted=request.role, **{"in": request.project})
    return known


@operation(RevokeRole, permission="roles:grant", http="POST /api/v1/projects/{project}/roles/revoke",
           cli="roles revoke")  # fmt: skip
def revoke_role(tx: Transaction, request: RevokeRole) -> Grant:
    """Raises NotFound if it is not granted, Conflict if it would leave the platform without an administrator."""
    holder = find_principal(tx.sql, request.principal)
    known = _grant(tx.sql, request.project, holder.id, request.role)
    if known is None:
        raise NotFound(
            f"{holder.id} does not hold the role {request.role} in {request.project}.",
            next_step="List the roles to see who holds what.",
        )
    if (request.project, request.role) == ("*", "admin"):
        _keep_an_administrator(tx.sql, without=holder.id)
    tx.sql.execute(sa.delete(grants).where(is_grant(request.project, holder.id, request.role)))
    access.touch(tx.sql)
    tx.record(holder.id, revoked=request.role, **{"in": request.project})
    return known


@operation(ListRoles, permission="roles:read", http="GET /api/v1/projects/{project}/roles", cli="roles list")
def list_roles(tx: Transaction, request: ListRoles) -> tuple[Grant, ...]:
    order = (grants.c.project, grants.c.principal, grants.c.role)
    query = sa.select(grants).where(grants.c.project.in_({request.project, "*"})).order_by(*order)
    return tuple(Grant(**row._asdict()) for row in tx.sql.execute(query))


def give_role(sql: sa.Connection, place: str, principal: str, role: str, *, at: datetime, by: str) -> Grant:
    """The grant that is there already, or a new one. Its leaf is the caller's."""
    known = _grant(sql, place, principal, role)
    if known is None:
        known = Grant(project=place, principal=principal, role=role, granted=at, granted_by=by)
        sql.execute(sa.insert(grants).values(_columns(known)))
        access.touch(sql)
    return known


def end_tokens(sql: sa.Connection, holder: str, now: datetime) -> list[str]:
    """Revokes all tokens of a principal that are not yet; returns their ids. The leaf is the caller's."""
    live = sa.and_(tokens.c.principal == holder, tokens.c.revoked.is_(None))
    ended = list(sql.execute(sa.select(tokens.c.id).where(live)).scalars())
    sql.execute(sa.update(tokens).where(live).values(revoked=now))
    access.touch(sql)
    return ended


def is_grant(place: str, principal: str, role: str) -> sa.ColumnElement[bool]:
    """The condition for one row of grants."""
    return sa.and_(grants.c.project == place, grants.c.principal == principal, grants.c.role == role)


def _grant(sql: sa.Connection, place: str, principal: str, role: str) -> Grant | None:
    row = sql.execute(sa.select(grants).where(is_grant(place, principal, role))).first()
    return None if row is None else Grant(**row._asdict())


def _keep_an_administrator(sql: sa.Connection, *, without: str) -> None:
    """Raises Conflict if nobody active but `without` administers the platform."""
    held = sa.select(grants.c.principal).join(principals, principals.c.id == grants.c.principal)
    admin = sa.and_(grants.c.project == "*", grants.c.role == "admin", principals.c.disabled.is_(None))
    holders = set(sql.execute(held.where(admin)).scalars())
    if holders == {without}:
        raise Conflict(
            f"{without} is the platform's last active administrator.",
            next_step="Grant somebody else the role admin in '*' first.",
        )


def _columns(value: Project | Principal | Grant) -> dict[str, object]:
    return {field: getattr(value, field) for field in value.__struct_fields__}
