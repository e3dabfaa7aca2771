"""The fast simulation decides as `decide` does, and keeps what was promised."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.scheduling.types import EARLY, Node, Order, Policy, Quota, Work
from macadam.compute.simulation import queue, queueing
from macadam.compute.simulation.queue import Jobs
from macadam.compute.simulation.replay import Replay
from macadam.errors import InvalidInput

GPUS = 8
SHARES = {"a": 4, "b": 3, "c": 1}

# Multiples of 1/64 add up exactly, so that both simulations see the same instants.
instants = st.integers(0, 64 * 4000).map(lambda ticks: ticks / 64)
lengths = st.integers(1, 64 * 3000).map(lambda ticks: ticks / 64)
rows = st.lists(
    st.tuples(instants, lengths, st.sampled_from([1, 1, 1, 2, 3, 4, 8]), st.sampled_from("abc")),
    min_size=1,
    max_size=15,
    unique_by=lambda row: row[0],
)


def jobs(chosen: list[tuple[float, float, int, str]]) -> Jobs:
    submitted, seconds, gpus, tenant = zip(*sorted(chosen), strict=True)
    return Jobs(submitted=list(submitted), seconds=list(seconds), gpus=list(gpus), tenant=list(tenant))


def works(trace: Jobs) -> list[Work]:
    columns = zip(trace.submitted, trace.seconds, trace.gpus, trace.tenant, strict=True)
    return [
        Work(id=f"{at:04d}", tenant=tenant, submitted=submitted, gpus=gpus, seconds=seconds)
        for at, (submitted, seconds, gpus, tenant) in enumerate(columns)
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows,
    st.builds(
        Policy,
        order=st.sampled_from(["fifo", "least-attained", "oracle", "gittins", "shortest"]),
        preempt=st.sampled_from(["never", "order"]),
        reclaim=st.sampled_from(["never", "due"]),
        patience=st.sampled_from([0.0, 500.0]),
        ageing=st.just(1500.0),
        loss=st.sampled_from([0.0625, 0.5, 1.0]),
        trial=st.sampled_from([0.0, 60.0]),
    ),
    st.sampled_from([{}, SHARES]),
)
def test_the_fast_simulation_ends_each_job_when_decide_would(
    chosen: list[tuple[float, float, int, str]], policy: Policy, shares: dict[str, int]
) -> None:
    trace = jobs(chosen)
    quotas = [Quota(tenant=tenant, gpus=gpus) for tenant, gpus in shares.items()]

    fast = queue.simulate(trace, GPUS, policy, shares)
    exact = Replay([Node(name="pool", gpus=GPUS)], policy, quotas).run(works(trace))

    assert fast.finished == [ended.ended for ended in exact]
    assert fast.began == [ended.began for ended in exact]
    assert fast.preemptions == sum(ended.preemptions for ended in exact)


@settings(max_examples=150, deadline=None)
@given(rows, st.sampled_from(["gittins", "least-attained", "fifo"]))
def test_no_job_ends_later_than_on_its_tenants_own_share_whatever_preemptions_cost(
    chosen: list[tuple[float, float, int, str]], order: Order
) -> None:
    trace = jobs(chosen)
    alone = queue.static_shares(trace, SHARES)
    outcome = queue.simulate(trace, GPUS, Policy(order=order), SHARES)
    for ended, bound in zip(outcome.finished, alone.finished, strict=True):
        assert ended <= bound + len(trace) * EARLY or math.isinf(bound)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_gpus_are_never_shared_and_no_work_is_lost_but_what_preemptions_cost(
    chosen: list[tuple[float, float, int, str]],
) -> None:
    trace = jobs(chosen)
    outcome = queue.simulate(trace, GPUS, Policy(), SHARES)
    changes = sorted(
        change
        for job, began, ended in outcome.stretches
        for change in ((began, trace.gpus[job]), (ended, -trace.gpus[job]))
    )
    used = 0
    for _, change in sorted(changes, key=lambda change: change):
        used += change
        assert 0 <= used <= GPUS
    worked = sum((ended - began) * trace.gpus[job] for job, began, ended in outcome.stretches)
    wanted = sum(seconds * gpus for seconds, gpus in zip(trace.seconds, trace.gpus, strict=True))
    assert worked == pytest.approx(wanted + outcome.lost)


def test_a_job_that_needs_more_than_the_pool_is_refused_with_the_number_it_needs() -> None:
    with pytest.raises(InvalidInput, match="needs 9 GPUs and the pool has 8") as error:
        queue.simulate(jobs([(0.0, 1.0, 9, "a")]), GPUS, Policy())
    assert "--gpus 9" in str(error.value.next_step)


TRACE = Path("../shared/data/gpu/philly_jobs.csv")
SOAK = bool(os.environ.get("MACADAM_SOAK"))


@pytest.mark.skipif(not TRACE.exists(), reason="needs Philly's jobs in ../shared/data/gpu")
@pytest.mark.parametrize(
    ("first", "gpus"), [(0, 48), (20_000, 32), (30_000, 64), (50_000, 48)] if SOAK else [(30_000, 32)]
)
def test_on_real_jobs_the_fast_simulation_ends_each_at_the_very_instant_that_decide_does(first: int, gpus: int) -> None:
    whole = queueing.read_jobs(TRACE)
    some = [at for at in range(first, first + (1500 if SOAK else 200)) if whole.gpus[at] <= gpus]
    trace = Jobs(
        submitted=[whole.submitted[at] for at in some],
        seconds=[whole.seconds[at] for at in some],
        gpus=[whole.gpus[at] for at in some],
        tenant=[whole.tenant[at] for at in some],
    )
    shares = queueing.proportional(trace, gpus)
    fast = queue.simulate(trace, gpus, Policy(), shares)
    quotas = [Quota(tenant=tenant, gpus=own) for tenant, own in shares.items()]
    exact = Replay([Node(name="pool", gpus=gpus)], Policy(), quotas).run(works(trace))
    assert fast.preemptions == sum(ended.preemptions for ended in exact) > 0
    assert fast.finished == [ended.ended for ended in exact]
