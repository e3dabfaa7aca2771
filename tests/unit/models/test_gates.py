from datetime import UTC, datetime

import msgspec
import pytest

from macadam.errors import InvalidInput
from macadam.models import gates
from macadam.models.gates import Facts, judge, parse
from macadam.models.types import (
    Approval,
    Comparison,
    Equality,
    Evaluation,
    Interval,
    ModelVersion,
    Slice,
    Thresholds,
)

AT = datetime(2026, 11, 21, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
TEXT = """
metrics:
  roc_auc: {at_least: 0.76, bound: lower}
  calibration_error: {at_most: 0.05}
slices:
  carrier: {min_rows: 500, roc_auc: {at_least: 0.6}}
equality: {max_difference: 1e-5}
compare_to_champion: {metric: log_loss, not_worse_by: 0.01}
approvals: {required: 1, not_author: true}
holdout: june
threshold: 0.4
"""
VERSION = ModelVersion(
    ref="model:late@2",
    project="flights",
    model="late",
    number=2,
    run="run:1",
    artifact=DIGEST,
    artifact_bytes=1,
    signature=DIGEST,
    author="principal:ann",
    trainer="principal:bob",
    at=AT,
)
THRESHOLDS = Thresholds(
    ref="thresholds:late@1", project="flights", model="late", digest=DIGEST, text=TEXT, author="principal:ann", at=AT
)


def about(value, width=0.005):
    return Interval(value=value, low=value - width, high=value + width)


def slice_of(value, auc, rows=600):
    found = {"roc_auc": about(auc)} if rows >= 500 else {}
    return Slice(column="carrier", value=value, rows=rows, positives=9, metrics=found)


EVALUATION = Evaluation(
    ref="evaluation:1",
    id="1",
    project="flights",
    model="late",
    version=2,
    model_ref="model:late@2",
    thresholds="thresholds:late@1",
    training_set="training_set:june@abc",
    rows=1000,
    positives=300,
    overlap=0,
    metrics={"roc_auc": about(0.78), "calibration_error": about(0.02)},
    slices=(slice_of("AA", 0.7), slice_of("ZZ", 0, rows=3)),
    comparison=Comparison(champion="model:late@1", metrics={"log_loss": about(0.005)}),
    threshold=0.4,
    resamples=300,
    seed=0,
    seconds=1,
    author="principal:ann",
    at=AT,
)
FACTS = Facts(
    version=VERSION,
    thresholds=THRESHOLDS,
    evaluations=(EVALUATION,),
    equality=Equality(rows=1000, largest_difference=1e-7),
    approvals=(),
    champion="model:late@1",
)


def approval(by, artifact=DIGEST):
    return Approval(
        ref=f"approval:{by}",
        id=by,
        project="flights",
        model="late",
        version=2,
        model_ref="model:late@2",
        artifact=artifact,
        approver=by,
        note="",
        at=AT,
    )


def refused(facts=FACTS, text=TEXT):
    return {check.criterion: check.text for check in judge(parse(text), facts) if not check.passed}


def evaluated(**changes):
    return msgspec.structs.replace(FACTS, evaluations=(msgspec.structs.replace(EVALUATION, **changes),))


def test_a_good_version_waits_only_for_its_approval_and_then_passes():
    assert list(refused()) == [gates.APPROVALS]
    assert "by someone other than its author" in refused()[gates.APPROVALS]
    assert not refused(msgspec.structs.replace(FACTS, approvals=(approval("principal:maria"),)))


@pytest.mark.parametrize("by", ["principal:ann", "principal:bob"])
def test_who_registered_or_trained_it_does_not_count_as_an_approver(by):
    assert gates.APPROVALS in refused(msgspec.structs.replace(FACTS, approvals=(approval(by),)))


def test_an_approval_of_another_artifact_does_not_count():
    other = approval("principal:maria", artifact="sha256:" + "b" * 64)
    assert gates.APPROVALS in refused(msgspec.structs.replace(FACTS, approvals=(other,)))


def test_a_limit_holds_for_the_end_of_the_interval_that_it_names():
    low = {"roc_auc": about(0.764), "calibration_error": about(0.049)}
    assert refused(evaluated(metrics=low))["metrics.roc_auc"] == (
        "roc_auc must be at least 0.76 at the lower end of its interval: found 0.7640 (0.7590 to 0.7690)"
    )
    assert "metrics.calibration_error" not in refused(evaluated(metrics=low))


def test_a_metric_that_is_no_number_keeps_no_limit():
    nan = float("nan")
    unknown = Interval(value=nan, low=nan, high=nan)
    found = refused(evaluated(metrics={"roc_auc": unknown, "calibration_error": unknown}))
    assert {"metrics.roc_auc", "metrics.calibration_error"} <= found.keys()


def test_a_bad_slice_refuses_and_a_small_one_is_not_judged():
    assert "slices.carrier.AA.roc_auc" in refused(evaluated(slices=(slice_of("AA", 0.5), slice_of("ZZ", 0, rows=3))))
    assert "slices.carrier" in refused(evaluated(slices=(slice_of("ZZ", 0, rows=3),)))


def test_rows_that_were_learned_from_refuse():
    assert "7 of 1000" in refused(evaluated(overlap=7))["disjoint"]


@pytest.mark.parametrize("changes", [{"thresholds": "thresholds:late@0"}, {"training_set": "training_set:easy@abc"}])
def test_an_evaluation_under_other_thresholds_or_on_other_rows_is_none(changes):
    assert "model:late@2 has no evaluation under thresholds:late@1" in refused(evaluated(**changes))["evaluation"]


def test_the_newest_evaluation_that_fits_counts():
    worse = msgspec.structs.replace(EVALUATION, ref="evaluation:2", overlap=1)
    both = msgspec.structs.replace(FACTS, evaluations=(worse, EVALUATION))
    assert "disjoint" in refused(both)


def test_worse_than_the_champion_by_more_than_allowed_refuses_in_the_metrics_own_direction():
    worse = Comparison(champion="model:late@1", metrics={"log_loss": about(0.02)})
    better = Comparison(champion="model:late@1", metrics={"log_loss": about(-0.02)})
    assert "compare_to_champion" in refused(evaluated(comparison=worse))
    assert "compare_to_champion" not in refused(evaluated(comparison=better))


def test_a_comparison_with_a_former_champion_or_with_none_refuses():
    former = msgspec.structs.replace(FACTS, champion="model:late@9")
    assert "evaluate it again" in refused(former)["compare_to_champion"]
    impossible = Comparison(champion="model:late@1", metrics={}, note="The rows have no column 'x'.")
    assert "no column 'x'" in refused(evaluated(comparison=impossible))["compare_to_champion"]
    assert "compare_to_champion" not in refused(msgspec.structs.replace(FACTS, champion=""))


def test_an_export_that_was_not_compared_or_is_too_far_off_refuses():
    assert "equality" in refused(msgspec.structs.replace(FACTS, equality=None))
    far = Equality(rows=1000, largest_difference=1e-4)
    assert "equality" in refused(msgspec.structs.replace(FACTS, equality=far))


def test_without_thresholds_there_is_only_one_thing_to_say():
    checks = judge(None, msgspec.structs.replace(FACTS, thresholds=None))
    assert [(c.criterion, c.passed) for c in checks] == [("thresholds", False)]


def test_gates_yaml_is_read_with_its_defaults():
    rules = parse("metrics: {roc_auc: {at_least: 0.7}}")
    assert (rules.approvals, rules.not_author, rules.holdout, rules.threshold) == (1, True, "", 0.5)
    assert parse(TEXT).max_difference == 1e-5
    assert parse(TEXT).slice_rows == {"carrier": 500}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "gates.yaml"),
        ("- roc_auc", "gates.yaml"),
        ("approvals: {required: 1}", "metrics"),
        ("metrics: {f1: {at_least: 1}}", "metrics: f1"),
        ("metrics: {roc_auc: 0.7}", "metrics.roc_auc"),
        ("metrics: {roc_auc: {}}", "metrics.roc_auc"),
        ("metrics: {roc_auc: {at_least: high}}", "metrics.roc_auc.at_least"),
        ("metrics: {roc_auc: {at_least: .nan}}", "metrics.roc_auc.at_least"),
        ("metrics: {roc_auc: {at_least: true}}", "metrics.roc_auc.at_least"),
        ("metrics: {roc_auc: {at_least: 0.7, bound: both}}", "metrics.roc_auc.bound"),
        ("metrics: {roc_auc: {at_least: 0.7}}\nslices: {carrier: {min_rows: 5}}", "slices.carrier"),
        ("metrics: {roc_auc: {at_least: 0.7}}\nslices: {carrier: {min_rows: 0, roc_auc: {at_least: 0}}}", "min_rows"),
        ("metrics: {roc_auc: {at_least: 0.7}}\napprovals: {required: -1}", "approvals.required"),
        ("metrics: {roc_auc: {at_least: 0.7}}\napprovals: {not_author: 1}", "approvals.not_author"),
        ("metrics: {roc_auc: {at_least: 0.7}}\nholdout: 6", "holdout"),
        ("metrics: {roc_auc: {at_least: 0.7}}\nthreshold: 2", "threshold"),
        ("metrics: {roc_auc: {at_least: 0.7}}\ncompare_to_champion: {metric: f1}", "compare_to_champion.metric"),
        ("metrics: {roc_auc: {at_least: 0.7}}\nmetrics: {roc_auc: {at_least: 0.1}}", "metrics"),
        ("metrics: {roc_auc: {at_least: 0.7, at_least: 0.1}}", "at_least"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(text, path):
    with pytest.raises(InvalidInput) as error:
        parse(text)
    assert path in str(error.value.details["path"])
    assert error.value.next_step


def test_text_that_is_no_yaml_or_builds_objects_is_refused():
    for text in ("metrics: {", "metrics: !!python/object/apply:os.system ['true']"):
        with pytest.raises(InvalidInput, match="no YAML"):
            parse(text)
