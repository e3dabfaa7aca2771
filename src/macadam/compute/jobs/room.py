"""What is really free, before anything starts: what was asked to stop holds its GPUs and its project's quota until it has ended.

A decision plans on what will be free; this is the last look before a start is committed, so that no policy, however it
decides, can give anything twice or more than a quota allows. Pure.
"""

from collections import Counter

from macadam.compute.jobs import picture as pictures
from macadam.compute.jobs.picture import Picture
from macadam.compute.jobs.types import WHOLE, Job, Place
from macadam.compute.scheduling.quota import Limits
from macadam.compute.scheduling.types import Running, Slot


class Room:
    """The machines and quotas with everything that is held. picture: its attempts are all that have not ended."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._limits = Limits(picture.now.timestamp(), pictures.held(picture))
        self._promised: Counter[str] = Counter()  # micros that projects may have to pay for what was taken here
        self._devices: Counter[str] = Counter()
        self._cpus: Counter[str] = Counter()
        self._memory: Counter[str] = Counter()
        self._nodes = {node.name: node for node in picture.staying()}
        for row in picture.attempts:
            self._hold(row.places)

    def take(self, job: Job, places: tuple[Place, ...]) -> bool:
        """Whether the job may have these places now; then they are its."""
        if not self._is_free(places) or not all(
            pictures.may_take(job, self._nodes[one.node], self._picture) for one in places
        ):
            return False
        if job.spec.resources.demand:
            work = pictures.work(job, self._picture)
            if self._limits.why_not(work) is not None:
                return False
            placement = tuple(Slot(node=one.node, milli=one.milli, devices=one.indexes) for one in places)
            self._limits.add(Running(work=work, placement=placement, started=self._picture.now.timestamp()))
        elif not self._can_pay(job):
            return False
        self._promised[job.project] += pictures.needs(job, self._picture)
        self._hold(places)
        return True

    def _can_pay(self, job: Job) -> bool:
        """Whether the project's quota in money has room for a job without GPUs, which no limit in GPUs looks at."""
        limits = [one.money.micros for one in self._picture.quotas if one.project == job.project and one.money]
        paid = pictures.money(self._picture, job.project) + self._promised[job.project]
        return all(paid + pictures.needs(job, self._picture) <= limit for limit in limits)

    def _is_free(self, places: tuple[Place, ...]) -> bool:
        return all(
            place.node in self._nodes
            and all(self._devices[device] + milli <= WHOLE for device, milli in place.devices.items())
            and self._cpus[place.node] + place.cpus <= self._nodes[place.node].cpus
            and self._memory[place.node] + place.memory <= self._nodes[place.node].memory
            for place in places
        )

    def _hold(self, places: tuple[Place, ...]) -> None:
        for place in places:
            self._devices.update(place.devices)
            self._cpus[place.node] += place.cpus
            self._memory[place.node] += place.memory
