"""Who holds a credential, and how far that credential reaches: the part of access that is about tokens.

Everything here is in memory and without SQL. What the holder's roles allow is for `engine`; issuing, rotating and
revoking for `token_service`. Whatever is wrong with a token, saying so takes the same words and the same work.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from macadam.errors import NotAuthenticated
from macadam.operations import Actor

TOKEN_PREFIX = "mcd_"  # noqa: S105 - lets secret scanners recognise a leaked one
LONGEST_TOKEN = 200
"""Characters that are looked at. Ours have 47; what is longer is nobody's, and costs no more than this to refuse."""
PERSONAL = frozenset({"principals:self", "projects:list", "tokens:issue", "tokens:rotate"})
"""What a token limited to projects or assets still does for itself: none of it reaches an asset, nothing it issues
reaches further, and projects are listed by what it may read."""
_RENEW = "Ask an administrator for a new token (`macadam tokens issue`), or sign in again (`macadam login`)."
_ALL = "*"


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """How far a credential goes, whatever its holder's roles allow. Empty: no limit in that dimension.

    scopes: permissions, 'NOUN:*' or '*'. projects: names, or '*'. assets: references such as 'endpoint:delay',
    'model:*' or '*'.
    """

    scopes: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [
            f"{what} {', '.join(some)}"
            for what, some in (("scopes:", self.scopes), ("projects:", self.projects), ("assets:", self.assets))
            if some
        ]
        return "; ".join(said) or "no limit"


class KnownToken(Reach, frozen=True, kw_only=True):
    """What is to be known of a credential that is not revoked."""

    id: str
    principal: str
    expires: datetime | None = None


class Holder(Protocol):
    """What is to be known of a principal. kind: 'person' or 'service'."""

    @property
    def kind(self) -> str: ...
    @property
    def active(self) -> bool: ...


class _Nobody(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = "unknown"
    active: bool = False


def token_digest(token: str) -> str:
    """What is stored of a token. Plain SHA-256: the secret has 256 random bits, so there is nothing to guess."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


_NOBODY = _Nobody()
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_FOREVER = datetime.max.replace(tzinfo=UTC)
_NO_TOKEN = KnownToken(id="", principal="", expires=_LONG_AGO)
"""Stands in for an unknown one, so that it goes the whole way to the same refusal."""


def covers(reach: Reach, permission: str, resource: str, project: str) -> bool:
    """Whether a credential reaches a permission on an asset. project: '' or '*' is the platform, of no project."""
    if not _covers_permission(reach.scopes, permission):
        return False
    if not (reach.projects or reach.assets) or (permission in PERSONAL and project in ("", _ALL)):
        return True
    return _covers_project(reach.projects, project) and _covers_asset(reach.assets, resource)


def within(inner: Reach, outer: Reach) -> bool:
    """Whether nothing that `inner` reaches is out of `outer`'s: what a token may issue, dimension by dimension."""
    return (
        _within(inner.scopes, outer.scopes, _covers_permission)
        and _within(inner.projects, outer.projects, _covers_project)
        and _within(inner.assets, outer.assets, _covers_asset)
    )


class _Covers(Protocol):
    def __call__(self, limit: tuple[str, ...], one: str, /) -> bool: ...


def _within(inner: tuple[str, ...], limit: tuple[str, ...], covers_one: _Covers) -> bool:
    """Each entry of the inner, patterns included, is covered by the limit; no entries mean everything."""
    return not limit or (bool(inner) and all(covers_one(limit, one) for one in inner))


def _covers_permission(scopes: tuple[str, ...], permission: str) -> bool:
    return not scopes or _ALL in scopes or permission in scopes or f"{permission.partition(':')[0]}:*" in scopes


def _covers_project(projects: tuple[str, ...], project: str) -> bool:
    return not projects or _ALL in projects or (bool(project) and project in projects)


def _covers_asset(assets: tuple[str, ...], resource: str) -> bool:
    """A version is part of its asset: 'model:delay' reaches 'model:delay@3'."""
    if not assets or _ALL in assets or resource in assets:
        return True
    kind, _, name = resource.partition(":")
    return f"{kind}:*" in assets or (bool(name) and f"{kind}:{name.partition('@')[0]}" in assets)


class Credentials:
    """The tokens of one snapshot and who holds them. Safe to share between threads."""

    def __init__(self, tokens: Mapping[str, KnownToken], holders: Mapping[str, Holder]) -> None:
        """tokens: by `token_digest` of their secret."""
        self._tokens = tokens
        self._holders = holders
        self._by_id = {token.id: token for token in tokens.values()}

    def authenticate(self, token: str, now: datetime, revoked: Collection[str] = frozenset()) -> Actor:
        """Who holds `token`. Raises NotAuthenticated. revoked: ids of tokens that have ended since the snapshot.

        One path for every token: unknown, altered, expired, revoked and a disabled holder's are looked up, compared and
        refused by the same steps in the same order, so that neither words nor time tell them apart.
        """
        if not token:
            raise NotAuthenticated(
                "No token was sent.", next_step="Send `Authorization: Bearer TOKEN`, or set MACADAM_TOKEN."
            )
        # Looked up by a hash that a caller cannot steer, so the dictionary's own comparison tells nothing of the secret.
        known = self._tokens.get(token_digest(token[:LONGEST_TOKEN]), _NO_TOKEN)
        live = ((known.expires or _FOREVER) > now) & (known.id not in revoked) & (len(token) <= LONGEST_TOKEN)
        holder = self._holders.get(known.principal, _NOBODY)
        if not (live & holder.active):
            raise NotAuthenticated("The token is not valid: it is unknown, expired or revoked.", next_step=_RENEW)
        return Actor(id=known.principal, kind=holder.kind, token=known.id)

    def expiry(self, token: str) -> datetime | None:
        """When a known token ends, if it does."""
        known = self._tokens.get(token_digest(token[:LONGEST_TOKEN]))
        return known.expires if known is not None else None

    def reach(self, actor: Actor) -> Reach | None:
        """None: the actor names a token that these lack, which reaches nothing. An actor without one has no limit."""
        if not actor.token:
            return _NO_LIMIT
        token = self._by_id.get(actor.token)
        return token if token is not None and token.principal == actor.id else None


_NO_LIMIT = Reach()
