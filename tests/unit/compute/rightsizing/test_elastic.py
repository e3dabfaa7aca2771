"""Replicas that come and go: never below what was just needed, paid from the moment they are asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.rightsizing import elastic
from macadam.compute.rightsizing.elastic import Scaling
from macadam.compute.rightsizing.types import Trace
from macadam.errors import InvalidInput

SCALING = Scaling(capacity=2.0, hourly=1_000_000, step=3600, up=0, down=3600, headroom=0.0)


def test_a_day_and_a_night_cost_less_than_the_day_all_along() -> None:
    day = [20.0] * 12 + [2.0] * 12
    found = elastic.plan(day, SCALING)
    assert found.static == 10
    assert found.static_cost == 240_000_000
    assert found.saving == pytest.approx(1 - (13 * 10 + 11) / 240)  # the first hour of the night keeps the day's
    assert found.short == 0


def test_what_comes_up_late_is_paid_and_the_requests_that_wait_are_counted() -> None:
    slow = Scaling(capacity=2.0, hourly=1_000_000, step=3600, up=3600, down=3600, headroom=0.0)
    found = elastic.plan([2.0, 2.0, 8.0, 8.0, 8.0, 2.0], slow)
    assert [step.paid for step in found.steps] == [1, 1, 1, 4, 4, 4]
    assert [step.serving for step in found.steps] == [1, 1, 1, 1, 4, 4]
    assert found.short == pytest.approx(16 / 30)


def test_headroom_takes_up_what_was_not_foreseen() -> None:
    roomy = Scaling(capacity=2.0, hourly=1, step=60, up=0, down=60, headroom=0.5)
    assert elastic.plan([4.0, 6.0, 8.0, 10.0], roomy).short == 0
    assert elastic.plan([4.0, 6.0, 8.0, 10.0], SCALING).short > 0


@given(
    load=st.lists(st.floats(0, 100), min_size=1, max_size=60),
    up=st.sampled_from([0.0, 60.0, 400.0]),
    down=st.sampled_from([0.0, 300.0, 3000.0]),
    least=st.integers(0, 3),
)
def test_it_never_costs_more_than_the_replicas_of_the_busiest_step(
    load: list[float], up: float, down: float, least: int
) -> None:
    found = elastic.plan(load, Scaling(capacity=3.0, hourly=7, step=300, up=up, down=down, least=least))
    assert found.cost <= found.static_cost
    assert all(least <= step.serving <= step.paid <= max(found.static, least) for step in found.steps)
    assert 0 <= found.short <= 1


def test_rates_count_every_request_once() -> None:
    trace = Trace(at=(0.0, 1.0, 59.9, 60.0, 200.0), prompt=(1,) * 5, output=(1,) * 5)
    assert [rate * 60 for rate in elastic.rates(trace, 60)] == [3, 1, 0, 1]


def test_a_trace_of_years_in_steps_of_seconds_is_refused_before_it_fills_memory() -> None:
    years = Trace(at=(0.0, 56 * 365 * 86_400.0), prompt=(1, 1), output=(1, 1))
    with pytest.raises(InvalidInput, match="more than 1000000 steps"):
        elastic.rates(years, 1.0)
    assert len(elastic.rates(years, 3600.0)) == 56 * 365 * 24 + 1


@pytest.mark.parametrize(
    "wrong", [{"capacity": 0}, {"capacity": 1e-320}, {"least": 5, "most": 2}, {"headroom": 1.0}, {"up": -1.0}]
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Scaling(**{"capacity": 1.0, "hourly": 1, **wrong})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        elastic.plan([float("nan")], SCALING)
