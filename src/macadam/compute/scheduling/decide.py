"""Who starts, who stops and why the others wait: one pure function for the live queue, replay of history and studies."""

from collections.abc import Callable, Sequence

from macadam.compute.scheduling.first_fit import FirstFit
from macadam.compute.scheduling.types import Decision, Estimates, Node, Places, Policy, Start, State, Wait


def decide(
    now: float,
    state: State,
    policy: Policy,
    estimates: Estimates | None = None,
    places: Callable[[Sequence[Node]], Places] = FirstFit,
) -> Decision:
    """What to do at `now`. The same arguments always give the same answer. Raises InvalidInput if the state contradicts itself.

    estimates: from history, None = nothing is known. places: how to place, given the nodes.
    """
    free = places(state.nodes)
    for running in state.running:
        free.take(running.work, running.placement)
    starts: list[Start] = []
    waits: dict[str, Wait] = {}
    for work in sorted(state.waiting, key=lambda work: (work.submitted, work.id)):
        placement = None if waits and policy.backfill == "none" else free.place(work)
        if placement is not None:
            starts.append(Start(id=work.id, placement=placement))
        else:
            needs = max(0, work.demand - free.free())
            waits[work.id] = Wait(reason="no-gpus", words="No GPUs are free for it.", ahead=len(waits), needs=needs)
    return Decision(starts=tuple(starts), waits=waits, look_again=now + policy.quantum if waits and estimates else None)
