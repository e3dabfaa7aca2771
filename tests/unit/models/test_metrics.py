import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from macadam.errors import InvalidInput
from macadam.models import metrics
from macadam.models.metrics import Scored

# Few different scores, so that ties are the rule.
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=60)


def split(pairs):
    y = np.array([a for a, _ in pairs])
    return y, np.array([b / 20 for _, b in pairs])


@settings(deadline=None, max_examples=60)
@given(rows)
def test_every_metric_equals_scikit_learns(pairs):
    y, p = split(pairs)
    found = Scored(y, p, threshold=0.5).measure()
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=[0, 1]))
    assert found["brier"] == pytest.approx(float(np.mean((y - p) ** 2)))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p >= 0.5))
    if len(set(y)) == 2:
        assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p))
        assert found["pr_auc"] == pytest.approx(sk.average_precision_score(y, p))
    else:
        assert math.isnan(found["roc_auc"])


@settings(deadline=None, max_examples=60)
@given(rows, st.data())
def test_a_weight_counts_a_row_that_often(pairs, data):
    y, p = split(pairs)
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))), dtype=float)
    repeated = np.repeat(np.arange(len(y)), weights.astype(int))
    if len(set(y[repeated])) < 2:
        return
    weighted = Scored(y, p).measure(weights)
    plain = Scored(y[repeated], p[repeated]).measure()
    del weighted["calibration_error"], plain["calibration_error"]  # its bins are those of the whole
    assert weighted == pytest.approx(plain)


@settings(deadline=None, max_examples=60)
@given(rows)
def test_the_order_of_the_rows_means_nothing(pairs):
    y, p = split(pairs)
    forwards, backwards = Scored(y, p).measure(), Scored(y[::-1], p[::-1]).measure()
    assert forwards == pytest.approx(backwards, nan_ok=True)


def test_calibration_error_is_the_mean_gap_over_bins_of_equal_mass():
    generator = np.random.default_rng(1)
    p = generator.random(1500)
    y = (generator.random(1500) < p**2).astype(int)
    order = np.argsort(p)
    bins = np.array_split(order, metrics.CALIBRATION_BINS)
    expected = sum(len(b) / len(p) * abs(y[b].mean() - p[b].mean()) for b in bins)
    assert Scored(y, p).measure()["calibration_error"] == pytest.approx(expected)
    assert Scored(np.array([0, 1] * 50), np.full(100, 0.5)).measure()["calibration_error"] == 0


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    inside = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        y = np.r_[np.zeros(150), np.ones(150)]
        p = 1 / (1 + np.exp(-np.r_[generator.normal(0, 1, 150), generator.normal(1, 1, 150)]))
        interval = metrics.intervals(Scored(y, p), resamples=200, seed=seed)["roc_auc"]
        inside += interval.low <= 0.76025 <= interval.high  # Phi(1 / sqrt 2): two normals, one apart
    assert inside >= 51  # 95% of 60 is 57; fewer than 51 has a chance of 0.1%


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    generator = np.random.default_rng(0)
    scored = Scored(generator.integers(0, 2, 300), generator.random(300))
    first = metrics.intervals(scored, resamples=100, seed=1)
    assert first == metrics.intervals(scored, resamples=100, seed=1)
    assert first != metrics.intervals(scored, resamples=100, seed=2)
    assert all(i.low <= i.value <= i.high for i in first.values())


def test_what_two_models_share_cancels_out_of_their_difference():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 2000)
    good = np.clip(0.5 + (y - 0.5) * 0.4 + generator.normal(0, 0.2, 2000), 0, 1)
    worse = np.clip(good + generator.normal(0, 0.01, 2000), 0, 1)
    same = metrics.differences(Scored(y, good), Scored(y, good), resamples=100, seed=0)["roc_auc"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    apart = metrics.differences(Scored(y, worse), Scored(y, good), resamples=100, seed=0)["roc_auc"]
    alone = metrics.intervals(Scored(y, good), resamples=100, seed=0)["roc_auc"]
    assert apart.high - apart.low < (alone.high - alone.low) / 5


def test_a_difference_of_calibration_that_may_be_none_is_not_cut_off_at_zero():
    drawn = metrics._interval("calibration_error", 0.001, [0.02, 0.03, 0.04, 0.05])
    assert drawn.low < 0, "all resamples are above zero, and the difference may still be below"
    assert metrics._interval("calibration_error", 0.001, [0.02, 0.03, 0.04, 0.05], least=0.0).low == 0


@pytest.mark.parametrize(
    ("outcomes", "probabilities"),
    [([], []), ([0, 1], [0.5]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, 1.2]), ([0, 1], [0.1, np.nan])],
)
def test_what_is_no_probability_of_an_outcome_is_refused(outcomes, probabilities):
    with pytest.raises(InvalidInput):
        Scored(np.array(outcomes), np.array(probabilities))


def test_three_hundred_resamples_of_28000_rows_take_under_two_seconds():
    generator = np.random.default_rng(0)
    p = generator.random(28_000)
    y = (generator.random(28_000) < p).astype(int)
    begin = time.perf_counter()
    metrics.intervals(Scored(y, p), resamples=300, seed=0)
    assert time.perf_counter() - begin < 4  # budget 2 s; the machine that runs tests is shared
