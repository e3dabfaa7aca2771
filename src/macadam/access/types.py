"""Requests and values of the access room: projects, principals, roles and tokens."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.operations import Request
from macadam.values import Name

Role = Literal["viewer", "developer", "approver", "operator", "auditor", "admin", "caller"]
Risk = Literal["minimal", "limited", "high"]
Kind = Literal["person", "service"]
ROLES: tuple[Role, ...] = ("viewer", "developer", "approver", "operator", "auditor", "admin", "caller")

PrincipalName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^((principal|service):)?[a-z][a-z0-9._-]{0,62}$",
        description="principal:NAME for a person, service:NAME for a service, or NAME alone",
    ),
]
Owner = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(((principal|service):)?[a-z][a-z0-9._-]{0,62})?$",
        description="a principal; empty: the caller",
    ),
]
Somewhere = Annotated[
    str, msgspec.Meta(pattern=r"^(\*|[a-z][a-z0-9_-]{0,62})$", description="a project's name, or * for all")
]
Scope = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(\*|[a-z_]+:(\*|[a-z_]+))$",
        description="a permission, NOUN:* for all of a noun's, or * for all",
    ),
]


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A space that owns assets. risk: its class under the EU AI Act; location: where its files live."""

    name: str
    owner: str
    description: str
    risk: str
    location: str
    created: datetime
    created_by: str


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A person or a service. id: 'principal:alice' or 'service:replay'. disabled: since when, if at all."""

    id: str
    kind: str
    created: datetime
    created_by: str
    disabled: datetime | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One role of one principal, in a project or in all ('*')."""

    project: str
    principal: str
    role: str
    granted: datetime
    granted_by: str


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a credential: everything but its secret. scopes: empty = all that its principal may.

    expires: None only for the home's own administrator, whose secret lies beside the database it opens.
    """

    id: str
    principal: str
    scopes: tuple[str, ...]
    issued: datetime
    issued_by: str
    expires: datetime | None
    revoked: datetime | None = None


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """token: the credential itself. It is shown this once and stored nowhere."""

    id: str
    principal: str
    token: str
    scopes: tuple[str, ...]
    expires: datetime


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who the caller is, as the platform sees it. roles: 'PROJECT: ROLE', '*' for all projects."""

    id: str
    kind: str
    token: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...]
    assets: tuple[str, ...]
    expires: datetime | None
    roles: tuple[str, ...]


class CreateProject(Request[Project], frozen=True, kw_only=True):
    """Create a project: a space that owns assets, budgets and policies."""

    project: Name
    owner: Owner = ""
    description: str = ""
    risk: Risk = "limited"
    location: str = ""


class ListProjects(Request[tuple[Project, ...]], frozen=True, kw_only=True):
    """List the projects that the caller may read."""


class ShowProject(Request[Project], frozen=True, kw_only=True):
    """Show one project."""

    project: Name


class CreatePrincipal(Request[Principal], frozen=True, kw_only=True):
    """Make a person or a service known. It may do nothing until it is granted a role."""

    principal: PrincipalName
    kind: Kind | Literal[""] = ""


class DisablePrincipal(Request[Principal], frozen=True, kw_only=True):
    """Shut a person or service out: all its tokens are revoked and no new ones can be issued."""

    principal: PrincipalName


class ListPrincipals(Request[tuple[Principal, ...]], frozen=True, kw_only=True):
    """List people and services."""


class WhoAmI(Request[Identity], frozen=True, kw_only=True):
    """Say who the caller is and which roles it holds."""


class GrantRole(Request[Grant], frozen=True, kw_only=True):
    """Grant a role in a project, or in all ('*'). Granting what is granted changes nothing."""

    project: Somewhere
    principal: PrincipalName
    role: Role


class RevokeRole(Request[Grant], frozen=True, kw_only=True):
    """Take a role back. The last active administrator of the platform stays one."""

    project: Somewhere
    principal: PrincipalName
    role: Role


class ListRoles(Request[tuple[Grant, ...]], frozen=True, kw_only=True):
    """List who holds which role in a project, roles held in all projects included."""

    project: Somewhere


class IssueToken(Request[IssuedToken], frozen=True, kw_only=True):
    """Issue a credential, for oneself or (as an administrator) for another principal. days: until it expires."""

    principal: PrincipalName
    days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 30
    scopes: tuple[Scope, ...] = ()


class RevokeToken(Request[Token], frozen=True, kw_only=True):
    """Revoke a credential at once, one's own or (as an administrator) another's."""

    token_id: str


class ListTokens(Request[tuple[Token, ...]], frozen=True, kw_only=True):
    """List credentials without their secrets: one's own, or (for administrators and auditors) all."""
