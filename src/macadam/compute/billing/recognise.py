"""Which GPUs a charge is for: from the details of its price, else from the name of its machine or of its meter.

What is not known stays '' and 0: the waterfall then calls it by its resource, and nothing is made up.
"""

import math
import re
from typing import Any

import msgspec

from macadam.compute.catalogue import gpus, machines

# FOCUS 1.1 names InstanceType and GpuCount in SkuPriceDetails; the others are what providers add to it.
_INSTANCE = ("InstanceType", "x_InstanceType", "instanceType", "VMName", "ServiceType", "MachineType", "machineType")
_COUNT = ("GpuCount", "x_GpuCount", "gpuCount", "GPUCount")
_MODEL = ("GpuModel", "x_GpuModel", "GpuType", "x_GpuType", "gpuType", "AcceleratorType")
_MOST = 100_000
# Meters such as 'Nvidia Tesla A100 GPU running in Americas' and 'BoxUsage:p5.48xlarge'.
_GPU = re.compile(r"nvidia\s+(?:tesla\s+)?([a-z0-9]+(?:\s+\d{2,3}\s?gb)?)\s+gpu\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][\w.-]{2,60}")


class Recognised(msgspec.Struct, frozen=True, kw_only=True):
    """instance: the machine's type as it is written; model: the catalogue's name of its GPU; gpus: how many."""

    instance: str = ""
    model: str = ""
    gpus: float = 0


def of(details: str | None, *others: str | None) -> Recognised:
    """details: SkuPriceDetails as JSON text. others: meter, SKU and description, in the order in which they are asked."""
    said = _details(details)
    instance = _text(said, _INSTANCE)
    machine = machines.find(instance) if instance else None
    count = _count(said)
    model = gpus.recognise(_text(said, _MODEL))
    if machine is None and not model:
        for text in others:
            found = _in_text(text or "")
            if found.model:
                return msgspec.structs.replace(found, instance=instance or found.instance, gpus=count or found.gpus)
    if machine is None:
        return Recognised(instance=instance, model=model, gpus=count)
    return Recognised(instance=instance, model=model or machine.gpu, gpus=count or machine.gpus)


def _details(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = msgspec.json.decode(text)
    except (
        msgspec.DecodeError,
        RecursionError,
    ):  # of a column that only some provider writes, so nobody has checked it
        return {}
    return found if isinstance(found, dict) else {}


def _text(said: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((value for name in names if isinstance(value := said.get(name), str) and value), "")


def _count(said: dict[str, Any]) -> float:
    """0 for what is no number of GPUs."""
    for name in _COUNT:
        try:
            count = float(said.get(name) or 0)
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(count) and 0 < count <= _MOST:
            return count
    return 0


def _in_text(text: str) -> Recognised:
    if match := _GPU.search(text):
        return Recognised(model=gpus.recognise(match[1]))
    for word in _WORD.findall(text):
        machine = machines.find(word)
        if machine is not None:
            return Recognised(instance=word, model=machine.gpu, gpus=machine.gpus)
    return Recognised()
