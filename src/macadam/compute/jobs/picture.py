"""Turns what SQL holds into the state that scheduling decides on, and what it decides back into places on machines.

Pure. Jobs without GPUs are not scheduling's: they get the processors and memory that are left, in order (`plain_starts`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf

import msgspec

from macadam.compute.jobs.history import asked
from macadam.compute.jobs.types import WHOLE, AttemptRow, Job, Place, Quota, Rate
from macadam.compute.scheduling import markets
from macadam.compute.scheduling import types as scheduling
from macadam.compute.scheduling.markets import Bounds
from macadam.compute.scheduling.types import Placement, Places, Running, Slot, Spent, State, Work
from macadam.ports import Node

_GONE = 1 << 30
HOLD_EVERY = 60.0
"""s between two looks at whether what runs may still be paid for."""
LATE = 10.0
"""s; so late at most a limit is noticed, and an end is seen: money is kept for it beside the job's grace."""
MakePlaces = Callable[[Sequence[scheduling.Node]], Places]


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a decision rests on. nodes: all machines there are; jobs: of the open attempts, by id; spent: in each quota's window.
    due: when projects' own shares would have started jobs, by id, for those that they would have by now. bounds: what an hour of
    jobs without a place costs at most, by id, where that is known. markets: in which the machines of
    jobs may be bought, by id; {} = anywhere.
    """

    now: datetime
    nodes: tuple[Node, ...]
    waiting: tuple[Job, ...]
    attempts: tuple[AttemptRow, ...]
    jobs: dict[str, Job]
    quotas: tuple[Quota, ...]
    spent: dict[str, Spent]
    bounds: dict[str, Rate] = {}
    due: dict[str, float] = {}
    markets: dict[str, Bounds] = {}

    def staying(self) -> tuple[Node, ...]:
        """Machines that new work may be put on."""
        return tuple(node for node in self.nodes if node.leaving is None and not node.closed)


def state(picture: Picture) -> State:
    """GPU work only. Processors and memory that other jobs hold are taken off the nodes.

    What was asked to stop, and what runs on machines that go away or are closed, counts as gone: its GPUs are spoken for already, so that nobody
    is stopped in its place. That it still holds them is for `room` to see before anything starts there.
    """
    taken = _taken(row for row in picture.attempts if not row.milli)
    ready = (job for job in picture.waiting if job.ready is None or job.ready <= picture.now)
    staying = {device.id for node in picture.staying() for device in node.devices}
    runs = [
        row
        for row in picture.attempts
        if row.milli and not row.wish and all(place.devices.keys() <= staying for place in row.places)
    ]
    return State(
        nodes=tuple(_node(node, taken, told_apart=bool(picture.markets)) for node in picture.staying() if node.devices),
        waiting=tuple(work(job, picture) for job in ready if job.spec.resources.demand),
        running=tuple(running(row, picture) for row in runs),
        quotas=tuple(quota(one) for one in picture.quotas),
        spent=spent_beside(picture, {row.id for row in runs}, whole=False),
    )


def held(picture: Picture) -> State:
    """The same with all that holds GPUs as running: what a start has to fit beside."""
    rows = [row for row in picture.attempts if row.milli]
    return msgspec.structs.replace(
        state(picture),
        running=tuple(running(row, picture) for row in rows),
        spent=spent_beside(picture, {row.id for row in rows}, whole=True),
    )


def spent_beside(picture: Picture, running: set[str], *, whole: bool) -> dict[str, Spent]:
    """What quotas' windows have had to pay so far, with what attempts that are not among `running` have cost and may still, as of
    `committed`.
    """
    found = dict(picture.spent)
    limited = {one.project for one in picture.quotas}
    for row in picture.attempts:
        if row.id not in running and row.project in limited:
            before = found.get(row.project, Spent())
            found[row.project] = msgspec.structs.replace(
                before,
                gpu_seconds=before.gpu_seconds + row.milli * _elapsed(row, picture) / WHOLE,
                micros=before.micros + committed(row, picture, whole=whole),
            )
    return found


def committed(row: AttemptRow, picture: Picture, *, whole: bool = True) -> int:
    """Micros that an attempt has cost and may still. whole: until its time limit; else until it could have been stopped: of what has GPUs
    that is looked at each turn, of the others every `HOLD_EVERY`.
    """
    rate = row.rate or picture.bounds.get(row.job)
    if rate is None:
        return 0
    spec, seconds = picture.jobs[row.job].spec, _elapsed(row, picture)
    if not row.wish:
        seconds = max(seconds + (0 if row.milli else HOLD_EVERY), spec.time_limit if whole else 0)
    return rate.cost(seconds + spec.grace + LATE).micros


def needs(job: Job, picture: Picture) -> int:
    """Micros that a job may cost until its time limit, at most; without one, until it could be stopped again."""
    rate, soon = picture.bounds.get(job.id), 0 if job.spec.resources.demand else HOLD_EVERY
    return rate.cost(max(soon, job.spec.time_limit) + job.spec.grace + LATE).micros if rate else 0


def money(picture: Picture, project: str, *, whole: bool = True) -> int:
    """Micros that the project's quota has paid in its window and that all its attempts may still cost, as of `committed`."""
    rows = (row for row in picture.attempts if row.project == project)
    return picture.spent.get(project, Spent()).micros + sum(committed(row, picture, whole=whole) for row in rows)


def overspent(picture: Picture, row: AttemptRow) -> str:
    """Why an attempt without GPUs has to stop, '' if it need not: its project's quota in money could be used up before it is looked at
    again. Of those with GPUs scheduling says it.
    """
    limits = [one.money for one in picture.quotas if one.project == row.project and one.money]
    if row.milli or not limits or not committed(row, picture):
        return ""
    spent = money(picture, row.project, whole=False)
    return f"{row.project} has used up its {limits[0]}." if spent >= limits[0].micros else ""


def _elapsed(row: AttemptRow, picture: Picture) -> float:
    return max(0.0, (picture.now - row.started).total_seconds())


def work(job: Job, picture: Picture, rate: Rate | None = None, *, starting: float = 0.0) -> Work:
    """rate: what it costs where it is, None for what it costs at most. starting: seconds that its attempt took to begin, which the next
    will take too. Each stop of a job that keeps a checkpoint is thought to have lost what it may have: nobody says what it really lost.
    """
    spec, rate = job.spec, rate or picture.bounds.get(job.id)
    # What asks it to save and end gives it `grace` for that; one that saves nothing has nothing to wait for.
    cost = starting + (spec.grace if spec.checkpoint else 0.0)
    stands = max(0.0, job.standing - (job.preemptions + job.restarts) * (spec.checkpoint_every + cost))
    return msgspec.structs.replace(
        asked(job),
        priority=job.priority,
        preemptible=spec.preemptible,
        deadline=spec.deadline.timestamp() if spec.deadline else 0,
        time_limit=stands + spec.time_limit if spec.time_limit else 0,  # each attempt has its own
        checkpoint_every=spec.checkpoint_every if spec.checkpoint else inf,
        checkpoint_cost=cost,
        attained=stands,
        reached=job.attained,
        preemptions=job.preemptions,
        group=spec.likeness,
        micros_per_gpu_hour=-(-rate.nanos // spec.resources.demand) if rate else 0,
        grace=spec.grace + LATE,
        due=_due(job, picture),
        markets=bound.markets if (bound := picture.markets.get(job.id)) else (),
    )


def market_of(node: Node) -> str:
    """Where a machine was bought."""
    return markets.of(spot=node.spot, zone=node.zone)


def may_take(job: Job, node: Node, picture: Picture) -> bool:
    """Whether the job's machines may be bought there."""
    bound = picture.markets.get(job.id)
    return bound is None or market_of(node) in bound.markets


def quota(one: Quota) -> scheduling.Quota:
    return scheduling.Quota(
        tenant=one.project,
        gpus=one.gpus,
        cohort=one.cohort,
        borrow=one.borrow,
        lend=one.lend,
        gpu_hours=one.gpu_hours,
        micros=one.money.micros if one.money else None,
        weight=one.weight,
    )


def _node(node: Node, taken: Mapping[str, tuple[int, int]], *, told_apart: bool) -> scheduling.Node:
    cpus, memory = taken.get(node.name, (0, 0))
    models = {device.model for device in node.devices}
    return scheduling.Node(
        name=node.name,
        gpus=len(node.devices),
        model=models.pop() if len(models) == 1 else "",
        # Nothing, or less than a mebibyte, would mean that they are not limited.
        cpu_milli=max(1, node.cpus - cpus),
        memory=max(1 << 20, node.memory - memory),
        zone=node.zone,
        market=market_of(node) if told_apart else "",
    )


def _due(job: Job, picture: Picture) -> float | None:
    """When its project's own share would have started it; None where nothing is promised."""
    if not any(one.project == job.project for one in picture.quotas):
        return None
    return picture.due.get(job.id, float("inf"))


def running(row: AttemptRow, picture: Picture) -> Running:
    starting = max(0.0, (row.began - row.started).total_seconds()) if row.began else 0.0
    return Running(
        work=work(picture.jobs[row.job], picture, row.rate, starting=starting),
        placement=tuple(_slot(place, picture) for place in row.places if place.milli),
        started=row.started.timestamp(),
    )


def _slot(place: Place, picture: Picture) -> Slot:
    """By the devices' ids: a node that loses a GPU counts the others anew. One that is gone has an index that none has."""
    node = next((node for node in picture.nodes if node.name == place.node), None)
    at = {device.id: index for index, device in enumerate(node.devices)} if node else {}
    return Slot(node=place.node, milli=place.milli, devices=tuple(at.get(one, _GONE) for one in place.devices))


def _taken(rows: Iterable[AttemptRow]) -> dict[str, tuple[int, int]]:
    """Thousandths of cores and bytes held, by node."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        for place in row.places:
            cpus, memory = found.get(place.node, (0, 0))
            found[place.node] = (cpus + place.cpus, memory + place.memory)
    return found


# --- back


def places(job: Job, placement: Placement, nodes: Sequence[Node]) -> tuple[Place, ...]:
    """What each member gets: its part of the whole gang's processors and memory, in proportion to its GPUs, rounded up."""
    known, asked = {node.name: node for node in nodes}, job.spec.resources
    found = []
    for slot in placement:
        each = slot.milli // len(slot.devices)

        def part(amount: int, slot: Slot = slot) -> int:
            return -(-amount * slot.milli // asked.demand)

        found.append(
            Place(
                node=slot.node,
                devices={known[slot.node].devices[index].id: each for index in slot.devices},
                indexes=slot.devices,
                milli=slot.milli,
                cpus=part(asked.cpu_milli),
                memory=part(asked.memory),
                disk=part(asked.disk),
                market=market_of(known[slot.node]),
            )
        )
    return tuple(found)


def plain_starts(
    picture: Picture, started: Sequence[tuple[Job, tuple[Place, ...]]]
) -> list[tuple[Job, tuple[Place, ...]]]:
    """Jobs without GPUs that fit beside all that runs and what is just being started: by priority, then by submission."""
    taken = _taken(picture.attempts)
    for _, given in started:
        for place in given:
            cpus, memory = taken.get(place.node, (0, 0))
            taken[place.node] = (cpus + place.cpus, memory + place.memory)
    found: list[tuple[Job, tuple[Place, ...]]] = []
    for job in sorted(_plain(picture), key=lambda job: (-job.priority, job.submitted, job.id)):
        asked = job.spec.resources
        for node in _in_order(job, picture):
            cpus, memory = taken.get(node.name, (0, 0))
            if cpus + asked.cpu_milli <= node.cpus and memory + asked.memory <= node.memory:
                taken[node.name] = (cpus + asked.cpu_milli, memory + asked.memory)
                place = Place(
                    node=node.name,
                    devices={},
                    indexes=(),
                    milli=0,
                    cpus=asked.cpu_milli,
                    memory=asked.memory,
                    disk=asked.disk,
                    market=market_of(node),
                )
                found.append((job, (place,)))
                break
    return found


def _in_order(job: Job, picture: Picture) -> Sequence[Node]:
    """The machines that it may be put on, those of its first choice first."""
    bound = picture.markets.get(job.id)
    if bound is None:
        return picture.staying()
    found = [node for node in picture.staying() if market_of(node) in bound.markets]
    return sorted(found, key=lambda node: bound.markets.index(market_of(node)))


def _plain(picture: Picture) -> list[Job]:
    return [
        job
        for job in picture.waiting
        if not job.spec.resources.demand and (job.ready is None or job.ready <= picture.now)
    ]
