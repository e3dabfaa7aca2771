"""Holds what is rendered against the schemas of whoever will read it, before anything is written or sent.

The schemas are in `schemas/`: our own, cut down to what we render, so that a field nobody meant is an error here and not in a cluster.
Beyond what JSON Schema can say, Kueue's and KubeRay's own rules are checked (`_RULES`), each as its documentation words it.
"""

import importlib.resources
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.jobs.naming import parse_quantity
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import jsonschema_rs
else:
    jsonschema_rs = lazy("jsonschema_rs")

_SHOWN = 5  # errors in one message


def check_objects(objects: Iterable[dict[str, Any]]) -> None:
    """Raises InvalidInput with the path of each wrong field, for Kubernetes objects of the kinds that we render."""
    for found in objects:
        kind, name = str(found.get("kind", "")), str(found.get("metadata", {}).get("name", ""))
        _check("kubernetes", kind, found, f"{kind} {name}")
        for rule in _RULES.get(kind, ()):
            if broken := rule(found):
                raise InvalidInput(f"{kind} {name}: {broken}", next_step=_REPORT)


def check_task(task: dict[str, Any]) -> None:
    """Raises InvalidInput for a SkyPilot task that is none."""
    _check("skypilot", "Task", task, f"The task {task.get('name', '')}")


def check_module(module: dict[str, Any]) -> None:
    """Raises InvalidInput for a Terraform module in JSON syntax that is none; references are checked by `terraform`."""
    _check("terraform", "Module", module, "The module")


_REPORT = "Report it: Macadam rendered what it must not. Nothing was written."


@cache
def _definitions(schema: str) -> dict[str, Any]:
    text = importlib.resources.files("macadam.compute.jobs").joinpath("schemas", f"{schema}.json").read_bytes()
    found: dict[str, Any] = msgspec.json.decode(text)
    return found


@cache
def _validator(schema: str, kind: str) -> "jsonschema_rs.Draft202012Validator":
    document = _definitions(schema)
    if kind not in document["$defs"]:
        raise InvalidInput(f"Nothing is known of the kind {kind!r}.", next_step=_REPORT)
    return jsonschema_rs.Draft202012Validator(document | {"$ref": f"#/$defs/{kind}"})


def _check(schema: str, kind: str, found: dict[str, Any], what: str) -> None:
    errors = list(_validator(schema, kind).iter_errors(found))
    if errors:
        said = "; ".join(f"{'.'.join(map(str, e.instance_path)) or 'it'}: {e.message}" for e in errors[:_SHOWN])
        raise InvalidInput(f"{what} is not valid: {said}", next_step=_REPORT)


def _limits_need_a_cohort(queue: dict[str, Any]) -> str:
    """Kueue: borrowingLimit and lendingLimit must be null if cohortName is empty."""
    for row in _quota_rows(queue):
        if "cohortName" not in queue["spec"] and {"borrowingLimit", "lendingLimit"} & set(row):
            return f"{row['name']} has limits and the queue has no cohort."
        if "lendingLimit" in row and parse_quantity(row["lendingLimit"]) > parse_quantity(row["nominalQuota"]):
            return f"{row['name']} lends more than it has."
    return ""


def _flavors_list_what_is_covered(found: dict[str, Any]) -> str:
    """Kueue: each flavor lists the covered resources in their order; a flavor or resource stands in one group only."""
    flavors: list[str] = []
    resources: list[str] = []
    for group in found["spec"].get("resourceGroups", ()):
        resources += group["coveredResources"]
        flavors += [flavor["name"] for flavor in group["flavors"]]
        for flavor in group["flavors"]:
            if [row["name"] for row in flavor["resources"]] != group["coveredResources"]:
                return f"the flavor {flavor['name']} does not list what its group covers."
    twice = {name for name in (*flavors, *resources) if (flavors + resources).count(name) > 1}
    return f"{', '.join(sorted(twice))} stands there twice." if twice else ""


def _root_cohort_has_no_limits(cohort: dict[str, Any]) -> str:
    """Kueue: limits of a Cohort are refused unless it has a parent."""
    if "parentName" not in cohort["spec"]:
        for row in _quota_rows(cohort):
            if {"borrowingLimit", "lendingLimit"} & set(row):
                return f"{row['name']} has limits and the cohort has no parent."
    return ""


def _reclaim_before_borrowing(queue: dict[str, Any]) -> str:
    """Kueue: reclaimWithinCohort=Never excludes borrowWithinCohort.policy other than Never."""
    preemption = queue["spec"].get("preemption", {})
    borrow = preemption.get("borrowWithinCohort", {}).get("policy", "Never")
    return "it borrows by preemption and never reclaims." if _never(preemption) and borrow != "Never" else ""


def _never(preemption: dict[str, Any]) -> bool:
    return str(preemption.get("reclaimWithinCohort", "Never")) == "Never"


def _quota_rows(found: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for group in found["spec"].get("resourceGroups", ()):
        for flavor in group["flavors"]:
            yield from flavor["resources"]


def _policy_needs_pods_that_stay_dead(job: dict[str, Any]) -> str:
    """Kubernetes: podFailurePolicy needs restartPolicy Never."""
    policy, template = job["spec"].get("podFailurePolicy"), job["spec"]["template"]
    return "its pods may restart." if policy and template["spec"].get("restartPolicy") != "Never" else ""


def _mounts_have_volumes(found: dict[str, Any]) -> str:
    """Kubernetes: a mount names a volume of its pod."""
    for spec in _pods(found["spec"]):
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        for container in spec["containers"]:
            missing = sorted({mount["name"] for mount in container.get("volumeMounts", ())} - volumes)
            if missing:
                return f"there is no volume {', '.join(missing)}."
    return ""


def _pods(spec: Any) -> Iterable[dict[str, Any]]:
    """Every pod's spec inside an object's."""
    if isinstance(spec, dict):
        if "containers" in spec:
            yield spec
        else:
            for part in spec.values():
                yield from _pods(part)
    elif isinstance(spec, list):
        for part in spec:
            yield from _pods(part)


def _replicas_in_order(scaled: dict[str, Any]) -> str:
    """KEDA: minReplicaCount is at most maxReplicaCount."""
    spec = scaled["spec"]
    return "it has more replicas at least than at most." if spec["minReplicaCount"] > spec["maxReplicaCount"] else ""


_RULES: dict[str, tuple[Callable[[dict[str, Any]], str], ...]] = {
    "ClusterQueue": (_limits_need_a_cohort, _flavors_list_what_is_covered, _reclaim_before_borrowing),
    "Cohort": (_flavors_list_what_is_covered, _root_cohort_has_no_limits),
    "Job": (_policy_needs_pods_that_stay_dead, _mounts_have_volumes),
    "Deployment": (_mounts_have_volumes,),
    "RayJob": (_mounts_have_volumes,),
    "RayService": (_mounts_have_volumes,),
    "ScaledObject": (_replicas_in_order,),
}
