"""Points on who is responsible and who may do what: 01, 03, 04, 06, 40."""

from datetime import timedelta

from macadam.governance.checks.verdict import judge
from macadam.governance.evidence import Evidence, used
from macadam.governance.types import Finding
from macadam.ledger.leaf import Leaf
from macadam.operations import Actor
from macadam.values import parse_instant, uuid7

REVIEW_ACCESS_EVERY = timedelta(days=92)
"""A quarter."""
ACTIVATED = "access.activate_policies"


def registered(evidence: Evidence) -> Finding:
    """01. Endpoints joined with the registry."""
    project = evidence.project
    faults = []
    if not evidence.active(project.owner):
        faults.append(f"the owner of project {project.name}, {project.owner or 'nobody'}, is not an active principal")
    if not project.description.strip():
        faults.append(f"project {project.name} does not say what it is for (its description is empty)")
    if project.risk not in ("minimal", "limited", "high"):
        faults.append(f"project {project.name} has no risk class")
    for endpoint, deployment in evidence.live.items():
        if not any(evidence.registration(version) for version in used(deployment, "model:")):
            faults.append(f"{endpoint} answers with a model that was never registered")
    holds = f"all belong to project {project.name} (owner {project.owner}, risk class {project.risk}) with a purpose"
    return judge("live endpoints", len(evidence.live), faults, holds=holds, evidence=evidence.live.values())


def impact_assessed(evidence: Evidence) -> Finding:
    """03. Only high-risk systems owe one; nothing can record one yet."""
    population = len(evidence.deployments) if evidence.project.risk == "high" else 0
    return judge(
        "high-risk deployments",
        population,
        [],
        holds=f"the project's risk class is {evidence.project.risk}",
        unchecked="no impact assessment can be linked to a project yet",
    )


def responsible(evidence: Evidence) -> Finding:
    """04. An owner; people who may approve; people who may stop (roll back) what runs."""
    owner = evidence.project.owner
    approvers, overseers = evidence.may("approvals:give"), evidence.may("endpoints:rollback")
    faults = []
    if not evidence.active(owner):
        faults.append(f"the owner {owner or 'nobody'} is not an active principal")
    if not approvers:
        faults.append("no active person may approve (role approver)")
    if not overseers:
        faults.append("no active person may stop an endpoint (role operator)")
    holds = f"owner {owner}; approvers {', '.join(approvers)}; overseers, who may roll back, {', '.join(overseers)}"
    about = evidence.about(f"project:{evidence.project.name}")
    return judge("projects", 1, faults, holds=holds, evidence=about)


def policy_in_force(evidence: Evidence) -> Finding:
    """06. The set in force is a recorded one, and no decision was made by any other."""
    recorded = {leaf.subject.removeprefix("policy:") for leaf in evidence.policy_leaves}
    in_force = evidence.engine.policy_set(evidence.project.name)
    faults = []
    if in_force not in recorded:
        faults.append(f"the policies in force ({in_force}) are not in the ledger")
    faults += [
        f"the project's policies {leaf.subject} came into force without the approval of another person"
        for leaf in evidence.policy_leaves
        if leaf.kind == ACTIVATED and not leaf.body.get("approved_by")
    ]
    strange = {str(leaf.decision["policy_set"]) for leaf in evidence.done} - recorded
    faults += [f"decisions were made by policies that are not in the ledger ({digest})" for digest in sorted(strange)]
    return judge(
        "policy sets",
        len(recorded | {in_force}),
        faults,
        holds=f"the policies in force ({in_force}) and those of all {len(evidence.done)} decisions are recorded",
        evidence=evidence.policy_leaves,
        unchecked="whether they were reviewed within 12 months, and who approved the platform's own: those come with "
        "the release",
    )


def deny_by_default(evidence: Evidence) -> Finding:
    """40. Every recorded action names its actor and its policies; strangers are probed with every permission."""
    recorded = {leaf.subject.removeprefix("policy:") for leaf in evidence.policy_leaves}
    faults = [fault for leaf in evidence.done if (fault := _unauthorised(evidence, leaf, recorded))]
    probes = _probes(evidence)
    faults += [f"{actor.id} was allowed {permission}" for actor, permission, allowed in probes if allowed]
    due = parse_instant(evidence.leaves[0].at) + REVIEW_ACCESS_EVERY if evidence.leaves else evidence.now
    overdue = due <= evidence.now
    holds = (
        f"{len(evidence.done)} recorded actions were authenticated and allowed by named policies, "
        f"{len(evidence.denied)} were refused and recorded, and {len(probes)} probes were all denied"
    )
    if not overdue:
        holds += f"; the first quarterly review of access is due by {due:%Y-%m-%d}"
    return judge(
        "actions and probes",
        len(evidence.leaves) + len(probes),
        faults,
        holds=holds,
        evidence=[*evidence.policy_leaves, *evidence.denied],
        unchecked="the quarterly review of access, which is due and cannot be recorded yet" if overdue else "",
    )


def _unauthorised(evidence: Evidence, leaf: Leaf, recorded: set[str]) -> str:
    decision = leaf.decision
    if leaf.actor not in evidence.access.principals and not leaf.actor.startswith("system:"):
        return f"{leaf.kind} on {leaf.subject} was done by {leaf.actor}, whom nobody registered"
    if not decision["policies"]:
        return f"{leaf.kind} on {leaf.subject} was done without a policy that allows it"
    if str(decision["policy_set"]) not in recorded:
        return f"{leaf.kind} on {leaf.subject} was decided by policies that are not in the ledger"
    return ""


def _probes(evidence: Evidence) -> list[tuple[Actor, str, bool]]:
    """A stranger asks for everything, here and everywhere; a service tries to approve."""
    project = evidence.project.name
    engine = evidence.engine
    stranger = Actor(id=f"principal:probe-{uuid7()}", kind="person")
    tried = [
        (stranger, permission, engine.decide(stranger, permission, resource, place).allowed)
        for permission in sorted(engine.permissions)
        for resource, place in ((f"project:{project}", project), ("platform:home", ""))
    ]
    services = [
        Actor(id=i, kind="service") for i, known in evidence.access.principals.items() if known.kind == "service"
    ]
    for service in services:
        allowed = engine.decide(service, "approvals:give", f"project:{project}", project).allowed
        tried.append((service, "approvals:give", allowed))
    return tried
