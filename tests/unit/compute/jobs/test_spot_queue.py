"""The live queue on a pool of spot and on-demand machines, turn by turn, with machines that come and go."""

import random
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from unit.compute.jobs.bench import Bench, gpu_node, open_bench

from macadam.compute.catalogue import prices
from macadam.compute.catalogue.tariff import Tariff
from macadam.compute.jobs import registry
from macadam.compute.jobs.buying import Buyer, price
from macadam.compute.jobs.types import EstimateJob, ExplainJob, Job, Resources, SetQuota
from macadam.errors import SettingInvalid
from macadam.ports import Device, Node
from macadam.settings import Settings
from macadam.values import Money

QUICK = {"MACADAM_JOBS_CHANGEOVER": "60", "MACADAM_JOBS_SPOT_STEP": "30"}
HOUR = 3600.0
DAY = date(2026, 11, 21)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench(settings=QUICK) as made:
        yield made


def machine(name: str, gpus: int = 1, *, spot: bool | None = None, zone: str = "a") -> Node:
    return msgspec.structs.replace(gpu_node(name, gpus=gpus), spot=spot, zone=zone)


BASE, CHEAP = machine("base"), machine("cheap", spot=True)


def soon(bench: Bench, seconds: float) -> datetime:
    return bench.clock() + timedelta(seconds=seconds)


def where(bench: Bench, job: Job) -> list[str]:
    return [row.places[0].node for row in bench.page(job).attempts]


def explained(bench: Bench, job: Job) -> str:
    return bench.platform.call(ExplainJob(project="p", job=job.id)).words


def urgent(bench: Bench, lasts: float = HOUR, within: float = 4 * HOUR, **more: object) -> Job:
    facts = {"checkpoint": True, "max_restarts": 9, "time_limit": lasts, "grace": 10, "deadline": soon(bench, within)}
    return bench.submit(**facts | more)


def test_work_with_time_takes_spot_and_leaves_on_demand_machines_to_what_cannot_be_stopped(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    job, plain = urgent(bench), bench.submit(preemptible=False)
    bench.turn()
    assert (where(bench, job), where(bench, plain)) == (["cheap"], ["base"])
    another, more = urgent(bench), bench.submit(preemptible=False)
    bench.turn()
    assert where(bench, another) == where(bench, more) == []
    assert "waits for spot" in explained(bench, another)
    assert "may not be stopped" in explained(bench, more)
    assert "runs on spot in a" in explained(bench, job)


def test_work_without_a_deadline_takes_spot_first_if_it_loses_little(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    first = bench.submit(checkpoint=True, max_restarts=3)
    bench.turn()
    second, third = bench.submit(checkpoint=True, max_restarts=3), bench.submit()
    bench.turn()
    assert (where(bench, first), where(bench, second), where(bench, third)) == (["cheap"], ["base"], [])


def test_processors_are_bought_by_the_same_rules(bench: Bench) -> None:
    bench.executor.machines = (CHEAP,)
    bench.turn()
    none = Resources(cpus=1)
    stays, goes = bench.submit(resources=none, preemptible=False), bench.submit(resources=none)
    bench.turn()
    assert (where(bench, stays), where(bench, goes)) == ([], ["cheap"])
    bench.executor.machines = (CHEAP, BASE)
    bench.turn()
    assert where(bench, stays) == ["base"]


def test_without_any_spot_machine_nothing_is_bounded(bench: Bench) -> None:
    bench.executor.machines = (BASE,)
    job = urgent(bench, within=HOUR * 100)
    bench.turn()
    assert where(bench, job) == ["base"]
    assert "spot" not in explained(bench, job)


def test_it_is_moved_on_demand_when_its_deadline_needs_that_and_the_machine_is_held_for_it(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    job = urgent(bench, lasts=HOUR, within=2 * HOUR)
    bench.turn()
    bench.turn()
    assert where(bench, job) == ["cheap"]
    bench.clock.pass_time(timedelta(seconds=HOUR - 60 - 10 - 20))  # nothing was saved: the step's reserve is touched
    bench.turn()
    now = bench.now(job)
    assert (now.state, now.wish) == ("stopping", "move")
    assert bench.executor.stopped == {f"{job.id}.1": 10}
    rival = bench.submit(preemptible=False, priority=1000)  # the on-demand machine looks free
    bench.turn()
    assert where(bench, rival) == []
    bench.executor.end(f"{job.id}.1", exit_code=137, why="stopped", seconds=3500)  # it did not save in time
    bench.turn()
    assert where(bench, job) == ["cheap", "base"]
    assert where(bench, rival) == []
    assert bench.page(job).attempts[0].ending == "moved"
    assert (bench.now(job).restarts, bench.now(job).preemptions) == (0, 0)


def test_once_it_has_saved_there_may_be_time_for_spot_again(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    job = urgent(bench, lasts=HOUR, within=2 * HOUR)
    bench.turn()
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=HOUR - 90))
    bench.turn()
    assert bench.now(job).wish == "move"
    bench.executor.end(f"{job.id}.1", exit_code=75, why="stopped", seconds=3500)
    bench.turn()
    assert where(bench, job) == ["cheap", "cheap"]


def test_who_has_nowhere_to_go_stays_where_it_gets_further(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    holder = bench.submit(preemptible=False)
    job = urgent(bench, lasts=HOUR, within=2 * HOUR)
    bench.turn()
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=HOUR))
    bench.turn()
    assert bench.now(job).state == "running"
    assert "Only on demand is its deadline certain" in explained(bench, job)
    bench.executor.end(f"{holder.id}.1")
    bench.turn()
    assert bench.now(job).wish == "move"


def test_a_notice_sends_it_to_another_zone_or_on_demand_in_time(bench: Bench) -> None:
    other = machine("other", spot=True, zone="b")
    bench.executor.machines = (BASE, CHEAP)
    job = urgent(bench)
    bench.turn()
    bench.turn()
    at = soon(bench, 120)
    bench.executor.machines = (BASE, msgspec.structs.replace(CHEAP, leaving=at), other)
    bench.turn()
    assert bench.now(job).wish == "node"
    bench.executor.end(f"{job.id}.1", exit_code=75, why="stopped", seconds=100)
    bench.turn()
    assert where(bench, job) == ["cheap", "other"]


def test_a_quota_holds_for_those_who_have_no_time_to_lose(bench: Bench) -> None:
    bench.executor.machines = (machine("base", gpus=4), CHEAP)
    bench.platform.call(SetQuota(tenant="p", gpus=1, borrow=0))
    first, second = (urgent(bench, lasts=HOUR, within=HOUR + 75) for _ in range(2))
    bench.turn()
    bench.turn()
    assert sorted(len(where(bench, job)) for job in (first, second)) == [0, 1]
    with bench.platform.ports.sql.read() as sql:
        assert sum(row.milli for row in registry.open_attempts(sql)) == 1000


def test_what_was_decided_is_done_after_a_kill_in_the_middle_of_a_move(bench: Bench) -> None:
    """The process dies after the move was written and before anything was asked to stop; and again before it starts anew."""
    bench.executor.machines = (BASE, CHEAP)
    job = urgent(bench, lasts=HOUR, within=HOUR + 75 + 300)
    bench.turn()
    bench.turn()
    assert where(bench, job) == ["cheap"]
    bench.clock.pass_time(timedelta(seconds=300))

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    bench.executor.stop = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.turn()
    del bench.executor.stop
    bench.new_queue()
    bench.turn()
    assert bench.executor.stopped == {f"{job.id}.1": 10}
    bench.executor.end(f"{job.id}.1", exit_code=75, why="stopped", seconds=299)
    bench.executor.start = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.turn()
    del bench.executor.start
    bench.new_queue()
    bench.turn()
    assert bench.executor.started == [f"{job.id}.1", f"{job.id}.2"]
    assert where(bench, job) == ["cheap", "base"]


def test_an_estimate_says_where_it_would_run(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    bench.turn()
    facts = {"project": "p", "resources": Resources(gpus=1), "time_limit": HOUR}
    spot = bench.platform.call(
        EstimateJob(**facts, deadline=soon(bench, 9 * HOUR), checkpoint=True, max_restarts=1)  # type: ignore[arg-type]
    )
    assert "on spot" in spot.words
    tight = bench.platform.call(
        EstimateJob(**facts, deadline=soon(bench, HOUR + 150), checkpoint=True, max_restarts=1)  # type: ignore[arg-type]
    )
    assert "runs on demand" in tight.words
    never = bench.platform.call(EstimateJob(**facts, deadline=soon(bench, 60), checkpoint=True, max_restarts=1))  # type: ignore[arg-type]
    assert "not certain" in never.words


def test_what_is_expected_of_spot_comes_from_what_the_queue_saw(bench: Bench) -> None:
    bench.executor.machines = (BASE, CHEAP)
    bench.turn()
    for machines in ((BASE,), (BASE, CHEAP), (BASE, msgspec.structs.replace(CHEAP, closed=True))):
        bench.clock.pass_time(timedelta(hours=1))
        bench.executor.machines = machines
        bench.turn()
    with bench.platform.ports.sql.read() as sql:
        spans = registry.market_spans(sql, bench.clock() - timedelta(days=14))
    assert [(span.market, (span.until - span.since).total_seconds()) for span in spans if span.until] == [
        ("spot/a", HOUR),
        ("spot/a", HOUR),
    ]


def rented(**more: Any) -> Node:
    return msgspec.structs.replace(
        CHEAP, devices=(Device(id="gpu:x/0", index=0, model="h100-sxm-80gb", virtual=True),), **more
    )


def test_the_price_of_spot_comes_from_the_catalogue_where_it_has_both() -> None:
    tariff = Tariff(DAY)
    assert price([BASE, CHEAP], tariff) == 0.33
    known = rented(provider="gcp", region="us-central1", machine="a3-highgpu-8g")
    assert 0 < price([known], tariff) < 1


def test_a_spot_price_that_the_home_imported_counts_and_what_is_estimated_does_not() -> None:
    node = rented(provider="aws", region="us-east-1", zone="us-east-1a", machine="p5.48xlarge")
    offers = prices.offers("h100-sxm-80gb", DAY, provider="aws", region="us-east-1", kind="on-demand")
    (asked,) = [one.price for one in offers if one.price.instance == node.machine]
    half = Money(micros=asked.per_gpu_hour.micros // 2)
    imported = msgspec.structs.replace(asked, kind="spot", zone="us-east-1a", per_gpu_hour=half, listed=True)
    assert price([node], Tariff(DAY)) == 0.33
    assert price([node], Tariff(DAY, [imported])) == 0.5


def test_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(SettingInvalid, match="MACADAM_JOBS_SPOT"):
        Buyer(Settings.load({"MACADAM_JOBS_SPOT": "cheap"}).jobs)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_late_while_machines_come_and_go_without_a_word(bench: Bench, seed: int) -> None:
    """Six jobs on two zones of spot and as many on-demand machines as jobs; what runs on a machine that vanishes is lost."""
    chance, executor = random.Random(seed), bench.executor
    base, zones = machine("base", gpus=6), (machine("z-a", 2, spot=True), machine("z-b", 2, spot=True, zone="b"))
    bench.executor.machines = (base, *zones)
    bench.turn()
    jobs, works, deadlines, saved = {}, {}, {}, {}
    for _ in range(6):
        lasts = chance.choice([600.0, 1200.0])
        within = lasts * chance.uniform(1.1, 2.5) + 130
        job = urgent(bench, lasts=lasts, within=within)
        jobs[job.id], works[job.id], deadlines[job.id], saved[job.id] = (
            job,
            lasts,
            bench.clock() + timedelta(seconds=within),
            0.0,
        )
    there = dict.fromkeys(zones, True)
    done: dict[str, datetime] = {}
    on_spot = 0
    for _ in range(400):
        if len(done) == len(jobs):
            break
        bench.turn()
        now = bench.clock.pass_time(timedelta(seconds=15)) or bench.clock()
        for zone in zones:
            there[zone] = there[zone] if chance.random() > 0.05 else not there[zone]
        executor.machines = (base, *(zone for zone in zones if there[zone]))
        names = {node.name for node in executor.machines}
        for job in set(jobs) - set(done):
            row = bench.page(jobs[job]).attempts[-1:]
            seen = executor.attempts.get(row[0].id) if row else None
            if seen is None or seen.state != "running":
                continue
            ran = (now - seen.started).total_seconds()  # type: ignore[operator]
            worked = max(0.0, ran - (60.0 if row[0].number > 1 else 0.0))
            on_spot += row[0].places[0].node != "base"
            if row[0].places[0].node not in names:
                executor.end(row[0].id, exit_code=137, why="lost", seconds=ran)
            elif saved[job] + worked >= works[job]:
                done[job] = now
                executor.end(row[0].id, seconds=ran)
            elif row[0].id in executor.stopped:
                saved[job] += worked
                executor.end(row[0].id, exit_code=75, why="stopped", seconds=ran)
    assert set(done) == set(jobs)
    assert {job: done[job] <= deadlines[job] + timedelta(seconds=15) for job in jobs} == dict.fromkeys(jobs, True)
    assert on_spot > 0
