"""What a job achieved against what its GPUs can do: model FLOPs utilisation, its place under the roofline, its likely bottleneck.

Pure. Model FLOPs are those that the model needs, not those that were run: what is computed again to save memory does not count.
Dense peaks come from `catalogue.gpus`. A bottleneck is a hint with its evidence, for somebody to look at; thresholds are in one place.
"""

import math
from typing import Literal

import msgspec

from macadam.compute.catalogue.gpus import Gpu
from macadam.errors import InvalidInput

Bottleneck = Literal[
    "throttling", "data_loading", "communication", "memory_bandwidth", "compute", "small_kernels", "waiting", "unknown"
]

# NVIDIA, DCGM user guide, "Profiling Metrics": an SM activity of 0.8 or more is "necessary, but not sufficient, for effective
# use of the GPU", one below 0.5 "likely indicates ineffective GPU usage"; about 0.8 of DRAM activity is the most that
# workloads reach in practice.
EFFECTIVE_SM, INEFFECTIVE_SM, MOST_DRAM = 0.8, 0.5, 0.8
BOUND = 0.75
"""Of what can be reached in practice: from here on a resource is called the bound. Ours: the last quarter is seldom to be had."""
RUNNING = 0.7
"""GPUs that run kernels for less of the time than this wait for something. Ours."""
BUSY_HOST = 0.8
"""Part of a machine's cores. Ours."""
BUSY_BUS = 0.5
"""Part of what PCIe carries in both directions together: copies to a GPU go one way. Ours."""
THROTTLED = 0.1
"""Part of the time at reduced clocks. Ours: a tenth costs more than it takes to look."""
MOST_MFU = 1.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Means over a job's time, each 0 to 1 and None if it was not measured.

    gpu_active, sm_active, tensor_active, dram_active, and what clocks were held down by (throttled_…): as in telemetry's
    usage; link_active: of the bandwidth to other GPUs; bus_active: of that to the host; host_cores: part of the host's cores
    in use; gaps: whether the GPU goes idle at regular intervals; gpus: how many it had.
    """

    gpu_active: float | None = None
    sm_active: float | None = None
    tensor_active: float | None = None
    dram_active: float | None = None
    link_active: float | None = None
    bus_active: float | None = None
    throttled_heat: float | None = None
    throttled_hardware: float | None = None
    throttled_power: float | None = None
    throttled_sync: float | None = None
    host_cores: float | None = None
    gaps: bool | None = None
    gpus: int = 1

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name not in ("gaps", "gpus") and value is not None and not 0 <= value <= 1:
                raise InvalidInput(f"{name} is {value}.", next_step="Give parts of the whole, from 0 to 1.")


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """Where work stands under the roof (Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009).

    intensity: FLOP per byte of the GPU's memory; ridge: the intensity from which on compute is the bound; achieved and
    attainable: FLOP/s; of_roof: achieved / attainable; bound: which part of the roof is above.
    """

    intensity: float
    ridge: float
    achieved: float
    attainable: float
    of_roof: float
    bound: Literal["memory", "compute"]


class Likely(msgspec.Struct, frozen=True, kw_only=True):
    """bottleneck, the figures that speak for it, in words, and what to try."""

    bottleneck: Bottleneck
    evidence: tuple[str, ...]
    try_next: str


# --- model FLOPs


def training(parameters: float, tokens: float) -> float:
    """6·N·D: two for the forward pass and four for the backward one, per parameter and token, attention left out.

    Kaplan et al., "Scaling Laws for Neural Language Models", arXiv 2001.08361, section 2.1. parameters: those that are active
    for a token. Raises InvalidInput.
    """
    return 6 * _positive("parameters", parameters) * _positive("tokens", tokens)


def inference(parameters: float, tokens: float) -> float:
    """2·N per token read or written (the same source), attention left out. Raises InvalidInput."""
    return 2 * _positive("parameters", parameters) * _positive("tokens", tokens)


def mfu(model_flops: float, gpu: Gpu, number_format: str, gpu_seconds: float) -> float:
    """Model FLOPs utilisation: achieved / dense peak (Chowdhery et al., "PaLM", arXiv 2204.02311, appendix B).

    model_flops: all of the job; gpu_seconds: GPUs times seconds that it had them. Raises InvalidInput, also for more than the
    peak: then FLOPs, seconds, format or GPU are wrong, and a figure would be too.
    """
    peak = gpu.peak.get(number_format)
    if peak is None:
        raise InvalidInput(
            f"No peak of {gpu.name} in {number_format!r} is known.",
            next_step=f"Name one of {', '.join(sorted(gpu.peak))}.",
        )
    return of_peak(model_flops, peak * _positive("GPU seconds", gpu_seconds), gpu.name)


def of_peak(model_flops: float, most: float, whose: str) -> float:
    """Model FLOPs over what could have been done in the same time. Raises InvalidInput for more than that."""
    found = _positive("model FLOPs", model_flops) / _positive("FLOPs of the peak", most)
    if found > MOST_MFU:
        raise InvalidInput(
            f"{model_flops:.3g} model FLOPs would be {found:.2f} times the peak of {whose}.",
            next_step="Check the tokens, the parameters, the number format and the time.",
        )
    return found


def _positive(what: str, value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise InvalidInput(f"The {what} are {value}.", next_step="Give a number above 0.")
    return value


# --- roofline


def roofline(gpu: Gpu, number_format: str, *, flops_per_second: float, bytes_per_second: float) -> Roofline:
    """From what was achieved. Raises InvalidInput for an unknown format, no bytes, or more than the GPU can do."""
    if number_format not in gpu.peak:
        raise InvalidInput(f"No peak of {gpu.name} in {number_format!r} is known.", next_step="Name another format.")
    peak = gpu.peak[number_format]
    achieved, moved = _positive("FLOP/s", flops_per_second), _positive("bytes/s", bytes_per_second)
    intensity = achieved / moved
    attainable = min(peak, intensity * gpu.bandwidth)
    if achieved > attainable * (1 + 1e-9):
        raise InvalidInput(
            f"{achieved:.3g} FLOP/s and {moved:.3g} bytes/s are above the roof of {gpu.name}.",
            next_step="Check which GPU it was, and the number format.",
        )
    ridge = peak / gpu.bandwidth
    return Roofline(
        intensity=intensity,
        ridge=ridge,
        achieved=achieved,
        attainable=attainable,
        of_roof=achieved / attainable,
        bound="memory" if intensity < ridge else "compute",
    )


def roofline_of(gpu: Gpu, number_format: str, job: Job) -> Roofline | None:
    """From counters: tensor activity times the peak, DRAM activity times the bandwidth. None if either is missing or 0.

    Tensor activity counts cycles in which the pipe was busy in whatever format, so the format must be the job's own.
    """
    if not job.tensor_active or not job.dram_active or number_format not in gpu.peak:
        return None
    return roofline(
        gpu,
        number_format,
        flops_per_second=job.tensor_active * gpu.peak[number_format],
        bytes_per_second=job.dram_active * gpu.bandwidth,
    )


# --- bottleneck


def likely(job: Job) -> Likely:
    """The likely bottleneck, by rules in order: what slows the whole machine first, then what the GPU waits for, then its own."""
    for rule in (_throttling, _starved, _communication, _memory, _compute, _at_power_limit, _small):
        found = rule(job)
        if found is not None:
            return found
    if job.gpu_active is not None and job.gpu_active < RUNNING:
        return Likely(
            bottleneck="waiting",
            evidence=(f"kernels ran {_percent(job.gpu_active)} of the time, and the host was not seen busy",),
            try_next="Profile a step: locks, disk, network and synchronisation with the host come into question.",
        )
    return Likely(
        bottleneck="unknown",
        evidence=("too little was measured, or nothing stands out",),
        try_next="Collect SM, tensor and DRAM activity (profiling metrics of DCGM, or GPM).",
    )


_HELD_DOWN = {
    "throttled_heat": ("by heat", "Look at cooling and air flow: the same work costs longer at lower clocks."),
    "throttled_hardware": (
        "by the board's own protection",
        "Look at the power supply and the power brake: nvidia-smi -q -d PERFORMANCE.",
    ),
    "throttled_sync": ("to keep in step with other GPUs", "Look for the slowest GPU of its sync-boost group."),
}


def _throttling(job: Job) -> Likely | None:
    """What nobody wants. A power limit that is reached is how busy GPUs run, and comes after what they are busy with."""
    parts = {name: getattr(job, name) or 0.0 for name in _HELD_DOWN}
    if sum(parts.values()) < THROTTLED:
        return None
    worst = sorted(parts, key=lambda name: -parts[name])
    return Likely(
        bottleneck="throttling",
        evidence=tuple(
            f"clocks were held down {_HELD_DOWN[name][0]} {_percent(parts[name])} of the time"
            for name in worst
            if parts[name] > 0
        ),
        try_next=_HELD_DOWN[worst[0]][1],
    )


def _at_power_limit(job: Job) -> Likely | None:
    if (job.throttled_power or 0) < THROTTLED or (job.gpu_active or 0) < RUNNING:
        return None
    return Likely(
        bottleneck="throttling",
        evidence=_held_at_limit(job),
        try_next="Look whether the limit was set below the data sheet's (nvidia-smi -q -d POWER), and at kernels that draw much "
        "and compute little.",
    )


def _held_at_limit(job: Job) -> tuple[str, ...]:
    if (job.throttled_power or 0) < THROTTLED:
        return ()
    return (f"clocks were held at the power limit {_percent(job.throttled_power)} of the time",)


def _starved(job: Job) -> Likely | None:
    if job.gpu_active is None or job.gpu_active >= RUNNING:
        return None
    evidence = [f"kernels ran {_percent(job.gpu_active)} of the time"]
    if (job.host_cores or 0) >= BUSY_HOST:
        evidence.append(f"{_percent(job.host_cores)} of the host's cores were busy meanwhile")
    if (job.bus_active or 0) >= BUSY_BUS:
        evidence.append(f"the bus to the host was {_percent(job.bus_active)} busy meanwhile")
    if job.gaps:
        evidence.append("the GPU goes idle at regular intervals, as between batches")
    if len(evidence) == 1:
        return None
    return Likely(
        bottleneck="data_loading",
        evidence=tuple(evidence),
        try_next="More loader workers, prefetching, or decoded data on the local disk.",
    )


def _communication(job: Job) -> Likely | None:
    if job.gpus < 2 or (job.link_active or 0) < INEFFECTIVE_SM or _or_one(job.sm_active) >= INEFFECTIVE_SM:  # noqa: PLR2004 - alone
        return None
    return Likely(
        bottleneck="communication",
        evidence=(
            f"the links between {job.gpus} GPUs were {_percent(job.link_active)} busy",
            f"{_percent(job.sm_active)} of the multiprocessors were, below {_percent(INEFFECTIVE_SM)}",
        ),
        try_next="Overlap communication with compute, larger batches, or GPUs that share faster links.",
    )


def _memory(job: Job) -> Likely | None:
    limit = BOUND * MOST_DRAM
    if (job.dram_active or 0) < limit or (job.tensor_active or 0) >= BOUND:
        return None
    return Likely(
        bottleneck="memory_bandwidth",
        evidence=(
            f"memory was moved {_percent(job.dram_active)} of the cycles; {_percent(limit)} and more is the bound",
            *_held_at_limit(job),
        ),
        try_next="Larger batches, fused kernels, lower precision of what is read, or a GPU with more bandwidth.",
    )


def _compute(job: Job) -> Likely | None:
    if (job.tensor_active or 0) < BOUND * EFFECTIVE_SM:
        return None
    return Likely(
        bottleneck="compute",
        evidence=(f"the matrix units were busy {_percent(job.tensor_active)} of the cycles", *_held_at_limit(job)),
        try_next="It is well used: lower precision or a faster GPU is what is left.",
    )


def _small(job: Job) -> Likely | None:
    if _or_one(job.sm_active) >= INEFFECTIVE_SM or (job.gpu_active or 0) < RUNNING:
        return None
    return Likely(
        bottleneck="small_kernels",
        evidence=(
            f"kernels ran {_percent(job.gpu_active)} of the time",
            f"on {_percent(job.sm_active)} of the multiprocessors, below {_percent(INEFFECTIVE_SM)}",
        ),
        try_next="Larger batches, compiled or fused kernels, CUDA graphs, or a slice of a GPU.",
    )


def _or_one(part: float | None) -> float:
    return 1.0 if part is None else part


def _percent(part: float | None) -> str:
    return f"{(part or 0) * 100:.0f}%"
