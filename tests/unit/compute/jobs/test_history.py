"""What is said of how long jobs run agrees with how long they then run."""

import random
from datetime import timedelta

import pytest
from unit.compute.jobs.bench import open_bench

from macadam.compute.jobs import history


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_as_many_jobs_end_by_the_likely_and_the_late_instant_as_is_said_whenever_one_asks(spread: float) -> None:
    random_ = random.Random(3)
    asked = early = in_time = 0
    for _ in range(60):
        like = [random_.lognormvariate(6, spread) for _ in range(100)]
        for _ in range(50):
            seconds = random_.lognormvariate(6, spread)
            ran = random_.choice([0.0, 200.0, 400.0, 800.0])
            if seconds > ran:
                said = history.expected(like, 0, ran)
                assert said.likely is not None
                assert said.late is not None
                assert ran < said.likely <= said.late, "no job that runs is said to have ended before"
                asked, early, in_time = asked + 1, early + (seconds <= said.likely), in_time + (seconds <= said.late)
    assert 0.45 < early / asked < 0.55
    assert 0.85 < in_time / asked < 0.94


def test_a_job_that_has_outlived_all_like_it_may_run_as_long_again() -> None:
    said = history.expected([10.0, 20.0, 30.0], 0, 100.0)
    assert (said.likely, said.late) == (200.0, 200.0)
    assert said.basis == "it has outlived all 3 like it, and may run as long again"
    assert history.expected([10.0, 20.0, 30.0], 150.0, 100.0).late == 150.0


@pytest.mark.parametrize(("part", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.9, 4), (1.0, 4)])
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(part: float, value: int) -> None:
    assert history.quantile([1, 2, 3, 4], part) == value


def test_what_ended_long_ago_is_learnt_once() -> None:
    with open_bench() as bench:
        job = bench.submit()
        bench.turn()
        bench.executor.end(f"{job.id}.1", seconds=30)
        bench.turn()
        bench.clock.pass_time(timedelta(days=15))
        memory = history.Memory()
        for _ in range(3):
            with bench.platform.ports.sql.read() as sql:
                memory.update(sql, bench.clock())
        assert memory.estimates.everybody.seen == 1
        other = bench.submit()
        bench.turn()
        bench.executor.end(f"{other.id}.1", seconds=30)
        bench.turn()
        with bench.platform.ports.sql.read() as sql:
            memory.update(sql, bench.clock())
        assert memory.estimates.everybody.seen == 2
