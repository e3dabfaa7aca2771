"""What nodes have free, in arrays, and what can be asked of them: the state that placement decides over.

It decides nothing. Units: CPU in thousandths of a core, memory in MiB, shares of a GPU in thousandths of one device. The queue, the
replay of a tenant's history and the simulator keep one Cluster each and tell it what was placed and what ended.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from macadam.compute.scheduling import mig
from macadam.compute.scheduling.types import WHOLE
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints: TypeAlias = npt.NDArray[np.int64]
else:
    np = lazy("numpy")

_REMEMBERED = 8  # changes for each node: whoever asks for older ones looks at every node, which costs no more
_CORRECT = "Correct the description of the nodes or of the work."


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as it is when nothing runs on it. gpus: how many devices; model: their catalogue name, '' if unknown or none.

    rack: nodes with the same text are near each other, '' = unknown. partitioned: its GPUs are split into MIG slices and take
    slices only. Raises InvalidInput for amounts below zero or a model that has no slices.
    """

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int = 0
    model: str = ""
    rack: str = ""
    partitioned: bool = False

    def __post_init__(self) -> None:
        if min(self.cpu_milli, self.memory_mib, self.gpus) < 0:
            raise InvalidInput(f"Machine {self.name!r} has less than nothing of a resource.", next_step=_CORRECT)
        if self.partitioned:
            mig.profiles(self.model)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a piece of work needs, per member.

    gpus: devices; gpu_milli: how much of each of them, less than 1000 only for one device. slice: a MIG profile such as
    '3g.40gb', instead of gpus. models: catalogue names that are acceptable, empty = any. members: how many of these have to run
    at once (a gang); all are placed or none. near: where the members should be together; required: should is must. apart: each
    member on a node of its own.
    Raises InvalidInput for what cannot be meant.
    """

    cpu_milli: int = 0
    memory_mib: int = 0
    gpus: int = 0
    gpu_milli: int = WHOLE
    slice: str = ""
    models: tuple[str, ...] = ()
    members: int = 1
    near: Literal["", "node", "rack"] = ""
    required: bool = False
    apart: bool = False

    def __post_init__(self) -> None:
        if min(self.cpu_milli, self.memory_mib, self.gpus) < 0 or self.members < 1:
            raise InvalidInput("Work cannot need less than nothing, nor have no member.", next_step=_CORRECT)
        if not 1 <= self.gpu_milli <= WHOLE or (self.gpu_milli < WHOLE and self.gpus != 1):
            raise InvalidInput(
                f"{self.gpus} GPUs with {self.gpu_milli} thousandths of each cannot be given.",
                next_step="Ask for a share of 1 to 1000 of one GPU, or for whole GPUs.",
            )
        if self.apart and self.near == "node":
            raise InvalidInput("Members cannot be on one node and each on its own.", next_step=_CORRECT)
        if self.slice and self.gpus:
            raise InvalidInput("A MIG slice is asked for instead of GPUs, not with them.", next_step=_CORRECT)

    @property
    def alone(self) -> "Demand":
        """One member of it."""
        if self.members == 1 and not self.near and not self.apart:
            return self
        return msgspec.structs.replace(self, members=1, near="", required=False, apart=False)

    @property
    def shared(self) -> bool:
        """Whether it takes a part of one device."""
        return self.gpus == 1 and self.gpu_milli < WHOLE

    @property
    def total_milli(self) -> int:
        """What all members take, in thousandths of a GPU. A slice counts by the memory it takes of its device."""
        return self.members * self.gpus * self.gpu_milli


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Where one member goes. devices: indices within the node. start: of a MIG slice, its first memory slot; -1 else."""

    node: str
    devices: tuple[int, ...] = ()
    start: int = -1


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One part for each member, in order."""

    parts: tuple[Part, ...]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing fits. reason: a sentence. lacking: how many nodes fail for 'model', 'cpu', 'memory', 'gpu' (each counted at the
    first of these that it fails); 'members' of a gang for all of which there is no room, or not 'near' enough. ever: whether it
    would fit if nothing else were running.
    """

    reason: str
    lacking: dict[str, int]
    ever: bool


class Cluster:
    """The free amounts of each node, as arrays that policies read.

    cpu, memory: shape (n,). gpu: shape (n, most devices), free thousandths, -1 where a node has no such device. slots: the same
    shape, for partitioned devices the bit mask of MIG memory slots in use, else -1. model: index into models. largest_cpu,
    largest_gpu: those of the largest nodes when empty, at least 1: for costs between 0 and 1. version counts
    changes, so that scores can be kept and only what moved is computed again. Not for several threads at once.
    """

    def __init__(self, nodes: Sequence[Machine]) -> None:
        """Raises InvalidInput if two nodes have one name."""
        self.nodes = tuple(nodes)
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        if len(self.index) < len(self.nodes):
            raise InvalidInput("Two nodes have the same name.", next_step=_CORRECT)
        self.models = tuple(sorted({node.model for node in self.nodes}))
        codes = {model: i for i, model in enumerate(self.models)}
        width = max((node.gpus for node in self.nodes), default=0) or 1
        self.model: Ints = np.array([codes[node.model] for node in self.nodes], dtype=np.int64)
        self.cpu: Ints = np.array([node.cpu_milli for node in self.nodes], dtype=np.int64)
        self.memory: Ints = np.array([node.memory_mib for node in self.nodes], dtype=np.int64)
        self.gpu: Ints = np.full((len(self.nodes), width), -1, dtype=np.int64)
        self.slots: Ints = np.full((len(self.nodes), width), -1, dtype=np.int64)
        for i, node in enumerate(self.nodes):
            (self.slots if node.partitioned else self.gpu)[i, : node.gpus] = 0 if node.partitioned else WHOLE
        self.largest_cpu = max((node.cpu_milli for node in self.nodes), default=0) or 1
        self.largest_gpu = width * WHOLE
        self.version = 0
        self._changed: list[int] = []
        self._free = -1, 0  # as of which version

    def since(self, version: int) -> "Ints | None":
        """The nodes that changed after a version; None if that is too long ago to know, so that all may have."""
        count = self.version - version
        if count > len(self._changed):
            return None
        return np.unique(np.array(self._changed[len(self._changed) - count :], dtype=np.int64))

    def free_milli(self) -> int:
        """Thousandths of whole GPUs that nobody has, wherever they are."""
        if self._free[0] != self.version:  # a queue asks it for each job that waits
            self._free = self.version, int(np.maximum(self.gpu, 0).sum())
        return self._free[1]

    def copy(self) -> "Cluster":
        """The same state, to try things on."""
        twin = Cluster.__new__(Cluster)
        twin.__dict__.update(self.__dict__)
        for name in ("cpu", "memory", "gpu", "slots"):
            setattr(twin, name, getattr(self, name).copy())
        twin._changed = []  # noqa: SLF001 - its own class
        return twin

    def empty(self) -> "Cluster":
        """The same nodes with nothing on them."""
        return Cluster(self.nodes)

    def take(self, demand: Demand, placement: Assignment) -> None:
        """Books what was placed. Raises InvalidInput, and changes nothing, if it does not fit there."""
        self._apply(demand, placement, 1)

    def give_back(self, demand: Demand, placement: Assignment) -> None:
        """Frees what was booked. Raises InvalidInput, and changes nothing, if more would be free than there is."""
        self._apply(demand, placement, -1)

    def _apply(self, demand: Demand, placement: Assignment, sign: int) -> None:
        if len(placement.parts) != demand.members:
            raise InvalidInput(
                f"{len(placement.parts)} parts were given for {demand.members} members.", next_step=_CORRECT
            )
        done: list[Part] = []
        try:
            for part in placement.parts:
                self._book(demand, part, sign)
                done.append(part)
        except InvalidInput:
            for part in reversed(done):
                self._book(demand, part, -sign)
            raise

    def _book(self, demand: Demand, part: Part, sign: int) -> None:
        if part.node not in self.index:
            raise InvalidInput(f"There is no node {part.node!r}.", next_step=_CORRECT)
        i = self.index[part.node]
        node, devices = self.nodes[i], list(part.devices)
        cpu, memory = self.cpu[i] - sign * demand.cpu_milli, self.memory[i] - sign * demand.memory_mib
        wanted = 1 if demand.slice else demand.gpus
        right = len(set(devices)) == wanted == len(devices) and all(0 <= d < node.gpus for d in devices)
        if not right or not 0 <= cpu <= node.cpu_milli or not 0 <= memory <= node.memory_mib:
            raise self._wrong(demand, part, sign)
        if demand.slice:
            self._book_slice(demand, part, i, sign)
        elif devices:
            left = self.gpu[i, devices] - sign * demand.gpu_milli
            if node.partitioned or left.min() < 0 or left.max() > WHOLE:
                raise self._wrong(demand, part, sign)
            self.gpu[i, devices] = left
        self.cpu[i], self.memory[i] = cpu, memory
        self.version += 1
        self._changed.append(i)
        if len(self._changed) > _REMEMBERED * len(self.nodes) + _REMEMBERED:
            del self._changed[: len(self._changed) // 2]

    def _book_slice(self, demand: Demand, part: Part, i: int, sign: int) -> None:
        node, device = self.nodes[i], part.devices[0]
        known = mig.profiles(node.model) if node.partitioned else {}
        profile = known.get(demand.slice)
        if profile is None or part.start not in profile.starts:
            raise self._wrong(demand, part, sign)
        mask, used = profile.mask(part.start), int(self.slots[i, device])
        if used & mask != (mask if sign < 0 else 0):
            raise self._wrong(demand, part, sign)
        self.slots[i, device] = used ^ mask

    def _wrong(self, demand: Demand, part: Part, sign: int) -> InvalidInput:
        what = "is not free" if sign > 0 else "was not taken"
        details: dict[str, Any] = {"demand": msgspec.to_builtins(demand), "part": msgspec.to_builtins(part)}
        return InvalidInput(
            f"What is asked of node {part.node!r} {what}.",
            next_step="Read the state again and decide.",
            details=details,
        )
