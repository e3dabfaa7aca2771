"""Gives the queue its placements from `placement`: the same policies live, in replay and in studies.

Translates between the queue's jobs (a gang's whole need, memory in bytes, 0 = not limited) and demands of single members.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from macadam.compute.scheduling.cluster import Assignment, Cluster, Demand, Machine, Part
from macadam.compute.scheduling.fragmentation import Typical, typical
from macadam.compute.scheduling.placement import Placer, Policy
from macadam.compute.scheduling.types import WHOLE, Node, Placement, Places, Slot, Work
from macadam.errors import InvalidInput

_Book: TypeAlias = Callable[[Demand, Assignment], None]
_MIB = 2**20
_BETWEEN = "\0"  # in no model's name
_UNLIMITED = 2**40  # more thousandths of cores or MiB than any machine has, and exact in 64 bits


def packed(policy: Policy) -> Callable[[Sequence[Node]], Places]:
    """How to place, for `decide`."""
    return lambda nodes: Packed(nodes, policy)


def typical_work(seen: Iterable[Work]) -> tuple[Typical, ...]:
    """What usually arrives, from jobs that were submitted before: what `Policy.typical` wants. A job over several machines counts
    as its members.
    """
    return typical(_whole(work) for work in seen)


class Packed:
    """The free GPUs of some nodes, as `Places` asks for them."""

    def __init__(self, nodes: Sequence[Node], policy: Policy) -> None:
        self._kinds = {(node.model, node.market) for node in nodes} if any(node.market for node in nodes) else None
        self._cluster = Cluster([_machine(node, told_apart=self._kinds is not None) for node in nodes])
        self._policy = policy if self._kinds is None else _told_apart(policy, self._kinds)
        self._placer = Placer(self._cluster, self._policy)

    def free(self) -> int:
        return self._cluster.free_milli()

    def place(self, work: Work) -> Placement | None:
        if self._kinds is None:
            return None if any(work.markets) else self._place(work)
        for markets in work.tries:
            models = _kinds(work.models, markets, self._kinds)
            placed = self._place(msgspec.structs.replace(work, models=models)) if models else None
            if placed:
                return placed
        return None

    def _place(self, work: Work) -> Placement | None:
        demand = _whole(work)
        found = self._placer.place(demand)
        parts = _slots(found.parts, demand) if isinstance(found, Assignment) else ()
        if not parts and not work.nodes and not work.milli:
            parts = self._spread(work)
        if not parts:
            return None
        self.take(work, parts)
        return parts

    def take(self, work: Work, placement: Placement) -> None:
        self._book(work, placement, self._cluster.take, self._cluster.give_back)

    def release(self, work: Work, placement: Placement) -> None:
        self._book(work, placement, self._cluster.give_back, self._cluster.take)

    def _spread(self, work: Work) -> Placement:
        """Over several machines, taking from each as much as it has: few machines, and no more than are needed."""
        scratch = Placer(self._cluster.copy(), self._policy)
        slots: list[Slot] = []
        missing = work.gpus
        while missing:
            count = min(missing, scratch.largest(_demand(work, 1, WHOLE, 1)))
            demand = _demand(work, count, WHOLE, 1)
            found = scratch.place(demand) if count else None
            if not isinstance(found, Assignment):
                return ()
            scratch.cluster.take(demand, found)
            slots.extend(_slots(found.parts, demand))
            missing -= count
        return tuple(slots)

    def _book(self, work: Work, placement: Placement, book: _Book, undo: _Book) -> None:
        """All slots or none: the cluster checks each before it changes it."""
        done: list[tuple[Demand, Assignment]] = []
        try:
            for slot in placement:
                milli = slot.milli // max(1, len(slot.devices))
                demand = _demand(work, len(slot.devices), milli, 1)
                step = demand, Assignment(parts=(Part(node=slot.node, devices=slot.devices),))
                book(*step)
                done.append(step)
        except InvalidInput:
            for step in reversed(done):
                undo(*step)
            raise


def _whole(work: Work) -> Demand:
    """A job as it asks to be: on so many machines, or on one."""
    if work.milli:
        return _demand(work, 1, work.milli, 1)
    return _demand(work, work.gpus // (work.nodes or 1), WHOLE, work.nodes or 1)


def _demand(work: Work, gpus: int, milli: int, members: int) -> Demand:
    """One member's part of a job's processors and memory, by its part of the GPUs, rounded up."""
    share = gpus * milli
    return Demand(
        cpu_milli=-(-work.cpu_milli * share // work.demand),
        memory_mib=-(-work.memory * share // (work.demand * _MIB)),
        gpus=gpus,
        gpu_milli=milli,
        models=work.models,
        members=members,
        near="rack" if members > 1 else "",
        apart=members > 1,
    )


def _slots(parts: Sequence[Part], demand: Demand) -> Placement:
    """One slot for each machine: members on one machine are added up."""
    taken: dict[str, list[int]] = {}
    for part in parts:
        taken.setdefault(part.node, []).extend(part.devices)
    return tuple(
        Slot(node=node, milli=len(devices) * demand.gpu_milli, devices=tuple(sorted(set(devices))))
        for node, devices in taken.items()
    )


def _kind(model: str, market: str) -> str:
    """What the cluster takes for a model where machines of one model were bought in several markets."""
    return f"{model}{_BETWEEN}{market}"


def _kinds(models: Sequence[str], markets: Sequence[str], known: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Those of the known that will do; () = none, where models of () would be any."""
    fitting = (
        (model, market)
        for model, market in known
        if (not models or model in models) and (not markets or market in markets)
    )
    return tuple(sorted(_kind(*one) for one in fitting))


def _told_apart(policy: Policy, known: set[tuple[str, str]]) -> Policy:
    """With its typical work as the cluster names models; what may run nowhere here is typical of nothing."""
    found = [
        msgspec.structs.replace(
            one, demand=msgspec.structs.replace(one.demand, models=_kinds(one.demand.models, (), known))
        )
        for one in policy.typical
    ]
    capability = {
        _kind(model, market): policy.capability[model] for model, market in known if model in policy.capability
    }
    typical = tuple(one for one in found if one.demand.models)
    return msgspec.structs.replace(policy, typical=typical, capability=capability)


def _machine(node: Node, *, told_apart: bool) -> Machine:
    return Machine(
        name=node.name,
        cpu_milli=node.cpu_milli or _UNLIMITED,
        memory_mib=node.memory // _MIB or _UNLIMITED,
        gpus=node.gpus,
        model=_kind(node.model, node.market) if told_apart else node.model,
        rack=node.zone,
    )
