from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.advice.telling import GIB, START, told, usage

from macadam.compute.advice.held import by_day, days, hour_of, summarise


def test_hours_are_the_time_covered_times_the_share_and_nobodys_rows_are_left_out() -> None:
    mine = told(range(10), "job:1", share=0.5)
    (held,) = summarise(usage(mine, told(range(10, 20), "")))
    assert held.hours == pytest.approx(5)
    assert sum(held.when.values()) == pytest.approx(5)
    assert min(held.when) == hour_of(START)


def test_a_row_that_is_not_believed_counts_as_time_and_for_nothing_else() -> None:
    lie = told(range(5), "job:1", suspect="frozen", gpu_active=0.0, sm_active=0.0, memory_bytes=79 * GIB)
    (held,) = summarise(usage(lie, told(range(5, 10), "job:1", sm_active=0.6, memory_bytes=GIB)))
    assert held.hours == pytest.approx(10)
    assert held.believed == pytest.approx(0.5)
    assert held.sm == pytest.approx(0.6)
    assert held.memory_peak == GIB
    assert held.idle_hours == 0


def test_what_was_not_measured_stays_unknown_and_is_not_zero() -> None:
    (held,) = summarise(usage(told(range(3), "job:1", sm_active=None, gpu_active=0.7, tensor_active=None)))
    assert held.sm is None
    assert held.tensor_p95 is None
    assert held.load == pytest.approx(0.7)
    assert sum(held.work.values()) == pytest.approx(2.1)


def test_stretches_of_idling_end_where_work_is_done() -> None:
    busy, idle = {"gpu_active": 0.9}, {"gpu_active": 0.0}
    rows = usage(
        told(range(2), "job:1", **idle),
        told(range(2, 3), "job:1", **busy),
        told(range(3, 8), "job:1", **idle),
    )
    (held,) = summarise(rows)
    assert held.stretches == pytest.approx((2.0, 5.0))
    assert held.last_idle
    (ended,) = summarise(usage(told(range(5), "job:1", **idle), told(range(5, 6), "job:1", **busy)))
    assert ended.stretches == pytest.approx((5.0,))
    assert not ended.last_idle


def test_the_same_owner_on_two_devices_is_told_apart() -> None:
    rows = usage(told(range(4), "job:1", device="gpu:a"), told(range(4), "job:1", device="gpu:b", gpu_active=0.0))
    first, second = summarise(rows)
    assert (first.device, second.device) == ("gpu:a", "gpu:b")
    assert (first.stretches, second.stretches) == ((), pytest.approx((4.0,)))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 71), st.floats(0, 1), st.sampled_from(["job:1", "job:2", ""])), max_size=60))
def test_hours_are_conserved_by_hour_and_by_day(rows: list[tuple[int, float, str]]) -> None:
    given_rows = [told([hour], owner, gpu_active=active) for hour, active, owner in rows]
    held = summarise(usage(*given_rows))
    assert sum(one.hours for one in held) == pytest.approx(sum(1 for _, _, owner in rows if owner))
    for one in held:
        assert sum(one.when.values()) == pytest.approx(one.hours)
        assert sum(by_day(one.when, days(START, START + timedelta(days=3)))) == pytest.approx(one.hours)
        assert one.idle_hours <= one.hours + 1e-9


def test_only_whole_days_count() -> None:
    noon = START + timedelta(hours=12)
    assert len(days(noon, noon + timedelta(days=2))) == 1
    assert len(days(START, START + timedelta(days=2))) == 2
    assert len(days(noon, noon + timedelta(hours=3))) == 0
