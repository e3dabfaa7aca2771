"""What the bus between a GPU and its host carries, by the GPU's generation."""

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
"""Times what a link can carry: a rate above it is a mistake of unit, and is taken for not measured; telemetry does not believe it."""


def pcie(gpu: str) -> float:
    """Bytes/s in one direction over the bus of a GPU, by the catalogue's name; 0 where it is not known."""
    return _PCIE.get(gpu.partition("-")[0], 0.0)
