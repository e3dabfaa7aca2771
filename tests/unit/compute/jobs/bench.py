"""A workbench for the queue: a platform, a clock to turn, and an executor whose attempts end when they are told to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.jobs.loop import Done, Queue
from macadam.compute.jobs.types import Job, JobPage, Resources, ShowJob, SubmitJob
from macadam.errors import Unavailable
from macadam.ports import Attempt, Device, LogPage, Node, Sighting
from macadam.testing import Clock, open_platform


def gpu_node(name: str = "n1", gpus: int = 4, cpus: int = 64_000, leaving: datetime | None = None) -> Node:
    devices = tuple(Device(id=f"gpu:virtual-{name}-{n}", index=n, virtual=True) for n in range(gpus))
    return Node(name=name, cpus=cpus, memory=1 << 40, devices=devices, leaving=leaving)


@dataclass
class Told:
    """An executor of the port's contract, without processes: an id runs at most once, and a stop may come first."""

    clock: Clock
    machines: tuple[Node, ...] = (gpu_node(),)
    attempts: dict[str, Sighting] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: dict[str, float] = field(default_factory=dict)
    orders: dict[str, Attempt] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    down: bool = False

    def nodes(self) -> tuple[Node, ...]:
        self._answer()
        return self.machines

    def start(self, attempt: Attempt) -> None:
        self._answer()
        if attempt.id in self.attempts:
            return
        self.started.append(attempt.id)
        self.orders[attempt.id] = attempt
        self.attempts[attempt.id] = Sighting(attempt=attempt.id, state="running", started=self.clock())

    def look(self, attempts: Sequence[str]) -> dict[str, Sighting]:
        self._answer()
        return {one: self.attempts.get(one, Sighting(attempt=one, state="unknown")) for one in attempts}

    def stop(self, attempt: str, *, grace: float) -> None:
        self._answer()
        self.stopped[attempt] = grace
        if attempt not in self.attempts:
            self.end(attempt, exit_code=143, why="stopped")

    def end(self, attempt: str, exit_code: int = 0, why: str = "", seconds: float = 10) -> None:
        seen = self.attempts.get(attempt) or Sighting(attempt=attempt, state="unknown")
        facts = {"state": "ended", "exit_code": exit_code, "why": why, "seconds": seconds, "ended": self.clock()}
        self.attempts[attempt] = msgspec.structs.replace(seen, **facts)

    def log(self, attempt: str, *, offset: int = 0, limit: int = 65536, rank: int = 0) -> LogPage:
        text = f"log of {attempt}, {rank}\n"[offset : offset + limit]
        return LogPage(text=text, next=offset + len(text), ended=True)

    def forget(self, attempt: str) -> None:
        self.forgotten.append(attempt)

    def remove_checkpoint(self, job: str) -> None:
        self.removed.append(job)

    def close(self) -> None:
        return

    def _answer(self) -> None:
        if self.down:
            raise Unavailable("The executor does not answer.", next_step="Wait.")


@dataclass
class Bench:
    platform: Platform
    clock: Clock
    executor: Told
    queue: Queue

    def turn(self) -> Done:
        return self.queue.turn()

    def submit(self, project: str = "p", resources: Resources | None = None, **more: object) -> Job:
        facts = {"project": project, "command": ("true",), "resources": resources or Resources(gpus=1), **more}
        return self.platform.call(SubmitJob(**facts))  # type: ignore[arg-type]

    def page(self, job: Job) -> JobPage:
        return self.platform.call(ShowJob(project=job.project, job=job.id))

    def now(self, job: Job) -> Job:
        return self.page(job).job

    def new_queue(self) -> None:
        """As after a kill: nothing but SQL and the executor is remembered."""
        self.queue = Queue(self.platform.ports, clock=self.clock, committed=self.platform.committed)


@contextmanager
def open_bench(
    projects: Sequence[str] = ("p",), settings: Mapping[str, str] | None = None, clock: Clock | None = None
) -> Iterator[Bench]:
    clock = clock or Clock()
    with open_platform(environment=settings or {}, clock=clock) as platform:
        executor = Told(clock=clock)
        object.__setattr__(platform.ports, "executor", executor)
        for project in projects:
            platform.call(CreateProject(project=project))
        queue = Queue(platform.ports, clock=clock, committed=platform.committed)
        yield Bench(platform=platform, clock=clock, executor=executor, queue=queue)
