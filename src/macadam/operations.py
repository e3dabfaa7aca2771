"""The one door: every state change and every reading is an operation, declared once.

A declaration is a typed request, its permission, HTTP path and CLI verb, and the function that carries it
out. REST, CLI, client and reference pages derive from the table of declarations; the dispatcher in
`macadam.app` authenticates, authorises, validates, runs it in one transaction and records it.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, get_args

import msgspec

from macadam.errors import InvalidInput, NotAuthorised
from macadam.ports import Ports
from macadam.values import instant

if TYPE_CHECKING:
    import sqlalchemy as sa

R = TypeVar("R")
Q = TypeVar("Q")
P = TypeVar("P")

# Where the operations of each CLI group are declared, so that `macadam --help` imports none of them and
# `macadam models …` imports one room. Name → (modules, what the group is about).
GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "projects": (("macadam.access.service",), "Spaces that own assets, budgets and policies"),
    "principals": (
        ("macadam.access.service", "macadam.access.sign_in", "macadam.access.limit_service"),
        "People and services",
    ),
    "roles": (("macadam.access.service", "macadam.access.sign_in"), "Who may do what in which project"),
    "policy": (("macadam.access.policy_service",), "A project's own policies: who may do what, and why"),
    "tokens": (("macadam.access.token_service",), "Credentials: issue, rotate, list, revoke"),
    "workloads": (
        ("macadam.access.workloads", "macadam.serving.link_service"),
        "Programs that prove themselves by certificates, and gateways on other machines",
    ),
    "journal": (("macadam.journal.service", "macadam.serving.journal_service"), "Segments of prediction records"),
    "ledger": (
        (
            "macadam.ledger.service",
            "macadam.ledger.reading",
            "macadam.ledger.proofs",
            "macadam.lineage.service",
            "macadam.ledger.key_service",
        ),
        "The record that cannot be rewritten",
    ),
    "keys": (("macadam.ledger.key_service",), "How the home's private keys are kept at rest"),
    "contracts": (("macadam.data.service",), "What data must look like (ODCS)"),
    "sources": (("macadam.data.service",), "Where data comes from"),
    "tables": (("macadam.data.service",), "Published snapshots and quarantine"),
    "views": (("macadam.features.service",), "Features: defined once, used three times"),
    "training-sets": (("macadam.features.service",), "Point-in-time correct rows to learn from"),
    "online": (("macadam.features.service",), "Feature values for the request path"),
    "runs": (("macadam.models.service",), "Training, tracked and reproducible"),
    "models": (
        ("macadam.models.service", "macadam.models.gate_service", "macadam.models.supply_service"),
        "Registered models, versions and aliases",
    ),
    "evaluations": (("macadam.models.gate_service",), "Measured quality against thresholds set before"),
    "gates": (("macadam.models.gate_service",), "What a version must show, and who approved it"),
    "endpoints": (
        ("macadam.serving.service", "macadam.serving.prediction_service"),
        "Where a version answers requests",
    ),
    "predictions": (("macadam.serving.prediction_service",), "Answers given, feedback, proofs"),
    "erase": (("macadam.serving.erasure",), "People whose values are destroyed, with a certificate"),
    "gpu": (("macadam.compute.telemetry.service",), "What GPUs and hosts do, for whom, and what of it can be believed"),
    "cost": (
        (
            "macadam.compute.billing.service",
            "macadam.compute.billing.price_service",
            "macadam.compute.waterfall.service",
            "macadam.compute.waterfall.allocation_service",
            "macadam.serving.cost_service",
        ),
        "What compute costs, and where the money goes",
    ),
    "budgets": (("macadam.compute.billing.budget_service",), "What a project may spend: forecast, alerts, hard stops"),
    "jobs": (
        (
            "macadam.compute.jobs.service",
            "macadam.compute.jobs.executor_service",
            "macadam.compute.jobs.price_service",
            "macadam.compute.jobs.render_service",
        ),
        "Work on shared machines: submit, explain, logs, cancel",
    ),
    "quotas": (
        ("macadam.compute.jobs.quota_service", "macadam.compute.jobs.render_service"),
        "Who may use how much, and who lends to whom",
    ),
    "advice": (("macadam.compute.advice.service",), "What would cost less, and what it saved once taken"),
    "simulate": ((), "Studies on traces: packing, queues, spot"),
    "rightsize": ((), "The cheapest machines that keep a promise"),
    "decide": ((), "Train, fine-tune, prompt or buy: where it breaks even"),
    "inspection": (("macadam.governance.service",), "The 42 points"),
}


class Request(msgspec.Struct, Generic[R], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all requests; `Request[Response]` names the response type."""

    @classmethod
    def response_type(cls) -> Any:
        """The type argument: `Request[Response]` → Response."""
        for base in getattr(cls, "__orig_bases__", ()):
            if get_args(base) and not isinstance(get_args(base)[0], TypeVar):
                return get_args(base)[0]
        raise TypeError(f"{cls.__name__} must derive from Request[Response]")


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls: a principal, proved by a token. id: 'principal:alice' or 'service:replay'."""

    id: str
    kind: str
    token: str = ""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller says of its call, for policies that ask: what it is for, and from where. Empty: nothing said.

    Nobody has proved it: a policy can demand that it is said, and the ledger keeps what was said.
    """

    purpose: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z|^\Z")] = ""
    location: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z|^\Z")] = ""


UNDECLARED = Declared()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the policies said, and which of them said it. policy_set: digest of the policies' text."""

    id: str
    allowed: bool
    policies: tuple[str, ...]
    policy_set: str
    reason: str = ""


class Granted:
    """That the policies allow one permission on one asset: what reading an asset takes, at the asset itself.

    Only a decision that allows makes one, and each accessor names those it takes. So whoever writes a new way to an
    asset cannot forget to ask: there is nothing else to call the accessor with.
    """

    __slots__ = ("decision", "permission", "resource")

    def __init__(self, decision: Decision, permission: str, resource: str) -> None:
        """Raises NotAuthorised for a decision that denies."""
        self.decision, self.permission, self.resource = decision, permission, resource
        if not decision.allowed:
            raise self._refusal(permission, resource)

    def require(self, resource: str, *permissions: str) -> None:
        """Raises NotAuthorised unless it is for this asset, or a version of it, and one of these permissions."""
        if self.permission not in permissions or self.resource != resource.partition("@")[0]:
            raise self._refusal(" or ".join(permissions), resource)

    def _refusal(self, permission: str, resource: str) -> NotAuthorised:
        return NotAuthorised(
            f"{permission} on {resource} was asked with what allows {self.permission} on {self.resource}.",
            next_step="Report it: the platform asked for one thing and read another.",
            details={"permission": permission, "resource": resource, "policies": list(self.decision.policies)},
        )


@dataclass(frozen=True, kw_only=True)
class Call:
    """One authorised call: who, what, where, when, and why it may."""

    operation: "Operation"
    actor: Actor
    project: str
    decision: Decision
    request_digest: str
    now: datetime
    declared: Declared = UNDECLARED


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a leaf says beside who and when: the subject, what it was made from, and facts about it."""

    subject: str
    uses: tuple[str, ...]
    body: dict[str, object]


Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are; 0 = unknown)."""

Authorise = Callable[[str, str], Granted]
"""Called with (permission, resource); raises NotAuthorised. For assets that an operation reads, or its request implies."""


@dataclass(kw_only=True)
class Transaction:
    """What a handler works with. Everything it changes in SQL, and its leaves, commit together or not at all.

    For a reading operation `sql` is a read snapshot and `record` is refused.
    """

    sql: "sa.Connection"
    call: Call
    ports: Ports
    sink: "Callable[[sa.Connection, Call, Evidence], str]"
    authorise: Authorise
    leaves: list[str] = field(default_factory=list)
    committed: list[Callable[[], None]] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        """The call's instant, UTC: the same for all that one call writes."""
        return self.call.now

    @property
    def actor(self) -> Actor:
        return self.call.actor

    def record(self, subject: object, *, uses: Sequence[object] = (), **body: object) -> str:
        """Queues a ledger leaf in this transaction and returns its id.

        subject and uses are references (`str()` of them is stored); the body is made plain by `plain`.
        """
        if not self.call.operation.changes:
            raise TypeError(f"{self.call.operation.name} is declared as reading, so it cannot record")
        facts = {key: plain(value) for key, value in body.items() if value is not None}
        evidence = Evidence(subject=str(subject), uses=tuple(str(u) for u in uses), body=facts)
        leaf = self.sink(self.sql, self.call, evidence)
        self.leaves.append(leaf)
        return leaf

    def after_commit(self, act: Callable[[], None]) -> None:
        """Has `act` called once the transaction is durable; what it does must be repeatable from SQL."""
        self.committed.append(act)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the part of an operation before its transaction works with: heavy work, immutable files, no SQL writes."""

    call: Call
    ports: Ports
    progress: Progress
    authorise: Authorise
    begin: "Callable[[Evidence], None]"

    def begun(self, subject: object, **body: object) -> None:
        """Records that what cannot be undone begins now, before it does, in a transaction that asks again for leave.

        From here on the call is carried out to its end, whatever is revoked meanwhile: among other changes its place is
        that of this leaf. Raises NotAuthenticated, NotAuthorised; then nothing may be destroyed.
        """
        facts = {key: plain(value) for key, value in body.items() if value is not None}
        self.begin(Evidence(subject=str(subject), uses=(), body={"begun": 1, **facts}))

    def read(self) -> "AbstractContextManager[sa.Connection]":
        """A read snapshot of SQL."""
        return self.ports.sql.read()


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One row of the table of operations."""

    name: str
    summary: str
    request: type[Request[Any]]
    permission: str
    http: str
    cli: str
    resource: str
    changes: bool
    prepare: Callable[[Context, Any], Any] | None
    handler: Callable[..., Any]
    secret_answer: bool = False
    private: bool = False

    @property
    def method(self) -> str:
        return self.http.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.http.partition(" ")[2]


_table: dict[str, Operation] = {}
_by_request: dict[type, Operation] = {}


def operation(  # noqa: PLR0913 - a declaration: every argument by its name
    request: type[Request[R]],
    *,
    permission: str,
    http: str,
    cli: str,
    resource: str = "project:{project}",
    prepare: Callable[[Context, Any], Any] | None = None,
    reads: bool | None = None,
    secret_answer: bool = False,
    private: bool = False,
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Declares the decorated function as an operation.

    The function is `handler(tx, request)`, or `handler(tx, request, prepared)` if `prepare(context, request)` does
    heavy work first. resource: the asset the policies are asked about, filled from the request's fields; every
    field it names must be in the HTTP path. reads: defaults to True for GET. secret_answer: the answer holds a
    credential, so it is never kept for repeated calls. private: the request holds personal data, so that leaves name it
    by a keyed digest: a plain one could be guessed.
    """

    def declare(handler: Callable[..., R]) -> Callable[..., R]:
        room = handler.__module__.split(".")[1]
        changes = not (http.startswith("GET ") if reads is None else reads)
        declared = Operation(
            name=f"{room}.{handler.__name__}",
            summary=(request.__doc__ or "").strip().partition("\n")[0],
            request=request,
            permission=permission,
            http=http,
            cli=cli,
            resource=resource,
            changes=changes,
            prepare=prepare,
            handler=handler,
            secret_answer=secret_answer,
            private=private,
        )
        _refuse_twins(declared)
        _table[declared.name] = declared
        _by_request[request] = declared
        return handler

    return declare


def _refuse_twins(new: Operation) -> None:
    for old in _table.values():
        if new.name != old.name and (new.http == old.http or new.cli == old.cli):
            raise TypeError(f"{new.name} and {old.name} share {new.http!r} or {new.cli!r}")


def load(group: str = "") -> None:
    """Imports the rooms that declare a CLI group's operations, or all of them."""
    for name, (modules, _) in GROUPS.items():
        if group in ("", name):
            for module in modules:
                importlib.import_module(module)


def table() -> Mapping[str, Operation]:
    """All operations by name. Loads every room."""
    load()
    return dict(sorted(_table.items()))


def of_request(request: type) -> Operation:
    """The operation that a request type belongs to."""
    return _by_request[request]


def in_group(group: str) -> list[Operation]:
    """The operations of one CLI group, in the order of declaration; loads only its rooms."""
    load(group)
    modules = GROUPS[group][0]
    found = [o for o in _table.values() if o.cli.split()[0] == group]
    # The table fills in the order in which rooms happen to be imported; help and reference pages must not depend on it.
    return sorted(found, key=lambda o: modules.index(o.handler.__module__))


def plain(value: object) -> object:
    """What a leaf may hold: str, int, list and dict. Floats become their shortest exact text, booleans 'true'
    and 'false', instants RFC 3339; None is left out of dicts.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{value} cannot be recorded.", next_step="Record only finite numbers.")
        return repr(value)
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, msgspec.Struct):
        return plain({f: getattr(value, f) for f in value.__struct_fields__})
    return str(value)
