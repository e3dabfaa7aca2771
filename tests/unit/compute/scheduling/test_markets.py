"""Where a job's machines may be bought, for every kind of job; and that nobody is late on it while on-demand machines can be had."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.scheduling import markets, spot
from macadam.compute.scheduling.markets import ON_DEMAND, Asker, Supply

HOUR = 3600.0
A, B = markets.of(spot=True, zone="a"), markets.of(spot=True, zone="b")
BOTH = Supply(spot=(A, B), available={A: HOUR, B: 60.0})
NONE = Supply(spot=(A, B))
FULL = Supply(spot=(A, B), available={A: HOUR}, room=False)


def wish(policy="expected-cost"):
    return lambda job, standing: spot.wished(job, standing, spot.Market(), spot.Policy(name=policy))


def bounds(asker, supply, policy="expected-cost"):
    return markets.bounds(asker, supply, wish(policy), step=60.0)


def test_what_is_not_known_to_be_spot_counts_as_on_demand():
    assert markets.of(spot=None, zone="a") == markets.of(spot=False, zone="a") == ON_DEMAND
    assert markets.is_spot(A)
    assert not markets.is_spot(ON_DEMAND)


@pytest.mark.parametrize("supply", [BOTH, NONE, FULL])
def test_what_may_not_be_stopped_never_goes_to_spot(supply):
    for left in (None, HOUR, 100 * HOUR):
        assert bounds(Asker(may_stop=False, left=left, lasts=HOUR), supply).markets == (ON_DEMAND,)


def test_without_a_deadline_spot_goes_first_for_what_loses_little():
    assert bounds(Asker(may_stop=True, keeps=True), BOTH).markets == (A, B, ON_DEMAND)
    assert bounds(Asker(may_stop=True, keeps=False), BOTH).markets == (ON_DEMAND, A, B)
    assert bounds(Asker(may_stop=True, keeps=True, again=False), BOTH).markets == (ON_DEMAND, A, B)


def test_with_time_enough_it_is_on_spot_and_keeps_on_demand_machines_free():
    asker = Asker(may_stop=True, keeps=True, lasts=HOUR, left=4 * HOUR, changeover=300)
    found = bounds(asker, BOTH)
    assert (found.markets, found.forced) == ((A, B), False)
    assert "on spot in a" in found.words
    assert ON_DEMAND not in bounds(asker, NONE).markets, "it waits while spot may come back"
    assert "waits for spot" in bounds(asker, NONE).words


def test_when_spot_would_endanger_its_deadline_it_is_forced_on_demand():
    asker = Asker(may_stop=True, keeps=True, lasts=HOUR, left=HOUR + 330, changeover=300)
    found = bounds(asker, BOTH)
    assert (found.markets, found.forced) == ((ON_DEMAND,), True)
    on_spot = Asker(may_stop=True, keeps=True, lasts=HOUR, left=HOUR + 330, changeover=300, where=A)
    assert bounds(on_spot, BOTH).target == ON_DEMAND
    assert bounds(on_spot, FULL).target == "", "who has nowhere to go stays"
    assert bounds(asker, FULL).markets == (ON_DEMAND, A, B), "who runs gets further than who waits"


def test_a_deadline_that_cannot_be_met_goes_on_demand_and_is_said():
    found = bounds(Asker(may_stop=True, keeps=True, lasts=2 * HOUR, left=HOUR), BOTH)
    assert (found.markets, found.forced) == ((ON_DEMAND,), True)
    assert "not certain" in found.words
    late = bounds(Asker(may_stop=True, keeps=True, lasts=HOUR, left=-60.0, elapsed=3 * HOUR), BOTH)
    assert late.forced


def test_a_deadline_of_work_that_nobody_can_time_or_try_again_stays_on_demand():
    assert bounds(Asker(may_stop=True, keeps=True, left=9 * HOUR), BOTH).markets == (ON_DEMAND,)
    once = Asker(may_stop=True, keeps=True, lasts=HOUR, left=9 * HOUR, again=False)
    assert bounds(once, BOTH).markets == (ON_DEMAND,)


def test_from_on_demand_it_goes_back_to_spot_only_with_its_work_saved():
    asker = Asker(may_stop=True, keeps=True, lasts=10 * HOUR, left=30 * HOUR, changeover=300, where=ON_DEMAND)
    assert bounds(asker, BOTH).target == A
    keepless = Asker(may_stop=True, keeps=False, lasts=10 * HOUR, left=30 * HOUR, changeover=300, where=ON_DEMAND)
    assert bounds(keepless, BOTH).target == ""
    assert bounds(asker, NONE).target == "", "nobody is stopped on demand to wait"


def test_a_market_is_expected_to_go_on_as_it_was_seen_and_the_prior_counts_as_one_observation():
    prior = markets.observed((), (), 0.0, price=0.4)
    assert prior == spot.Market(price=0.4, loss=6.9e-05, elsewhere=0.0, comeback=2.8e-04)
    held = ((HOUR, True), (HOUR, True), (2 * HOUR, False))
    assert markets.observed(held, (), 0.0, price=0.4).loss == pytest.approx(3 / (8 * HOUR), rel=0.05)
    # Spot in a until 100 s, none until 400 s, then in b, to which a comes at 500 s; b ends at 600 s while a goes on.
    spans = ((A, 0.0, 100.0), (B, 400.0, 600.0), (A, 500.0, None))
    found = markets.observed((), spans, 1000.0, price=0.4)
    assert found.comeback == pytest.approx(2 / (300 + HOUR), rel=0.05)
    assert found.elsewhere == pytest.approx(1 / 3, rel=0.05)
    # None since 100 s.
    assert markets.observed((), ((A, 0.0, 100.0),), 7300.0, price=0.4).comeback == pytest.approx(
        1 / (3 * HOUR), rel=0.05
    )


@pytest.mark.parametrize("policy", ["expected-cost", "uniform-progress", "greedy", "time-sliced"])
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    slack=st.floats(1.05, 3.0),
    every=st.sampled_from([0.0, 600.0]),
    keeps=st.booleans(),
    lasting=st.floats(120.0, 4 * HOUR),
)
def test_nobody_is_late_while_on_demand_machines_are_free(policy, seed, slack, every, keeps, lasting):
    chance, step, changeover, lasts = random.Random(seed), 60.0, 240.0, 2 * HOUR
    deadline = slack * lasts + changeover + 2 * step
    now, saved, unsaved, where, starting = 0.0, 0.0, 0.0, "", 0.0
    spot_there = chance.random() < 0.7
    while saved + unsaved < lasts:
        supply = Supply(spot=(A,), available={A: now} if spot_there else {})
        asker = Asker(
            may_stop=True,
            keeps=keeps,
            lasts=lasts,
            left=deadline - now,
            elapsed=now,
            every=every,
            changeover=changeover,
            saved=saved,
            unsaved=unsaved,
            where=where,
            starting=starting,
        )
        found = bounds(asker, supply, policy)
        if where and found.target:  # it is asked to save and goes on there
            saved, unsaved, where, starting = saved + unsaved if keeps else 0.0, 0.0, found.target, changeover
        elif not where:
            there = next((one for one in found.markets if one == ON_DEMAND or (one == A and spot_there)), "")
            where, starting = there, changeover if there else 0.0
        worked = max(0.0, step - starting) if where else 0.0
        starting = max(0.0, starting - step)
        now += step
        unsaved += worked
        if keeps and every:
            saved, unsaved = saved + unsaved // every * every, unsaved % every
        elif not keeps:
            saved = 0.0
        if chance.random() < step / lasting:
            spot_there = not spot_there
        if where == A and not spot_there and saved + unsaved < lasts:  # lost without a word
            unsaved, where = 0.0, ""
    assert now <= deadline + step
