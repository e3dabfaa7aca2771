"""Which GPUs a machine type of a provider has, so that bills which only name the type can be read."""

import importlib.resources
import re
from functools import cache

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """instance: the provider's name of the type. gpu: the catalogue's name; gpus: how many it has. vcpus, memory (GiB): of
    types whose cores and memory are priced apart, as Google Cloud does; 0 where nobody needs to know.
    """

    instance: str
    gpu: str
    gpus: float
    source: str
    vcpus: int = 0
    memory: float = 0


_FRACTION = re.compile(r"standard_nv(6|12|18)ad[ms]*_a10_v5")
_OF_A10 = 36  # vCPUs of a whole A10 in that series, which rents out sixths, thirds and halves
# Names that say it themselves. Crusoe's, such as 'h100-80gb-sxm-ib.8x' and 'a100.8x' (of 40 GB): also in its examples for
# Terraform and Slurm (github.com/crusoecloud). CoreWeave's, such as 'gd-8xh100ib-i128', 'gd-1xgh200' and 'b200-8x': also in
# its provider for the Kubernetes cluster autoscaler. Read there in November 2026.
_CRUSOE = re.compile(r"(h200-141gb-sxm|h100-80gb-sxm|a100-80gb-sxm|a100-80gb|a100|l40s-48gb)(-ib)?\.(\d{1,2})x")
_COREWEAVE = re.compile(
    r"gd-(?P<count>\d{1,2})x(?P<gpu>h100|h200|a100|l40s|l40|gh200)(ib)?(-i\d+)?|(?P<plain>b200)-(?P<times>\d{1,2})x"
)
_CRUSOES = {
    "h200-141gb-sxm": "h200-sxm-141gb",
    "h100-80gb-sxm": "h100-sxm-80gb",
    "a100-80gb-sxm": "a100-sxm-80gb",
    "a100-80gb": "a100-pcie-80gb",
    "a100": "a100-pcie-40gb",
    "l40s-48gb": "l40s-48gb",
}
_COREWEAVES = {
    "h100": "h100-sxm-80gb",
    "h200": "h200-sxm-141gb",
    "b200": "b200-sxm-180gb",
    "a100": "a100-sxm-80gb",
    "l40s": "l40s-48gb",
    "l40": "l40-48gb",
    "gh200": "gh200-96gb",
}


def find(instance: str) -> Machine | None:
    """The machine of that type, whatever its capitals; None if it is not known."""
    name = instance.strip().lower()
    if name in _known():
        return _known()[name]
    if match := _FRACTION.fullmatch(name):
        source = "https://learn.microsoft.com/en-us/azure/virtual-machines/sizes/gpu-accelerated/nvadsa10v5-series"
        return Machine(instance=instance, gpu="a10-24gb", gpus=int(match[1]) / _OF_A10, source=source)
    if match := _CRUSOE.fullmatch(name):
        source = "https://docs.crusoecloud.com/compute/virtual-machines/overview"
        return Machine(instance=instance, gpu=_CRUSOES[match[1]], gpus=int(match[3]), source=source)
    if match := _COREWEAVE.fullmatch(name):
        source = "https://docs.coreweave.com/docs/platform/instances/gpu-instances"
        gpu, count = match["gpu"] or match["plain"], match["count"] or match["times"]
        return Machine(instance=instance, gpu=_COREWEAVES[gpu], gpus=int(count), source=source)
    return None


def sized() -> list[Machine]:
    """The types whose cores and memory are known."""
    return [machine for machine in _known().values() if machine.vcpus and machine.memory]


@cache
def _known() -> dict[str, Machine]:
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("machines.json").read_bytes()
    return {machine.instance.lower(): machine for machine in msgspec.json.decode(text, type=list[Machine])}
