"""How busy a job's links were: its traffic over what they can carry, in both directions together. Pure.

GPUs of one machine with NVLink talk over that, and their PCIe carries what comes from the host; without it, and between machines,
they talk over PCIe (to each other, or to the network card).
"""

import math
from dataclasses import dataclass

from macadam.compute.catalogue.gpus import Gpu

_GEN3, _GEN4, _GEN5 = 15.75e9, 31.5e9, 63e9
"""Bytes/s of sixteen lanes in one direction, after their encoding (Intel, L- and H-Tile PCIe user guide, table 1, June 2024, which
has 126 Gbit/s for generation 3; each later one doubles it).
"""
_PCIE = {
    "p100": _GEN3, "v100": _GEN3, "t4": _GEN3,
    "a100": _GEN4, "a10": _GEN4, "a10g": _GEN4, "a30": _GEN4, "a40": _GEN4, "l4": _GEN4, "l40": _GEN4, "l40s": _GEN4, "rtx": _GEN4,
    "h100": _GEN5, "h200": _GEN5, "b200": _GEN5,
}  # fmt: skip
"""By the family's name; of others it is not known (a GH200 talks to its host over C2C)."""
MOST = 1.1
"""Times what a link can carry: a rate above it is a mistake of unit, and is taken for not measured."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Parts of what can be carried, 0 to 1; None: not known. links: between the job's GPUs; bus: from and to the host."""

    links: float | None
    bus: float | None


def traffic(gpu: Gpu, *, nvlink: float | None, pcie: float | None, gpus: int, nodes: int) -> Traffic:
    """nvlink, pcie: mean bytes/s of each GPU. gpus, nodes: how many the job had."""
    direct = _part(nvlink, gpu.link)
    host = _part(pcie, _PCIE.get(gpu.name.partition("-")[0], 0.0))
    if gpus < 2:  # noqa: PLR2004 - alone
        return Traffic(links=None, bus=host)
    if gpu.link and nodes <= 1:
        return Traffic(links=direct, bus=host)
    known = [part for part in (direct, host) if part is not None]
    return Traffic(links=max(known, default=None), bus=None)


def _part(rate: float | None, one_way: float) -> float | None:
    if rate is None or not one_way or not math.isfinite(rate) or not 0 <= rate <= MOST * 2 * one_way:
        return None
    return min(1.0, rate / (2 * one_way))
