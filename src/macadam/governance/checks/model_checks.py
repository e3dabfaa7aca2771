"""Points on models: 14, 19, 20, 26 and 27."""

import msgspec

from macadam.access.engine import Engine, KnownPrincipal
from macadam.governance.checks.verdict import judge
from macadam.governance.evidence import Evidence, used
from macadam.governance.types import Finding
from macadam.ledger.leaf import Leaf
from macadam.operations import Actor
from macadam.values import uuid7

APPROVING_ROLES = ("admin", "approver")
"""By which a person may approve."""


def run_recorded(evidence: Evidence) -> Finding:
    """14. Finished runs, by their leaf; energy and the state of the code by the run's own document."""
    runs = [leaf for leaf in evidence.of("run:") if leaf.body.get("state", "finished") == "finished"]
    faults = [f"{leaf.subject} lacks {', '.join(gaps)}" for leaf in runs if (gaps := _gaps(evidence, leaf))]
    unread = sum(1 for leaf in runs if (run := evidence.runs.get(leaf.subject)) and run.energy_joules is None)
    holds = "all have commit, environment lock, parameters, seed, data digests, compute"
    holds += f" and energy ({unread} say why it could not be read)" if unread else " and energy"
    return judge("finished runs", len(runs), faults, holds=holds, evidence=runs)


def _gaps(evidence: Evidence, leaf: Leaf) -> list[str]:
    run = evidence.runs.get(leaf.subject)
    code = leaf.body.get("code")
    commit, diff = (code.get("commit"), code.get("diff")) if isinstance(code, dict) else (None, None)
    facts: dict[str, object] = {
        "a commit": commit,
        "a clean commit (there were uncommitted changes)": not (commit and diff),
        "an environment lock": evidence.about(next(iter(used(leaf, "environment:")), "")),
        "its parameters": "params" in leaf.body,
        "its seed": "seed" in leaf.body,
        "the digests of its data": _data_digests(evidence, leaf),
        "its compute": all(name in leaf.body for name in ("seconds", "cpu_seconds", "peak_bytes")),
        "its energy, or why that could not be read": run and (run.energy_joules is not None or run.energy_note),
    }
    return [name for name, there in facts.items() if not there]


def _data_digests(evidence: Evidence, leaf: Leaf) -> bool:
    sets = used(leaf, "training_set:")
    recorded = [made for ref in sets for made in evidence.about(ref) if made.body.get("digest")]
    return bool(sets) and {made.subject for made in recorded} == set(sets) and bool(used(leaf, "table:"))


def thresholds_first(evidence: Evidence) -> Finding:
    """19. By the ledger's order."""
    evaluations = evidence.of("evaluation:")
    faults = [
        f"{leaf.subject} came before any thresholds" for leaf in evaluations if not _had_thresholds(evidence, leaf)
    ]
    holds = "each was measured against thresholds that stood in the ledger before it"
    return judge("evaluations", len(evaluations), faults, holds=holds, evidence=evaluations)


def _had_thresholds(evidence: Evidence, leaf: Leaf) -> bool:
    named = [t for ref in used(leaf, "thresholds:") for t in evidence.about(ref)]
    return any(evidence.before(thresholds, leaf) for thresholds in named)


def accuracy_declared(evidence: Evidence) -> Finding:
    """20. Every metric has an interval around its value; the rows measured were not learned from."""
    evaluations = evidence.of("evaluation:")
    faults = [f for leaf in evaluations for f in (*_undeclared(leaf), *_seen_in_training(evidence, leaf))]
    holds = "all metrics have 95% intervals, and no row measured was among those trained on"
    return judge("evaluations", len(evaluations), faults, holds=holds, evidence=evaluations)


def _undeclared(leaf: Leaf) -> list[str]:
    metrics = leaf.body.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return [f"{leaf.subject} has no metrics"]
    return [
        f"{leaf.subject}: {name} has no interval that holds its value"
        for name, metric in metrics.items()
        if not _has_interval(metric)
    ]


def _has_interval(metric: object) -> bool:
    """A leaf holds fractions as text."""
    if not isinstance(metric, dict):
        return False
    try:
        low, value, high = (float(str(metric[name])) for name in ("low", "value", "high"))
    except (KeyError, ValueError):
        return False
    return low <= value <= high


def _seen_in_training(evidence: Evidence, leaf: Leaf) -> list[str]:
    faults = []
    overlap = leaf.body.get("overlap")
    if overlap is None:
        faults.append(f"{leaf.subject} does not say whether its rows were trained on")
    elif overlap != 0:
        faults.append(f"{leaf.subject}: {overlap} of {leaf.body.get('rows')} rows were trained on")
    registrations = [r for ref in used(leaf, "model:") if (r := evidence.registration(ref))]
    trained_on = {ref for r in registrations for run in used(r, "run:") for ref in _training_sets(evidence, run)}
    seen = trained_on.intersection(used(leaf, "training_set:"))
    return faults + [f"{leaf.subject} was measured on {ref}, which its run had" for ref in sorted(seen)]


def _training_sets(evidence: Evidence, run: str) -> set[str]:
    return {ref for leaf in evidence.about(run) for ref in used(leaf, "training_set:")}


def independent_validator(evidence: Evidence) -> Finding:
    """26. Each version that ever answered was evaluated by somebody who neither trained nor registered it."""
    versions = _deployed(evidence)
    faults = []
    for version in versions:
        developers = _developers(evidence, version)
        validators = {leaf.actor for leaf in evidence.using(version, "evaluation:")}
        if evidence.registration(version) is None:
            faults.append(f"{version} was never registered, so nobody can say who developed it")
        elif not validators:
            faults.append(f"{version} was never evaluated")
        elif not validators - developers:
            faults.append(f"{version} was evaluated only by {', '.join(sorted(validators))}, who developed it")
    holds = "each was evaluated by somebody who did not develop it"
    evaluations = [leaf for version in versions for leaf in evidence.using(version, "evaluation:")]
    return judge("deployed versions", len(versions), faults, holds=holds, evidence=evaluations)


def _deployed(evidence: Evidence) -> list[str]:
    return sorted({ref for leaf in evidence.deployments for ref in used(leaf, "model:")})


def _developers(evidence: Evidence, version: str) -> set[str]:
    registration = evidence.registration(version)
    if registration is None:
        return set()
    trainers = {leaf.actor for run in used(registration, "run:") for leaf in evidence.about(run)}
    return trainers | {registration.actor}


def approved(evidence: Evidence) -> Finding:
    """27. By the ledger's order; then a service with an approver's rights is seen to be refused."""
    faults = [fault for leaf in evidence.deployments if (fault := _unapproved(evidence, leaf))]
    if evidence.deployments and _service_may_approve(evidence):
        faults.append("a service was allowed to approve in a probe")
    approvals = [a for leaf in evidence.deployments for a in _approvals(evidence, leaf)]
    holds = (
        "each was approved before, by a person who did not develop it, for exactly these bytes; a service is refused"
    )
    return judge(
        "deployments",
        len(evidence.deployments),
        faults,
        holds=holds,
        evidence=[*evidence.deployments, *{a.id: a for a in approvals}.values()],
    )


def _approvals(evidence: Evidence, deployment: Leaf) -> list[Leaf]:
    return [a for version in used(deployment, "model:") for a in evidence.using(version, "approval:")]


def _unapproved(evidence: Evidence, deployment: Leaf) -> str:
    what = f"the deployment of {', '.join(used(deployment, 'model:')) or 'an unnamed version'} on {deployment.subject}"
    earlier = [a for a in _approvals(evidence, deployment) if evidence.before(a, deployment)]
    exact = [a for a in earlier if a.body.get("artifact") == deployment.body.get("artifact")]
    versions = used(deployment, "model:")
    developers = {d for version in versions for d in _developers(evidence, version)}
    independent = [a for a in exact if a.actor.startswith("principal:") and a.actor not in developers]
    if not earlier:
        return f"{what} came before any approval"
    if not exact:
        return f"{what} is of other bytes than were approved"
    if not all(evidence.registration(version) for version in versions):
        return f"{what} is of a version that was never registered, so nobody can say who developed it"
    if not independent:
        return f"{what} was approved only by {', '.join(sorted({a.actor for a in exact}))}, who developed it"
    return ""


def _service_may_approve(evidence: Evidence) -> bool:
    """Asks for one service made up for the probe, which holds every role that people approve by, and for those there are."""
    project = evidence.project.name
    probe = f"service:probe-{uuid7()}"
    principals = {**evidence.access.principals, probe: KnownPrincipal(kind="service", roles={"*": APPROVING_ROLES})}
    engine = Engine(msgspec.structs.replace(evidence.access, principals=principals))
    services = [i for i, known in principals.items() if known.kind == "service"]
    return any(
        engine.decide(Actor(id=i, kind="service"), "approvals:give", f"project:{project}", project).allowed
        for i in services
    )
