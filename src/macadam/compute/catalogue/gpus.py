"""What each GPU can do, from its maker's data sheet: the physical bounds of everything that is computed about it."""

import importlib.resources
from functools import cache

import msgspec

from macadam.errors import NotFound


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One product. name: the catalogue's, such as 'h100-sxm-80gb'; names: what NVML, clouds and traces call it.

    peak: dense FLOP/s by number format ('fp64', 'fp32', 'tf32', 'fp16', 'bf16', 'fp8', 'int8'), without sparsity. bandwidth: bytes/s of its
    own memory. memory: bytes. link: bytes/s to its neighbours in one direction, 0 if only PCIe. power: W at its limit.
    source: where the figures stand; dated: when they were read, ISO date.
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


@cache
def gpus() -> dict[str, Gpu]:
    """The whole catalogue by name."""
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("gpus.json").read_bytes()
    return {gpu.name: gpu for gpu in msgspec.json.decode(text, type=list[Gpu])}


def recognise(name: str) -> str:
    """The catalogue's name for what a driver, a cloud or a trace calls a GPU, '' if it is not known."""
    wanted = _plain(name)
    for gpu in gpus().values():
        if wanted in {_plain(gpu.name), *(_plain(other) for other in gpu.names)}:
            return gpu.name
    return ""


def find(name: str) -> Gpu:
    """Raises NotFound with the names that are close."""
    known = recognise(name)
    if not known:
        raise NotFound(f"No GPU is known as {name!r}.", next_step="Choose one of: " + ", ".join(sorted(gpus())) + ".")
    return gpus()[known]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum())
