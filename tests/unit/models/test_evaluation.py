import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from macadam.errors import InvalidInput
from macadam.models import evaluation
from macadam.models.evaluation import Resampling
from macadam.models.rows import About, Feature, Rows
from macadam.models.signature import Input, Output, Signature

HOW = Resampling(resamples=100, seed=0, threshold=0.5)


@pytest.fixture(scope="module")
def measured():
    generator = np.random.default_rng(0)
    carrier = np.array(["AA"] * 300 + ["B6"] * 200 + ["ZZ"] * 20 + ["QQ"] * 200)
    y = generator.integers(0, 2, 720)
    y[520:] = 0
    p = np.clip(0.5 + 0.2 * (y - 0.5) + generator.normal(0, 0.2, 720), 0, 1)
    column = pa.array([None if n == 0 else c for n, c in enumerate(carrier)])
    about = About(features=(Feature(name="carrier", kind="category"),))
    return Rows(table=pa.table({"carrier": column, "label": y}), about=about), p, y, carrier


def test_each_slice_is_measured_on_its_own_rows_the_largest_first(measured):
    rows, p, y, carrier = measured
    found = evaluation.measure(rows, p, HOW, slices={"carrier": 100})
    assert [(s.value, s.rows) for s in found.slices] == [("AA", 299), ("B6", 200), ("QQ", 200), ("ZZ", 20)]
    chosen = carrier == "B6"
    assert found.slices[1].metrics["roc_auc"].value == pytest.approx(roc_auc_score(y[chosen], p[chosen]))
    assert found.metrics["roc_auc"].value == pytest.approx(roc_auc_score(y, p))
    assert (found.rows, found.positives) == (720, int(y.sum()))


def test_a_slice_that_says_nothing_is_shown_without_metrics_and_with_the_reason(measured):
    rows, p, _, _ = measured
    notes = {s.value: s.note for s in evaluation.measure(rows, p, HOW, slices={"carrier": 100}).slices}
    assert notes == {
        "AA": "",
        "B6": "",
        "QQ": "too few of one outcome: 0 of 10",
        "ZZ": "too few rows: 20 of 100",
    }


def test_a_column_that_is_not_there_cannot_be_sliced_by(measured):
    rows, p, _, _ = measured
    with pytest.raises(InvalidInput, match="no column 'origin'"):
        evaluation.measure(rows, p, HOW, slices={"origin": 1})


def test_rows_of_one_outcome_and_models_that_give_numbers_are_refused(measured):
    rows, p, _, _ = measured
    one = Rows(table=rows.table.slice(520), about=rows.about)
    with pytest.raises(InvalidInput, match="same outcome"):
        evaluation.measure(one, p[520:], HOW, slices={})
    output = Output(name="value", kind="number", tensor="variable", column=0)
    signed = Signature(inputs=(Input(name="carrier", kind="number"),), outputs=(output,))
    with pytest.raises(InvalidInput, match="answers with a number"):
        evaluation.score(b"", signed, rows)


def test_a_comparison_is_new_minus_old(measured):
    rows, p, y, _ = measured
    noise = np.random.default_rng(1).random(len(p))
    found = evaluation.compare(rows, p, "model:late@1", noise, HOW)
    assert found.champion == "model:late@1"
    assert found.metrics["roc_auc"].value == pytest.approx(roc_auc_score(y, p) - roc_auc_score(y, noise))
    assert found.metrics["roc_auc"].low > 0


def test_intervals_of_rows_that_share_their_days_luck_are_as_wide_as_the_days_differ():
    """A day's luck moves all of its rows: drawn one by one they would look as if there were many of them."""
    generator = np.random.default_rng(0)
    days, each = 20, 100
    day = np.repeat(np.arange(days), each)
    y = (generator.random(days * each) < np.repeat(generator.uniform(0.05, 0.6, days), each)).astype(np.int8)
    p = np.full(days * each, 0.3)
    about = About(features=(Feature(name="carrier", kind="category"),))
    at = pa.array(np.datetime64("2013-06-01", "us") + day * np.timedelta64(1, "D"), pa.timestamp("us", tz="UTC"))
    table = pa.table({"carrier": ["AA"] * len(y), "label": y, "_at": at})
    by_day = evaluation.measure(Rows(table=table, about=about), p, HOW, slices={"carrier": 100})
    by_row = evaluation.measure(Rows(table=table.drop(["_at"]), about=about), p, HOW, slices={})
    assert (by_day.drawn_by, by_row.drawn_by) == ("day", "row")
    wide, narrow = by_day.metrics["log_loss"], by_row.metrics["log_loss"]
    assert wide.value == narrow.value
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert by_day.slices[0].metrics["log_loss"] == wide
    few = Rows(table=table.slice(0, (evaluation.FEWEST_DAYS - 1) * each), about=about)
    assert evaluation.measure(few, p[: len(few.table)], HOW, slices={}).drawn_by == "row"
