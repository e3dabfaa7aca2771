import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.scheduling import spot_plan
from macadam.compute.scheduling.spot import NOWHERE, ON_DEMAND, Job, Market, Policy, Standing, decide, safe
from macadam.errors import InvalidInput

HOUR = 3600.0
NAMES = ("on-demand", "greedy", "time-sliced", "uniform-progress", "expected-cost")
JOB = Job(work=10 * HOUR, deadline=15 * HOUR, changeover=720, step=60)


def where(name, job=JOB, market=None, **standing):
    return decide(job, Standing(**standing), market or Market(), Policy(name=name)).where


@pytest.mark.parametrize("name", NAMES[1:])
def test_spot_is_used_where_there_is_any_and_time_enough(name):
    assert where(name, elapsed=0, available={"a": 600.0}) == "a"


def test_a_zone_that_has_had_spot_for_longer_is_preferred_but_none_is_left_for_another():
    both = {"a": 600.0, "b": 7200.0}
    assert where("greedy", elapsed=0, available=both) == "b"
    assert where("greedy", elapsed=HOUR, where="a", saved=HOUR, available=both) == "a"


def test_without_spot_each_policy_does_as_its_rules_say():
    ahead = {"elapsed": 3 * HOUR, "saved": 2.5 * HOUR}
    behind = {"elapsed": 3 * HOUR, "saved": 1.5 * HOUR}
    assert where("greedy", **behind) == NOWHERE
    assert where("uniform-progress", **ahead) == NOWHERE
    assert where("uniform-progress", **behind) == ON_DEMAND
    # Hysteresis: on demand until two changeovers ahead of the line.
    line = 2 * HOUR
    assert where("uniform-progress", elapsed=3 * HOUR, saved=line + 60, where=ON_DEMAND) == ON_DEMAND
    assert where("uniform-progress", elapsed=3 * HOUR, saved=line + 1000, where=ON_DEMAND) == NOWHERE
    assert where("time-sliced", elapsed=0) == NOWHERE
    assert where("time-sliced", elapsed=JOB.deadline / 8 - 600, saved=0) == ON_DEMAND


def test_expected_cost_waits_while_spot_comes_back_soon_and_not_where_it_does_not():
    soon, late = Market(comeback=1 / 600), Market(comeback=1 / (400 * HOUR))
    assert where("expected-cost", market=soon, elapsed=0) == NOWHERE
    assert where("expected-cost", market=late, elapsed=4.5 * HOUR, saved=0) == ON_DEMAND


def test_spot_that_costs_as_much_as_on_demand_is_left_alone():
    dear = Market(price=1.0)
    assert where("expected-cost", market=dear, elapsed=0, available={"a": 60.0}) != "a"


@pytest.mark.parametrize("name", NAMES)
def test_where_only_on_demand_is_safe_it_is_chosen_and_said(name):
    late = Standing(elapsed=JOB.deadline - 2 * HOUR - 721, saved=8 * HOUR, available={"a": 60.0})
    found = decide(JOB, late, Market(), Policy(name=name))
    assert found.where == ON_DEMAND
    assert found.forced == (name != "on-demand") or found.reason


def test_unsaved_work_counts_as_lost():
    job = Job(work=10 * HOUR, deadline=15 * HOUR, checkpoint_every=HOUR, checkpoint_cost=60, step=60)
    left = 2 * HOUR
    at = {"elapsed": job.deadline - left - 721 - 120, "where": "a", "available": {"a": 60.0}}
    assert safe(job, Standing(saved=8 * HOUR, **at), "a")
    assert not safe(job, Standing(saved=7.5 * HOUR, unsaved=0.5 * HOUR, **at), "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"work": 0.0},
        {"work": 10.0, "deadline": 100.0},
        {"work": float("nan")},
        {"deadline": float("inf")},
        {"step": 0.0},
        {"changeover": -1.0},
    ],
)
def test_a_job_that_could_never_be_in_time_is_not_built(wrong):
    with pytest.raises(InvalidInput):
        Job(**({"work": HOUR, "deadline": 3 * HOUR} | wrong))


def test_times_that_cannot_be_are_said_in_words() -> None:
    with pytest.raises(InvalidInput, match="A job of 0 s of work, 720 s to start") as raised:
        Job(work=0.0, deadline=7200.0)
    assert "Job(" not in str(raised.value)


def test_markets_and_slices_that_cannot_be_are_refused():
    for wrong in ({"price": -1.0}, {"price": float("nan")}, {"elsewhere": 1.5}, {"loss": -2.0}, {"comeback": -1.0}):
        with pytest.raises(InvalidInput):
            Market(**wrong)
    with pytest.raises(InvalidInput):
        Policy(slices=0)


def test_a_plan_costs_what_can_be_worked_out_by_hand():
    # No spot ever: all on demand, after one changeover. Spot for ever: all at its price.
    never = spot_plan.plan(10 * HOUR, 15 * HOUR, 720, 0.33, 0.0, 0.0, 0.0)
    assert never.cost("nowhere", 15 * HOUR, 10 * HOUR, spot=False) == pytest.approx(10.2 * HOUR, rel=0.01)
    always = spot_plan.plan(10 * HOUR, 15 * HOUR, 720, 0.33, 0.0, 0.0, 1.0)
    assert always.cost("nowhere", 15 * HOUR, 10 * HOUR, spot=True) == pytest.approx(0.33 * 10.2 * HOUR, rel=0.01)


@pytest.mark.parametrize("changeover", [0.0, 1.0, 60.0, 5 * HOUR])
def test_plans_of_long_jobs_with_quick_or_slow_changeovers_are_as_small_as_any(changeover):
    plan = spot_plan.plan(300 * HOUR, 720 * HOUR, changeover, 0.33, 0.0, 0.0, 0.0)
    assert plan.cells <= 2 * 1024 * 1024
    on_demand = plan.cost("nowhere", 720 * HOUR, 300 * HOUR, spot=False)
    assert on_demand == pytest.approx(300 * HOUR + changeover, rel=0.01)


@given(st.floats(0, 1), st.floats(0.05, 0.95))
def test_more_time_never_costs_more(late, part):
    plan = spot_plan.plan(10 * HOUR, 20 * HOUR, 720, 0.33, 1 / (3 * HOUR), 0.2, 1 / HOUR)
    work = 10 * HOUR * part
    short = work + 720 + 400 + late * 5 * HOUR
    # What waiting is said to cost is all that more time can add.
    assert plan.cost("nowhere", short + HOUR, work, spot=False) <= plan.cost("nowhere", short, work, spot=False) + 1


@pytest.mark.parametrize("rate", [1e-30, 1e-3, 0.1, 1e3])
def test_rates_however_extreme_give_a_plan(rate):
    market = Market(loss=rate, comeback=1 / rate if rate > 1 else rate, elsewhere=0.5)
    for elapsed in (0.0, 4.5 * HOUR):
        assert where("expected-cost", market=market, elapsed=elapsed, saved=elapsed, available={"a": 60.0}) in (
            "a",
            ON_DEMAND,
        )


def test_work_that_a_loss_undoes_and_time_that_checkpoints_take_are_expected_to_cost():
    def cost(pace, undone):
        found = spot_plan.Plan(10 * HOUR, 15 * HOUR, 720, 0.3, 1 / HOUR, 0.0, 1 / HOUR, pace=pace, undone=undone)
        return found.cost("spot", 15 * HOUR, 10 * HOUR, spot=True)

    free = cost(1.0, 0.0)
    assert free < cost(0.9, 0.0) < cost(0.7, 0.0)
    assert free < cost(1.0, 600.0) < cost(1.0, 2000.0)


def test_spot_that_is_lost_more_often_than_a_checkpoint_is_written_is_left_alone():
    lossy, at = Market(loss=1 / 900, comeback=1 / 900), {"elapsed": 0.0, "available": {"a": 60.0}}
    assert where("expected-cost", market=lossy, **at) == "a"
    seldom = Job(work=10 * HOUR, deadline=15 * HOUR, checkpoint_every=2 * HOUR, checkpoint_cost=60, step=60)
    assert where("expected-cost", job=seldom, market=lossy, **at) != "a"


def test_who_leaves_counts_the_time_that_saving_takes():
    job = Job(work=10 * HOUR, deadline=15 * HOUR, checkpoint_every=HOUR, checkpoint_cost=60, step=60)
    # Half an hour is not saved: to wait is safe if it is saved first, and 60 s later no more.
    left = 1.5 * HOUR + job.changeover + job.step + job.checkpoint_cost
    at = {"saved": 8 * HOUR, "unsaved": HOUR / 2, "where": "a", "available": {"a": 60.0}}
    assert safe(job, Standing(elapsed=job.deadline - left, **at), NOWHERE)
    assert not safe(job, Standing(elapsed=job.deadline - left + 1, **at), NOWHERE)


def test_a_plan_knows_that_a_machine_that_begins_too_late_is_of_no_use():
    plan = spot_plan.Plan(HOUR, 3 * HOUR, HOUR, 0.3, 0.0, 0.0, 1 / HOUR)
    assert plan.cost("nowhere", 2.1 * HOUR, HOUR, spot=True) < float("inf")
    assert plan.cost("nowhere", 0.9 * HOUR, 0.1 * HOUR, spot=True) == float("inf")
