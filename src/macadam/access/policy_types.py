"""Requests and values of a project's own policies."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.operations import Request
from macadam.values import Name

State = Literal["proposed", "approved", "active", "superseded"]
FileName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}\.cedar\Z",
        max_length=200,
        description="a path below the project, such as policies/purpose.cedar",
    ),
]
Files = dict[FileName, str]
TABLES = tuple(f"test.{kind}" for kind in ("yaml", "yml", "csv", "md"))
"""What a table of who may what is called that lies in the folder of the policies."""
Number = Annotated[int, msgspec.Meta(ge=1)]


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    by: str
    at: datetime


class PolicyVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A text that was proposed, and how far it came. needed: approvals that activating asks for, by people other than
    the proposer. counted: those approvals whose givers may still approve. policies: the names that decisions and leaves
    give them.
    """

    ref: str
    project: str
    version: int
    state: State
    policies: tuple[str, ...]
    approvals: tuple[Approval, ...]
    counted: int
    needed: int
    note: str
    proposed: datetime
    proposed_by: str
    files: dict[str, str] = {}


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """From when which version decided. version: 0 when the project had no policies of its own. policy_set: the digest
    that decisions named from then on.
    """

    project: str
    number: int
    version: int
    policy_set: str
    at: datetime
    by: str
    reason: str


class ProposePolicies(Request[PolicyVersion], frozen=True, kw_only=True):
    """Propose the policies of a project, all of them: what is not in the text will no longer hold.

    files: text by name, or @DIR for the files below a folder; note: why, for those who approve
    """

    project: Name
    files: Files
    note: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class ListPolicies(Request[tuple[PolicyVersion, ...]], frozen=True, kw_only=True):
    """List what was proposed as a project's policies, newest first, without the text."""

    project: Name


class ShowPolicies(Request[PolicyVersion], frozen=True, kw_only=True):
    """Show a project's policies with their text.

    version: 0 stands for those that are active
    """

    project: Name
    version: Annotated[int, msgspec.Meta(ge=0)] = 0


class PolicyHistory(Request[tuple[Activation, ...]], frozen=True, kw_only=True):
    """List which of a project's policies were in force from when, newest first."""

    project: Name


class ApprovePolicies(Request[PolicyVersion], frozen=True, kw_only=True):
    """Approve what somebody else proposed.

    ref: the reference that was reviewed; another text under the number is then refused
    """

    project: Name
    version: Number
    ref: str = ""


class ActivatePolicies(Request[Activation], frozen=True, kw_only=True):
    """Put an approved version in force, here and on every gateway.

    instead_of: the version that is in force until then, 0 for none; if it is another, nothing is done. Default: any
    """

    project: Name
    version: Number
    instead_of: Annotated[int, msgspec.Meta(ge=0)] | None = None


class RollBackPolicies(Request[Activation], frozen=True, kw_only=True):
    """Put in force again what was in force before.

    to: a version that was in force once, 0 for no policies of the project's own; default: the one before the present
    """

    project: Name
    to: Annotated[int, msgspec.Meta(ge=0)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Recorded calls of one principal that would be decided otherwise. roles: that it held at the last of them."""

    verdict: str
    who: str
    roles: tuple[str, ...]
    permission: str
    calls: int
    examples: tuple[str, ...]
    first: datetime
    last: datetime


class MatrixChange(msgspec.Struct, frozen=True, kw_only=True):
    """A role and a permission that the policies would speak otherwise about. kind: person or service."""

    role: str
    kind: str
    permission: str
    verdict: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What proposed policies would change, against those in force. replayed: recorded decisions asked again.

    otherwise: of these, decisions that the policies in force would make otherwise than recorded, since they changed or
    because the ledger does not say all that was known: how far the counts can be trusted. Readings that were allowed
    are not in the ledger; the table of roles covers them.
    """

    project: str
    days: int
    replayed: int
    otherwise: int
    newly_denied: int
    newly_allowed: int
    changes: tuple[Change, ...]
    roles: tuple[MatrixChange, ...]


class DiffPolicies(Request[Difference], frozen=True, kw_only=True):
    """Say what proposed policies would change: for the decisions of the last days, and for each role.

    files: text by name, or @DIR for the files below a folder; days: how far back recorded decisions are asked again
    """

    project: Name
    files: dict[FileName, str]
    days: Annotated[int, msgspec.Meta(ge=1, le=3660)] = 30
