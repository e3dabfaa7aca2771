"""Amounts that are shared out sum to themselves, to the millionth, and no part is more than one unit off."""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from macadam.compute.billing import sharing
from macadam.errors import InvalidInput

groups = st.lists(
    st.tuples(
        st.integers(-(2**53) + 1, 2**53 - 1),
        st.lists(st.integers(0, 2**56), min_size=1, max_size=8).filter(lambda weights: sum(weights) > 0),
    ),
    min_size=1,
    max_size=6,
)


def shared(made: list[tuple[int, list[int]]]) -> list[list[int]]:
    group = [n for n, (_, weights) in enumerate(made) for _ in weights]
    flat = [weight for _, weights in made for weight in weights]
    amounts = np.array([amount for amount, _ in made], dtype=np.int64)
    parts = sharing.share_out(amounts, np.array(group, dtype=np.int64), np.array(flat, dtype=np.int64)).tolist()
    return [[part for part, of in zip(parts, group, strict=True) if of == n] for n in range(len(made))]


@given(groups)
def test_the_parts_of_an_amount_sum_to_it_and_are_within_one_unit_of_their_exact_values(made):
    for (amount, weights), parts in zip(made, shared(made), strict=True):
        assert sum(parts) == amount
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - Fraction(amount * weight, sum(weights))) < 1


@given(groups)
def test_a_larger_weight_never_gets_less_and_none_gets_nothing(made):
    for (amount, weights), parts in zip(made, shared(made), strict=True):
        ranked = [abs(part) for _, part in sorted(zip(weights, parts, strict=True), key=lambda p: (p[0], abs(p[1])))]
        assert ranked == sorted(ranked)
        assert all(part == 0 for part, weight in zip(parts, weights, strict=True) if weight == 0)
        assert all(part * amount >= 0 for part in parts)


def test_what_is_left_over_goes_to_those_that_were_rounded_down_most():
    assert shared([(10, [14, 35, 51]), (-10, [14, 35, 51])]) == [[1, 4, 5], [-1, -4, -5]]  # 1.4, 3.5, 5.1


@pytest.mark.parametrize(
    ("amounts", "group", "weights"),
    [
        ([5], [0], [0]),
        ([5, 5], [0, 0], [1, 1]),
        ([5], [0], [-1]),
        ([2**54], [0], [1]),
        ([5], [0], [2**61]),
        ([5], [], []),
    ],
)
def test_an_amount_without_anybody_to_pay_it_is_refused(amounts, group, weights):
    with pytest.raises(InvalidInput):
        sharing.share_out(*(np.array(part, dtype=np.int64) for part in (amounts, group, weights)))


@given(st.lists(st.integers(-(10**12), 10**12), max_size=20))
@example([9_999])
@example([5_000])
def test_printed_cents_add_up_to_the_total_rounded_as_invoices_round(micros):
    cents = sharing.in_cents(micros)
    assert sum(cents) == int((Decimal(sum(micros)) / sharing.MICROS_PER_CENT).to_integral_value(ROUND_HALF_EVEN))
    assert all(abs(cent - amount / 10_000) <= 1 for cent, amount in zip(cents, micros, strict=True))


DAY = 86_400_000_000


def days(begin: int, end: int, amount: int) -> list[tuple[int, int]]:
    which, begins, _, parts = sharing.by_days(np.array([begin]), np.array([end]), np.array([amount]), DAY)
    assert set(which.tolist()) == {0}
    return [(at // DAY, part) for at, part in zip(begins.tolist(), parts.tolist(), strict=True)]


def test_what_lasts_several_days_is_spent_on_each_in_proportion():
    assert days(DAY * 3 // 4, 2 * DAY, 100) == [(0, 20), (1, 80)]
    assert sum(part for _, part in days(DAY * 3 // 4, 10 * DAY, -7)) == -7


def test_what_lasts_no_time_is_spent_at_once():
    for begin in (DAY, DAY + 5):
        assert days(begin, begin, 9) == days(begin, begin - DAY, 9) == [(1, 9)]


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(-(10**15), 10**15))
def test_days_sum_to_the_whole_and_no_day_is_there_twice(begin, length, amount):
    found = days(begin, begin + length, amount)
    assert sum(part for _, part in found) == amount
    assert [day for day, _ in found] == list(range(begin // DAY, begin // DAY + len(found)))
