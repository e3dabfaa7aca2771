"""What an accurate prediction costs, and how sure that is: labels that have not come are not made up."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.waterfall.stages import CostSpan
from macadam.errors import InvalidInput
from macadam.serving import accuracy_cost
from macadam.serving.accuracy_cost import Judged, Part
from macadam.values import Money


def cost(value: int, low: int | None = None, high: int | None = None) -> CostSpan:
    return CostSpan(
        value=Money(micros=value),
        low=Money(micros=value if low is None else low),
        high=Money(micros=value if high is None else high),
    )


def test_wilsons_interval_is_that_of_the_literature():
    # Brown, Cai and DasGupta 2001: 95% intervals; at the edges they stay inside of 0 to 1.
    assert accuracy_cost.wilson(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert accuracy_cost.wilson(0, 10) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.2775, abs=1e-4))
    assert accuracy_cost.wilson(10, 10)[1] == pytest.approx(1.0)


def test_with_all_labels_the_price_is_the_cost_over_the_right_answers():
    found = accuracy_cost.per_accurate(cost(1000, 900, 1500), Judged(predictions=100, labelled=100, right=80))
    assert (found.value, found.low, found.high) == (12.5, 11.25, 18.75)
    assert (found.any_low, found.any_high) == (found.low, found.high)
    assert found.note == "all labels have arrived"


def test_answers_without_a_label_widen_the_interval_and_the_bound_without_assumption_is_wider_still():
    found = accuracy_cost.per_accurate(cost(1000), Judged(predictions=1000, labelled=100, right=80))
    assert found.value == pytest.approx(1000 / 800)
    assert found.any_low < found.low < found.value < found.high < found.any_high
    assert found.any_high == pytest.approx(1000 / 80)
    assert "900 of 1000" in found.note


def test_without_labels_only_a_lower_bound_is_said():
    found = accuracy_cost.per_accurate(cost(1000), Judged(predictions=50, labelled=0, right=0))
    assert (found.value, found.low, found.high, found.any_high) == (None, None, None, None)
    assert found.any_low == 20
    assert found.note == "no label has arrived"


def test_if_none_was_right_no_price_is_made_up():
    found = accuracy_cost.per_accurate(cost(1000), Judged(predictions=10, labelled=10, right=0))
    assert (found.value, found.high) == (None, None)
    assert "none" in found.note


def test_what_is_paid_once_is_spread_over_the_predictions_that_are_expected():
    assert accuracy_cost.share_of_once(cost(1000), 100, 1000).value.micros == 100
    assert accuracy_cost.share_of_once(cost(1000), 100, 0).value.micros == 1000
    assert accuracy_cost.share_of_once(cost(1000), 0, 0).value.micros == 1000


counts = st.integers(0, 10_000)


@given(counts, counts, counts, st.integers(0, 10**9), st.integers(0, 10**9))
def test_bounds_are_in_order_whatever_was_counted(a, b, c, low, more):
    right, labelled, predictions = sorted((a, b, c))
    found = accuracy_cost.per_accurate(
        cost(low, low, low + more), Judged(predictions=predictions, labelled=labelled, right=right)
    )
    known = [x for x in (found.any_low, found.low, found.value, found.high, found.any_high) if x is not None]
    assert all(first <= second * (1 + 1e-9) + 1e-12 for first, second in itertools.pairwise(known))


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_more_right_answers_never_make_one_dearer(labelled, rest):
    prices = [
        accuracy_cost.per_accurate(
            cost(10_000), Judged(predictions=labelled + rest, labelled=labelled, right=right)
        ).value
        for right in range(1, labelled + 1, max(1, labelled // 7))
    ]
    assert prices == sorted(prices, reverse=True)


def test_a_versions_page_says_its_parts_their_sum_and_its_accuracy():
    parts = (Part(what="training", cost=cost(500), how="x"), Part(what="serving", cost=cost(300), how="y"))
    found = accuracy_cost.of_version(
        "model:m@1", Judged(predictions=100, labelled=50, right=40), parts, over=0, currency="USD"
    )
    assert found.total.value.micros == 800
    assert found.accuracy == 0.8
    assert found.per_prediction == 8
    assert found.over == 100


def test_impossible_counts_are_refused():
    with pytest.raises(InvalidInput, match="cannot be"):
        Judged(predictions=1, labelled=2, right=0)
    with pytest.raises(InvalidInput, match="no proportion"):
        accuracy_cost.wilson(0, 0)
