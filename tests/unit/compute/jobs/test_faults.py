"""What must not keep the queue from its work: large clusters, clocks that are set back, machines that cannot be told apart, executors that fail."""

import dataclasses
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta

import msgspec
import pytest
from databases import KINDS, server
from unit.compute.jobs.bench import Bench, Told, gpu_node, open_bench

from macadam.compute.billing.budget_types import SetBudget
from macadam.compute.jobs import bookkeeping, registry
from macadam.compute.jobs.loop import Done, Queue, run
from macadam.compute.jobs.types import AbandonExecutor, CancelJob, ExplainJob, Job, Resources, SetQuota
from macadam.errors import MacadamError
from macadam.ledger import service as ledger
from macadam.ports import Attempt, Sighting

PRICED = {"MACADAM_PRICE_GPU_HOUR": "3600000", "MACADAM_PRICE_CPU_HOUR": "0"}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench() as made:
        yield made


def leaves(bench: Bench, kind: str) -> list[dict[str, object]]:
    with bench.platform.ports.sql.read() as sql:
        found = [entry.leaf.body for entry in ledger.find(sql, limit=10_000) if entry.leaf.kind == kind]
    return found[::-1]


def test_a_cluster_of_any_size_is_written_down_and_then_only_what_changes(bench: Bench) -> None:
    cluster = [
        gpu_node(f"a-machine-with-a-name-as-clouds-give-them-{n}.region.compute.internal", 8) for n in range(1000)
    ]
    bench.executor.machines = tuple(cluster)
    job = bench.submit(resources=Resources(gpus=4096))
    bench.turn()
    assert bench.now(job).state == "starting"
    told = leaves(bench, bookkeeping.SEEN)
    assert sum(len(one["machines"]) for one in told) == 1000  # type: ignore[arg-type]
    (start,) = leaves(bench, bookkeeping.START)
    assert (start["milli"], start["machines"], start["members"]) == (4_096_000, 512, 4096)
    gone, leaving = cluster[0].name, msgspec.structs.replace(cluster[1], leaving=bench.clock() + timedelta(seconds=90))
    bench.executor.machines = (leaving, *cluster[2:])
    bench.turn()
    (change,) = leaves(bench, bookkeeping.SEEN)[len(told) :]
    assert (change["there"], change["gone"], list(change["machines"])) == (999, [gone], [leaving.name])  # type: ignore[call-overload]
    with bench.platform.ports.sql.read() as sql:
        assert {node.name: node.leaving for node in registry.known_machines(sql)} == {
            node.name: node.leaving for node in bench.executor.machines
        }


def test_machines_of_one_name_keep_nobody_waiting(bench: Bench) -> None:
    bench.executor.machines = (gpu_node("same"), gpu_node("same", gpus=8))
    job = bench.submit(resources=Resources(gpus=4))
    bench.turn()
    assert bench.now(job).state == "starting"


@pytest.mark.parametrize("back", [timedelta(hours=2), timedelta(days=40)])
@pytest.mark.parametrize("limit", [0, 86_400])
def test_a_clock_that_is_set_back_stops_neither_the_queue_nor_its_budgets(back: timedelta, limit: int) -> None:
    with open_bench(settings=PRICED) as bench:
        bench.platform.call(SetBudget(project="p", amount="100", hard=True))
        job = bench.submit(time_limit=limit)
        bench.turn()
        bench.turn()
        bench.clock.pass_time(-back)
        bench.new_queue()  # as after a kill: it looks at once whether what runs may still be paid for
        late = bench.submit()
        bench.turn()
        assert [bench.now(one).state for one in (job, late)] == ["running", "starting"]
        bench.platform.call(SetBudget(project="p", amount="0.01", hard=True))
        bench.clock.pass_time(-timedelta(hours=1))
        bench.turn()
        assert {bench.now(one).state for one in (job, late)} == {"stopping"}
        for one in (job, late):
            bench.executor.end(f"{one.id}.1", 143, "stopped")
        bench.turn()
        assert {bench.now(one).ending for one in (job, late)} == {"money"}


def test_a_market_that_is_seen_twice_at_one_instant_has_one_span(bench: Bench) -> None:
    spot = msgspec.structs.replace(gpu_node("cheap"), zone="a", spot=True)
    for machines in ((spot,), (), (spot,)):
        bench.executor.machines = (gpu_node(), *machines)
        bench.turn()
    with bench.platform.ports.sql.read() as sql:
        (span,) = registry.market_spans(sql, bench.clock())
    assert (span.market, span.until) == ("spot/a", None)


def test_what_never_gets_as_far_as_to_begin_is_tried_again_more_and_more_rarely(bench: Bench) -> None:
    def loses(attempt: Attempt) -> None:
        bench.executor.started.append(attempt.id)
        bench.executor.attempts[attempt.id] = Sighting(attempt=attempt.id, state="ended", exit_code=137, why="lost")

    bench.executor.start = loses  # type: ignore[method-assign]
    job = bench.submit()
    for _ in range(400):
        bench.turn()
        bench.clock.pass_time(timedelta(seconds=10))
        if len(bench.executor.started) > 12:
            break
    bench.turn()
    assert len(bench.executor.started) == 13
    assert (bench.clock() - job.submitted).total_seconds() > 600
    assert (bench.now(job).state, bench.now(job).restarts) == ("waiting", 0)
    del bench.executor.start
    bench.clock.pass_time(timedelta(seconds=300))
    bench.turn()
    bench.turn()
    assert bench.now(job).state == "running"


def test_what_another_executor_keeps_is_removed_by_that_one(bench: Bench) -> None:
    job = bench.submit()
    bench.turn()
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    bench.clock.pass_time(timedelta(days=40))
    settings, first = bench.platform.ports.settings, bench.executor
    elsewhere = dataclasses.replace(settings, jobs=dataclasses.replace(settings.jobs, executor="ray"))
    second = Told(clock=bench.clock)
    for chosen, executor in ((elsewhere, second), (settings, first)):
        object.__setattr__(bench.platform.ports, "settings", chosen)
        object.__setattr__(bench.platform.ports, "executor", executor)
        bench.new_queue()
        bench.turn()
    assert (second.forgotten, second.removed) == ([], [])
    assert (first.forgotten, first.removed) == ([f"{job.id}.1"], [job.id])


def test_a_queue_with_much_to_look_at_leaves_most_of_a_core_to_others() -> None:
    stop, turns = threading.Event(), list[float]()

    class Slow:
        def turn(self) -> Done:
            turns.append(time.monotonic())
            until = time.thread_time() + 0.1
            while time.thread_time() < until:
                pass
            if len(turns) == 4:
                stop.set()
            return Done(open=1)

    run(Slow(), 0.01, stop)  # type: ignore[arg-type]
    assert turns[-1] - turns[0] >= 3 * 0.3


def before_the_commit(bench: Bench, what: Callable[[], object]) -> None:
    """One turn, with something that happens between its decision and its commit."""
    sql, me = bench.platform.ports.sql, threading.current_thread()  # the ledger's sequencer writes too
    write = sql.write

    def late(work: object) -> object:
        if threading.current_thread() is me:
            vars(sql).pop("write", None)
            what()
        return write(work)  # type: ignore[arg-type]

    sql.write = late  # type: ignore[method-assign]
    try:
        bench.turn()
    finally:
        vars(sql).pop("write", None)


def test_what_another_queue_starts_meanwhile_is_looked_at_with_the_rest() -> None:
    with open_bench(settings=PRICED) as bench:
        bench.platform.call(SetQuota(tenant="p", gpus=4, money="50"))
        bench.turn()
        job = bench.submit(resources=Resources())
        bench.new_queue()
        other = Queue(bench.platform.ports, clock=bench.clock, committed=lambda: None)
        before_the_commit(bench, other.turn)
        assert bench.executor.started == [f"{job.id}.1"]


def test_what_ends_between_a_decision_and_its_commit_is_paid_before_anything_starts() -> None:
    """Its hours are in no sum that was decided on: an executor is given up while the queue decides."""
    with open_bench() as bench:
        bench.platform.call(SetQuota(tenant="p", gpus=2, borrow=0, gpu_hours=1))
        bench.submit(resources=Resources(gpus=1))
        bench.turn()
        bench.turn()
        bench.clock.pass_time(timedelta(minutes=50))
        late = bench.submit(time_limit=60)

        def gives_up() -> None:
            bench.executor.down = True
            bench.clock.pass_time(timedelta(minutes=20))
            bench.platform.call(AbandonExecutor(executor="local"))
            bench.executor.down = False

        before_the_commit(bench, gives_up)
        for _ in range(3):
            bench.turn()
        assert bench.now(late).state == "waiting"


def test_why_a_job_is_where_it_is_is_said_of_each_state_with_what_to_do() -> None:
    with open_bench(settings=PRICED) as bench:
        bench.platform.call(SetQuota(tenant="p", gpus=1, borrow=0, money="50"))
        job, waits = bench.submit(grace=20, time_limit=3600), bench.submit(time_limit=3600)

        def said(one: Job = job) -> tuple[str, str, str]:
            found = bench.platform.call(ExplainJob(project="p", job=one.id))
            return found.reason, found.words, found.next_step

        bench.turn()
        reason, words, step = said()
        assert (reason, "none of its processes was seen" in words) == ("starts", True)
        assert f"macadam jobs cancel {job.id} --project p" in step
        bench.turn()
        assert said()[0] == "runs"
        assert said(waits)[:2] == ("limit", "p uses 1 GPUs and may use 1; this needs 1.")
        bench.platform.call(CancelJob(project="p", job=job.id))
        reason, words, step = said()
        assert (reason, "grace of 20 s" in words) == ("stops", True)
        assert f"macadam jobs log {job.id}" in step
        bench.executor.end(f"{job.id}.1", 143, "stopped")
        bench.turn()
        assert said()[0] == "ended"
        bench.turn()
        bench.executor.end(f"{waits.id}.1", 3)
        bench.turn()
        reason, words, step = said(waits)
        assert (reason, words) == ("ended", "It failed: it ended with code 3.")
        assert f"macadam jobs log {waits.id} --project p" in step


@pytest.mark.parametrize("seed", range(300 if os.environ.get("MACADAM_SOAK") == "1" else 4))
@pytest.mark.parametrize("database", KINDS)
def test_killed_at_any_commit_beside_another_queue_and_by_any_clock_each_job_ends_once_within_its_quota(
    seed: int, database: str
) -> None:
    """Random walks: kills before and after any commit and any call of the executor, two queues at once, clocks that jump both ways, spot
    machines that vanish and come back, deadlines, limits in GPUs, GPU-hours and money, executors that are given up.
    """
    if database == "postgres" and seed:
        pytest.skip("one walk shows that the SQL is the same")
    settings = PRICED | ({"MACADAM_DATABASE": server().database()} if database == "postgres" else {})
    with open_bench(("p", "q"), settings=settings) as bench:
        walk = Walk(bench, random.Random(seed))
        for _ in range(60):
            walk.step()
            walk.require_nothing_twice()
        walk.require_ends()


class Walk:
    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.bench, self.chance, self.jobs = bench, chance, list[Job]()
        bench.platform.call(SetQuota(tenant="p", gpus=3, borrow=0, gpu_hours=400, money="2000"))
        bench.platform.call(SetQuota(tenant="q", gpus=5, borrow=0))
        self.machines()

    def machines(self) -> None:
        """Some are taken away without a word and come back under the same name, elsewhere or with other GPUs; others say so before."""
        chance, found = self.chance, [gpu_node("base")]
        for name in ("a", "b"):
            if chance.random() < 0.7:
                leaving = self.bench.clock() + timedelta(seconds=60) if chance.random() < 0.3 else None
                node = gpu_node(name, gpus=chance.choice([1, 2]), leaving=leaving)
                found.append(msgspec.structs.replace(node, zone=chance.choice(["x", "y"]), spot=chance.random() < 0.8))
        self.bench.executor.machines = tuple(found)
        names = {node.name for node in found}
        for attempt, order in self.bench.executor.orders.items():
            if self.bench.executor.attempts[attempt].state == "running" and order.allotments[0].node not in names:
                self.bench.executor.end(attempt, 137, "lost")

    def step(self) -> None:
        what = (
            "submit",
            "submit",
            "turn",
            "turn",
            "turn",
            "kill",
            "kill",
            "rival",
            "end",
            "cancel",
            "machines",
            "time",
            "gone",
        )
        getattr(self, self.chance.choice(what))()

    def submit(self) -> None:
        chance = self.chance
        asked = Resources(**chance.choice([{"gpus": 1}, {"gpus": 2}, {"milli": 400}, {}]))
        more: dict[str, object] = {}
        if chance.random() < 0.5:
            more = {"deadline": self.bench.clock() + timedelta(seconds=chance.choice([900, 4000])), "checkpoint": True}
        restarts, limit = chance.randint(0, 3), chance.choice([0, 600])
        project, stops = chance.choice(["p", "q"]), chance.random() < 0.8
        self.jobs.append(
            self.bench.submit(project, asked, max_restarts=restarts, time_limit=limit, preemptible=stops, **more)
        )

    def turn(self) -> None:
        try:
            self.bench.turn()
        except KeyboardInterrupt:
            self.bench.new_queue()

    def kill(self) -> None:
        """Dies at the n-th commit or call, before or after it."""
        owner, verb = self.chance.choice(
            [(self.bench.executor, one) for one in ("start", "stop", "look", "nodes")]
            + [(self.bench.platform.ports.sql, "write")] * 4
        )
        me = threading.current_thread()  # the ledger's sequencer writes too
        real, left, after = getattr(owner, verb), [self.chance.randint(0, 2)], self.chance.random() < 0.5

        def dies(*args: object, **more: object) -> object:
            if threading.current_thread() is not me:
                return real(*args, **more)
            left[0] -= 1
            if left[0] >= 0:
                return real(*args, **more)
            if after:
                real(*args, **more)
            raise KeyboardInterrupt

        setattr(owner, verb, dies)
        try:
            self.turn()
        finally:
            delattr(owner, verb)
        self.bench.new_queue()

    def rival(self) -> None:
        """Another queue takes a whole turn between this one's decision and its commit."""
        bench, other = self.bench, Queue(self.bench.platform.ports, clock=self.bench.clock, committed=lambda: None)
        before_the_commit(bench, other.turn)

    def end(self) -> None:
        if running := [one for one, seen in self.bench.executor.attempts.items() if seen.state == "running"]:
            code, why = self.chance.choice([(0, ""), (3, ""), (75, ""), (137, ""), (137, "lost"), (137, "memory")])
            self.bench.executor.end(self.chance.choice(running), code, why)

    def cancel(self) -> None:
        if self.jobs:
            one = self.chance.choice(self.jobs)
            try:
                self.bench.platform.call(CancelJob(project=one.project, job=one.id))
            except MacadamError:
                assert self.bench.now(one).ended

    def time(self) -> None:
        self.bench.clock.pass_time(timedelta(seconds=self.chance.choice([1, 5, 61, 400, -30, -7200, 7200])))

    def gone(self) -> None:
        """The executor is given up with all it knew; another, empty one takes its place."""
        if self.chance.random() < 0.3:
            self.bench.executor.down = True
            try:
                self.bench.platform.call(AbandonExecutor(executor="local"))
            except MacadamError:
                self.bench.executor.down = False
                return
            before = self.bench.executor
            self.bench.executor = Told(clock=self.bench.clock, machines=before.machines, started=before.started)
            object.__setattr__(self.bench.platform.ports, "executor", self.bench.executor)
            self.bench.new_queue()

    def require_nothing_twice(self) -> None:
        with self.bench.platform.ports.sql.read() as sql:
            rows = registry.open_attempts(sql)
        held: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for row in rows:
            used[row.project] += row.milli
            for place in row.places:
                held.update(place.devices)
        assert all(milli <= 1000 for milli in held.values())
        assert len({row.job for row in rows}) == len(rows)
        assert used["p"] <= 3000
        assert used["q"] <= 5000
        assert len(set(self.bench.executor.started)) == len(self.bench.executor.started)

    def require_ends(self) -> None:
        bench = self.bench
        bench.executor.machines = (gpu_node("base"), gpu_node("other"))
        for _ in range(300):
            bench.clock.pass_time(timedelta(seconds=300))
            self.turn()
            for attempt, seen in list(bench.executor.attempts.items()):
                if seen.state == "running":
                    bench.executor.end(attempt)
            if all(bench.now(job).ended for job in self.jobs):
                break
        assert all(bench.now(job).ended for job in self.jobs)
        self.require_sums()

    def require_sums(self) -> None:
        """By the ledger each attempt that began has ended once, each job has come to one end, and GPU time and money are what SQL says."""
        with self.bench.platform.ports.sql.read() as sql:
            said = [entry.leaf for entry in ledger.find(sql, limit=100_000)]
            rows = [row for job in self.jobs for row in registry.attempts_of(sql, job.id)]
        begun = Counter((one.subject, one.body["attempt"]) for one in said if one.kind == bookkeeping.START)
        over = [one for one in said if one.kind == bookkeeping.END]
        assert begun == Counter((one.subject, one.body["attempt"]) for one in over)
        assert set(begun.values()) <= {1}
        finals = Counter(one.subject for one in over if one.body["state"] != "waiting")
        finals.update(
            one.subject for one in said if one.kind == "compute.cancel_job" and one.body["before"] == "waiting"
        )
        assert finals == Counter({job.ref: 1 for job in self.jobs})
        assert sum(int(str(one.body["gpu_ms"])) for one in over) == sum(row.gpu_ms for row in rows)
        assert sum(int(str(one.body["cost_micros"])) for one in over) == sum(
            row.cost.micros for row in rows if row.cost
        )
