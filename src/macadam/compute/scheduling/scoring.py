"""What each placement policy thinks of each node: a cost, lower is better, infinite where the work does not fit.

Vectorised over nodes. `placement` chooses by these and keeps them between questions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from macadam.compute.scheduling import mig
from macadam.compute.scheduling.cluster import Cluster, Demand
from macadam.compute.scheduling.fragmentation import Measure, Typical
from macadam.compute.scheduling.types import WHOLE
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
    Floats: TypeAlias = npt.NDArray[np.float64]
    Flags: TypeAlias = npt.NDArray[np.bool_]
else:
    np = lazy("numpy")

RESOURCES = ("model", "cpu", "memory", "gpu")
_IDLE_GPU, _IDLE_NODE = 100, 200  # steps of packing: any gap that is wider than the parts added to it
_SCORES = 100  # the span of scores in Kubernetes, framework.MaxNodeScore
_TIE = 0.005  # GPUs: far less than any share that work asks for, so that it only decides between equals
# (cluster, demand, rows where it fits) → (cost of each row, the device of each row for a share of one; ignored otherwise)
Rule: TypeAlias = "Callable[[Cluster, Demand, Ints], tuple[Floats, Ints]]"


class Scores:
    """The costs of one demand on every node, as of a version of the cluster. device: for a share, which device; -1 else."""

    def __init__(self, cluster: Cluster) -> None:
        count = len(cluster.nodes)
        self.cost: Floats = np.full(count, np.inf)
        self.device: Ints = np.full(count, -1, dtype=np.int64)
        self._version = -1

    def copy(self) -> "Scores":
        """The same, to go on from separately."""
        twin = Scores.__new__(Scores)
        twin.__dict__.update(cost=self.cost.copy(), device=self.device.copy(), _version=self._version)
        return twin

    def refresh(self, cluster: Cluster, rule: "Rule", demand: Demand) -> None:
        """Brings the scores of nodes that changed up to date."""
        if self._version == cluster.version:
            return
        changed = cluster.since(self._version) if self._version >= 0 else None
        rows = np.arange(len(cluster.nodes)) if changed is None else changed
        self.cost[rows], self.device[rows] = np.inf, -1
        rows = rows[fits(cluster, demand, rows)]
        if len(rows) > 0:
            chosen = slices(cluster, demand, rows) if demand.slice else rule(cluster, demand, rows)
            self.cost[rows], self.device[rows] = chosen
        self._version = cluster.version


def checks(cluster: Cluster, demand: Demand, rows: "Ints") -> "dict[str, Flags]":
    """For each resource, which rows have enough of it."""
    names = cluster.models
    allowed = np.array([not demand.models or model in demand.models for model in names], dtype=bool)
    return {
        "model": allowed[cluster.model[rows]],
        "cpu": cluster.cpu[rows] >= demand.cpu_milli,
        "memory": cluster.memory[rows] >= demand.memory_mib,
        "gpu": _slots_fit(cluster, demand, rows) if demand.slice else _gpus_fit(cluster, demand, rows),
    }


def fits(cluster: Cluster, demand: Demand, rows: "Ints") -> "Flags":
    """Which rows have room for one member."""
    found: Flags = np.logical_and.reduce(list(checks(cluster, demand, rows).values()))
    return found


def lacking(cluster: Cluster, demand: Demand) -> dict[str, int]:
    """How many nodes fail for what, each counted once, at the first resource that it lacks."""
    left = np.ones(len(cluster.nodes), dtype=bool)
    found: dict[str, int] = {}
    for name, enough in checks(cluster, demand, np.arange(len(cluster.nodes))).items():
        if count := int((left & ~enough).sum()):
            found[name] = count
        left &= enough
    return found


def room(cluster: Cluster, demand: Demand) -> "Ints":
    """How many members each node could hold at most, shape (n,)."""
    rows = np.arange(len(cluster.nodes))
    count = np.full(len(rows), 1 if demand.apart else demand.members, dtype=np.int64)
    for free, asked in ((cluster.cpu, demand.cpu_milli), (cluster.memory, demand.memory_mib)):
        if asked:
            count = np.minimum(count, free // asked)
    if demand.shared:
        count = np.minimum(count, (np.maximum(cluster.gpu, 0) // demand.gpu_milli).sum(axis=1))
    elif demand.slice:
        count = np.minimum(count, _slots_room(cluster, demand.slice))
    elif demand.gpus:
        count = np.minimum(count, (cluster.gpu == WHOLE).sum(axis=1) // demand.gpus)
    return np.where(fits(cluster, demand, rows), count, 0)


def devices(cluster: Cluster, demand: Demand, node: int, device: int) -> tuple[tuple[int, ...], int]:
    """The devices within a node that was chosen, and the memory slot of a slice (-1 if none)."""
    if demand.slice:
        known = mig.profiles(cluster.nodes[node].model)
        used = int(cluster.slots[node, device])
        return (device,), mig.choices(known[demand.slice], known, used)[0][1]
    if demand.shared:
        return (device,), -1
    return tuple(int(i) for i in np.flatnonzero(cluster.gpu[node] == WHOLE)[: demand.gpus]), -1


def _gpus_fit(cluster: Cluster, demand: Demand, rows: "Ints") -> "Flags":
    enough: Flags = (cluster.gpu[rows] >= demand.gpu_milli).sum(axis=1) >= demand.gpus
    return enough


# --- MIG slices: every policy places them where the fewest other slices lose their place


def _slots_fit(cluster: Cluster, demand: Demand, rows: "Ints") -> "Flags":
    return np.asarray(np.isfinite(_slot_costs(cluster, demand, rows)).any(axis=1))


def slices(cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
    """Costs of a MIG slice: beginnings of other slices that are lost."""
    costs = _slot_costs(cluster, demand, rows)
    best = costs.argmin(axis=1)
    return costs[np.arange(len(rows)), best], best


def _slot_costs(cluster: Cluster, demand: Demand, rows: "Ints") -> "Floats":
    costs = np.full((len(rows), cluster.slots.shape[1]), np.inf)
    for code, model in enumerate(cluster.models):
        mine = np.flatnonzero((cluster.model[rows] == code) & (cluster.slots[rows] >= 0).any(axis=1))
        if not len(mine) or demand.slice not in mig.profiles(model):
            continue
        table = _slot_table(model, demand.slice)
        used = cluster.slots[rows[mine]]
        costs[mine] = np.where(used >= 0, table[np.maximum(used, 0)], np.inf)
    return costs


def _slots_room(cluster: Cluster, name: str) -> "Ints":
    """How many slices of one kind the devices of each node have room for."""
    count = np.zeros(len(cluster.nodes), dtype=np.int64)
    for i in np.flatnonzero((cluster.slots >= 0).any(axis=1)):
        profile = mig.profiles(cluster.nodes[i].model).get(name)
        if profile is not None:
            count[i] = sum(profile.room(int(used)) for used in cluster.slots[i] if used >= 0)
    return count


@cache
def _slot_table(model: str, name: str) -> "Floats":
    """The cost of the best place for a slice, by the bit mask of the slots in use."""
    known = mig.profiles(model)
    options = [mig.choices(known[name], known, used) for used in range(1 << mig.slots(model))]
    return np.array([found[0][0] if found else np.inf for found in options])


# --- policies


def rule(cluster: Cluster, name: str, typical: Sequence[Typical], capability: Mapping[str, float]) -> "Rule":
    """The scoring of a policy. Those that need typical work and have none score by best fit."""
    if name in ("gradient", "balanced", "least-capable") and typical:
        base: Rule = _Gradient(Measure(cluster, typical), rounded=name == "gradient")
    else:
        base = {"random": _any, "packing": _packing(cluster), "dot-product": _dot_product}.get(name, _best_fit)
    return _least_capable(cluster, base, capability) if name == "least-capable" else base


def _tightest(cluster: Cluster, demand: Demand, rows: "Ints") -> "Ints":
    """The device with the least room that is enough for a share."""
    free = cluster.gpu[rows]
    return np.asarray(np.where(free >= demand.gpu_milli, free, WHOLE + 1).argmin(axis=1))


def _any(cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
    return np.zeros(len(rows)), _tightest(cluster, demand, rows)


def _best_fit(cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
    gpu = (_free(cluster, rows) - demand.gpus * demand.gpu_milli) / cluster.largest_gpu
    cpu = (cluster.cpu[rows] - demand.cpu_milli) / cluster.largest_cpu
    return (gpu + cpu) / 2, _tightest(cluster, demand, rows)


def _dot_product(cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
    gpu = _free(cluster, rows) / cluster.largest_gpu * demand.gpus * demand.gpu_milli / cluster.largest_gpu
    cpu = cluster.cpu[rows] / cluster.largest_cpu * demand.cpu_milli / cluster.largest_cpu
    return gpu + cpu, _tightest(cluster, demand, rows)


def _packing(cluster: Cluster) -> "Rule":
    """GPUs in use first, the fullest; then idle GPUs of nodes in use; then idle nodes, those with few GPUs first.

    From: FGD, section 6.1, 'GPU packing'. Work without a GPU goes to the first node that has room, as in the authors' simulator.
    """
    bare = cluster.empty()

    def score(cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
        gpu, device = cluster.gpu[rows], _tightest(cluster, demand, rows)
        if not demand.gpus:
            return np.zeros(len(rows)), device
        idle = (cluster.cpu[rows] == bare.cpu[rows]) & (cluster.memory[rows] == bare.memory[rows])
        idle &= (gpu == bare.gpu[rows]).all(axis=1)
        cost = np.where(idle, _IDLE_NODE + (gpu >= 0).sum(axis=1), _IDLE_GPU)
        if demand.shared:
            room = gpu[np.arange(len(rows)), device] / WHOLE
            cost = np.where(room < 1, room, cost)
        return cost, device

    return score


class _Gradient:
    """How much fragmentation grows; per device for a share.

    rounded: as FGD's authors do, whose scheduler scores nodes with whole numbers from 0 to 100 and takes the first of the best. That
    gathers work: unrounded, their trace ends with a third more GPUs unallocated. Else: with what CPU and memory strand
    (see Measure.stranded), and nearly equal nodes by what is left on them.
    """

    def __init__(self, measure: Measure, *, rounded: bool) -> None:
        self._measure, self._rounded = measure, rounded

    def __call__(self, cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
        which, device = np.arange(len(rows)), np.full(len(rows), -1)
        if demand.shared:
            which, device = np.nonzero((cluster.gpu[rows] >= demand.gpu_milli) & _first_of_equals(cluster.gpu[rows]))
        at = rows[which]
        gpu = cluster.gpu[at]
        if demand.shared:
            gpu[np.arange(len(at)), device] -= demand.gpu_milli
        else:
            gpu = _without(gpu, demand.gpus)
        cpu, memory = cluster.cpu[at] - demand.cpu_milli, cluster.memory[at] - demand.memory_mib
        before = self._amount(cluster.cpu[rows], cluster.memory[rows], cluster.gpu[rows], cluster.model[rows])
        grown = self._amount(cpu, memory, gpu, cluster.model[at]) - before[which]
        cost = self._cost(cluster, grown, cpu, gpu)
        if not demand.shared:
            return cost, device
        each = np.full(cluster.gpu[rows].shape, np.inf)
        each[which, device] = cost
        best = each.argmin(axis=1)
        return each[np.arange(len(rows)), best], best

    def _amount(self, cpu: "Ints", memory: "Ints", gpu: "Ints", model: "Ints") -> "Floats":
        found = self._measure.of(cpu, memory, gpu, model)
        return found if self._rounded else found + self._measure.stranded(cpu, memory, gpu, model)

    def _cost(self, cluster: Cluster, grown: "Floats", cpu: "Ints", gpu: "Ints") -> "Floats":
        if self._rounded:
            return -np.floor(_SCORES / (1 + np.exp(grown / WHOLE)))
        left = np.maximum(gpu, 0).sum(axis=1) / cluster.largest_gpu + cpu / cluster.largest_cpu
        return np.asarray(grown / WHOLE + _TIE * left)


def _least_capable(cluster: Cluster, base: "Rule", capability: Mapping[str, float]) -> "Rule":
    ranked = sorted({capability.get(model, np.inf) for model in cluster.models})
    rank = np.array([ranked.index(capability.get(model, np.inf)) for model in cluster.models])

    def score(cluster: Cluster, demand: Demand, rows: "Ints") -> "tuple[Floats, Ints]":
        cost, device = base(cluster, demand, rows)
        if not demand.gpus:
            return cost, device
        # Squeezed into (-1, 1), so that it decides among nodes of one rank only.
        return 2 * rank[cluster.model[rows]] + cost / (1 + np.abs(cost)), device

    return score


def _without(gpu: "Ints", count: int) -> "Ints":
    """The devices after the first `count` whole ones are taken."""
    whole = gpu == WHOLE
    taken = whole & (np.cumsum(whole, axis=1) <= count)
    return np.where(taken, 0, gpu)


def _first_of_equals(gpu: "Ints") -> "Flags":
    """Which devices have as much free as none before them on their node: of the others nothing new would be learned."""
    same = np.tril(gpu[:, :, None] == gpu[:, None, :], -1)
    return np.asarray(~same.any(axis=2))


def _free(cluster: Cluster, rows: "Ints") -> "Ints":
    return np.asarray(np.maximum(cluster.gpu[rows], 0).sum(axis=1))
