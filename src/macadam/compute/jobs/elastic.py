"""Elastic scaling plans as objects: replicas that follow load, down to none, by HPA or KEDA.

A HorizontalPodAutoscaler cannot scale to nothing; KEDA's ScaledObject can, and asks Prometheus whether there is work. Which bounds and
target a plan has is decided elsewhere (right-sizing, advice); here it is written down.
"""

from typing import Literal

import msgspec

from macadam.compute.jobs import kubernetes
from macadam.compute.jobs.kubernetes import PREFIX, Object
from macadam.compute.jobs.naming import cores, label_value
from macadam.compute.jobs.workload import Workload
from macadam.errors import InvalidInput

_NAME = 52
_MILLI = 1000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint's replicas follow its load.

    least, most: replicas; least 0 = scale to zero. target: load per replica that is aimed at, in the unit of `query`, a PromQL
    expression that gives one number (such as requests in flight). address: of Prometheus. patience: seconds without load
    before the last replica goes; steady: seconds over which fewer are wanted before any goes.
    """

    least: int
    most: int
    target: float
    query: str
    address: str
    patience: int = 300
    steady: int = 300

    def __post_init__(self) -> None:
        if not (0 <= self.least <= self.most and self.most >= 1):
            raise InvalidInput(
                f"{self.least} to {self.most} replicas are no range.", next_step="Give 0 ≤ least ≤ most."
            )
        if not (0 < self.target < float("inf")):
            raise InvalidInput(f"The target {self.target} is not above 0.", next_step="Give the load of one replica.")
        if not (self.query and self.address.startswith(("http://", "https://"))):
            raise InvalidInput(
                "The plan does not say where load is read.", next_step="Give a PromQL query and Prometheus's address."
            )
        if min(self.patience, self.steady) < 0:
            raise InvalidInput("The plan waits for less than nothing.", next_step="Give 0 or more seconds.")


def endpoint(workload: Workload, plan: Plan, *, by: Literal["keda", "hpa"] = "keda") -> list[Object]:
    """An endpoint's Deployment, its Service, and what scales it. Raises InvalidInput for an HPA that should scale to zero."""
    if not workload.port:
        raise InvalidInput(f"{workload.name} has no port.", next_step="Say on which port it answers.")
    scaler = _scaled_object(workload, plan) if by == "keda" else _autoscaler(workload, plan)
    return [_deployment(workload), _service(workload), scaler]


def _deployment(workload: Workload) -> Object:
    # `replicas` is left out: whoever applies this again must not undo what the scaler decided.
    template = kubernetes.labelled(workload, kubernetes.pod_spec(workload))
    spec = {"selector": {"matchLabels": _selector(workload)}, "template": template}
    metadata = kubernetes.metadata(workload, limit=_NAME, queued=False)
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _service(workload: Workload) -> Object:
    metadata = kubernetes.metadata(workload, limit=_NAME, queued=False)
    spec = {"selector": _selector(workload), "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _scaled_object(workload: Workload, plan: Plan) -> Object:
    metadata = kubernetes.metadata(workload, limit=_NAME, queued=False)
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {"serverAddress": plan.address, "query": plan.query, "threshold": _number(plan.target)},
    }
    behaviour = {"scaleDown": {"stabilizationWindowSeconds": plan.steady}}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]},
        "minReplicaCount": plan.least,
        "maxReplicaCount": plan.most,
        "cooldownPeriod": plan.patience,
        "pollingInterval": 15,
        # If Prometheus is silent, keep what runs: neither an outage nor a bill should follow from a lost metric.
        "fallback": {"failureThreshold": 4, "replicas": max(1, plan.least), "behavior": "currentReplicasIfHigher"},
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behaviour}},
        "triggers": [trigger],
    }
    return {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata, "spec": spec}


def _autoscaler(workload: Workload, plan: Plan) -> Object:
    """By an external metric, which a metrics adapter of the cluster serves under the name `macadam_load`."""
    if plan.least < 1:
        raise InvalidInput(
            "A HorizontalPodAutoscaler keeps at least one replica.", next_step="Scale to zero with KEDA, or keep one."
        )
    metadata = kubernetes.metadata(workload, limit=_NAME, queued=False)
    external = {
        "metric": {"name": "macadam_load", "selector": {"matchLabels": {"endpoint": label_value(workload.name)}}},
        "target": {"type": "AverageValue", "averageValue": cores(max(1, round(plan.target * _MILLI)))},
    }
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]},
        "minReplicas": plan.least,
        "maxReplicas": plan.most,
        "metrics": [{"type": "External", "external": external}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": plan.steady}},
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": spec,
    }


def _selector(workload: Workload) -> dict[str, str]:
    return {f"{PREFIX}/workload": label_value(workload.name)}


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
