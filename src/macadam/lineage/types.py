"""What stood at a past date: each line with the leaf that it rests on, and the request that asks for it."""

from datetime import datetime
from typing import Annotated

import msgspec

from macadam.operations import Request
from macadam.values import Somewhere

Moment = Annotated[datetime, msgspec.Meta(tz=True, description="RFC 3339 with its zone, such as 2026-11-21T07:00:00Z")]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """since: when the leaf says that it became so. leaf, index: the ledger's leaf; index -1 while it waits."""

    since: str
    leaf: str
    index: int


class Judgement(Line, frozen=True, kw_only=True):
    """A gate's verdict or a person's approval. ref: 'gate:ID' or 'approval:ID'. by: who asked the gate, or approved."""

    ref: str
    by: str
    verdict: str


class PastPrincipal(Line, frozen=True, kw_only=True):
    """active: not disabled."""

    id: str
    kind: str
    active: bool


class PastRole(Line, frozen=True, kw_only=True):
    """project: '*' for all."""

    project: str
    principal: str
    role: str


class PastToken(Line, frozen=True, kw_only=True):
    """A credential that was live: neither revoked nor expired, its holder not disabled. expires: '' for never."""

    id: str
    principal: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...]
    assets: tuple[str, ...]
    expires: str


class PastPolicies(Line, frozen=True, kw_only=True):
    """The policies in force. project: '' for the platform's. version: of a project's own; 0: it had none of its own."""

    project: str
    policy_set: str
    version: int


class PastAlias(Line, frozen=True, kw_only=True):
    """version: 'model:NAME@N'. gate, approvals: what the move of the alias rested on."""

    project: str
    model: str
    alias: str
    version: str
    gate: Judgement | None
    approvals: tuple[Judgement, ...]


class PastEndpoint(Line, frozen=True, kw_only=True):
    """What answered. deployment: as each prediction names it. gate, approvals: of its version, when it was deployed."""

    project: str
    endpoint: str
    deployment: str
    version: str
    gate: Judgement | None
    approvals: tuple[Judgement, ...]


class PastState(msgspec.Struct, frozen=True, kw_only=True):
    """What stood at `at`, by the ledger alone. leaves: how many it was folded from. Each part is sorted.

    For one project: its roles and those held everywhere with their holders, its policies and the platform's, its
    aliases and endpoints. Tokens are the platform's, and left out.
    """

    at: str
    leaves: int
    principals: tuple[PastPrincipal, ...]
    roles: tuple[PastRole, ...]
    tokens: tuple[PastToken, ...]
    policies: tuple[PastPolicies, ...]
    aliases: tuple[PastAlias, ...]
    endpoints: tuple[PastEndpoint, ...]


class StateAt(Request[PastState], frozen=True, kw_only=True):
    """Say who held what role, what was champion, and on which evidence, at a past date: from the ledger alone.

    at: changes dated until then count, that instant included
    """

    project: Somewhere = "*"
    at: Moment
