"""What is said of how long jobs run agrees with how long they then run."""

import random
from datetime import timedelta
from typing import Any

import pytest
from unit.compute.jobs.bench import open_bench

from macadam.compute.jobs import history, registry
from macadam.compute.jobs.types import Resources, SetQuota
from macadam.compute.scheduling.promise import due_times


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


def test_when_jobs_are_due_is_reckoned_anew_only_after_one_was_submitted_or_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reckoned = []

    def counting(*arguments: Any) -> dict[str, float]:
        reckoned.append(arguments)
        return due_times(*arguments)

    monkeypatch.setattr(history, "due_times", counting)
    with open_bench() as bench:
        bench.platform.call(SetQuota(tenant="p", gpus=2))
        jobs = [bench.submit(resources=Resources(gpus=2)) for _ in range(3)]
        memory = history.Memory()

        def due() -> dict[str, float]:
            now = bench.clock()
            with bench.platform.ports.sql.read() as sql:
                memory.update(sql, now)
                waiting, rows = registry.waiting(sql), registry.open_attempts(sql)
                works = [*waiting, *registry.by_id(sql, [row.job for row in rows]).values()]
                return memory.due(registry.all_quotas(sql), works, now, 100.0)

        submitted = bench.clock()
        assert due() == {}
        bench.clock.pass_time(timedelta(seconds=100))
        assert due() == {jobs[0].id: (submitted + timedelta(seconds=100)).timestamp()}, (
            "its share alone would start it now"
        )
        assert len(reckoned) == 1, "time alone changes nothing that was not foreseen"
        bench.turn()
        bench.executor.end(f"{jobs[0].id}.1", seconds=30)
        bench.turn()
        reckoned.clear()
        assert due() == {}
        bench.clock.pass_time(timedelta(seconds=30))
        assert list(due()) == [jobs[1].id], "the first ran for 30 s, there as well"
        assert len(reckoned) == 1
