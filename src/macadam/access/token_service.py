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
from macadam.access.types import IssuedToken, IssueToken, ListTokens, RevokeToken, Token
from macadam.errors import Conflict, NotAuthorised, NotFound
from macadam.operations import Transaction, operation
from macadam.values import uuid7


@operation(IssueToken, permission="tokens:issue", http="POST /api/v1/tokens", cli="tokens issue",
           resource=PLATFORM, secret_answer=True)  # fmt: skip
def issue_token(tx: Transaction, request: IssueToken) -> IssuedToken:
    """Raises NotAuthorised if it would reach further, last longer or belong to somebody else without tokens:manage."""
    holder = find_principal(tx.sql, request.principal)
    if holder.disabled is not None:
        raise Conflict(f"{holder.id} is disabled.", next_step="Issue the token to an active principal.")
    expires = tx.now + timedelta(days=request.days)
    _check_reach(tx, holder.id, request.scopes, expires)
    secret, token_id = new_secret(), uuid7()
    tx.sql.execute(
        sa.insert(tokens).values(
            id=token_id,
            digest=token_digest(secret),
            principal=holder.id,
            scopes=list(request.scopes),
            issued=tx.now,
            issued_by=tx.actor.id,
            expires=expires,
        )
    )
    access.touch(tx.sql)
    tx.record(f"token:{token_id}", uses=[holder.id], scopes=request.scopes, expires=expires)
    return IssuedToken(id=token_id, principal=holder.id, token=secret, scopes=request.scopes, expires=expires)


def _check_reach(tx: Transaction, holder: str, scopes: tuple[str, ...], expires: datetime) -> None:
    """A token is no way to get more than one has: not by scope, not by time, not by taking another's name."""
    own = _own_token(tx)
    if own is not None and own.scopes and not within(Reach(scopes=scopes), Reach(scopes=own.scopes)):
        raise NotAuthorised(
            f"A token limited to {', '.join(own.scopes)} cannot issue one for {', '.join(scopes) or 'everything'}.",
            next_step="Ask for scopes that the present token has.",
        )
    if _manages_tokens(tx):
        return
    if holder != tx.actor.id:
        tx.authorise("tokens:manage", PLATFORM)
    if own is not None and own.expires is not None and expires > own.expires:
        raise NotAuthorised(
            f"A token that expires at {own.expires:%Y-%m-%d %H:%M} UTC cannot issue one that lasts longer.",
            next_step="Ask for fewer days, or ask an administrator for a new token.",
        )


def _manages_tokens(tx: Transaction) -> bool:
    return access.engine(tx.sql).decide(tx.actor, "tokens:manage", PLATFORM, "").allowed


def _own_token(tx: Transaction) -> Token | None:
    """The credential of this call."""
    row = tx.sql.execute(sa.select(tokens).where(tokens.c.id == tx.actor.token)).first()
    return None if row is None else _token(row)


@operation(RevokeToken, permission="tokens:revoke", http="POST /api/v1/tokens/{token_id}/revoke", cli="tokens revoke",
           resource=PLATFORM)  # fmt: skip
def revoke_token(tx: Transaction, request: RevokeToken) -> Token:
    """Raises NotFound, also for another's token without tokens:manage: ids are not confirmed to strangers."""
    row = tx.sql.execute(sa.select(tokens).where(tokens.c.id == request.token_id)).first()
    if row is None or (row.principal != tx.actor.id and not _manages_tokens(tx)):
        raise NotFound(f"There is no token {request.token_id!r}.", next_step="List the tokens to see their ids.")
    if row.revoked is None:
        tx.sql.execute(sa.update(tokens).where(tokens.c.id == row.id).values(revoked=tx.now))
        access.touch(tx.sql)
    tx.record(f"token:{row.id}", uses=[row.principal], revoked=True)
    return _token(tx.sql.execute(sa.select(tokens).where(tokens.c.id == row.id)).one())


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
    known["scopes"] = tuple(known["scopes"])
    return Token(**known)
