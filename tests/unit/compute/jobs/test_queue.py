"""The live queue, turn by turn, with everything that can go wrong between two of them."""

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from databases import KINDS, server
from unit.compute.jobs.bench import Bench, Told, gpu_node, open_bench

from macadam.compute.billing.budget_types import ListAlerts, SetBudget
from macadam.compute.jobs import bookkeeping, clusters, loop, registry
from macadam.compute.jobs.holdings import holdings, used
from macadam.compute.jobs.loop import claimed, policy
from macadam.compute.jobs.types import AbandonExecutor, CancelJob, ExplainJob, Resources, SetQuota
from macadam.compute.scheduling.types import Decision, Preempt, Slot, Start
from macadam.errors import Busy, Conflict, MacadamError, NotAuthorised, NotFound, SettingInvalid, Temporary
from macadam.ledger import service as ledger
from macadam.ledger.types import ShowLog
from macadam.settings import Jobs, Settings
from macadam.testing import token_of

PRICED = {
    "MACADAM_PRICE_GPU_HOUR": "3600000",
    "MACADAM_PRICE_CPU_HOUR": "0",
}  # one GPU-second is a thousandth of a dollar


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench() as made:
        yield made


def test_a_job_starts_runs_and_ends_with_a_leaf_for_each(bench: Bench) -> None:
    job = bench.submit(resources=Resources(gpus=2, cpus=8, memory=1 << 33))
    assert bench.turn().started == 1
    assert bench.now(job).state == "starting"
    bench.turn()
    assert bench.now(job).state == "running"
    order = bench.executor.orders[f"{job.id}.1"]
    assert [(len(one.gpus), one.cpus, one.memory) for one in order.allotments] == [(2, 8000, 1 << 33)]
    bench.clock.pass_time(timedelta(seconds=30))
    bench.executor.end(f"{job.id}.1", seconds=29.5)
    assert bench.turn().ended == 1
    page = bench.page(job)
    assert (page.job.state, page.job.ending, page.job.attained) == ("succeeded", "succeeded", 29.5)
    assert page.attempts[0].gpu_ms == 60_000
    with bench.platform.ports.sql.read() as sql:
        said = [(entry.leaf.kind, entry.leaf.body.get("milli")) for entry in ledger.find(sql, project="p")]
    assert [one for one in reversed(said) if one[0].startswith("jobs.")] == [("jobs.start", 2000), ("jobs.end", 2000)]


def test_what_is_committed_and_was_not_done_before_a_kill_is_done_after_it(bench: Bench) -> None:
    job = bench.submit()
    bench.executor.start = _fails  # type: ignore[method-assign] # the process is killed before it acts
    with pytest.raises(KeyboardInterrupt):
        bench.turn()
    assert bench.now(job).state == "starting"
    del bench.executor.start
    bench.new_queue()
    bench.turn()
    assert bench.executor.started == [f"{job.id}.1"]


def _fails(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_executor_that_does_not_answer_changes_nothing(bench: Bench) -> None:
    job = bench.submit()
    bench.executor.down = True
    with pytest.raises(Temporary):
        bench.turn()
    assert bench.now(job).state == "waiting"
    bench.executor.down = False
    bench.turn()
    bench.executor.down = True
    with pytest.raises(Temporary):
        bench.turn()
    assert bench.now(job).state == "starting"


def test_a_killed_job_is_tried_again_after_a_pause_and_goes_on_from_its_checkpoint(bench: Bench) -> None:
    job = bench.submit(max_restarts=1, checkpoint=True)
    bench.turn()
    bench.executor.end(f"{job.id}.1", exit_code=137)
    bench.turn()
    assert (bench.now(job).state, bench.now(job).restarts) == ("waiting", 1)
    assert bench.turn().started == 0
    bench.clock.pass_time(timedelta(seconds=1))
    bench.turn()
    assert bench.executor.started == [f"{job.id}.1", f"{job.id}.2"]
    assert bench.executor.orders[f"{job.id}.2"].checkpoint
    bench.executor.end(f"{job.id}.2", exit_code=137)
    bench.turn()
    assert (bench.now(job).state, bench.now(job).ending) == ("failed", "killed")


def test_what_an_executor_has_forgotten_is_lost_and_not_started_twice(bench: Bench) -> None:
    job = bench.submit()
    bench.turn()
    bench.turn()
    del bench.executor.attempts[f"{job.id}.1"]
    bench.turn()
    assert (bench.now(job).state, bench.now(job).ending) == ("failed", "lost")
    assert bench.executor.started == [f"{job.id}.1"]


def test_what_another_executor_was_given_is_left_to_it(bench: Bench) -> None:
    running, started = bench.submit(max_restarts=3), bench.submit(resources=Resources(gpus=2))
    bench.turn()
    first, settings = bench.executor, bench.platform.ports.settings
    elsewhere = dataclasses.replace(settings, jobs=dataclasses.replace(settings.jobs, executor="ray"))
    second = Told(clock=bench.clock, machines=(gpu_node("other"),))
    object.__setattr__(bench.platform.ports, "settings", elsewhere)
    object.__setattr__(bench.platform.ports, "executor", second)
    bench.new_queue()
    late = bench.submit()
    bench.platform.call(CancelJob(project="p", job=started.id))
    for _ in range(3):
        bench.turn()
    assert second.started == [f"{late.id}.1"]  # new work goes on there; nothing runs in two places
    assert not second.stopped
    assert [bench.now(one).state for one in (running, started)] == ["starting", "stopping"]
    object.__setattr__(bench.platform.ports, "settings", settings)
    object.__setattr__(bench.platform.ports, "executor", first)
    bench.new_queue()
    first.end(f"{running.id}.1")
    bench.turn()
    assert bench.now(running).state == "succeeded"
    assert f"{started.id}.1" in first.stopped


def test_an_executors_name_tells_clusters_apart_and_no_credentials() -> None:
    names = [
        clusters.named(Settings.load({"MACADAM_EXECUTOR": name, **more}))
        for name, more in (
            ("local", {}),
            ("kubernetes", {}),
            ("kubernetes", {"MACADAM_KUBERNETES_CONTEXT": "b"}),
            ("kubernetes", {"MACADAM_KUBERNETES_NAMESPACE": "b"}),
            ("ray", {"MACADAM_RAY_ADDRESS": "https://me:pass@ray:8265"}),
            ("ray", {"MACADAM_RAY_ADDRESS": "https://me:pass@ray:8265", "MACADAM_RAY_PREFIX": "b-"}),
        )
    ]
    assert len(set(names)) == len(names)
    assert "pass" not in "".join(names)


def test_an_executor_that_is_gone_is_given_up_with_what_it_held(bench: Bench) -> None:
    bench.platform.call(SetQuota(tenant="p", gpus=3, borrow=0))
    twice, once, gone = bench.submit(max_restarts=1), bench.submit(), bench.submit(max_restarts=9)
    bench.turn()
    bench.turn()
    bench.platform.call(CancelJob(project="p", job=gone.id))
    settings = bench.platform.ports.settings
    elsewhere = dataclasses.replace(settings, jobs=dataclasses.replace(settings.jobs, executor="ray"))
    object.__setattr__(bench.platform.ports, "settings", elsewhere)
    object.__setattr__(bench.platform.ports, "executor", Told(clock=bench.clock, machines=(gpu_node("other"),)))
    bench.new_queue()
    waits = bench.submit()
    assert bench.turn().started == 0, "its quota is held by what ran on the former one"
    found = bench.platform.call(AbandonExecutor(executor="local"))
    assert (len(found.attempts), found.waiting, found.ended) == (3, 1, 2)
    assert "may still run" in found.warning
    assert [bench.now(job).state for job in (twice, once, gone)] == ["waiting", "failed", "cancelled"]
    assert [bench.page(job).attempts[0].ending for job in (twice, once, gone)] == ["lost", "lost", "cancelled"]
    with bench.platform.ports.sql.read() as sql:
        kinds = Counter(
            entry.leaf.kind for entry in ledger.find(sql) if entry.leaf.kind.startswith(("jobs.end", "compute.ab"))
        )
        (given_up,) = (one.leaf.body for one in ledger.find(sql) if one.leaf.kind == "compute.abandon_executor")
    assert kinds == {"jobs.end": 3, "compute.abandon_executor": 1}
    assert given_up == {"attempts": 3, "waiting": 1}  # of thousands, their ids would not fit into its leaf
    bench.clock.pass_time(timedelta(seconds=1))
    bench.turn()
    assert [bench.now(job).state for job in (twice, waits)] == ["starting", "starting"]
    with pytest.raises(NotFound, match="Nothing is open"):
        bench.platform.call(AbandonExecutor(executor="local"))


def test_an_executor_that_is_chosen_is_given_up_only_if_it_does_not_answer(bench: Bench) -> None:
    job = bench.submit()
    bench.turn()
    with pytest.raises(Conflict, match="answers"):
        bench.platform.call(AbandonExecutor(executor="local"))
    assert bench.now(job).state == "starting"
    bench.executor.down = True
    bench.platform.call(AbandonExecutor(executor="local"))
    assert (bench.now(job).state, bench.now(job).ending) == ("failed", "lost")


def test_a_project_gives_up_no_executor(bench: Bench) -> None:
    bench.submit()
    bench.turn()
    bench.executor.down = True
    with pytest.raises(NotAuthorised):
        bench.platform.call(AbandonExecutor(executor="local"), token=token_of(bench.platform, "ada", {"p": "admin"}))


def test_a_cancelled_job_is_asked_to_stop_and_ends_cancelled(bench: Bench) -> None:
    job = bench.submit(grace=7)
    bench.turn()
    bench.platform.call(CancelJob(project="p", job=job.id))
    again = bench.platform.call(CancelJob(project="p", job=job.id))
    assert again.state == "stopping"
    bench.turn()
    assert bench.executor.stopped == {f"{job.id}.1": 7}
    bench.executor.end(f"{job.id}.1", exit_code=143, why="stopped")
    bench.turn()
    assert (bench.now(job).state, bench.now(job).ending) == ("cancelled", "cancelled")


def test_a_job_cancelled_before_its_start_was_acted_on_never_runs(bench: Bench) -> None:
    job = bench.submit()
    bench.executor.start = _fails  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.turn()
    del bench.executor.start
    bench.platform.call(CancelJob(project="p", job=job.id))
    bench.turn()
    bench.turn()
    assert bench.now(job).state == "cancelled"
    assert bench.executor.started == []


def test_a_machine_that_goes_away_is_left_in_time_and_gets_no_new_work(bench: Bench) -> None:
    job, stubborn = bench.submit(grace=60), bench.submit(preemptible=False)
    bench.turn()
    gone = bench.clock() + timedelta(seconds=35)
    bench.executor.machines = (gpu_node(leaving=gone), gpu_node("n2", gpus=1))
    bench.turn()
    assert bench.executor.stopped == {f"{job.id}.1": 30}  # five seconds before the machine goes
    bench.executor.end(f"{job.id}.1", exit_code=75, why="stopped")
    bench.turn()
    assert (bench.now(job).preemptions, bench.now(job).restarts) == (0, 0)
    assert bench.executor.orders[f"{job.id}.2"].allotments[0].node == "n2"
    assert bench.now(stubborn).state == "running"


def test_what_would_lose_all_its_work_is_not_stopped_for_a_shorter_one(bench: Bench) -> None:
    long = bench.submit(resources=Resources(gpus=4))
    bench.turn()
    bench.clock.pass_time(timedelta(hours=10))
    short = bench.submit(resources=Resources(gpus=4))
    for _ in range(3):
        bench.turn()
    assert [bench.now(one).state for one in (long, short)] == ["running", "waiting"]


def test_nothing_starts_on_gpus_whose_job_was_only_asked_to_stop(bench: Bench) -> None:
    long = bench.submit(resources=Resources(gpus=4), checkpoint=True)
    bench.turn()
    bench.clock.pass_time(timedelta(hours=10))
    short = bench.submit(resources=Resources(gpus=4))
    for _ in range(3):
        bench.turn()
    assert [bench.now(one).state for one in (long, short)] == ["stopping", "waiting"]
    assert short.id in bench.now(long).message
    bench.executor.end(f"{long.id}.1", exit_code=75, why="stopped", seconds=36000)
    bench.turn()
    assert [bench.now(one).state for one in (long, short)] == ["waiting", "starting"]
    assert (bench.now(long).preemptions, bench.now(long).attained) == (1, 36000)


def test_a_project_takes_back_what_it_lent_when_its_own_share_is_due() -> None:
    with open_bench(("ores", "sand")) as bench:
        for project in ("ores", "sand"):
            bench.platform.call(SetQuota(tenant=project, gpus=2))
        borrowers = [bench.submit("ores", resources=Resources(gpus=1)) for _ in range(4)]
        bench.turn()
        assert {bench.now(one).state for one in borrowers} == {"starting"}
        owner = bench.submit("sand", resources=Resources(gpus=2))
        bench.turn()
        stopping = [one for one in borrowers if bench.now(one).state == "stopping"]
        assert len(stopping) == 2
        for one in stopping:
            bench.executor.end(f"{one.id}.1", exit_code=75, why="stopped")
        bench.turn()
        bench.turn()
        assert bench.now(owner).state == "running"
        assert [bench.now(one).state for one in stopping] == ["waiting", "waiting"]


def test_jobs_without_gpus_share_processors_and_memory_by_priority(bench: Bench) -> None:
    bench.executor.machines = (gpu_node(gpus=0, cpus=3000),)
    low = bench.submit(resources=Resources(cpus=2), priority=0)
    high = bench.submit(resources=Resources(cpus=2), priority=5)
    small = bench.submit(resources=Resources(cpus=1), priority=0)
    bench.turn()
    assert [bench.now(one).state for one in (low, high, small)] == ["waiting", "starting", "starting"]


def test_a_spent_budget_keeps_work_from_starting_and_stops_what_runs() -> None:
    with open_bench(settings=PRICED) as bench:
        bench.platform.call(SetBudget(project="p", amount="1.00", hard=True))
        first, second = bench.submit(time_limit=900, grace=0), bench.submit(time_limit=900, grace=0)
        bench.turn()
        assert [bench.now(one).state for one in (first, second)] == ["starting", "waiting"]
        endless = bench.submit(time_limit=0)
        bench.executor.end(f"{first.id}.1", seconds=1)
        bench.clock.pass_time(timedelta(seconds=100))
        bench.turn()
        assert [bench.now(one).state for one in (first, second, endless)] == ["succeeded", "starting", "waiting"]
        bench.executor.end(f"{second.id}.1", seconds=1)
        bench.turn()
        bench.turn()
        assert bench.now(endless).state == "running"
        for _ in range(20):
            bench.clock.pass_time(timedelta(seconds=61))
            bench.turn()
            if bench.now(endless).state == "stopping":
                break
        assert "has only" in bench.now(endless).message
        assert bench.now(endless).attained == 0
        bench.executor.end(f"{endless.id}.1", exit_code=143, why="stopped")
        bench.turn()
        assert (bench.now(endless).state, bench.now(endless).ending) == ("waiting", "money")
        alerts = bench.platform.call(ListAlerts(project="p"))
        assert {50, 80} <= {alert.threshold for alert in alerts if alert.kind == "actual"}
        raised = bench.platform.call(ShowLog(kind="budgets.alert")).entries
        assert {entry.subject for entry in raised} == {"budget:p"}


def test_a_hard_budget_lets_no_gpu_be_had_whose_price_nobody_knows() -> None:
    with open_bench() as bench:
        bench.platform.call(SetBudget(project="p", amount="1.00"))
        soft = bench.submit()
        bench.turn()
        bench.platform.call(SetBudget(project="p", amount="1.00", hard=True))
        hard = bench.submit()
        bench.clock.pass_time(timedelta(minutes=2))
        bench.turn()
        assert [bench.now(one).state for one in (soft, hard)] == ["running", "waiting"]
        why = bench.platform.call(ExplainJob(project="p", job=hard.id))
        assert (why.reason, "no price of a GPU whose model is not known" in why.words) == ("money", True)


def test_a_price_that_is_set_or_unset_while_a_job_runs_blocks_nothing() -> None:
    with open_bench() as bench:
        job = bench.submit()
        bench.turn()
        settings = bench.platform.ports.settings
        for micros in (3_600_000, 0):
            prices = dataclasses.replace(settings.prices, gpu_hour_micros=micros)
            object.__setattr__(bench.platform.ports, "settings", dataclasses.replace(settings, prices=prices))
            bench.new_queue()
            bench.clock.pass_time(timedelta(seconds=10))
            bench.executor.end(f"{job.id}.1")
            bench.turn()
            assert bench.now(job).state == "succeeded"
            job = bench.submit()
            bench.turn()


def test_old_logs_and_checkpoints_are_removed_after_their_time(bench: Bench) -> None:
    job = bench.submit()
    bench.turn()
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    bench.clock.pass_time(timedelta(days=8))
    bench.turn()
    bench.clock.pass_time(timedelta(days=8))
    bench.turn()
    assert (bench.executor.forgotten, bench.executor.removed) == ([f"{job.id}.1"], [job.id])


def test_holdings_say_who_had_which_device_when_and_usage_what_of_it(bench: Bench) -> None:
    begin = bench.clock()
    job = bench.submit(resources=Resources(milli=250))
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=100))
    with bench.platform.ports.sql.read() as sql:
        (held,) = holdings(sql, begin, bench.clock())
        (usage,) = used(sql, begin, bench.clock(), "p")
    assert (held.project, held.owner, held.share, held.end) == ("p", job.ref, 0.25, None)
    assert usage.gpu_seconds == 25
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    with bench.platform.ports.sql.read() as sql:
        assert holdings(sql, begin, bench.clock())[0].end == bench.clock()
        assert holdings(sql, bench.clock(), bench.clock() + timedelta(hours=1)) == ()


def test_one_process_at_a_time_works_the_queue_of_a_home(bench: Bench) -> None:
    home = bench.platform.settings.home
    with claimed(home), pytest.raises(Busy, match="Another process"), claimed(home):
        pass
    with claimed(home):
        pass


def test_a_policy_that_is_none_is_said() -> None:
    with pytest.raises(SettingInvalid, match="order"):
        policy(Jobs(order="alphabetical"))


@pytest.mark.parametrize("seed", range(200 if os.environ.get("MACADAM_SOAK") == "1" else 6))
@pytest.mark.parametrize("database", KINDS)
def test_whatever_happens_in_whatever_order_each_job_ends_once_and_nothing_is_held_twice(
    seed: int, database: str
) -> None:
    """Random walks: kills of the queue between commit and act, ends of every kind, cancellations, machines that come and go."""
    if database == "postgres" and seed:
        pytest.skip("one walk shows that the SQL is the same")
    moments = random.Random(seed)
    settings = {"MACADAM_DATABASE": server().database()} if database == "postgres" else {}
    with open_bench(settings=settings) as bench:
        jobs = []
        for _ in range(60):
            _step(bench, moments, jobs)
        bench.executor.machines = (gpu_node(), gpu_node("n2"))
        for _ in range(200):
            bench.clock.pass_time(timedelta(seconds=300))
            _quietly(bench)
            for attempt, seen in list(bench.executor.attempts.items()):
                if seen.state == "running":
                    bench.executor.end(attempt)
            if all(bench.now(job).ended for job in jobs):
                break
        assert all(bench.now(job).ended for job in jobs)
        assert Counter(bench.executor.started).most_common(1)[0][1] == 1
        _require_sound(bench)


def _step(bench: Bench, moments: random.Random, jobs: list) -> None:  # type: ignore[type-arg]
    running = [one for one, seen in bench.executor.attempts.items() if seen.state == "running"]
    match moments.choice(
        ["submit", "submit", "turn", "turn", "turn", "kill", "end", "end", "cancel", "machines", "time"]
    ):
        case "submit":
            shape = moments.choice([{"gpus": 1}, {"gpus": 3}, {"milli": 400}, {}])
            restarts, preemptible = moments.randint(0, 3), moments.random() < 0.8
            jobs.append(bench.submit(resources=Resources(**shape), max_restarts=restarts, preemptible=preemptible))
        case "turn":
            _quietly(bench)
        case "kill":
            verb = moments.choice(["start", "stop", "look"])
            setattr(bench.executor, verb, _fails)
            _quietly(bench)
            delattr(bench.executor, verb)
            bench.new_queue()
        case "end" if running:
            code, why = moments.choice([(0, ""), (3, ""), (75, ""), (137, ""), (137, "lost"), (137, "memory")])
            bench.executor.end(moments.choice(running), code, why)
        case "cancel" if jobs:
            with_luck = moments.choice(jobs)
            try:
                bench.platform.call(CancelJob(project="p", job=with_luck.id))
            except MacadamError:
                assert bench.now(with_luck).ended
        case "machines":
            leaving = bench.clock() + timedelta(seconds=60) if moments.random() < 0.5 else None
            bench.executor.machines = (gpu_node(leaving=leaving), *([gpu_node("n2")] if moments.random() < 0.5 else []))
        case _:
            bench.clock.pass_time(timedelta(seconds=moments.choice([0.1, 5, 400])))
    _require_nothing_twice(bench)


def _quietly(bench: Bench) -> None:
    try:
        bench.turn()
    except KeyboardInterrupt:
        return


def _require_nothing_twice(bench: Bench) -> None:
    with bench.platform.ports.sql.read() as sql:
        rows = registry.open_attempts(sql)
    held: Counter[str] = Counter()
    for row in rows:
        for place in row.places:
            held.update(place.devices)
    assert all(milli <= 1000 for milli in held.values())
    assert len({row.job for row in rows}) == len(rows)


def _require_sound(bench: Bench) -> None:
    """By the ledger: each attempt that began has ended, and each job has come to one end."""
    with bench.platform.ports.sql.read() as sql:
        leaves = [entry.leaf for entry in ledger.find(sql, project="p", limit=100_000)][::-1]
    begun = [(leaf.subject, leaf.body["attempt"]) for leaf in leaves if leaf.kind == bookkeeping.START]
    over = [(leaf.subject, leaf.body["attempt"]) for leaf in leaves if leaf.kind == bookkeeping.END]
    assert len(set(begun)) == len(begun)
    assert sorted(begun) == sorted(over)
    finals = Counter(
        leaf.subject
        for leaf in leaves
        if (leaf.kind == bookkeeping.END and leaf.body["state"] != "waiting")
        or (leaf.kind == "compute.cancel_job" and leaf.body["before"] == "waiting")
    )
    submitted = [leaf.subject for leaf in leaves if leaf.kind == "compute.submit_job"]
    assert finals == Counter(dict.fromkeys(submitted, 1))


def test_a_job_that_is_to_go_on_elsewhere_ends_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit()
    bench.turn()
    place = bench.page(job).attempts[0].places[0]
    other = (Slot(node="n1", milli=1000, devices=(3 - place.indexes[0],)),)
    moved = Decision(
        starts=(Start(id=job.id, placement=other),),
        preemptions=(Preempt(id=job.id, by="", reason="order", words="It moves."),),
    )
    bench.submit()
    monkeypatch.setattr(loop, "decide", lambda *_: moved)
    bench.turn()
    assert (bench.now(job).state, bench.now(job).attempt) == ("stopping", 1)


def test_jobs_go_where_what_usually_comes_still_fits(bench: Bench) -> None:
    bench.executor.machines = (gpu_node("a", gpus=4, cpus=64_000), gpu_node("b", gpus=4, cpus=128_000))
    hungry = Resources(gpus=1, cpus=40)

    def place() -> str:
        job = bench.submit(resources=hungry)
        assert bench.turn().started == 1
        (allotment,) = bench.executor.orders[f"{job.id}.1"].allotments
        bench.clock.pass_time(timedelta(seconds=10))
        bench.executor.end(f"{job.id}.1")
        bench.turn()
        return str(allotment.node)

    assert place() == "a"  # best fit: the least is left over there
    usual = [bench.submit(resources=Resources(gpus=1, cpus=16)) for _ in range(20)]
    while any(bench.now(job).state != "succeeded" for job in usual):
        bench.turn()
        bench.clock.pass_time(timedelta(seconds=10))
        for attempt, seen in bench.executor.attempts.items():
            if seen.state == "running":
                bench.executor.end(attempt)
    # On `a` 24 cores would be left for three GPUs, of which usual work could use one and a half.
    assert place() == "b"
    bench.new_queue()
    assert place() == "b"


def test_nothing_starts_beyond_a_quota_whatever_was_decided(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.platform.call(SetQuota(tenant="p", gpus=1, borrow=0))
    first = bench.submit()
    bench.turn()
    second = bench.submit()
    free = (Slot(node="n1", milli=1000, devices=(3,)),)  # the GPU is free; the quota is not, until the first has ended
    stop = Preempt(id=first.id, by=second.id, reason="priority", words="It is more urgent.")
    decision = Decision(starts=(Start(id=second.id, placement=free, borrowed=0),), preemptions=(stop,))
    monkeypatch.setattr(loop, "decide", lambda *_: decision)
    bench.turn()
    assert [bench.now(one).state for one in (first, second)] == ["stopping", "waiting"]


def test_a_quota_that_changes_while_it_is_decided_holds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.platform.call(SetQuota(tenant="p", gpus=1, borrow=0))
    job, decide = bench.submit(), loop.decide

    def meanwhile(*facts: object) -> Decision:
        bench.platform.call(SetQuota(tenant="p", gpus=0, borrow=0))
        return decide(*facts)  # type: ignore[arg-type] # handed on as they came

    monkeypatch.setattr(loop, "decide", meanwhile)
    bench.turn()
    assert bench.now(job).state == "waiting"
