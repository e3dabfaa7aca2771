"""From an identity that a provider vouches for to a principal, its roles and a short-lived token; and who links them.

Signing in is no operation of a caller (there is none yet), so it writes its own leaf, like the bootstrap. Everything
that decides who may sign in as whom, and with which roles, is an operation.
"""

import hashlib
import re
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.authentication import Reach
from macadam.access.oidc import Verified
from macadam.access.schema import grants, groups, links, principals
from macadam.access.schema import state as access_state
from macadam.access.service import PLATFORM, find_principal, give_role, is_grant
from macadam.access.token_service import add
from macadam.access.types import (
    GroupRole,
    IssuedToken,
    Link,
    LinkIdentity,
    ListGroups,
    ListLinks,
    MapGroup,
    UnlinkIdentity,
    UnmapGroup,
)
from macadam.errors import Conflict, InvalidInput, NotAuthenticated, NotFound, SettingInvalid
from macadam.ledger import service as ledger
from macadam.ledger.leaf import without_call
from macadam.operations import Transaction, operation, plain
from macadam.ports import Ports
from macadam.settings import Oidc
from macadam.values import uuid7

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
Outcome = Literal["done", "denied"]
_BY_SIGN_IN = "system:sign-in"
_BY_GROUP = "group:"
"""How `granted_by` begins for roles that came from a group: those alone are taken back at a sign-in."""


def sign_in(ports: Ports, identity: Verified, now: datetime) -> IssuedToken:
    """A token for whom the identity is linked to. Raises NotAuthenticated; the refusal leaves a leaf, too."""
    try:
        return ports.sql.write(lambda sql: _admit(sql, ports, identity, now))
    except NotAuthenticated:
        ports.sql.write(lambda sql: _record_refusal(sql, identity, now))
        raise


def _admit(sql: sa.Connection, ports: Ports, identity: Verified, now: datetime) -> IssuedToken:
    settings = ports.settings
    link = _find(sql, identity.issuer, identity.identity) or _create(sql, identity, settings.oidc, now)
    row = sql.execute(sa.select(principals).where(principals.c.id == link.principal)).one()
    if row.disabled is not None or row.kind != "person":
        raise _stranger(f"{link.principal} may not sign in: it is disabled, or no person.")
    given, taken = _follow_groups(sql, link.principal, identity.groups, now)
    expires = now + timedelta(hours=settings.access.session_hours)
    token = add(sql, link.principal, Reach(), issued=now, expires=expires, by=link.principal)
    facts = {"issuer": identity.issuer, "link": link.id, "expires": expires, "granted": given, "revoked": taken}
    _queue(sql, now, actor=link.principal, subject=f"token:{token.id}", outcome="done", facts=facts)
    return token


def _create(sql: sa.Connection, identity: Verified, settings: Oidc, now: datetime) -> Link:
    """A new principal, where the setting allows it. Raises NotAuthenticated."""
    if not settings.create:
        raise _stranger(f"The provider's {identity.identity!r} is nobody here.")
    made = f"principal:{_name_of(identity)}"
    if sql.execute(sa.select(principals.c.id).where(principals.c.id == made)).first():
        # Whoever the provider lets choose a name must not become somebody by it.
        raise _stranger(f"{made} exists and is not linked to the provider's {identity.identity!r}.")
    sql.execute(sa.insert(principals).values(id=made, kind="person", created=now, created_by=_BY_SIGN_IN))
    link = Link(
        id=uuid7(),
        issuer=identity.issuer,
        identity=identity.identity,
        principal=made,
        linked=now,
        linked_by=_BY_SIGN_IN,
    )
    sql.execute(sa.insert(links).values(msgspec.structs.asdict(link)))
    return link


def _name_of(identity: Verified) -> str:
    """A principal's name out of the claim: readable if it can be one, else of its hash."""
    readable = identity.identity.lower().replace("@", "-at-")
    if _NAME.fullmatch(readable):
        return readable
    return "oidc-" + hashlib.sha256(f"{identity.issuer}\n{identity.identity}".encode()).hexdigest()[:24]


def _follow_groups(
    sql: sa.Connection, holder: str, names: tuple[str, ...], now: datetime
) -> tuple[list[str], list[str]]:
    """Makes the roles that came from groups what the groups say now. Returns those given and taken."""
    wanted = {
        (row.project, row.role): row.group
        for row in sql.execute(sa.select(groups).order_by(groups.c.group))
        if row.group in names
    }
    held = {(row.project, row.role): row for row in sql.execute(sa.select(grants).where(grants.c.principal == holder))}
    given = sorted(wanted.keys() - held.keys())
    taken = sorted(place for place, row in held.items() if row.granted_by.startswith(_BY_GROUP) and place not in wanted)
    for project, role in given:
        by = (_BY_GROUP + wanted[project, role])[:100]
        give_role(sql, project, holder, role, at=now, by=by)
    for project, role in taken:
        sql.execute(sa.delete(grants).where(is_grant(project, holder, role)))
    for (project, role), group in wanted.items():
        by = (_BY_GROUP + group)[:100]
        old = held.get((project, role))
        if old is not None and old.granted_by.startswith(_BY_GROUP) and old.granted_by != by:
            # Under a group that gives it still, so that unmapping that one finds it.
            sql.execute(sa.update(grants).where(is_grant(project, holder, role)).values(granted_by=by))
    return [f"{p}: {r}" for p, r in given], [f"{p}: {r}" for p, r in taken]


def _record_refusal(sql: sa.Connection, identity: Verified, now: datetime) -> None:
    """Not who it was: that is the provider's to know, and a leaf stays for ever."""
    facts: dict[str, object] = {"issuer": identity.issuer, "reason": "the identity is no active person's here"}
    _queue(sql, now, actor="anonymous", subject=PLATFORM, outcome="denied", facts=facts)


def _queue(
    sql: sa.Connection, now: datetime, *, actor: str, subject: str, outcome: Outcome, facts: dict[str, object]
) -> None:
    leaf = without_call(
        "access.sign_in",
        at=now,
        outcome=outcome,
        actor=actor,
        subject=subject,
        uses=[actor] if outcome == "done" else [],
        rule="sign-in",
        policy_set=sql.execute(sa.select(access_state.c.policy_set)).scalar_one(),
        body={key: plain(value) for key, value in facts.items()},
    )
    ledger.queue(sql, leaf)


def _find(sql: sa.Connection, issuer: str, identity: str) -> Link | None:
    row = sql.execute(sa.select(links).where(links.c.issuer == issuer, links.c.identity == identity)).first()
    return None if row is None else Link(**row._asdict())


def _stranger(what: str) -> NotAuthenticated:
    return NotAuthenticated(what, next_step="Ask an administrator: `macadam principals link NAME --identity …`.")


# --- Who may sign in as whom, and with which roles ------------------------------------------------------------


@operation(LinkIdentity, permission="principals:link", http="POST /api/v1/principals/{principal}/links",
           cli="principals link", resource=PLATFORM)  # fmt: skip
def link_identity(tx: Transaction, request: LinkIdentity) -> Link:
    """Raises NotFound, Conflict if the identity is somebody's already or the principal is disabled, InvalidInput."""
    holder = find_principal(tx.sql, request.principal)
    if holder.kind != "person":
        raise InvalidInput(f"{holder.id} is a service, and services do not sign in.", next_step="Issue it a token.")
    if holder.disabled is not None:
        raise Conflict(f"{holder.id} is disabled.", next_step="Link an active person.")
    issuer = _issuer(tx, request.issuer)
    known = _find(tx.sql, issuer, request.identity)
    if known is not None and known.principal != holder.id:
        raise Conflict(
            f"That identity is {known.principal}.", next_step="Take that link back first: `macadam principals unlink`."
        )
    link = known or Link(
        id=uuid7(),
        issuer=issuer,
        identity=request.identity,
        principal=holder.id,
        linked=tx.now,
        linked_by=tx.actor.id,
    )
    if known is None:
        tx.sql.execute(sa.insert(links).values(msgspec.structs.asdict(link)))
    tx.record(holder.id, linked=link.id, issuer=issuer)
    return link


@operation(UnlinkIdentity, permission="principals:link", http="POST /api/v1/principals/unlink",
           cli="principals unlink", resource=PLATFORM)  # fmt: skip
def unlink_identity(tx: Transaction, request: UnlinkIdentity) -> Link:
    """Roles that groups gave end with it: they are the provider's word. Raises NotFound."""
    issuer = _issuer(tx, request.issuer)
    known = _find(tx.sql, issuer, request.identity)
    if known is None:
        raise NotFound("That identity is linked to nobody.", next_step="List them: `macadam principals links`.")
    tx.sql.execute(sa.delete(links).where(links.c.id == known.id))
    # No sign-in will take them back any more. Whoever is linked twice gets theirs again at the next one.
    _, taken = _follow_groups(tx.sql, known.principal, (), tx.now)
    access.touch(tx.sql)
    tx.record(known.principal, unlinked=known.id, issuer=issuer, revoked=taken)
    return known


@operation(ListLinks, permission="principals:read", http="GET /api/v1/principals/links", cli="principals links",
           resource=PLATFORM)  # fmt: skip
def list_links(tx: Transaction, _request: ListLinks) -> tuple[Link, ...]:
    rows = tx.sql.execute(sa.select(links).order_by(links.c.principal, links.c.id))
    return tuple(Link(**row._asdict()) for row in rows)


def _issuer(tx: Transaction, given: str) -> str:
    """Raises SettingInvalid if none is given and none is set up."""
    found = given or tx.ports.settings.oidc.issuer
    if not found:
        raise SettingInvalid(
            "No issuer was given, and no sign-in provider is set up.",
            next_step="Give --issuer, or set MACADAM_OIDC_ISSUER.",
        )
    return found


@operation(MapGroup, permission="roles:map", http="POST /api/v1/projects/{project}/groups", cli="roles map")
def map_group(tx: Transaction, request: MapGroup) -> GroupRole:
    """Raises InvalidInput for the platform's administrators: a person makes those, not what a token claims."""
    if (request.project, request.role) == ("*", "admin"):
        raise InvalidInput(
            "No group makes administrators of the whole platform.",
            next_step="Grant that role by name: `macadam roles grant NAME --role admin --project '*'`.",
        )
    known = _group(tx.sql, request)
    if known is None:
        known = GroupRole(
            group=request.group, project=request.project, role=request.role, mapped=tx.now, mapped_by=tx.actor.id
        )
        tx.sql.execute(sa.insert(groups).values(msgspec.structs.asdict(known)))
    tx.record(f"group:{request.group}", granted=request.role, **{"in": request.project})
    return known


@operation(UnmapGroup, permission="roles:map", http="POST /api/v1/projects/{project}/groups/revoke", cli="roles unmap")
def unmap_group(tx: Transaction, request: UnmapGroup) -> GroupRole:
    """Raises NotFound."""
    known = _group(tx.sql, request)
    if known is None:
        raise NotFound(
            f"The group {request.group!r} does not give the role {request.role} in {request.project}.",
            next_step="List them: `macadam roles groups`.",
        )
    tx.sql.execute(sa.delete(groups).where(_is_group(request)))
    by = (_BY_GROUP + request.group)[:100]
    place = sa.and_(grants.c.project == request.project, grants.c.role == request.role, grants.c.granted_by == by)
    losing = list(tx.sql.execute(sa.select(grants.c.principal).where(place).order_by(grants.c.principal)).scalars())
    tx.sql.execute(sa.delete(grants).where(place))
    access.touch(tx.sql)
    facts: dict[str, object] = {"revoked": request.role, "in": request.project, "losing": losing}
    tx.record(f"group:{request.group}", uses=losing, **facts)
    return known


@operation(ListGroups, permission="roles:read", http="GET /api/v1/projects/{project}/groups", cli="roles groups")
def list_groups(tx: Transaction, request: ListGroups) -> tuple[GroupRole, ...]:
    query = sa.select(groups).where(groups.c.project.in_({request.project, "*"}))
    rows = tx.sql.execute(query.order_by(groups.c.project, groups.c.group, groups.c.role))
    return tuple(GroupRole(**row._asdict()) for row in rows)


def _is_group(wanted: MapGroup | UnmapGroup) -> sa.ColumnElement[bool]:
    return sa.and_(groups.c.group == wanted.group, groups.c.project == wanted.project, groups.c.role == wanted.role)


def _group(sql: sa.Connection, wanted: MapGroup | UnmapGroup) -> GroupRole | None:
    row = sql.execute(sa.select(groups).where(_is_group(wanted))).first()
    return None if row is None else GroupRole(**row._asdict())
