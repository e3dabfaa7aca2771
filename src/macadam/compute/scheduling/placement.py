"""Decides on which nodes and devices work goes: (cluster, demand, policy) → placement, or why nothing fits.

Pure: nothing is booked, no clock, randomness from the policy's seed. Three callers share it: the live queue, the replay of a tenant's
own history, and the simulator. Who asks often keeps a Placer, which gives the same answers and computes again only the scores of nodes
that changed. Order and quota are decided elsewhere.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from macadam.compute.scheduling import scoring
from macadam.compute.scheduling.cluster import Assignment, Cluster, Demand, Part, Refusal
from macadam.compute.scheduling.fragmentation import Typical
from macadam.compute.scheduling.types import WHOLE
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Flags: TypeAlias = npt.NDArray[np.bool_]
else:
    np = lazy("numpy")

Name = Literal["random", "best-fit", "packing", "dot-product", "gradient", "balanced", "least-capable"]
_KEPT = 2048  # demands whose scores a Placer remembers; each is two small arrays


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose among the nodes where something fits.

    - random: any of them, and any device with room
    - best-fit: the least CPU and GPU left over (each as part of the largest node's)
    - packing: GPUs in use first, then idle GPUs of nodes in use, then idle nodes
    - dot-product: the smallest product of what is free and what is asked (Tetris, SIGCOMM 2014, as used by FGD's authors)
    - gradient: the least growth of fragmentation (FGD, USENIX ATC 2023) for `typical` work
    - balanced: the same, with the GPUs that CPU and memory would strand if typical work went on arriving
    - least-capable: the GPU model with the least `capability` that will do, so that scarce ones stay free for those who need them;
      within a model as balanced

    The last three score by best fit where no typical work is known. Equal scores go to the first node.
    seed: for random. typical: what usually arrives, see fragmentation.typical. capability: model → speed relative to others, such
    as FLOP/s; models that are not named count as most capable and are kept for last.
    """

    name: Name = "balanced"
    seed: int = 0
    typical: tuple[Typical, ...] = ()
    capability: dict[str, float] = {}


def place(cluster: Cluster, demand: Demand, policy: Policy) -> Assignment | Refusal:
    """Where the work goes, all members at once, or why it cannot go anywhere now."""
    return Placer(cluster, policy).place(demand)


class Placer:
    """Answers as `place` does, for one cluster and policy, and remembers scores between questions."""

    def __init__(self, cluster: Cluster, policy: Policy) -> None:
        self.cluster, self.policy = cluster, policy
        self._rule = scoring.rule(cluster, policy.name, policy.typical, policy.capability)
        self._known: dict[Demand, scoring.Scores] = {}
        self._bare: Placer | None = None

    def place(self, demand: Demand) -> Assignment | Refusal:
        """See the function of this name."""
        parts = self._find(demand)
        return Assignment(parts=parts) if parts else self._refuse(demand)

    def largest(self, demand: Demand) -> int:
        """How many members the roomiest node could hold, whatever the demand's own count of members."""
        many = msgspec.structs.replace(demand, members=max(1, self.cluster.gpu.shape[1] * WHOLE))
        return int(scoring.room(self.cluster, many).max(initial=0))

    def _find(self, demand: Demand) -> tuple[Part, ...]:
        if demand.members == 1:
            part = self._one(demand, None)
            return (part,) if part else ()
        return self._gang(demand)

    def _one(self, demand: Demand, allowed: "Flags | None") -> Part | None:
        scores = self._scores(demand)
        cost = scores.cost if allowed is None else np.where(allowed, scores.cost, np.inf)
        if cost.min(initial=np.inf) == np.inf:
            return None
        node, device = int(cost.argmin()), -1
        if self.policy.name == "random":
            # The version makes each draw another one; the same state and seed draw the same node.
            draw = np.random.default_rng([self.policy.seed, self.cluster.version])
            node = int(draw.choice(np.flatnonzero(cost < np.inf)))
            if demand.shared:
                device = int(draw.choice(np.flatnonzero(self.cluster.gpu[node] >= demand.gpu_milli)))
        devices, start = scoring.devices(
            self.cluster, demand, node, device if device >= 0 else int(scores.device[node])
        )
        return Part(node=self.cluster.nodes[node].name, devices=devices, start=start)

    def _scores(self, demand: Demand) -> scoring.Scores:
        alone = demand.alone
        kept = self._known.get(alone)
        if kept is None:
            if len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            kept = self._known[alone] = scoring.Scores(self.cluster)
        kept.refresh(self.cluster, self._rule, alone)
        return kept

    # --- gangs

    def _gang(self, demand: Demand) -> tuple[Part, ...]:
        """Members one after the other on a copy, each where it scores best, inside the smallest neighbourhood that has room."""
        for allowed in self._neighbourhoods(demand):
            parts = self._together(demand, allowed)
            if parts:
                return parts
        return () if demand.near and demand.required else self._together(demand, None)

    def _neighbourhoods(self, demand: Demand) -> "Iterator[Flags]":
        """Sets of nodes with room for the whole gang, single nodes before racks, those with the least free GPUs first."""
        if not demand.near:
            return
        room, nodes = scoring.room(self.cluster, demand), self.cluster.nodes
        total = np.maximum(self.cluster.gpu, 0).sum(axis=1)
        if not demand.apart:
            for node in sorted(np.flatnonzero(room >= demand.members), key=lambda node: int(total[node])):
                yield np.arange(len(nodes)) == node
        if demand.near == "rack" or not demand.required:
            racks = np.array([node.rack for node in nodes])
            for rack in sorted(
                {node.rack for node in nodes} - {""}, key=lambda rack: (int(total[racks == rack].sum()), rack)
            ):
                if int(room[racks == rack].sum()) >= demand.members:
                    yield racks == rack

    def _together(self, demand: Demand, allowed: "Flags | None") -> tuple[Part, ...]:
        scratch = Placer(self.cluster.copy(), self.policy)
        alone = demand.alone
        scratch._known[alone] = self._scores(alone).copy()
        parts: list[Part] = []
        free = np.ones(len(self.cluster.nodes), dtype=bool) if allowed is None else allowed.copy()
        for _ in range(demand.members):
            part = scratch._one(alone, free)
            if part is None:
                return ()
            scratch.cluster.take(alone, Assignment(parts=(part,)))
            parts.append(part)
            if demand.apart:
                free[self.cluster.index[part.node]] = False
        return tuple(parts)

    # --- refusals

    def _refuse(self, demand: Demand) -> Refusal:
        lacking = scoring.lacking(self.cluster, demand)
        ever = bool(self._empty()._find(demand))  # noqa: SLF001 - its own class
        room = int(scoring.room(self.cluster, demand).sum())
        if demand.members > 1 and room:
            lacking["near" if room >= demand.members else "members"] = demand.members
        what = ", ".join(f"{count} lack {name}" for name, count in lacking.items() if name in scoring.RESOURCES)
        reason = f"No node has what is asked for: of {len(self.cluster.nodes)}, {what}."
        if room:
            reason = f"There is room for {room} of {demand.members} members" + (
                f", but not in one {demand.near}." if room >= demand.members else "."
            )
        if not ever:
            reason += " It would not fit on these nodes if nothing else ran."
        return Refusal(reason=reason, lacking=lacking, ever=ever)

    def _empty(self) -> "Placer":
        if self._bare is None:
            self._bare = Placer(self.cluster.empty(), self.policy)
        return self._bare
