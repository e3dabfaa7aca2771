"""How busy a job's links were: its traffic over what they can carry, in both directions together. Pure.

GPUs of one machine with NVLink talk over that, and their PCIe carries what comes from the host; without it, and between machines,
they talk over PCIe (to each other, or to the network card).
"""

import math
from dataclasses import dataclass

from macadam.compute.catalogue import buses
from macadam.compute.catalogue.gpus import Gpu


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Parts of what can be carried, 0 to 1; None: not known. links: between the job's GPUs; bus: from and to the host."""

    links: float | None
    bus: float | None


def traffic(gpu: Gpu, *, nvlink: float | None, pcie: float | None, gpus: int, nodes: int) -> Traffic:
    """nvlink, pcie: mean bytes/s of each GPU. gpus, nodes: how many the job had."""
    direct = _part(nvlink, gpu.link)
    host = _part(pcie, buses.pcie(gpu.name))
    if gpus < 2:  # noqa: PLR2004 - alone
        return Traffic(links=None, bus=host)
    if gpu.link and nodes <= 1:
        return Traffic(links=direct, bus=host)
    known = [part for part in (direct, host) if part is not None]
    return Traffic(links=max(known, default=None), bus=None)


def _part(rate: float | None, one_way: float) -> float | None:
    if rate is None or not one_way or not math.isfinite(rate) or not 0 <= rate <= buses.MOST * 2 * one_way:
        return None
    return min(1.0, rate / (2 * one_way))
