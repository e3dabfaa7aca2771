"""Requests and values of the access room: projects, principals, roles and tokens."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.operations import Request
from macadam.values import Name, Somewhere

Role = Literal["viewer", "developer", "approver", "operator", "auditor", "admin", "caller", "gateway"]
Risk = Literal["minimal", "limited", "high"]
Kind = Literal["person", "service"]
ROLES: tuple[Role, ...] = ("viewer", "developer", "approver", "operator", "auditor", "admin", "caller", "gateway")

PrincipalName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^((principal|service):)?[a-z][a-z0-9._-]{0,62}\Z",
        description="principal:NAME for a person, service:NAME for a service, or NAME alone",
    ),
]
Owner = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(((principal|service):)?[a-z][a-z0-9._-]{0,62})?\Z",
        description="a principal; empty: the caller",
    ),
]
Scope = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(\*|[a-z_]+:(\*|[a-z_]+))\Z",
        description="a permission, NOUN:* for all of a noun's, or * for all",
    ),
]

ProjectPattern = Annotated[
    str, msgspec.Meta(pattern=r"^(\*|[a-z][a-z0-9_-]{0,62})\Z", description="a project's name, or * for all")
]
AssetPattern = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(\*|[a-z_]+:(\*|[A-Za-z0-9][A-Za-z0-9._/@-]{0,199}))\Z",
        description="an asset such as endpoint:delay, KIND:* for all of a kind, or * for all",
    ),
]
Entries = msgspec.Meta(max_length=100)


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
    """What is known of a credential: everything but its secret.

    scopes, projects, assets: what it is limited to; empty = all that its principal may. expires: None only for the
    home's own administrator, whose secret lies beside the database it opens. replaced_by: the token it was rotated to.
    """

    id: str
    principal: str
    scopes: tuple[str, ...]
    issued: datetime
    issued_by: str
    expires: datetime | None
    revoked: datetime | None = None
    projects: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    replaced_by: str | None = None


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """token: the credential itself. It is shown this once and stored nowhere."""

    id: str
    principal: str
    token: str
    scopes: tuple[str, ...]
    expires: datetime
    projects: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()


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
    """Issue a credential, for oneself or (as an administrator) for another principal.

    days or hours: until it expires; neither: 30 days for a person, MACADAM_SERVICE_TOKEN_HOURS for a service. scopes,
    projects, assets: what it is limited to; without one of them there is no limit of that kind.
    """

    principal: PrincipalName
    days: Annotated[int, msgspec.Meta(ge=1, le=365)] | None = None
    hours: Annotated[int, msgspec.Meta(ge=1, le=8760)] | None = None
    scopes: Annotated[tuple[Scope, ...], Entries] = ()
    projects: Annotated[tuple[ProjectPattern, ...], Entries] = ()
    assets: Annotated[tuple[AssetPattern, ...], Entries] = ()


class RotateToken(Request[IssuedToken], frozen=True, kw_only=True):
    """Replace a credential's secret: the new one reaches as far, the old one ends after the grace. grace: seconds."""

    token_id: str
    grace: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 300


class RevokeToken(Request[Token], frozen=True, kw_only=True):
    """Revoke a credential at once, one's own or (as an administrator) another's."""

    token_id: str


class ListTokens(Request[tuple[Token, ...]], frozen=True, kw_only=True):
    """List credentials without their secrets: one's own, or (for administrators and auditors) all."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Who an identity of a sign-in provider is here. identity: the value of the claim that MACADAM_OIDC_CLAIM names."""

    id: str
    issuer: str
    identity: str
    principal: str
    linked: datetime
    linked_by: str


class GroupRole(msgspec.Struct, frozen=True, kw_only=True):
    """A role that members of a provider's group hold, from their next sign-in on."""

    group: str
    project: str
    role: str
    mapped: datetime
    mapped_by: str


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """How much a principal may ask, where that differs from the settings. per_second: 0 = no limit."""

    principal: str
    per_second: float
    burst: int
    since: datetime
    set_by: str


class DenialCount(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway refused within a minute. actor: '' for nobody known; count: how often."""

    actor: str
    project: str
    asset: str
    reason: str
    status: int
    count: int


class DenialReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded. known: whether the same report was in the ledger already."""

    report: str
    denials: int
    known: bool


IdentityText = Annotated[str, msgspec.Meta(min_length=1, max_length=300, description="as the provider's claim has it")]
IssuerUrl = Annotated[
    str, msgspec.Meta(pattern=r"^(https?://[!-~]{1,290})?\Z", description="empty: the one that is set up")
]
GroupName = Annotated[str, msgspec.Meta(min_length=1, max_length=200, description="as the provider's claim has it")]


class LinkIdentity(Request[Link], frozen=True, kw_only=True):
    """Let a person sign in: say which principal an identity of the sign-in provider is."""

    principal: PrincipalName
    identity: IdentityText
    issuer: IssuerUrl = ""


class UnlinkIdentity(Request[Link], frozen=True, kw_only=True):
    """Take a link back: the identity no longer signs in. Tokens that it got remain until they end or are revoked."""

    identity: IdentityText
    issuer: IssuerUrl = ""


class ListLinks(Request[tuple[Link, ...]], frozen=True, kw_only=True):
    """List which identities of sign-in providers are which principals."""


class MapGroup(Request[GroupRole], frozen=True, kw_only=True):
    """Let members of a provider's group hold a role; it is given, and taken back, at each sign-in."""

    project: Somewhere
    group: GroupName
    role: Role


class UnmapGroup(Request[GroupRole], frozen=True, kw_only=True):
    """Take a group's role back. Who holds it by the group loses it at once."""

    project: Somewhere
    group: GroupName
    role: Role


class ListGroups(Request[tuple[GroupRole, ...]], frozen=True, kw_only=True):
    """List which groups of the sign-in provider hold which roles in a project, and in all."""

    project: Somewhere


class LimitRate(Request[Rate], frozen=True, kw_only=True):
    """Set how much one principal may ask, at the control plane and at each gateway. per_second: 0 = no limit."""

    principal: PrincipalName
    per_second: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
    burst: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]


class ListRates(Request[tuple[Rate, ...]], frozen=True, kw_only=True):
    """List the principals whose limits differ from the settings."""


class RecordDenials(Request[DenialReport], frozen=True, kw_only=True):
    """Record in the ledger what a gateway refused within a minute. The same report twice is recorded once."""

    report: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,200}\Z")]
    denials: Annotated[tuple[DenialCount, ...], msgspec.Meta(max_length=300)]
    others: Annotated[int, msgspec.Meta(ge=0)] = 0


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A program with an identity. external: another SPIFFE authority issues its certificates.

    certified, expires: its newest certificate, None if it has none from here. revoked: since when.
    """

    name: str
    principal: str
    spiffe_id: str
    external: bool
    created: datetime
    created_by: str
    certified: datetime | None = None
    expires: datetime | None = None
    revoked: datetime | None = None


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload needs for its first certificate. join: works once, until `expires`; shown this once.

    authorities: the certificates (PEM) that it trusts.
    """

    workload: str
    principal: str
    spiffe_id: str
    join: str
    authorities: str
    expires: datetime


class Certified(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate (PEM), and the authorities (PEM) in force. expires: UTC; ask again half-way there."""

    certificate: str
    authorities: str
    expires: datetime


class EnrollWorkload(Request[Enrolment], frozen=True, kw_only=True):
    """Enroll a workload: a service that proves itself by a certificate. projects: whose endpoints it serves.

    spiffe_id: only if another SPIFFE authority issues its certificates. minutes: until the join token ends. Enrolling
    again lets a workload join anew, also after it was revoked.
    """

    workload: Name
    projects: tuple[Name, ...] = ()
    spiffe_id: Annotated[str, msgspec.Meta(max_length=400)] = ""
    minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 60


class CertifyWorkload(Request[Certified], frozen=True, kw_only=True):
    """Ask for a certificate for oneself. request: PKCS#10 in PEM, of an EC key on curve P-256."""

    request: Annotated[str, msgspec.Meta(max_length=8192)]


class RevokeWorkload(Request[Workload], frozen=True, kw_only=True):
    """Revoke a workload: its certificates are refused from its next call on, and no new one is issued."""

    workload: Name


class ListWorkloads(Request[tuple[Workload, ...]], frozen=True, kw_only=True):
    """List workloads."""
