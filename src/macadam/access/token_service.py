"""The operations on tokens: issue, rotate, revoke, list.

The rules that no policy text can express are here: nobody issues a credential that reaches further than their own, and
only administrators touch another's.
"""

from datetime import datetime, timedelta

import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.authentication import Reach, token_digest, within
from macadam.access.bootstrap import new_secret
from macadam.access.schema import tokens
from macadam.access.service import PLATFORM, find_principal
from macadam.access.types import IssuedToken, IssueToken, ListTokens, RevokeToken, RotateToken, Token
from macadam.errors import Conflict, InvalidInput, NotAuthorised, NotFound
from macadam.operations import Transaction, operation
from macadam.settings import Access
from macadam.values import uuid7

_PERSON_HOURS = 30 * 24


@operation(IssueToken, permission="tokens:issue", http="POST /api/v1/tokens", cli="tokens issue",
           resource=PLATFORM, secret_answer=True)  # fmt: skip
def issue_token(tx: Transaction, request: IssueToken) -> IssuedToken:
    """Raises NotAuthorised if it would reach further, last longer or belong to somebody else without tokens:manage."""
    holder = find_principal(tx.sql, request.principal)
    if holder.disabled is not None:
        raise Conflict(f"{holder.id} is disabled.", next_step="Issue the token to an active principal.")
    reach = Reach(scopes=request.scopes, projects=request.projects, assets=request.assets)
    expires = tx.now + _lifetime(tx.ports.settings.access, holder.kind, request)
    _check_reach(tx, holder.id, reach, expires)
    issued = add(tx.sql, holder.id, reach, issued=tx.now, expires=expires, by=tx.actor.id)
    tx.record(f"token:{issued.id}", uses=[holder.id], expires=expires, **facts_of(reach))
    return issued


def facts_of(reach: Reach) -> dict[str, object]:
    """A reach as a leaf says it."""
    return {"scopes": reach.scopes, "projects": reach.projects, "assets": reach.assets}


def add(sql: sa.Connection, holder: str, reach: Reach, *, issued: datetime, expires: datetime, by: str) -> IssuedToken:
    """Stores a new credential's hash, and returns the credential. Its leaf is the caller's."""
    secret, token_id = new_secret(), uuid7()
    sql.execute(
        sa.insert(tokens).values(
            id=token_id,
            digest=token_digest(secret),
            principal=holder,
            scopes=list(reach.scopes),
            projects=list(reach.projects),
            assets=list(reach.assets),
            issued=issued,
            issued_by=by,
            expires=expires,
        )
    )
    access.touch(sql)
    return IssuedToken(
        id=token_id,
        principal=holder,
        token=secret,
        scopes=reach.scopes,
        projects=reach.projects,
        assets=reach.assets,
        expires=expires,
    )


def _lifetime(limits: Access, kind: str, request: IssueToken) -> timedelta:
    """Raises InvalidInput if a service's would be longer than the setting allows."""
    if request.days is not None and request.hours is not None:
        raise InvalidInput("Both days and hours were given.", next_step="Give one of them.")
    service = kind == "service"
    hours = request.hours if request.days is None else 24 * request.days
    if hours is None:
        hours = limits.service_hours if service else _PERSON_HOURS
    if service and hours > limits.service_most_hours:
        raise InvalidInput(
            f"A service's token lasts {limits.service_most_hours} hours at most, asked for were {hours}.",
            next_step="Ask for less and rotate it (`macadam tokens rotate`), or raise MACADAM_SERVICE_TOKEN_MOST.",
        )
    return timedelta(hours=hours)


def _check_reach(tx: Transaction, holder: str, reach: Reach, expires: datetime) -> None:
    """A token is no way to get more than one has: not by reach, not by time, not by taking another's name."""
    _require_token(tx)
    own = own_token(tx)
    _check_within(own, reach)
    if _manages_tokens(tx):
        return
    if holder != tx.actor.id:
        tx.authorise("tokens:manage", PLATFORM)
    if own is not None and own.expires is not None and expires > own.expires:
        raise NotAuthorised(
            f"A token that expires at {own.expires:%Y-%m-%d %H:%M} UTC cannot issue one that lasts longer.",
            next_step="Ask for less time, or ask an administrator for a new token.",
        )


def _require_token(tx: Transaction) -> None:
    """A workload's certificate makes no tokens: they would outlive it, and reach where it is not known."""
    if not tx.actor.token:
        raise NotAuthorised(
            f"{tx.actor.id} proved itself by a certificate, and so is known without a token.",
            next_step="Use the certificate; an administrator can issue tokens.",
        )


def _check_within(own: Token | None, reach: Reach) -> None:
    limit = _reach_of(own) if own is not None else Reach()
    if not within(reach, limit):
        raise NotAuthorised(
            f"A token limited to {limit} cannot issue one with {reach}.",
            next_step="Ask for no more than the present token has, in each of scopes, projects and assets.",
        )


def _reach_of(token: Token) -> Reach:
    return Reach(scopes=token.scopes, projects=token.projects, assets=token.assets)


@operation(RotateToken, permission="tokens:rotate", http="POST /api/v1/tokens/{token_id}/rotate", cli="tokens rotate",
           resource=PLATFORM, secret_answer=True)  # fmt: skip
def rotate_token(tx: Transaction, request: RotateToken) -> IssuedToken:
    """Raises NotFound like `revoke_token`, Conflict if it has ended, was rotated before or never ends.

    The new one reaches as far as the old one. A service's lasts as long as the old one was issued for; a person's ends
    when the old one would have, unless an administrator rotates it: nobody stays signed in by rotating.
    """
    _require_token(tx)
    old = _touchable(tx, request.token_id)
    holder = find_principal(tx.sql, old.principal)
    expires = _rotatable(old, tx.now)
    _check_within(own_token(tx), _reach_of(old))
    if holder.kind == "service" or _manages_tokens(tx):
        expires = tx.now + (expires - old.issued)
    new = add(tx.sql, old.principal, _reach_of(old), issued=tx.now, expires=expires, by=tx.actor.id)
    ends = min(tx.now + timedelta(seconds=request.grace), old.expires or expires)
    # Without grace it is revoked and keeps its expiry: the revocation list leaves out what has expired anyway, and
    # gateways, and a database restored from before, know only the old expiry.
    end: dict[str, object] = {"expires": ends} if request.grace else {"revoked": tx.now}
    changes = {"replaced_by": new.id, **end}
    tx.sql.execute(sa.update(tokens).where(tokens.c.id == old.id).values(changes))
    uses = [old.principal, f"token:{old.id}"]
    tx.record(f"token:{new.id}", uses=uses, rotated=old.id, old_ends=ends, expires=expires, **facts_of(_reach_of(old)))
    return new


def _rotatable(old: Token, now: datetime) -> datetime:
    """When it expires. Raises Conflict."""
    if old.expires is None:
        raise Conflict(
            "The home's own administrator's token never ends, and its secret lies in the secrets store.",
            next_step="Issue another token (`macadam tokens issue`), and rotate that one.",
        )
    if old.revoked is not None or old.replaced_by is not None or old.expires <= now:
        raise Conflict(
            f"The token {old.id} has ended or was rotated before.", next_step="Issue a new one: `macadam tokens issue`."
        )
    return old.expires


def _touchable(tx: Transaction, token_id: str) -> Token:
    """A token of the caller's, or anyone's for who manages tokens. Raises NotFound: ids are not confirmed to strangers."""
    row = tx.sql.execute(sa.select(tokens).where(tokens.c.id == token_id)).first()
    if row is None or (row.principal != tx.actor.id and not _manages_tokens(tx)):
        raise NotFound(f"There is no token {token_id!r}.", next_step="List the tokens to see their ids.")
    return _token(row)


def _manages_tokens(tx: Transaction) -> bool:
    return access.engine(tx.sql).decide(tx.actor, "tokens:manage", PLATFORM, "").allowed


def own_token(tx: Transaction) -> Token | None:
    """The credential of this call."""
    row = tx.sql.execute(sa.select(tokens).where(tokens.c.id == tx.actor.token)).first()
    return None if row is None else _token(row)


@operation(RevokeToken, permission="tokens:revoke", http="POST /api/v1/tokens/{token_id}/revoke", cli="tokens revoke",
           resource=PLATFORM)  # fmt: skip
def revoke_token(tx: Transaction, request: RevokeToken) -> Token:
    """Raises NotFound, also for another's token without tokens:manage."""
    found = _touchable(tx, request.token_id)
    if found.revoked is None:
        tx.sql.execute(sa.update(tokens).where(tokens.c.id == found.id).values(revoked=tx.now))
        access.touch(tx.sql)
    tx.record(f"token:{found.id}", uses=[found.principal], revoked=True)
    return _token(tx.sql.execute(sa.select(tokens).where(tokens.c.id == found.id)).one())


@operation(ListTokens, permission="tokens:read", http="GET /api/v1/tokens", cli="tokens list", resource=PLATFORM)
def list_tokens(tx: Transaction, _request: ListTokens) -> tuple[Token, ...]:
    query = sa.select(tokens).order_by(tokens.c.id)
    # Who may list principals may see everybody's credentials (never their secrets); the others see their own.
    if not access.engine(tx.sql).decide(tx.actor, "principals:read", PLATFORM, "").allowed:
        query = query.where(tokens.c.principal == tx.actor.id)
    return tuple(_token(row) for row in tx.sql.execute(query))


def _token(row: sa.Row[tuple[object, ...]]) -> Token:
    known = row._asdict()
    del known["digest"]
    for limit in ("scopes", "projects", "assets"):
        known[limit] = tuple(known[limit])
    return Token(**known)
