"""Quotas as Kueue's objects (kueue.x-k8s.io/v1beta2), so that a cluster's own queue keeps the same limits.

A quota here counts GPUs of any kind, Kueue counts each flavor apart: it is shared out among the flavors by their size, and the
parts sum to it exactly. What Kueue cannot hold (GPU-hours, money, orders that learn) is said in `Rendered.notes` and stays with
Macadam's own queue. Semantics: https://kueue.sigs.k8s.io/docs/concepts/cluster_queue/.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from macadam.compute.jobs.kubernetes import PREFIX, QUEUE, Object, namespace, priority_class
from macadam.compute.jobs.naming import cores, dns_label, label_value, size
from macadam.compute.scheduling.types import EVERYBODY, Policy, Quota
from macadam.errors import InvalidInput

_API = "kueue.x-k8s.io/v1beta2"
_GPU = "nvidia.com/gpu"
_MILLI = 1000
_FLAVORS = 64  # Kueue's limit for one resource group
_RECLAIM = {"never": "Never", "due": "Any", "lower-priority": "LowerPriority", "any": "Any"}
_PREEMPT = {"never": "Never", "lower-priority": "LowerPriority", "order": "LowerOrNewerEqualPriority"}


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU node in the cluster. gpus: whole GPUs there; cpu_milli, memory (bytes): of these nodes, for pods.

    labels: what its nodes carry, such as {'nvidia.com/gpu.product': 'NVIDIA-H100-80GB-HBM3'}. mig: the profile if its GPUs are
    cut into slices, `slices` of them each; '' and 1 for whole ones. taints: key → value of what its nodes are tainted with beside
    nvidia.com/gpu, such as {'cloud.google.com/gke-spot': 'true'}.
    """

    name: str
    gpus: int
    cpu_milli: int
    memory: int
    labels: dict[str, str] = {}
    mig: str = ""
    slices: int = 1
    taints: dict[str, str] = {}

    def __post_init__(self) -> None:
        if min(self.gpus, self.cpu_milli, self.memory) < 0 or self.slices < 1 or (self.slices > 1 and not self.mig):
            raise InvalidInput(
                f"The flavor {self.name!r} has {self.gpus} GPUs in {self.slices} slices, {self.cpu_milli} thousandths of "
                f"a core, {self.memory} bytes.",
                next_step="Give 0 or more of each, and more than one slice only with a MIG profile.",
            )

    @property
    def resource(self) -> str:
        return f"nvidia.com/mig-{self.mig}" if self.mig else _GPU


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """objects: in the order in which they can be applied. notes: what of the quotas they do not hold, in words."""

    objects: list[Object]
    notes: tuple[str, ...]


def render(
    quotas: Sequence[Quota], flavors: Sequence[Flavor], policy: Policy, priorities: Iterable[int] = (0,)
) -> Rendered:
    """Flavors, cohorts, priority classes, and a ClusterQueue with a LocalQueue for each tenant.

    Raises InvalidInput for no flavors, twins, or quotas of more GPUs than there are.
    """
    _check(quotas, flavors)
    objects = [_flavor(flavor) for flavor in flavors]
    objects += [_priority(priority) for priority in sorted(set(priorities))]
    ordered = sorted(quotas, key=lambda q: q.tenant)
    own, free = _shared_out(ordered, flavors)
    objects += [_cohort(name, flavors, free) for name in sorted({quota.cohort for quota in quotas if quota.cohort})]
    for quota, parts in zip(ordered, own, strict=True):
        objects += [_cluster_queue(quota, _Share(quota, parts, flavors), flavors, policy), _local_queue(quota.tenant)]
    return Rendered(objects=objects, notes=tuple(_notes(quotas, flavors, policy)))


def queue_name(tenant: str) -> str:
    """A tenant's ClusterQueue, which is known in the whole cluster."""
    return dns_label(f"macadam-{tenant}")


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole parts of `total` in proportion to `sizes`, which sum to it exactly (largest remainder, first ones on ties)."""
    whole = sum(sizes)
    if not whole:
        return [total, *[0] * (len(sizes) - 1)]
    parts = [total * part // whole for part in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _shared_out(quotas: Sequence[Quota], flavors: Sequence[Flavor]) -> tuple[list[list[int]], list[int]]:
    """Each quota in whole GPUs of each flavor, and what is then left of each: no flavor is promised more often than it is there."""
    left = [flavor.gpus for flavor in flavors]
    own = []
    for quota in quotas:
        parts = apportion(quota.gpus, left)
        left = [have - part for have, part in zip(left, parts, strict=True)]
        own.append(parts)
    return own, left


def _cluster_queue(quota: Quota, share: "_Share", flavors: Sequence[Flavor], policy: Policy) -> Object:
    spec: Object = {
        "queueingStrategy": "BestEffortFIFO" if policy.backfill == "any" else "StrictFIFO",
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace(quota.tenant)}},
        "preemption": {
            "reclaimWithinCohort": _RECLAIM[policy.reclaim] if quota.cohort else "Never",
            "withinClusterQueue": _PREEMPT[policy.preempt],
        },
        "resourceGroups": [_group(flavors, share)],
    }
    if quota.cohort:
        spec["cohortName"] = _cohort_name(quota.cohort)
        spec["fairSharing"] = {"weight": cores(max(1, round(quota.weight * _MILLI)))}
    metadata = {"name": queue_name(quota.tenant), "annotations": {f"{PREFIX}/project": quota.tenant}}
    return {"apiVersion": _API, "kind": "ClusterQueue", "metadata": metadata, "spec": spec}


class _Share:
    """A tenant's part of each flavor. own: whole GPUs of each flavor, which sum to its quota."""

    def __init__(self, quota: Quota, own: Sequence[int], flavors: Sequence[Flavor]) -> None:
        self._quota, self._own = quota, own
        self._gpus = [flavor.gpus for flavor in flavors]

    def __call__(self, at: int, whole: int) -> dict[str, int]:
        """at: which flavor. whole: how much of a resource the whole flavor has; a tenant has as much of it as of the GPUs."""
        quota = self._quota
        amounts = {"nominalQuota": self._part(at, whole, self._own, quota.gpus)}
        if quota.cohort and quota.borrow is not None:
            amounts["borrowingLimit"] = self._part(at, whole, apportion(quota.borrow, self._gpus), quota.borrow)
        if quota.cohort and quota.lend is not None:
            # Lending follows what is its own, so that no flavor lends more than the tenant has of it.
            lent = min(quota.lend, quota.gpus)
            amounts["lendingLimit"] = self._part(at, whole, apportion(lent, self._own), lent)
        return amounts

    def _part(self, at: int, whole: int, parts: Sequence[int], total: int) -> int:
        if self._gpus[at]:
            return parts[at] * whole // self._gpus[at]
        return total * whole // max(1, sum(self._gpus))  # nodes without GPUs: as the GPUs elsewhere are shared


def _group(flavors: Sequence[Flavor], amounts: Callable[[int, int], dict[str, int]]) -> Object:
    """Each flavor has to list each resource of its group, so a whole GPU's flavor lists slices too, with none of them."""
    kinds = list(dict.fromkeys(flavor.resource for flavor in flavors))
    listed = []
    for at, flavor in enumerate(flavors):
        rows = [
            _row("cpu", amounts(at, flavor.cpu_milli), cores),
            _row("memory", amounts(at, flavor.memory), size),
        ]
        for kind in kinds:
            whole = flavor.gpus * flavor.slices if kind == flavor.resource else 0
            rows.append(_row(kind, amounts(at, whole), str))
        listed.append({"name": _flavor_name(flavor), "resources": rows})
    return {"coveredResources": ["cpu", "memory", *kinds], "flavors": listed}


def _row(name: str, amounts: dict[str, int], written: Callable[[int], str]) -> Object:
    return {"name": name, **{limit: written(amount) for limit, amount in amounts.items()}}


def _cohort(name: str, flavors: Sequence[Flavor], free: Sequence[int]) -> Object:
    """That of everybody holds the GPUs that are nobody's, which its members may borrow."""
    spec: Object = {}
    if name == EVERYBODY and any(free):
        spec["resourceGroups"] = [
            _group(flavors, lambda at, whole: {"nominalQuota": free[at] * whole // max(1, flavors[at].gpus)})
        ]
    return {"apiVersion": _API, "kind": "Cohort", "metadata": {"name": _cohort_name(name)}, "spec": spec}


def _flavor(flavor: Flavor) -> Object:
    spec: Object = {}
    if flavor.labels:
        spec["nodeLabels"] = dict(sorted(flavor.labels.items()))
    if flavor.taints:
        # Only pods that tolerate them get this flavor: those that said they may run on spot.
        spec["nodeTaints"] = [
            {"key": key, "value": value, "effect": "NoSchedule"} for key, value in sorted(flavor.taints.items())
        ]
    return {"apiVersion": _API, "kind": "ResourceFlavor", "metadata": {"name": _flavor_name(flavor)}, "spec": spec}


def _priority(priority: int) -> Object:
    if not -(1 << 31) <= priority < 1 << 31:
        raise InvalidInput(f"The priority {priority} is no 32-bit number.", next_step="Give a smaller one.")
    return {
        "apiVersion": _API,
        "kind": "WorkloadPriorityClass",
        "metadata": {"name": priority_class(priority)},
        "value": priority,
        "description": f"Jobs of priority {priority}",
    }


def _local_queue(tenant: str) -> Object:
    metadata = {"name": QUEUE, "namespace": namespace(tenant), "labels": {f"{PREFIX}/project": label_value(tenant)}}
    spec = {"clusterQueue": queue_name(tenant)}
    return {"apiVersion": _API, "kind": "LocalQueue", "metadata": metadata, "spec": spec}


def _notes(quotas: Sequence[Quota], flavors: Sequence[Flavor], policy: Policy) -> Iterable[str]:
    """What a reader has to know before relying on the cluster's queue alone."""
    for quota in quotas:
        spent = [name for name in ("gpu_hours", "micros") if getattr(quota, name) is not None]
        if spent:
            what = " and ".join({"gpu_hours": "GPU-hours", "micros": "money"}[name] for name in spent)
            yield f"{quota.tenant}: Kueue does not count {what}; that limit holds only for jobs that Macadam submits."
    if len(flavors) > 1:
        yield "Each quota is shared out among the flavors by their size: of one flavor a tenant's own part is smaller than its quota."
    if policy.order not in ("fifo", "priority"):
        yield f"Kueue orders by priority and time; the order {policy.order!r} holds only for jobs that Macadam submits."
    if policy.reclaim == "due":
        yield "Kueue takes back what was lent at once, not only when a tenant's own share would have started its job."
    if policy.backfill == "easy":
        yield "Kueue has no reservations: StrictFIFO lets nothing pass the first job of a queue."


def _check(quotas: Sequence[Quota], flavors: Sequence[Flavor]) -> None:
    if not 1 <= len(flavors) <= _FLAVORS:
        raise InvalidInput(f"There are {len(flavors)} flavors.", next_step=f"Describe 1 to {_FLAVORS} kinds of nodes.")
    for what, names in (("flavor", [f.name for f in flavors]), ("quota", [q.tenant for q in quotas])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput(f"There are two of the {what} {', '.join(twice)}.", next_step="Give each once.")
    have, given = sum(f.gpus for f in flavors), sum(q.gpus for q in quotas)
    if given > have:
        raise InvalidInput(
            f"The quotas give {given} GPUs and the flavors have {have}.",
            next_step="Lower quotas, or describe all nodes of the cluster.",
        )


def _flavor_name(flavor: Flavor) -> str:
    return dns_label(flavor.name)


def _cohort_name(cohort: str) -> str:
    return dns_label(f"macadam-{cohort}")


def quantities(found: Object) -> dict[tuple[str, str], dict[str, Any]]:
    """A ClusterQueue's or Cohort's amounts by (flavor, resource), for whoever compares."""
    return {
        (flavor["name"], row["name"]): {k: v for k, v in row.items() if k != "name"}
        for group in found["spec"].get("resourceGroups", ())
        for flavor in group["flavors"]
        for row in flavor["resources"]
    }
