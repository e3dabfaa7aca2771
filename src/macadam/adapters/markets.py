"""Where a machine was bought and as what, from the labels that clouds and node provisioners put on it. Pure.

Labels are whoever's they are: what they do not say stays unknown, and where they contradict each other a machine counts as one that can be
taken away. https://kubernetes.io/docs/reference/labels-annotations-taints/ and, for spot, the pages named below.
"""

from collections.abc import Mapping
from typing import Any

# The scheme of `spec.providerID`, as the cloud providers' controllers write it, and the name in our catalogue of prices.
_PROVIDERS = {"aws": "aws", "gce": "gcp", "azure": "azure"}
_REGION = ("topology.kubernetes.io/region", "ray.io/availability-region")
_ZONE = ("topology.kubernetes.io/zone", "ray.io/availability-zone")
_TYPE = ("node.kubernetes.io/instance-type",)
# https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html, https://karpenter.sh/docs/concepts/scheduling/,
# https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms, https://learn.microsoft.com/azure/aks/spot-node-pool,
# https://docs.ray.io/en/latest/ray-core/scheduling/labels.html
_MARKET = {
    "eks.amazonaws.com/capacityType": {"SPOT": True, "ON_DEMAND": False, "CAPACITY_BLOCK": False},
    "karpenter.sh/capacity-type": {"spot": True, "on-demand": False, "reserved": False},
    "cloud.google.com/gke-provisioning": {"spot": True, "preemptible": True, "standard": False},
    "cloud.google.com/gke-spot": {"true": True},
    "cloud.google.com/gke-preemptible": {"true": True},
    "kubernetes.azure.com/scalesetpriority": {"spot": True, "regular": False},
    "ray.io/market-type": {"spot": True, "on-demand": False},
}
# On every node of these services, which label their spot nodes beside: a node with this and none of the above is on demand.
_SAID_OTHERWISE = ("cloud.google.com/gke-nodepool", "kubernetes.azure.com/agentpool")


def bought(labels: Mapping[str, str], provider_id: str = "") -> dict[str, Any]:
    """The fields of `ports.Node` that say it: provider, region, zone, machine, spot. provider_id: 'aws:///us-east-1a/i-…', '' = not said."""
    scheme, found, _ = provider_id.partition("://")
    return {
        "provider": _PROVIDERS.get(scheme, "") if found else "",
        "region": _first(labels, _REGION),
        "zone": _first(labels, _ZONE),
        "machine": _first(labels, _TYPE),
        "spot": spot(labels),
    }


def spot(labels: Mapping[str, str]) -> bool | None:
    """Whether it may be taken away for a lower price; None if no label says so."""
    said = {market.get(labels[label]) for label, market in _MARKET.items() if label in labels} - {None}
    if said:
        return True in said
    return False if any(label in labels for label in _SAID_OTHERWISE) else None


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")
