"""Laws of every decision, over random workloads, clusters and quotas; and what single decisions say."""

import math
import random
import time
from collections import defaultdict
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.scheduling import decide as deciding
from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.order import rank
from macadam.compute.scheduling.types import (
    WHOLE,
    Decision,
    Node,
    Policy,
    Quota,
    Running,
    Slot,
    Spent,
    State,
    Work,
)
from macadam.compute.simulation.replay import Replay
from macadam.errors import InvalidInput

TENANTS = "abc"
NODES = (Node(name="n1", gpus=4), Node(name="n2", gpus=4))

policies = st.builds(
    Policy,
    order=st.sampled_from(["fifo", "priority", "least-attained", "shortest", "gittins", "oracle"]),
    backfill=st.sampled_from(["none", "easy", "any"]),
    preempt=st.sampled_from(["never", "lower-priority", "order"]),
    reclaim=st.sampled_from(["never", "due", "lower-priority", "any"]),
    half_life=st.sampled_from([0.0, 3600.0]),
    ageing=st.just(2000.0),
)
limits = st.none() | st.integers(0, 4)
quotas = st.tuples(
    *(
        st.builds(
            Quota,
            tenant=st.just(tenant),
            gpus=st.integers(0, 3),
            cohort=st.sampled_from(["all", "all", "other", ""]),
            borrow=limits,
            lend=limits,
            gpu_hours=st.none() | st.sampled_from([0.5, 2.0]),
        )
        for tenant in TENANTS
    )
)


@st.composite
def works(draw: st.DrawFn) -> list[Work]:
    count = draw(st.integers(1, 14))
    made = []
    for at in range(count):
        gpus = draw(st.sampled_from([0, 1, 1, 2, 3, 4, 8]))
        made.append(
            Work(
                id=f"w{at:02d}",
                tenant=draw(st.sampled_from(TENANTS)),
                submitted=float(draw(st.integers(0, 2000))),
                gpus=gpus,
                milli=0 if gpus else draw(st.sampled_from([250, 500, 700])),
                nodes=draw(st.sampled_from([0, 2])) if gpus in {2, 4, 8} else 0,
                priority=draw(st.integers(0, 2)),
                preemptible=draw(st.sampled_from([True, True, False])),
                time_limit=draw(st.sampled_from([0.0, 3000.0])),
                seconds=float(draw(st.integers(1, 3000))),
                checkpoint_every=draw(st.sampled_from([0.0, 0.0, 100.0, 700.0, math.inf])),
                checkpoint_cost=draw(st.sampled_from([0.0, 5.0, 30.0, 200.0])),
            )
        )
    return made


def held(running: tuple[Running, ...]) -> dict[str, int]:
    used: dict[str, int] = defaultdict(int)
    for one in running:
        used[one.work.tenant] += one.work.demand
    return used


def after(now: float, state: State, decision: Decision) -> tuple[Running, ...]:
    stopped = {one.id for one in decision.preemptions}
    waiting = {work.id: work for work in [*state.waiting, *(one.work for one in state.running)]}
    started = tuple(Running(work=waiting[one.id], placement=one.placement, started=now) for one in decision.starts)
    return tuple(one for one in state.running if one.work.id not in stopped) + started


def hold_limits(state: State, running: tuple[Running, ...]) -> None:
    used, own = held(running), {quota.tenant: quota for quota in state.quotas}
    cohorts: dict[str, int] = defaultdict(int)
    spare = max(0, sum(node.gpus for node in state.nodes) - sum(quota.gpus for quota in state.quotas))
    cohorts["all"] += spare * WHOLE
    for quota in own.values():
        most = quota.gpus if not quota.cohort else None if quota.borrow is None else quota.gpus + quota.borrow
        assert most is None or used[quota.tenant] <= most * WHOLE
        keeps = quota.gpus - min(quota.gpus, quota.gpus if quota.lend is None else quota.lend) if quota.cohort else 0
        cohorts[quota.cohort] += (quota.gpus - keeps) * WHOLE - max(0, used[quota.tenant] - keeps * WHOLE)
    assert all(left >= 0 for cohort, left in cohorts.items() if cohort)


def hold_devices(running: tuple[Running, ...]) -> None:
    devices: dict[tuple[str, int], int] = defaultdict(int)
    for one in running:
        assert sum(slot.milli for slot in one.placement) == one.work.demand, "a gang is whole"
        assert not one.work.nodes or len(one.placement) == one.work.nodes
        for slot in one.placement:
            for device in slot.devices:
                devices[slot.node, device] += slot.milli // len(slot.devices)
    assert all(milli <= WHOLE for milli in devices.values()), "no GPU is given twice"


@settings(max_examples=120, deadline=None)
@given(works(), policies, st.just(()) | quotas)
def test_no_decision_breaks_a_limit_splits_a_gang_or_gives_a_gpu_twice(
    jobs: list[Work], policy: Policy, owned: tuple[Quota, ...]
) -> None:
    def watch(now: float, state: State, decision: Decision) -> None:
        running = after(now, state, decision)
        hold_devices(running)
        if owned:
            hold_limits(state, running)
        stopped = {one.id: one for one in decision.preemptions}
        assert all(
            one.work.preemptible or stopped[one.work.id].reason in {"gpu-hours", "money"}
            for one in state.running
            if one.work.id in stopped
        )
        started = {one.id for one in decision.starts}
        known = {work.id for work in state.waiting} | set(stopped)
        assert set(decision.waits) | started >= known, "whoever does not start is told why"
        assert not set(decision.waits) & started
        assert decision == decide(now, state, policy, replay.history), "the same arguments give the same answer"

    replay = Replay(NODES, policy, owned)
    replay.run(jobs, watch)


@settings(max_examples=80, deadline=None)
@given(works(), policies, st.just(()) | quotas)
def test_what_is_remembered_of_one_job_decides_on_those_like_it_as_looking_at_each_would(
    jobs: list[Work], policy: Policy, owned: tuple[Quota, ...]
) -> None:
    def watch(now: float, state: State, decision: Decision) -> None:
        with mock.patch.object(deciding, "_shape", lambda work: work.id):
            assert decision == decide(now, state, policy, replay.history)

    replay = Replay(NODES, policy, owned)
    # Many of one shape at one instant, so that there is something to remember.
    alike = [msgspec.structs.replace(one, submitted=one.submitted // 500 * 500, nodes=0) for one in jobs]
    again = [msgspec.structs.replace(one, id=f"{one.id}-again", seconds=one.seconds + 100) for one in alike]
    replay.run([*alike, *again], watch)


@settings(max_examples=80, deadline=None)
@given(works(), st.sampled_from(["gittins", "least-attained", "fifo", "priority"]))
def test_an_owner_gets_its_own_gpus_at_once_from_borrowers_that_can_be_stopped(jobs: list[Work], order: str) -> None:
    policy = Policy(order=order)  # type: ignore[arg-type]
    owned = (Quota(tenant="a", gpus=4), Quota(tenant="b", gpus=3), Quota(tenant="c", gpus=1))
    share = {quota.tenant: quota.gpus * WHOLE for quota in owned}
    nodes = (Node(name="pool", gpus=8),)
    stoppable = [one for one in jobs if one.preemptible and one.gpus and not one.nodes]

    def watch(now: float, state: State, decision: Decision) -> None:
        running = {one.work.id for one in after(now, state, decision)}
        for work in state.waiting:
            if work.due is not None and work.due + work.attained <= now:
                assert work.id in running, "what is due on its own share and has no time to lose runs"
        assert all(share[work.tenant] >= work.demand for work in state.waiting if (work.due or 0) <= now)

    ended = Replay(nodes, policy, owned).run(stoppable, watch)
    fitting = {one.id for one in stoppable if one.demand <= 8 * WHOLE}
    assert {one.id for one in ended} == fitting, "nobody starves"


def work(name: str, tenant: str = "a", gpus: int = 1, **more: object) -> Work:
    return Work(id=name, tenant=tenant, submitted=0.0, gpus=gpus, **more)  # type: ignore[arg-type]


def runs(one: Work, *devices: int, node: str = "n", started: float = 0.0) -> Running:
    slot = Slot(node=node, milli=len(devices) * WHOLE, devices=devices)
    return Running(work=one, placement=(slot,), started=started)


def test_a_job_that_waits_is_told_what_is_missing_and_how_many_go_first() -> None:
    state = State(nodes=(Node(name="n", gpus=2),), waiting=(work("x", gpus=2), work("y", gpus=2)))
    wait = decide(0.0, state, Policy()).waits["y"]
    assert (wait.reason, wait.needs) == ("no-gpus", 2000)
    assert wait.words == "It needs 2 GPUs and 0 are free; 0 jobs go first."


def test_a_job_that_no_cluster_could_run_is_called_impossible_and_holds_up_nobody() -> None:
    state = State(nodes=(Node(name="n", gpus=2),), waiting=(work("large", gpus=4), work("small")))
    decision = decide(0.0, state, Policy(backfill="none", order="fifo"))
    assert decision.waits["large"].reason == "impossible"
    assert [start.id for start in decision.starts] == ["small"]


def test_a_lending_limit_keeps_gpus_for_their_owner() -> None:
    owned = (Quota(tenant="a", gpus=0), Quota(tenant="b", gpus=4, lend=1))
    state = State(nodes=(Node(name="n", gpus=4),), waiting=(work("x"), work("y")), quotas=owned)
    decision = decide(0.0, state, Policy())
    assert [start.borrowed for start in decision.starts] == [1000]
    assert decision.waits["y"].words == "It needs 1 GPUs of cohort 'all', where 0 are left to borrow."


def test_a_time_limit_is_reserved_from_the_gpu_hours() -> None:
    owned = (Quota(tenant="a", gpus=4, gpu_hours=1.5),)
    waiting = (work("x", time_limit=3600.0), work("y", time_limit=3600.0))
    decision = decide(0.0, State(nodes=(Node(name="n", gpus=4),), waiting=waiting, quotas=owned), Policy())
    assert [start.id for start in decision.starts] == ["x"]
    assert decision.waits["y"].reason == "gpu-hours"


def test_work_whose_tenant_has_spent_its_money_is_stopped_and_the_instant_is_known_before() -> None:
    owned = (Quota(tenant="a", gpus=4, micros=1_000_000),)
    running = (runs(work("x", micros_per_gpu_hour=2_000_000, preemptible=False), 0),)
    spent = {"a": Spent(micros=500_000)}
    state = State(nodes=(Node(name="n", gpus=4),), running=running, quotas=owned, spent=spent)
    assert decide(100.0, state, Policy()).look_again == pytest.approx(900.0)
    assert [(one.id, one.reason) for one in decide(900.0, state, Policy()).preemptions] == [("x", "money")]


def test_easy_backfill_lets_pass_what_ends_before_the_first_can_start() -> None:
    running = (runs(work("r", gpus=3, time_limit=100.0), 0, 1, 2),)
    waiting = (
        work("first", gpus=4),
        msg("long", 1.0, time_limit=200.0),
        msg("short", 2.0, time_limit=50.0),
    )
    state = State(nodes=(Node(name="n", gpus=4),), running=running, waiting=waiting)
    policy = Policy(order="fifo", backfill="easy", preempt="never", reclaim="never")
    decision = decide(0.0, state, policy)
    assert [start.id for start in decision.starts] == ["short"]
    assert decision.waits["long"].words == "first goes first, and this would make it later."


def msg(name: str, submitted: float, **more: object) -> Work:
    return Work(id=name, tenant="a", submitted=submitted, gpus=1, **more)  # type: ignore[arg-type]


def test_only_as_many_are_stopped_as_are_needed() -> None:
    long = [runs(work(f"r{at}", gpus=at + 1), *range(first, first + at + 1)) for at, first in ((0, 0), (1, 1), (2, 3))]
    state = State(nodes=(Node(name="n", gpus=6),), running=tuple(long), waiting=(msg("new", 5000.0),))
    decision = decide(5000.0, state, Policy(order="least-attained"))
    assert [start.id for start in decision.starts] == ["new"]
    assert [one.id for one in decision.preemptions] == ["r2"]
    assert decision.preemptions[0].words == "new is expected to finish much more for the GPU time it needs."


def test_who_would_be_stopped_first_goes_on_where_those_after_it_make_room_enough() -> None:
    running = (runs(work("small"), 0), runs(work("large", gpus=4), 1, 2, 3, 4, started=4500.0))
    wanted = work("new", gpus=4)
    decision = decide(
        5000.0,
        State(nodes=(Node(name="n", gpus=5),), running=running, waiting=(wanted,)),
        Policy(order="least-attained"),
    )
    assert [start.id for start in decision.starts] == ["new"]
    assert [one.id for one in decision.preemptions] == ["large"]


def test_a_project_at_its_limit_stops_its_own_work_and_no_others_for_its_next() -> None:
    owned = (Quota(tenant="a", gpus=2, cohort=""), Quota(tenant="b", gpus=2, cohort=""))
    running = tuple(runs(work(f"{who}{at}", who), at + 2 * (who == "b")) for who in "ab" for at in range(2))
    state = State(nodes=(Node(name="n", gpus=4),), running=running, waiting=(work("new", gpus=2),), quotas=owned)
    decision = decide(5000.0, state, Policy(order="least-attained", reclaim="never"))
    assert [start.id for start in decision.starts] == ["new"]
    assert sorted(one.id for one in decision.preemptions) == ["a0", "a1"]


def test_what_ran_on_a_machine_that_is_gone_is_stopped_and_placed_anew() -> None:
    state = State(nodes=(Node(name="n", gpus=1),), running=(runs(work("x"), 0, node="lost"),))
    decision = decide(1.0, state, Policy())
    assert [(one.id, one.reason) for one in decision.preemptions] == [("x", "node-lost")]


@pytest.mark.parametrize("name", ["submitted", "attained", "time_limit", "due"])
def test_a_time_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        Work(**({"id": "x", "tenant": "a", "submitted": 0.0} | {name: math.nan}))  # type: ignore[arg-type]


def test_a_clock_that_was_set_back_gives_nobody_service_that_it_had_not() -> None:
    running = runs(work("x"), 0, started=1000.0)
    owned = (Quota(tenant="a", gpus=1, gpu_hours=1.0),)
    decision = decide(10.0, State(nodes=(Node(name="n", gpus=1),), running=(running,), quotas=owned), Policy())
    assert running.attained(10.0) == 0
    assert decision == Decision(look_again=3610.0)


def test_a_quota_that_is_lowered_below_what_runs_starts_nothing_more_and_keeps_to_it_as_jobs_end() -> None:
    running = tuple(runs(work(f"r{at}"), at) for at in range(4))
    owned = (Quota(tenant="a", gpus=2, cohort=""),)
    for left in range(4, -1, -1):
        state = State(nodes=(Node(name="n", gpus=4),), running=running[:left], waiting=(work("new"),), quotas=owned)
        kept = decide(10.0, state, Policy(preempt="never", reclaim="never"))
        assert bool(kept.starts) == (left < 2)
        decision = decide(10.0, state, Policy())
        assert not decision.starts or held(after(10.0, state, decision))["a"] <= 2 * WHOLE


def test_the_order_in_which_a_state_is_told_changes_nothing() -> None:
    random_ = random.Random(5)
    nodes = (Node(name="n", gpus=8),)
    running = [runs(work(f"r{at}", "ab"[at % 2]), at, started=float(at)) for at in range(8)]
    waiting = [work(f"w{at}", "abc"[at % 3], random_.choice([1, 1, 2, 4]), due=1e9) for at in range(20)]
    owned = [Quota(tenant=tenant, gpus=2) for tenant in "abc"]
    found = set()
    for _ in range(20):
        for told in (running, waiting, owned):
            random_.shuffle(told)  # type: ignore[arg-type]
        state = State(nodes=nodes, running=tuple(running), waiting=tuple(waiting), quotas=tuple(owned))
        decision = decide(500.0, state, Policy())
        stopped = frozenset(one.id for one in decision.preemptions)
        found.add((frozenset((one.id, one.placement) for one in decision.starts), stopped))
    assert len(found) == 1


def test_a_state_in_which_two_jobs_have_one_gpu_is_refused() -> None:
    state = State(nodes=(Node(name="n", gpus=1),), running=(runs(work("x"), 0), runs(work("y"), 0)))
    with pytest.raises(InvalidInput, match="cannot give"):
        decide(0.0, state, Policy())


def test_what_found_no_place_takes_nothing_of_what_is_spare_when_the_first_starts() -> None:
    running = (runs(work("r", gpus=6, time_limit=100.0), *range(6)),)
    waiting = (work("first", gpus=7), msg("nowhere", 1.0, models=("other",)), msg("small", 2.0))
    state = State(nodes=(Node(name="n", gpus=8), Node(name="o", gpus=0)), running=running, waiting=waiting)
    policy = Policy(order="fifo", backfill="easy", preempt="never", reclaim="never")
    assert [start.id for start in decide(0.0, state, policy).starts] == ["small"]


@pytest.mark.parametrize("borrow", [None, 0])
def test_five_thousand_waiting_jobs_beside_a_thousand_running_ones_are_decided_on_in_a_turn(borrow: int | None) -> None:
    random_ = random.Random(1)
    nodes = tuple(Node(name=f"n{at:03d}", gpus=8) for at in range(125))
    owned = tuple(Quota(tenant=f"t{at}", gpus=50, borrow=borrow) for at in range(20))
    full = tuple(
        runs(work(f"r{at}", f"t{at % 20}", due=1e9), at % 8, node=f"n{at // 8:03d}", started=random_.random() * 5e4)
        for at in range(1000)
    )
    asked = tuple(
        work(f"w{at}", f"t{random_.randrange(20)}", random_.choice([1, 1, 1, 2, 4, 8]), due=1e9) for at in range(5000)
    )
    began = time.process_time()
    decision = decide(1e5, State(nodes=nodes, running=full, waiting=asked, quotas=owned), Policy())
    assert time.process_time() - began < 2.5, "about 0.6 s on one core; looking at each anew took 5 to 20 s"
    assert len(decision.starts) > 300, "and it was a turn in which much changed"


SHARED = (Quota(tenant="a", gpus=2), Quota(tenant="b", gpus=2))
FOUR = (Node(name="n", gpus=4),)
LATE = Policy().ageing


def test_a_job_larger_than_its_share_goes_before_all_who_borrow_once_it_has_waited_long() -> None:
    large = work("large", "a", gpus=3, due=float("inf"))
    small = msgspec.structs.replace(work("small", "guest"), submitted=LATE - 60)
    borrower = runs(small, 0, started=LATE - 60)
    state = State(nodes=FOUR, waiting=(large,), running=(runs(work("mine", "b"), 1), borrower), quotas=SHARED)
    policy = Policy(preempt="never")
    before, after_it = decide(LATE - 1, state, policy), decide(LATE, state, policy)
    assert not before.starts
    assert before.look_again == LATE
    assert [(one.id, one.reason) for one in after_it.preemptions] == [("small", "aged")]
    assert [one.id for one in after_it.starts] == ["large"]


def test_what_owners_use_of_their_own_is_not_taken_for_it_and_they_get_back_what_it_borrows() -> None:
    large = work("large", "a", gpus=3, due=float("inf"))
    own = (runs(work("x", "b"), 0), runs(work("y", "b"), 1))
    full = State(nodes=FOUR, waiting=(large,), running=own, quotas=SHARED)
    assert not decide(LATE, full, Policy()).preemptions
    lent = State(nodes=FOUR, waiting=(work("z", "b", gpus=2, due=0.0),), running=(runs(large, 0, 1, 2),), quotas=SHARED)
    decision = decide(LATE, lent, Policy())
    assert [(one.id, one.reason) for one in decision.preemptions] == [("large", "due")]
    shorter = State(
        nodes=FOUR, waiting=(work("w", "guest", gpus=2, priority=9),), running=(runs(large, 0, 1, 2),), quotas=SHARED
    )
    assert not decide(LATE, shorter, Policy(order="priority")).preemptions
    assert not decide(LATE, shorter, Policy(order="least-attained")).preemptions


def test_a_large_job_beside_an_endless_stream_of_borrowers_ends() -> None:
    policy = Policy(ageing=3000.0)
    stream = [Work(id=f"s{n:04}", tenant="guest", gpus=1, seconds=100.0, submitted=float(n * 20)) for n in range(1000)]
    large = Work(id="large", tenant="a", gpus=4, seconds=500.0, submitted=10.0)
    ended = {one.id: one for one in Replay(FOUR, policy, SHARED).run([large, *stream])}
    assert ended["large"].ended <= 10 + 3000 + 500 + 100


@settings(max_examples=150, deadline=None)
@given(
    works(),
    st.builds(
        Policy,
        order=st.sampled_from(["fifo", "least-attained", "gittins", "oracle"]),
        loss=st.sampled_from([0.05, 0.1, 0.5]),
        trial=st.sampled_from([0.0, 60.0]),
        margin=st.sampled_from([1.0, 2.0]),
        ageing=st.just(2000.0),
    ),
    st.just(()) | quotas,
)
def test_for_the_orders_sake_no_job_loses_more_than_its_part_of_what_it_ran_and_one_trial(
    jobs: list[Work], policy: Policy, owned: tuple[Quota, ...]
) -> None:
    lost: dict[str, float] = defaultdict(float)
    ran: dict[str, float] = defaultdict(float)
    stood: dict[str, float] = defaultdict(float)

    def watch(now: float, state: State, decision: Decision) -> None:
        running = {one.work.id: one for one in state.running}
        for work in state.waiting:
            assert work.attained >= stood[work.id] - 1e-6, "what stood before a stretch stands after it"
            stood[work.id] = work.attained
        for preempt in decision.preemptions:
            one = running[preempt.id]
            ran[preempt.id] += one.ran(now)
            if preempt.reason == "order":
                lost[preempt.id] += min(one.ran(now), one.price(now))
                assert lost[preempt.id] <= policy.loss * ran[preempt.id] + policy.trial + 0.01
                assert one.work.checkpoint_every < math.inf or not one.work.preemptions, "or it would lose all again"

    Replay(NODES, policy, owned).run(jobs, watch)


@pytest.mark.parametrize(("every", "stops"), [(0.0, 12), (200.0, 12), (math.inf, 1)])
def test_a_long_job_gets_on_beside_an_endless_stream_of_short_ones(every: float, stops: int) -> None:
    """Stopped at each of them, it would lose 30 s of the 29 s that it has between two."""
    stream = [Work(id=f"s{n:04}", tenant="a", gpus=1, seconds=31.0, submitted=float(n * 60)) for n in range(150)]
    long = Work(id="long", tenant="a", gpus=1, seconds=3000.0, submitted=10.0, checkpoint_every=every)
    ended = {one.id: one for one in Replay((Node(name="n", gpus=1),), Policy()).run([long, *stream])}
    assert ended["long"].ended < stream[-1].submitted
    assert ended["long"].preemptions <= stops
    assert ended["long"].lost <= 0.1 * (3000 + ended["long"].lost) + 60


def test_of_equals_the_one_is_stopped_that_loses_least() -> None:
    save = {"a": math.inf, "b": 1000.0, "c": 0.0}
    running = tuple(
        runs(work(name, name, checkpoint_every=every, checkpoint_cost=1.0), at, started=-4900.0)
        for at, (name, every) in enumerate(save.items())
    )
    owned = (Quota(tenant="owner", gpus=3), *(Quota(tenant=name, gpus=0) for name in save))
    for owed, expected in ((1, "c"), (2, "bc"), (3, "abc")):
        state = State(
            nodes=(Node(name="n", gpus=3),),
            running=running,
            waiting=(work("mine", "owner", gpus=owed, due=0.0),),
            quotas=owned,
        )
        for order in ("fifo", "priority", "least-attained"):
            decision = decide(0.0, state, Policy(order=order))
            assert sorted(one.id for one in decision.preemptions) == list(expected)


def test_a_stop_that_would_lose_more_than_the_shorter_job_gains_is_not_made() -> None:
    running = (runs(work("long", gpus=2, checkpoint_cost=2000.0), 0, 1, started=-6000.0),)
    state = State(nodes=(Node(name="n", gpus=2),), running=running, waiting=(work("new", gpus=2, attained=1000.0),))
    policy = Policy(order="least-attained", loss=1.0)
    assert not decide(0.0, state, policy).preemptions
    cheap = (runs(work("long", gpus=2, checkpoint_cost=30.0), 0, 1, started=-6000.0),)
    stopped = decide(0.0, msgspec.structs.replace(state, running=cheap), policy).preemptions
    assert [one.id for one in stopped] == ["long"]


def test_work_that_was_lost_is_no_progress_and_no_reason_to_think_it_short() -> None:
    one = runs(work("x", checkpoint_every=math.inf, attained=0.0), 0)
    again = one.stopped(5000.0)
    assert (again.attained, again.reached, again.preemptions) == (0.0, 5000.0, 1)
    assert rank(again, again.attained, "least-attained", None) > rank(work("y"), 1000.0, "least-attained", None)
    saved = runs(work("x", checkpoint_every=600.0, checkpoint_cost=30.0), 0).stopped(5000.0)
    assert (saved.attained, saved.reached) == (4800.0 - 30.0, 5000.0)


def test_a_job_that_has_run_before_it_is_due_is_held_that_much_later() -> None:
    owned = (Quota(tenant="a", gpus=1), Quota(tenant="b", gpus=0))
    nodes = (Node(name="n", gpus=1),)
    borrower = (runs(work("short", "b"), 0, started=100.0),)
    mine = work("mine", "a", attained=400.0, due=100.0)
    state = State(nodes=nodes, running=borrower, waiting=(mine,), quotas=owned)
    policy = Policy(order="fifo", preempt="never")
    early, late = decide(499.0, state, policy), decide(500.0, state, policy)
    assert (early.preemptions, early.look_again) == ((), 500.0)
    assert [(one.id, one.reason) for one in late.preemptions] == [("short", "due")]
