"""What history says: only finished work counts, and what is thought grows with it."""

import pytest

from macadam.compute.scheduling.estimates import Histogram, History, gittins
from macadam.compute.scheduling.order import LEVELS, level, rank
from macadam.compute.scheduling.promise import Past, due_times
from macadam.compute.scheduling.types import Work
from macadam.errors import InvalidInput


def work(tenant: str, gpus: int = 1) -> Work:
    return Work(id="w", tenant=tenant, submitted=0.0, gpus=gpus)


def test_the_index_of_equal_durations_is_what_is_left_of_them() -> None:
    histogram = Histogram()
    for _ in range(100):
        histogram.add(100.0)
    ranks = gittins(histogram)
    assert ranks[0] == pytest.approx(100.0)
    assert ranks[level(60.0)] == pytest.approx(100.0 - 60.0)


def test_after_the_short_ones_would_have_ended_a_job_is_ranked_with_the_long_ones() -> None:
    history = History()
    for at in range(200):
        history.add("a", 1, "", 20.0 if at % 2 else 50_000.0)
    fresh, survived = (history.index(work("a"), attained) for attained in (0.0, 100.0))
    assert fresh < 100.0
    assert survived > 40_000.0


def test_a_tenant_without_history_leans_on_everybodys() -> None:
    history = History()
    for _ in range(50):
        history.add("short", 1, "", 60.0)
    assert history.index(work("new"), 0.0) == pytest.approx(60.0)
    assert history.index(work("new", gpus=4), 0.0) == pytest.approx(240.0)
    assert history.remaining(work("new"), 0.0) <= LEVELS[2]


def test_without_any_history_those_that_had_the_least_service_go_first() -> None:
    fresh, older = (rank(work("a"), attained, "gittins", History()) for attained in (0.0, 500.0))
    assert fresh < older


def test_what_is_learned_does_not_depend_on_who_asked_meanwhile() -> None:
    asked, silent = History(), History()
    for at in range(300):
        for history in (asked, silent):
            history.add("ab"[at % 2], 1, "", 10.0 + 37 * (at * at % 101))
        asked.index(work("a"), 0.0)
        asked.usual(work("c"))
    for tenant in "abc":
        assert asked.learned(tenant, 1, "").ranks == silent.learned(tenant, 1, "").ranks
        assert asked.usual(work(tenant)) == silent.usual(work(tenant))


def test_what_a_job_still_needs_at_a_higher_quantile_is_never_less() -> None:
    history = History()
    for at in range(1, 500):
        history.add("a", 1, "", at * 37.0)
    for attained in (0.0, 100.0, 5000.0, 1e7):
        found = [history.remaining(work("a"), attained, quantile) for quantile in (0.1, 0.5, 0.9)]
        assert found == sorted(found)
        assert found[0] >= 0


def test_a_job_is_due_when_its_tenants_own_share_would_have_started_it() -> None:
    jobs = [
        Past(id="first", gpus=2, submitted=0.0, seconds=100.0, ended=50.0 + 100.0),
        Past(id="second", gpus=2, submitted=10.0),
        Past(id="large", gpus=3, submitted=20.0),
        Past(id="third", gpus=1, submitted=30.0),
    ]
    assert due_times(2, jobs, 149.0) == {"first": 0.0}
    assert due_times(2, jobs, 150.0) == {"first": 0.0, "second": 150.0}


def test_a_duration_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has run 5"):
        Past(id="x", gpus=1, submitted=0.0, seconds=5.0)
