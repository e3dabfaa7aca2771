"""The live queue: look, settle, decide, commit, act; again and again, in one process at a time.

Everything stands in SQL before it is done, and everything that is done may be done again, so that a kill at any instant
costs nothing but time: the next turn, of whichever process, reads what was meant and sees what became of it.

1. look: what the executor sees of every open attempt, and which machines there are
2. settle: one transaction closes attempts that have ended; their GPUs are free from its commit on
3. decide: the pure `scheduling.decide` on a snapshot
4. commit: one transaction starts and stops, if what was decided on still stands
5. act: the executor is asked to start and to stop, until it is seen that it did
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import sqlalchemy as sa

from macadam.compute.billing import budgets
from macadam.compute.jobs import bookkeeping, clusters, moving, picture, registry, spending
from macadam.compute.jobs.bookkeeping import Books
from macadam.compute.jobs.buying import Buyer
from macadam.compute.jobs.history import Memory
from macadam.compute.jobs.picture import MakePlaces, Picture
from macadam.compute.jobs.prices import Desk, Lists, Unpriced
from macadam.compute.jobs.room import Room
from macadam.compute.jobs.spending import Counted
from macadam.compute.jobs.types import AttemptRow, Job, Place, Quota, Rate, Wish
from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.packed import packed
from macadam.compute.scheduling.placement import Policy as Placement
from macadam.compute.scheduling.types import Decision, Policy, Preempt, Spent
from macadam.errors import Busy, MacadamError, SettingInvalid, Temporary
from macadam.ports import Allotment, Attempt, Executor, Node, Ports, Sighting
from macadam.settings import Jobs as Settings

_log = logging.getLogger(__name__)
_LOCK = "queue.lock"
_DECAY_EVERY = 60.0  # s; past use that counts in shares changes slowly
_TIDY_EVERY = 60.0
_WISHES: dict[str, Wish] = {"money": "money", "node-lost": "node"}
_PAUSE, _LONGEST_PAUSE = 2.0, 5.0
"""A turn is followed by a pause of so many times its processor time, up to so many seconds: thousands of jobs take a third of a core."""
_LEAVE = 5.0  # s before a machine goes away in which everything must have ended


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn did."""

    ended: int = 0
    started: int = 0
    stopped: int = 0
    open: int = 0
    waiting: int = 0


def policy(settings: Settings) -> Policy:
    """Raises SettingInvalid, naming what may be chosen."""
    try:
        return msgspec.convert(
            {"order": settings.order, "preempt": settings.preempt, "reclaim": settings.reclaim}, Policy
        )
    except msgspec.ValidationError as error:
        raise SettingInvalid(
            f"The queue's policy does not fit: {error}.", next_step="Correct the MACADAM_JOBS_ settings."
        ) from error


def placing(memory: Memory) -> MakePlaces:
    """Where jobs go: so that what usually comes still fits; by best fit while that is not known."""
    return packed(Placement(typical=memory.typical()))


class Queue:
    """ports: those of the platform. committed: called after each commit that left leaves. clock: the present instant, UTC.

    places: how jobs are placed, None for the queue's own way (see `placing`).
    """

    def __init__(
        self,
        ports: Ports,
        *,
        clock: Callable[[], datetime],
        committed: Callable[[], None],
        places: MakePlaces | None = None,
    ) -> None:
        self._ports = ports
        self._executor: Executor = ports.executor
        self._settings = ports.settings.jobs
        self._name = clusters.named(ports.settings)
        self._said: set[str] = set()
        self._policy = policy(self._settings)
        self._lists = Lists()
        self._clock = clock
        self._committed = committed
        self._memory = Memory()
        self._buyer = Buyer(self._settings)
        self._places = places
        self._decayed: tuple[datetime, dict[str, float]] | None = None
        self._held = self._tidied = datetime.min.replace(tzinfo=clock().tzinfo)

    def turn(self) -> Done:
        """One round. Raises Temporary if the executor or SQL does not answer: then the next turn goes on."""
        with self._ports.sql.read() as sql:
            rows = self._own(registry.open_attempts(sql))
        seen = self._executor.look([row.id for row in rows])  # 1
        nodes = self._distinct(self._executor.nodes())
        ended = self._settle(seen, nodes) if self._is_news(rows, seen, nodes) else 0  # 2
        started, stopped = self._decide(nodes)  # 3, 4
        if ended or started or stopped:
            self._committed()
        with self._ports.sql.read() as sql:
            rows = registry.open_attempts(sql)
            jobs = registry.by_id(sql, [row.job for row in rows])
            waiting = sum(n for (_, state), n in registry.counts(sql).items() if state == "waiting")
        self._act(self._own(rows), jobs, seen, nodes)  # 5
        self._tidy()
        return Done(ended=ended, started=started, stopped=stopped, open=len(rows), waiting=waiting)

    def _own(self, rows: tuple[AttemptRow, ...]) -> tuple[AttemptRow, ...]:
        """Attempts that this executor can know. What another one was given may run there: that this one does not know it says nothing."""
        for row in rows:
            if row.executor not in ("", self._name) and row.id not in self._said:
                self._said.add(row.id)
                facts = {"attempt": row.id, "executor": row.executor, "chosen": self._name}
                _log.warning(
                    "an attempt is another executor's: choose that one until it has ended", extra={"facts": facts}
                )
        return tuple(row for row in rows if row.executor in ("", self._name))

    def _distinct(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """By name, the first of each: two machines of one name cannot be told apart, and must not keep the others waiting."""
        found: dict[str, Node] = {}
        for node in nodes:
            if found.setdefault(node.name, node) is not node and node.name not in self._said:
                self._said.add(node.name)
                _log.warning("two machines have one name: only one is used", extra={"facts": {"machine": node.name}})
        return tuple(found.values())

    # --- settling

    def _is_news(self, rows: tuple[AttemptRow, ...], seen: dict[str, Sighting], nodes: tuple[Node, ...]) -> bool:
        with self._ports.sql.read() as sql:
            known = registry.known_machines(sql)
        return known != tuple(sorted(nodes, key=lambda node: node.name)) or any(
            _has_ended(row, seen[row.id]) or (row.began is None and seen[row.id].state == "running") for row in rows
        )

    def _settle(self, seen: dict[str, Sighting], nodes: tuple[Node, ...]) -> int:
        def work(sql: sa.Connection) -> int:
            books, ended = self._books(sql, nodes), 0
            rows = registry.open_attempts(sql)
            jobs = registry.by_id(sql, [row.job for row in rows])
            for row in rows:
                sighting = seen.get(row.id)
                if sighting is None:
                    continue
                if _has_ended(row, sighting):
                    books.end(jobs[row.job], row, _as_lost(row, sighting))
                    ended += 1
                elif row.began is None and sighting.state == "running":
                    books.began(jobs[row.job], row, sighting)
            ordered = tuple(sorted(nodes, key=lambda node: node.name))
            if registry.known_machines(sql) != ordered:
                books.see(ordered)
            return ended

        return self._ports.sql.write(work)

    # --- deciding

    def look(self, sql: sa.Connection, nodes: tuple[Node, ...]) -> Picture:
        """Everything that a decision rests on, now."""
        now = self._clock()
        rows = registry.open_attempts(sql)
        quotas, waiting = registry.all_quotas(sql), registry.waiting(sql)
        jobs = registry.by_id(sql, [row.job for row in rows])
        if waiting:
            self._memory.update(sql, now)
        desk, counted = self._desk(sql, now, nodes), spending.of_quotas(sql, quotas, now)
        seen = Picture(
            now=now,
            nodes=nodes,
            waiting=payable(sql, desk, waiting, counted, quotas),
            attempts=rows,
            jobs=jobs,
            quotas=quotas,
            bounds=bounds(desk, [*waiting, *(jobs[row.job] for row in rows if row.rate is None)], quotas),
            due=self._memory.due(quotas, (*waiting, *jobs.values()), now, self._policy.patience),
            spent=self._spent(sql, {project: one.spent for project, one in counted.items()}, now),
        )
        return msgspec.structs.replace(seen, markets=self._buyer.bounds(sql, seen))

    def _desk(self, sql: sa.Connection, now: datetime, nodes: tuple[Node, ...]) -> Desk:
        return Desk(sql, self._ports.settings.prices, now, nodes, self._lists)

    def _spent(self, sql: sa.Connection, spent: dict[str, Spent], now: datetime) -> dict[str, Spent]:
        if not self._policy.half_life:
            return spent
        if self._decayed is None or not 0 <= (now - self._decayed[0]).total_seconds() <= _DECAY_EVERY:
            self._decayed = now, spending.decayed(sql, self._policy.half_life, now)
        past = self._decayed[1]
        return {
            project: msgspec.structs.replace(spent.get(project, Spent()), decayed=past.get(project, 0.0))
            for project in {*spent, *past}
        }

    def _decide(self, nodes: tuple[Node, ...]) -> tuple[int, int]:
        with self._ports.sql.read() as sql:
            seen = self.look(sql, nodes)
        broke = self._is_time_to_hold(seen.now)
        decision, moves = Decision(), {}
        if seen.waiting or seen.attempts:
            places = self._places or placing(self._memory)
            held = moving.hold(seen, picture.state(seen), places)
            found = decide(seen.now.timestamp(), held.state, self._policy, self._memory.estimates, places)
            decision, moves = msgspec.structs.replace(found, starts=(*held.starts, *found.starts)), held.moves
        asked = self._asked(seen, moves)
        if not (decision.starts or decision.preemptions or asked or broke or seen.waiting):
            return 0, 0
        starts = [(job, given, borrowed) for job, given, borrowed in self._starts(seen, decision)]
        if not (starts or decision.preemptions or asked or broke):
            return 0, 0
        return self._ports.sql.write(lambda sql: self._commit(sql, seen, starts, decision.preemptions, asked, broke))

    def _starts(self, seen: Picture, decision: Decision) -> list[tuple[Job, tuple[Place, ...], int]]:
        waiting = {job.id: job for job in seen.waiting}
        with_gpus = [
            (waiting[one.id], picture.places(waiting[one.id], one.placement, seen.nodes), one.borrowed)
            for one in decision.starts
            if one.id in waiting  # whoever is stopped here to go on elsewhere has to end first
        ]
        plain = picture.plain_starts(seen, [(job, given) for job, given, _ in with_gpus])
        return [*with_gpus, *((job, given, 0) for job, given in plain)]

    def _commit(
        self,
        sql: sa.Connection,
        seen: Picture,
        starts: list[tuple[Job, tuple[Place, ...], int]],
        preemptions: tuple[Preempt, ...],
        asked: list[tuple[AttemptRow, Wish, str]],
        broke: bool,  # noqa: FBT001 - one of what was decided
    ) -> tuple[int, int]:
        """What was decided, as far as what it was decided on still stands: people may have changed it meanwhile."""
        books, started, stopped = self._books(sql, seen.nodes), 0, 0
        rows = {row.job: row for row in registry.open_attempts(sql)}
        jobs = registry.by_id(sql, [*rows, *(job.id for job, _, _ in starts)])
        for row, wish, words in asked:
            if row.job in rows and rows[row.job].id == row.id and not rows[row.job].wish:
                books.stop(jobs[row.job], rows.pop(row.job), wish, words=words)
                stopped += 1
        for one in preemptions:
            if one.id in rows and not rows[one.id].wish:
                books.stop(
                    jobs[one.id], rows.pop(one.id), _WISHES.get(one.reason, "preempt"), words=one.words, by=one.by
                )
                stopped += 1
        now = msgspec.structs.replace(seen, attempts=registry.open_attempts(sql), jobs=jobs)
        if broke:
            stopped += self._hold(books, now, rows, jobs)
        # What has ended meanwhile, as by somebody who gave its executor up, is in no sum of the picture's.
        ended = {row.id for row in seen.attempts} - {row.id for row in now.attempts}
        if not ended and registry.all_quotas(sql) == seen.quotas:
            room = Room(now)
            for job, given, borrowed in starts:
                if jobs[job.id] == job and room.take(job, given) and not books.start(job, given, borrowed):
                    started += 1
        return started, stopped

    def _asked(self, seen: Picture, moves: dict[str, str]) -> list[tuple[AttemptRow, Wish, str]]:
        """Attempts that can be started again elsewhere, on machines that go away; and those that go on in another market."""
        going = {node.name: node.leaving for node in seen.nodes if node.leaving is not None}
        found: list[tuple[AttemptRow, Wish, str]] = []
        for row in seen.attempts:
            ends = [going[place.node] for place in row.places if place.node in going]
            if not row.wish and ends and seen.jobs[row.job].spec.preemptible:
                found.append((row, "node", f"its machine goes away at {min(ends):%Y-%m-%d %H:%M:%S}Z"))
            elif not row.wish and row.job in moves:
                found.append((row, "move", moves[row.job]))
        return found

    def _is_time_to_hold(self, now: datetime) -> bool:
        if 0 <= (now - self._held).total_seconds() < picture.HOLD_EVERY:  # not if the clock was set back
            return False
        self._held = now
        return True

    def _hold(self, books: Books, seen: Picture, rows: dict[str, AttemptRow], jobs: dict[str, Job]) -> int:
        """Stops what its project's budget has no more money for, and without GPUs what its quota has none for."""
        stopped = 0
        for row in rows.values():
            if not row.wish and (why := books.hold(jobs[row.job], row) or picture.overspent(seen, row)):
                books.stop(jobs[row.job], row, "money", words=why)
                stopped += 1
        return stopped

    # --- acting

    def _act(
        self, rows: tuple[AttemptRow, ...], jobs: dict[str, Job], seen: dict[str, Sighting], nodes: tuple[Node, ...]
    ) -> None:
        """Asks for what SQL says. One that fails is tried again in the next turn; the others are not kept waiting."""
        going = {node.name: node.leaving for node in nodes if node.leaving is not None}
        for row in rows:
            job = jobs[row.job]
            try:
                if row.wish:
                    self._executor.stop(row.id, grace=self._grace(row, job, going))
                elif row.began is None and seen.get(row.id, _UNSEEN).state == "unknown":
                    self._executor.start(_attempt(row, job))
            except MacadamError as error:
                _log.warning("an executor refuses", extra={"facts": {"attempt": row.id, "detail": str(error)}})

    def _grace(self, row: AttemptRow, job: Job, going: dict[str, datetime]) -> float:
        grace = job.spec.grace if job.grace < 0 or row.wish != "cancel" else job.grace
        ends = [going[place.node] for place in row.places if place.node in going]
        if ends:
            left = (min(ends) - self._clock()).total_seconds() - _LEAVE
            grace = min(grace, max(0.0, left))
        return grace

    def _tidy(self) -> None:
        """Removes what is kept of attempts that ended long ago."""
        now = self._clock()
        if 0 <= (now - self._tidied).total_seconds() < _TIDY_EVERY:
            return
        self._tidied = now
        with self._ports.sql.read() as sql:
            old = registry.to_forget(sql, now - timedelta(days=self._settings.keep), self._name)
            jobs = registry.by_id(sql, sorted({row.job for row in old}))
        for row in old:
            self._executor.forget(row.id)
            if registry.is_ended(jobs[row.job]) and jobs[row.job].attempt == row.number:
                self._executor.remove_checkpoint(row.job)
        if old:
            self._ports.sql.write(lambda sql: registry.forgotten(sql, [row.id for row in old]))

    def _books(self, sql: sa.Connection, nodes: tuple[Node, ...]) -> Books:
        now = self._clock()
        return Books(
            sql=sql,
            now=now,
            desk=self._desk(sql, now, nodes),
            restart_delay=self._settings.restart_delay,
            executor=self._name,
        )


_UNSEEN = Sighting(attempt="", state="unknown")


def payable(
    sql: sa.Connection, desk: Desk, jobs: tuple[Job, ...], counted: dict[str, Counted], quotas: tuple[Quota, ...]
) -> tuple[Job, ...]:
    """Those whose project's budget has room, so that one that must not start keeps no GPUs from others."""
    paying = {one.project for one in quotas if one.money}
    limited = {one for one in {job.project for job in jobs} if one in paying or budgets.of_project(sql, one)}
    known: dict[tuple[object, ...], bool] = {}  # those that cost the same get the same answer
    found = []
    for job in jobs:
        if job.project in limited:
            asked = job.spec.resources
            key = (job.project, asked.demand, asked.models, asked.cpu_milli, job.spec.time_limit, job.spec.grace)
            if key not in known:
                known[key] = refusal(sql, desk, job, counted, quotas) is None
            if not known[key]:
                continue
        found.append(job)
    return tuple(found)


def bounds(desk: Desk, jobs: Iterable[Job], quotas: tuple[Quota, ...]) -> dict[str, Rate]:
    """By job's id, what it costs at most by the hour; of projects with a quota in money, as no other decision rests on it."""
    paying = {one.project for one in quotas if one.money}
    priced = ((job, desk.most(job.project, job.spec.resources)) for job in jobs if job.project in paying)
    return {job.id: rate for job, rate in priced if isinstance(rate, Rate)}


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why work may not begin for want of money, and what to do."""

    why: str
    step: str


def refusal(
    sql: sa.Connection, desk: Desk, job: Job, counted: dict[str, Counted], quotas: tuple[Quota, ...]
) -> Refusal | None:
    """None if the project's budget and quota in money let the job begin, wherever it would do."""
    project = job.project
    limits = [one.money for one in quotas if one.project == project and one.money]
    rate = desk.most(project, job.spec.resources)
    if isinstance(rate, Unpriced):
        has = f"{project} has a quota in money, and nothing says what this costs: {rate.what}."
        why = budgets.unpriced(sql, project, rate.what) or (has if limits else "")
        return Refusal(why=why, step=rate.step) if why else None
    for limit in limits:
        if limit.currency != rate.currency:
            why = f"The quota of {project} is in {limit.currency} and its budget in {rate.currency}: one sum cannot be held to both."
            return Refusal(why=why, step="Set both in one currency: macadam quotas set, macadam budgets set.")
        if counted[project].others:
            paid = ", ".join(map(str, counted[project].others))
            why = f"{project} has paid {paid} in its quota's window, and no rate says what that is in {limit.currency}."
            return Refusal(why=why, step="Import one: macadam cost add-rates.")
    ahead = (job.spec.time_limit or bookkeeping.HORIZON) + job.spec.grace
    verdict = budgets.allows(sql, project, rate.cost(ahead), desk.now)
    if verdict.allowed:
        return None
    dearest = f" That is on {rate.prices[0].model}, the dearest that would do." if _is_choice(desk, job) else ""
    step = "Name the GPUs that will do (`models`), or raise the budget." if dearest else verdict.next_step
    return Refusal(why=f"{verdict.reason}{dearest}", step=step)


def _is_choice(desk: Desk, job: Job) -> bool:
    asked = job.spec.resources
    return bool(asked.demand) and len({kind.rate.nanos for kind in desk.kinds(job.project, asked)[0]}) > 1


def _has_ended(row: AttemptRow, seen: Sighting) -> bool:
    """Also if the executor has forgotten it although it had begun."""
    return seen.state == "ended" or (seen.state == "unknown" and row.began is not None)


def _as_lost(row: AttemptRow, seen: Sighting) -> Sighting:
    if seen.state == "ended":
        return seen
    return Sighting(
        attempt=row.id, state="ended", exit_code=137, why="lost", message="its executor knows nothing of it any more"
    )


def _attempt(row: AttemptRow, job: Job) -> Attempt:
    spec = job.spec
    return Attempt(
        id=row.id,
        job=job.id,
        project=job.project,
        command=spec.command,
        allotments=tuple(
            Allotment(node=one.node, gpus=one.devices, cpus=one.cpus, memory=one.memory, disk=one.disk)
            for one in row.places
        ),
        environment=spec.environment | {"MACADAM_ATTEMPT_NUMBER": str(row.number)},
        requirements=spec.requirements,
        image=spec.image,
        bundle=spec.bundle,
        checkpoint=spec.checkpoint,
        signal=spec.signal,
        grace=spec.grace,
        time_limit=spec.time_limit,
        priority=job.priority,
        group=spec.likeness,
    )


@contextmanager
def claimed(home: Path) -> Iterator[None]:
    """Holds the home's queue for this process. Raises Busy if another has it. The lock dies with its holder."""
    folder = home / "jobs"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / _LOCK).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"Another process works the queue of {home}.",
                next_step="Leave it to that one (`macadam up` does it by itself), or stop it first.",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def run(queue: Queue, every: float, stop: threading.Event, *, until_idle: bool = False) -> None:
    """Works in this thread until `stop`, or until nothing is left to do. A turn that failed for now is tried again."""
    while not stop.is_set():
        began = time.thread_time()
        try:
            done = queue.turn()
        except Temporary as error:
            _log.warning("the queue stumbled", extra={"facts": {"code": error.code, "detail": str(error)}})
        else:
            if until_idle and not (done.open or done.waiting):
                return
        stop.wait(max(every, min(_LONGEST_PAUSE, _PAUSE * (time.thread_time() - began))))
