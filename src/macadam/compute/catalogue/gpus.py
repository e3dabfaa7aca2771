"""What each GPU can do, from its maker's data sheet: the physical bounds of everything that is computed about it.

Names that leave the product open (`H100`, `A100`: which memory, which socket?) are not recognised: a wrong figure is
worse than none.
"""

import importlib.resources
import math
from functools import cache

import msgspec

from macadam.errors import InvalidInput, NotFound

FORMATS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8")
_SHARED = "shared"  # what Kubernetes adds to the product's name where a GPU is time-sliced; the product is the same


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One product. name: the catalogue's, such as 'h100-sxm-80gb'; names: what NVML, clouds and traces call it.

    peak: dense FLOP/s by number format ('fp64', 'fp32', 'tf32', 'fp16', 'bf16', 'fp8', 'int8'), without sparsity, on
    the fastest units that do that format (tensor or matrix cores where there are). bandwidth: bytes/s of its own
    memory. memory: bytes, as the data sheet says (10^9 a GB). A driver reports as much or up to 8% more (81,559 MiB of an
    H100 with 80 GB), so that what fits by this fits; how full a device is follows from the total of its driver, which
    telemetry has. link: bytes/s to its neighbours in one direction, 0 if only PCIe, or if the bridge is sold apart.
    power: W at its limit. source: where the figures stand; dated: when they were read, ISO date. Raises InvalidInput.
    """

    name: str
    names: tuple[str, ...]
    vendor: str
    memory: int
    bandwidth: float
    peak: dict[str, float]
    link: float
    power: float
    mig: bool
    source: str
    dated: str

    def __post_init__(self) -> None:
        figures = (self.memory, self.bandwidth, self.power, *self.peak.values())
        if not all(math.isfinite(figure) and figure > 0 for figure in figures) or self.link < 0:
            raise InvalidInput(f"{self.name}: a figure is not above zero.", next_step="Correct gpus.json.")
        if not self.peak or not set(self.peak) <= set(FORMATS):
            raise InvalidInput(
                f"{self.name}: peaks of {', '.join(self.peak) or 'nothing'}.",
                next_step=f"Name formats out of {', '.join(FORMATS)}.",
            )


@cache
def gpus() -> dict[str, Gpu]:
    """The whole catalogue by name."""
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("gpus.json").read_bytes()
    return {gpu.name: gpu for gpu in msgspec.json.decode(text, type=list[Gpu])}


def recognise(name: str) -> str:
    """The catalogue's name for what a driver, a cloud or a trace calls a GPU, '' if it is not known or could be
    several.
    """
    return _index().get(_plain(name), "")


def find(name: str) -> Gpu:
    """Raises NotFound with the names that are close."""
    known = recognise(name)
    if not known:
        close = [gpu for gpu in sorted(gpus()) if _plain(name) and _plain(name) in _plain(gpu)]
        raise NotFound(
            f"No GPU is known as {name!r}.", next_step="Choose one of: " + ", ".join(close or sorted(gpus())) + "."
        )
    return gpus()[known]


@cache
def _index() -> dict[str, str]:
    return {_plain(other): gpu.name for gpu in gpus().values() for other in (gpu.name, *gpu.names)}


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum()).removesuffix(_SHARED)
