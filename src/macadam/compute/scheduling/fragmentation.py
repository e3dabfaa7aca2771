"""How much of the free GPUs the work that usually arrives could not use: the measure of fragmentation of FGD.

From: Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", USENIX ATC 2023,
section 3. For a node n and a task m the fragment F_n(m) is everything free on n if m does not fit there (for want of GPU, CPU,
memory or because the model is not allowed), and else what is free on devices that are each too small for m. F_n(M) is the
expectation over M, the typical work. Units: thousandths of a GPU.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from macadam.compute.scheduling.cluster import Cluster, Demand
from macadam.compute.scheduling.types import WHOLE
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]
else:
    np = lazy("numpy")

_NOTHING = 1e-9  # a divisor that makes any free CPU or memory enough
COVERED = 0.95  # the part of the arrivals that typical work stands for, as in the authors' experiments


class Typical(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of work and how often it arrives. weight: the typical work's weights sum to 1."""

    demand: Demand
    weight: float


def typical(seen: Iterable[Demand], *, covered: float = COVERED) -> tuple[Typical, ...]:
    """The commonest demands that together make up `covered` of those seen, with weights that sum to 1.

    Work without a GPU counts (all free GPUs are a fragment to it). Gangs count as their members. Slices are left out.
    """
    counts: Counter[Demand] = Counter()
    for demand in seen:
        if not demand.slice:
            counts[demand.alone] += demand.members
    wanted, total = covered * counts.total(), 0
    chosen: list[tuple[Demand, int]] = []
    for demand, count in sorted(counts.items(), key=lambda item: (-item[1], msgspec.structs.astuple(item[0]))):
        if total >= wanted:
            break
        chosen.append((demand, count))
        total += count
    return tuple(Typical(demand=demand, weight=count / total) for demand, count in chosen)


class Measure:
    """F_n(M) of many node states at once. Built for one cluster's models and one typical work."""

    def __init__(self, cluster: Cluster, work: Sequence[Typical]) -> None:
        demands = [one.demand for one in work]
        self._weight: Floats = np.array([one.weight for one in work])
        self._cpu: Ints = np.array([demand.cpu_milli for demand in demands], dtype=np.int64)
        self._memory: Ints = np.array([demand.memory_mib for demand in demands], dtype=np.int64)
        self._gpus: Ints = np.array([demand.gpus for demand in demands], dtype=np.int64)
        # What one device must have free: nothing counts as enough for work without a GPU.
        self._share: Ints = np.array([demand.gpu_milli if demand.gpus else WHOLE + 1 for demand in demands])
        shares, self._which = np.unique(self._share, return_inverse=True)
        self._shares: Ints = shares
        self._per_gpu = [_per_gpu(work, model) for model in cluster.models]
        allowed = [[not demand.models or model in demand.models for demand in demands] for model in cluster.models]
        self._allowed = np.array(allowed, dtype=bool)

    def of(self, cpu: "Ints", memory: "Ints", gpu: "Ints", model: "Ints") -> "Floats":
        """Fragments in thousandths of a GPU, shape (s,), of states: cpu, memory, model of shape (s,), gpu of shape (s, devices)."""
        free = np.maximum(gpu, 0)
        enough = gpu[:, None, :] >= self._shares[None, :, None]
        count = np.count_nonzero(enough, axis=2)[:, self._which]
        usable = np.einsum("ijk,ik->ij", enough, free)[:, self._which]
        fits = (cpu[:, None] >= self._cpu) & (memory[:, None] >= self._memory) & self._allowed[model]
        fits &= (count >= self._gpus) & (self._gpus > 0)
        total: Floats = free.sum(axis=1) - np.where(fits, usable, 0) @ self._weight
        return total

    def stranded(self, cpu: "Ints", memory: "Ints", gpu: "Ints", model: "Ints") -> "Floats":
        """Free GPU that free CPU or memory could not feed, in thousandths, if typical work went on arriving: shape (s,).

        F_n(M) asks whether one more task fits and sees a lack of CPU only when it has come. This sees it from the first task: the
        node is filled with a fluid of typical work, which needs so much CPU and memory for each GPU. So work that needs much CPU
        for its GPU, or none, goes where CPU would be left over.
        """
        free = np.maximum(gpu, 0).sum(axis=1)
        need = np.array(self._per_gpu)[model]
        fed = np.minimum(cpu / need[:, 0], memory / need[:, 1]) * WHOLE
        return np.asarray(np.maximum(0.0, free - fed))


def _per_gpu(work: Sequence[Typical], model: str) -> tuple[float, float]:
    """CPU and memory for each whole GPU of the typical work that may run on a model; next to nothing if there is none."""
    mine = [one for one in work if one.demand.gpus and (not one.demand.models or model in one.demand.models)]
    gpus = sum(one.weight * one.demand.gpus * one.demand.gpu_milli for one in mine) / WHOLE
    if not gpus:
        return _NOTHING, _NOTHING
    cpu = sum(one.weight * one.demand.cpu_milli for one in mine)
    memory = sum(one.weight * one.demand.memory_mib for one in mine)
    return max(cpu / gpus, _NOTHING), max(memory / gpus, _NOTHING)
