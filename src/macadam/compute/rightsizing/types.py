"""What right-sizing speaks of: promises, requests, replicas, offers and fleets. Checked at birth."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from macadam.compute.catalogue.gpus import Gpu
from macadam.compute.catalogue.llms import Llm
from macadam.errors import InvalidInput

Format = Literal["bf16", "fp16", "fp8", "int8"]
BYTES: dict[str, float] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}


_MOST = 100_000_000  # of an engine's counts


def spanned(at: Sequence[float]) -> float:
    """Seconds from the first arrival to the last, and one mean gap; 1 if that is none."""
    n = len(at)
    return (at[-1] - at[0]) * n / (n - 1) if n > 1 and at[-1] > at[0] else 1.0


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What is promised. ttft: seconds from arrival to the first token. tpot: mean seconds for each further token.
    attainment: the part of all requests for which both must hold.
    """

    ttft: float
    tpot: float
    attainment: float = 0.995

    def __post_init__(self) -> None:
        if not (self.ttft > 0 and self.tpot > 0 and 0 < self.attainment <= 1):  # NaN is not above 0
            raise InvalidInput(
                f"A promise of {self.ttft} s, {self.tpot} s for {self.attainment} of all requests cannot be kept.",
                next_step="Give seconds above 0 to the first token and for each further one, such as --slo 1.0,0.05.",
            )


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in the order of their arrival. at: seconds since the first; prompt, output: tokens, at least 1 each.

    What a replica may have read before, if it is known: ids, of each prompt's blocks of `unit` tokens, the same where all
    tokens up to that block's end are the same (the last may be part of a block); or hit, tokens of each prompt that are
    taken to be cached, fewer than it has. Not both.
    """

    at: tuple[float, ...]
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...] = ()
    unit: int = 0
    hit: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.at or not len(self.at) == len(self.prompt) == len(self.output):
            raise InvalidInput("The trace has no requests.", next_step="Give a file with at least one.")
        if any(later < earlier for earlier, later in zip(self.at, self.at[1:], strict=False)) or not math.isfinite(
            self.at[-1]
        ):
            raise InvalidInput("The trace is not in the order of arrival.", next_step="Sort it by time.")
        if min(self.prompt) < 1 or min(self.output) < 1:
            raise InvalidInput("A request has no tokens.", next_step="Leave requests without tokens out.")
        self._check_prefixes()

    def _check_prefixes(self) -> None:
        if self.ids and (len(self.ids) != len(self.at) or self.unit < 1 or self.hit):
            raise InvalidInput("Ids of blocks are missing.", next_step="Give them for all requests, and for no share.")
        if self.hit and (
            len(self.hit) != len(self.at)
            or not all(0 <= hit < prompt for hit, prompt in zip(self.hit, self.prompt, strict=True))
        ):
            raise InvalidInput(
                "More of a prompt is cached than can be.", next_step="Give a part of the prompt below all of it."
            )

    def take(self, places: Sequence[int], gone: Sequence[float]) -> "Trace":
        """Some of its requests, each `gone` seconds (by its place in this trace) earlier, the first at 0."""
        start = self.at[places[0]] - gone[places[0]]
        return Trace(
            at=tuple(self.at[number] - gone[number] - start for number in places),
            prompt=tuple(self.prompt[number] for number in places),
            output=tuple(self.output[number] for number in places),
            ids=tuple(self.ids[number] for number in places) if self.ids else (),
            unit=self.unit,
            hit=tuple(self.hit[number] for number in places) if self.hit else (),
        )

    def __len__(self) -> int:
        return len(self.at)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last, and one mean gap: what rates are taken over."""
        return spanned(self.at)


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """How near an engine comes to the data sheet. compute, bandwidth, link: 0 to 1 of the peak. overhead: seconds of
    each iteration in which the GPU waits for its host. latency: seconds that each exchange between GPUs takes, however
    small.

    The defaults are those that fit 25 published measurements best (calibration.py): a grid of steps of 0.05, in which
    compute 0.5 to 0.6 and bandwidth 0.75 to 0.9 are within about 5% of the least error. Fitted there, never on the rows that
    judge them.
    """

    compute: float = 0.55
    bandwidth: float = 0.85
    link: float = 0.3
    overhead: float = 0.003
    latency: float = 2e-5

    def __post_init__(self) -> None:
        parts = (self.compute, self.bandwidth, self.link)
        if not all(0 < part <= 1 for part in parts) or not (0 <= self.overhead < 1 and 0 <= self.latency < 1):
            raise InvalidInput(
                f"Efficiencies of {', '.join(f'{part:g}' for part in parts)} are not above 0 and at most 1.",
                next_step="Give parts of the peak between 0 and 1.",
            )


PHYSICS = Efficiency(compute=1.0, bandwidth=1.0, link=1.0, overhead=0.0, latency=0.0)


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are served. weights, kv: number formats. memory_share: of the GPU's memory that the engine may take.
    reserve: bytes a GPU for activations and graphs. block: tokens of one block of keys and values. budget: tokens in
    one iteration (chunked prefill). most: requests that run at once.

    The defaults are vLLM's (gpu_memory_utilization 0.9, block_size 16, max_num_seqs 256, chunked prefill with 2,048
    tokens); the reserve is an assumption, about what its profiling run of these models leaves.
    """

    weights: Format = "bf16"
    kv: Format = "bf16"
    memory_share: float = 0.9
    reserve: float = 1e9
    block: int = 16
    budget: int = 2048
    most: int = 256

    def __post_init__(self) -> None:
        counts = (self.block, self.budget, self.most)
        if not 0 < self.memory_share <= 1 or self.reserve < 0 or not all(1 <= count <= _MOST for count in counts):
            raise InvalidInput(
                "The engine's limits cannot be.", next_step=f"Give counts (--chunk) of at least 1 and at most {_MOST}."
            )


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of the model on `tp` GPUs of one kind, which share each layer (tensor parallelism)."""

    llm: Llm
    gpu: Gpu
    tp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.llm.heads % self.tp or (self.llm.kv_heads % self.tp and self.tp % self.llm.kv_heads):
            raise InvalidInput(
                f"{self.llm.name} cannot be shared by {self.tp} GPUs: it has {self.llm.heads} heads over {self.llm.kv_heads}.",
                next_step="Use 1, 2, 4 or 8.",
            )


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that can be rented. gpus: how many it has, all of which are paid. hourly: millionths of a USD for the
    whole machine.
    """

    name: str
    gpu: str
    gpus: int
    hourly: int
    provider: str = ""
    source: str = ""
    dated: str = ""

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.hourly <= 0:
            raise InvalidInput(
                f"{self.name} has {self.gpus} GPUs for {self.hourly}.", next_step="Give both above zero."
            )


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a replica: a machine and how many of its GPUs share the model."""

    offer: Offer
    replica: Replica

    @property
    def name(self) -> str:
        return f"{self.offer.name} tp{self.replica.tp}"


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """replicas: how many of each option (by its place in the list of options). machines: by the offer's name. hourly:
    millionths of a USD.

    routes: for each class of prompt length, the part of its requests that goes to each option, as planned.
    """

    replicas: tuple[int, ...]
    machines: dict[str, int]
    hourly: int
    routes: tuple[tuple[float, ...], ...]

    @property
    def size(self) -> int:
        return sum(self.replicas)
