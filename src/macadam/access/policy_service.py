"""A project's own policies as versions: proposed, approved by others, put in force, taken back.

What the text may say is for `policies.parsing`. Here is the way it takes: nobody approves what they proposed, where the
risk is high two others have to, and only a text that was approved, by people who still may, comes into force. Who may
take these steps is decided by the platform's set alone.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from macadam.access import policy_replay as replay
from macadam.access import state as access
from macadam.access.policies import ProjectText, effective_digest, effective_document
from macadam.access.policies.compiled import compiled
from macadam.access.policy_replay import Judge, Tally
from macadam.access.policy_types import (
    ActivatePolicies,
    Activation,
    Approval,
    ApprovePolicies,
    Difference,
    DiffPolicies,
    ListPolicies,
    PolicyHistory,
    PolicyVersion,
    ProposePolicies,
    RollBackPolicies,
    ShowPolicies,
    State,
)
from macadam.access.schema import policy_activations, policy_approvals, policy_versions, projects
from macadam.errors import Conflict, InvalidInput, NotAuthorised, NotFound
from macadam.operations import Actor, Context, Transaction, operation

_HERE = "policies:{project}"
_TWO_PEOPLE = "high"
"""The risk class from which on one approval is not enough."""


# --- proposing and reading


def _checked(context: Context, request: ProposePolicies) -> ProjectText:
    """The text, held against the schema in force. Raises InvalidInput, naming file and line."""
    own = ProjectText.of(request.project, request.files)
    with context.read() as sql:
        platform = access.platform_text(sql)
    if not compiled(platform, own).own:
        raise InvalidInput(
            "There is no policy in the proposal.",
            next_step="Write policies/*.cedar; to go without, run `macadam policy rollback --to 0`.",
        )
    context.ports.objects.put(own.document)
    return own


@operation(
    ProposePolicies,
    permission="policies:propose",
    http="POST /api/v1/projects/{project}/policies",
    cli="policy propose",
    resource=_HERE,
    prepare=_checked,
)
def propose_policies(tx: Transaction, request: ProposePolicies, own: ProjectText) -> PolicyVersion:
    """Keeps the text under the next number. Proposing the newest text once more changes nothing."""
    v = policy_versions.c
    newest = tx.sql.execute(
        sa.select(v.version, v.digest).where(v.project == request.project).order_by(v.version.desc()).limit(1)
    ).first()
    if newest is not None and newest.digest == own.digest:
        return _version(tx.sql, request.project, newest.version)
    number = newest.version + 1 if newest is not None else 1
    tx.sql.execute(
        sa.insert(policy_versions).values(
            project=request.project,
            version=number,
            digest=own.digest,
            files=dict(own.files),
            note=request.note,
            proposed=tx.now,
            proposed_by=tx.actor.id,
        )
    )
    made = _version(tx.sql, request.project, number)
    tx.record(made.ref, proposed=number, policies=made.policies, files=[name for name, _ in own.files])
    return made


@operation(
    ListPolicies,
    permission="policies:read",
    http="GET /api/v1/projects/{project}/policies",
    cli="policy list",
    resource=_HERE,
)
def list_policies(tx: Transaction, request: ListPolicies) -> tuple[PolicyVersion, ...]:
    v = policy_versions.c
    numbers = tx.sql.execute(sa.select(v.version).where(v.project == request.project).order_by(v.version.desc()))
    return tuple(_version(tx.sql, request.project, number, with_text=False) for number in numbers.scalars())


@operation(
    ShowPolicies,
    permission="policies:read",
    http="GET /api/v1/projects/{project}/policies/text",
    cli="policy show",
    resource=_HERE,
)
def show_policies(tx: Transaction, request: ShowPolicies) -> PolicyVersion:
    """Raises NotFound if there is no such version, or none is active."""
    number = request.version or _active_version(tx.sql, request.project)
    if not number:
        raise NotFound(
            f"Project {request.project!r} has no policies of its own in force: the platform's roles decide.",
            next_step="List what was proposed: macadam policy list.",
        )
    return _version(tx.sql, request.project, number)


@operation(
    PolicyHistory,
    permission="policies:read",
    http="GET /api/v1/projects/{project}/policies/history",
    cli="policy history",
    resource=_HERE,
)
def policy_history(tx: Transaction, request: PolicyHistory) -> tuple[Activation, ...]:
    return tuple(reversed(_activations(tx.sql, request.project)))


# --- what would change


def _replayed(context: Context, request: DiffPolicies) -> Difference:
    """Raises InvalidInput, naming file and line."""
    context.authorise("ledger:read", "ledger:home")
    began = replay.since(context.call.now, request.days)
    proposed = ProjectText.of(request.project, request.files) if request.files else None
    with context.read() as sql:
        base = access.snapshot(sql)
        policies = compiled(base.policies, proposed)
        before = Judge(base, request.project, base.projects[request.project].policies)
        after = Judge(base, request.project, proposed)
        tally, total = Tally(before, after), replay.count(sql, request.project, began)
        for one in replay.decisions(sql, request.project, began):
            tally.add(one)
            if tally.replayed % 500 == 0:
                context.progress("decisions asked again", tally.replayed, total)
    return Difference(
        project=request.project,
        days=request.days,
        replayed=tally.replayed,
        otherwise=tally.otherwise,
        newly_denied=tally.total("newly denied"),
        newly_allowed=tally.total("newly allowed"),
        changes=tally.changes,
        roles=replay.matrix(before, after, policies.actions - policies.words.governing),
    )


@operation(
    DiffPolicies,
    permission="policies:read",
    http="POST /api/v1/projects/{project}/policies/diff",
    cli="policy diff",
    resource=_HERE,
    prepare=_replayed,
    reads=True,
)
def diff_policies(_tx: Transaction, _request: DiffPolicies, found: Difference) -> Difference:
    return found


# --- approving


@operation(
    ApprovePolicies,
    permission="policies:approve",
    http="POST /api/v1/projects/{project}/policies/{version}/approve",
    cli="policy approve",
    resource=_HERE,
)
def approve_policies(tx: Transaction, request: ApprovePolicies) -> PolicyVersion:
    """Raises NotAuthorised for the proposer, Conflict if the reference is another's. Approving twice counts once."""
    found = _version(tx.sql, request.project, request.version)
    if request.ref and request.ref != found.ref:
        raise Conflict(
            f"Version {found.version} is {found.ref}, reviewed was {request.ref}.",
            next_step=f"Look at it again: macadam policy show --version {found.version}.",
        )
    if tx.actor.id in _proposers(tx.sql, found.project, found.ref):
        raise NotAuthorised(
            f"{tx.actor.id} proposed the text of version {found.version} and so cannot approve it.",
            next_step="Ask somebody else who may approve (role approver).",
            details={"policies": ["nobody-approves-their-own"], "proposed_by": found.proposed_by},
        )
    if tx.actor.id not in {a.by for a in found.approvals}:
        tx.sql.execute(
            sa.insert(policy_approvals).values(
                project=request.project, version=request.version, principal=tx.actor.id, at=tx.now
            )
        )
    tx.record(found.ref, uses=[found.proposed_by], approved=found.version)
    return _version(tx.sql, request.project, request.version)


# --- in force


@operation(
    ActivatePolicies,
    permission="policies:activate",
    http="POST /api/v1/projects/{project}/policies/{version}/activate",
    cli="policy activate",
    resource=_HERE,
)
def activate_policies(tx: Transaction, request: ActivatePolicies) -> Activation:
    """Raises NotAuthorised if approvals are missing, Conflict if it would not replace the version that it is to replace,
    InvalidInput if the text no longer fits the schema in force.
    """
    found = _version(tx.sql, request.project, request.version)
    approvers = _standing(tx.sql, found.project, found.ref, (a.by for a in found.approvals))
    if len(approvers) < found.needed:
        raise NotAuthorised(
            f"Version {found.version} has {len(approvers)} of {found.needed} approvals by people who may approve.",
            next_step=f"Ask for it: macadam policy approve {found.version}.",
            details={"policies": ["approved-policies-only"], "approved_by": approvers, "needed": found.needed},
        )
    now = _active_version(tx.sql, request.project)
    if now == found.version:
        return _activations(tx.sql, request.project)[-1]
    if request.instead_of not in (None, now):
        raise Conflict(
            f"In force is version {now} by now, not {request.instead_of}, which version {found.version} was to replace.",
            next_step="See what came into force: macadam policy history.",
        )
    return _put_in_force(tx, request.project, found.version, reason="", approved_by=approvers)


@operation(
    RollBackPolicies,
    permission="policies:activate",
    http="POST /api/v1/projects/{project}/policies/rollback",
    cli="policy rollback",
    resource=_HERE,
)
def roll_back_policies(tx: Transaction, request: RollBackPolicies) -> Activation:
    """Raises NotFound if the version was never in force: what was, had its approvals."""
    been = _activations(tx.sql, request.project)
    now = been[-1].version if been else 0
    earlier = [a.version for a in been if a.version != now] or [0]
    to = earlier[-1] if request.to is None else request.to
    if to == now:
        raise Conflict(
            f"Version {now} is in force already." if now else "The project has no policies of its own in force.",
            next_step="See what was: macadam policy history.",
        )
    if to and to not in {a.version for a in been}:
        raise NotFound(f"Version {to} was never in force.", next_step=f"Put it in force: macadam policy activate {to}.")
    return _put_in_force(tx, request.project, to, reason=request.reason, approved_by=None)


def _put_in_force(
    tx: Transaction, project: str, version: int, *, reason: str, approved_by: list[str] | None
) -> Activation:
    platform = access.platform_text(tx.sql)
    uses = [f"policy:{platform.digest}"]
    own = ""
    names: tuple[str, ...] = ()
    if version:
        text = _text(tx.sql, project, version)
        own, names = text.digest, tuple(p.name for p in compiled(platform, text).own)
        uses.append(f"policy:{own}")
        tx.ports.objects.put(effective_document(platform.digest, project, own))
    been = _activations(tx.sql, project)
    made = Activation(
        project=project,
        number=len(been) + 1,
        version=version,
        policy_set=effective_digest(platform.digest, project, own),
        at=tx.now,
        by=tx.actor.id,
        reason=reason,
    )
    tx.sql.execute(sa.insert(policy_activations).values({f: getattr(made, f) for f in made.__struct_fields__}))
    access.touch(tx.sql)
    tx.record(
        f"policy:{made.policy_set}",
        uses=uses,
        in_force=version,
        platform=platform.digest,
        own=own,
        policies=names,
        approved_by=approved_by,
        reason=reason,
    )
    return made


# --- the tables


def _standing(sql: sa.Connection, project: str, ref: str, givers: Iterable[str]) -> list[str]:
    """Who approved it and may still do so: an approval does not outlive its giver's role."""
    engine, proposers = access.engine(sql), _proposers(sql, project, ref)
    people = [Actor(id=by, kind="person") for by in givers if by not in proposers]
    where = _HERE.format(project=project)
    return [p.id for p in people if engine.decide(p, "policies:approve", where, project).allowed]


def _proposers(sql: sa.Connection, project: str, ref: str) -> frozenset[str]:
    """Everybody who ever proposed this text: nobody approves their own words because somebody else repeats them."""
    v = policy_versions.c
    query = sa.select(v.proposed_by).where(v.project == project, v.digest == ref.removeprefix("policy:"))
    return frozenset(sql.execute(query).scalars())


def _text(sql: sa.Connection, project: str, version: int) -> ProjectText:
    """Raises NotFound."""
    v = policy_versions.c
    files = sql.execute(sa.select(v.files).where(v.project == project, v.version == version)).scalar_one_or_none()
    if files is None:
        raise NotFound(
            f"Project {project!r} has no policies with the number {version}.",
            next_step="List what was proposed: macadam policy list.",
        )
    return ProjectText.of(project, files)


def _version(sql: sa.Connection, project: str, number: int, *, with_text: bool = True) -> PolicyVersion:
    """Raises NotFound."""
    text = _text(sql, project, number)
    v, a = policy_versions.c, policy_approvals.c
    row = sql.execute(sa.select(policy_versions).where(v.project == project, v.version == number)).one()
    given = sql.execute(
        sa.select(a.principal, a.at).where(a.project == project, a.version == number).order_by(a.at, a.principal)
    )
    approvals = tuple(Approval(by=one.principal, at=one.at) for one in given)
    needed = _needed(sql, project)
    ref = f"policy:{text.digest}"
    counted = len(_standing(sql, project, ref, (one.by for one in approvals)))
    return PolicyVersion(
        ref=ref,
        project=project,
        version=number,
        state=_state(sql, project, number, enough=counted >= needed),
        policies=_names(sql, text),
        approvals=approvals,
        counted=counted,
        needed=needed,
        note=row.note,
        proposed=row.proposed,
        proposed_by=row.proposed_by,
        files=dict(text.files) if with_text else {},
    )


def _names(sql: sa.Connection, text: ProjectText) -> tuple[str, ...]:
    """None for a text that only another release's schema took."""
    try:
        return tuple(policy.name for policy in compiled(access.platform_text(sql), text).own)
    except InvalidInput:
        return ()


def _needed(sql: sa.Connection, project: str) -> int:
    risk = sql.execute(sa.select(projects.c.risk).where(projects.c.name == project)).scalar_one()
    return 2 if risk == _TWO_PEOPLE else 1


def _state(sql: sa.Connection, project: str, version: int, *, enough: bool) -> State:
    been = _activations(sql, project)
    if been and been[-1].version == version:
        return "active"
    if version in {a.version for a in been}:
        return "superseded"
    return "approved" if enough else "proposed"


def _active_version(sql: sa.Connection, project: str) -> int:
    been = _activations(sql, project)
    return been[-1].version if been else 0


def _activations(sql: sa.Connection, project: str) -> list[Activation]:
    """Oldest first."""
    a = policy_activations.c
    query = sa.select(policy_activations).where(a.project == project).order_by(a.number)
    return [Activation(**row._asdict()) for row in sql.execute(query)]
