import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from unit.models import worlds

from macadam.errors import InvalidInput
from macadam.models import artifact, export
from macadam.models.signature import Input, Output, Signature, from_bytes, to_bytes
from macadam.models.training import TrainingRun


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("rows")
    splits = {"train": worlds.rows(800, seed=0), "tune": worlds.rows(300, seed=1, start=800)}
    for name, table in splits.items():
        (place / f"{name}.parquet").write_bytes(worlds.parquet(table))
    return {name: place / f"{name}.parquet" for name in splits}


@pytest.fixture
def run(files):
    return TrainingRun(files=files, params={}, seed=1)


def fitted(run, estimator):
    data = run.data("train")
    return estimator.fit(data.X, data.y)


def test_a_split_is_float32_with_labels_keys_and_times(run):
    data = run.data("tune")
    assert data.X.dtype == np.float32
    assert data.X.shape == (300, 3)
    assert data.columns == ("distance", "carrier", "noise")
    assert data.keys == ("_flight",)
    assert data.times.dtype == "datetime64[us]"
    assert set(data.y) == {0, 1}
    with pytest.raises(InvalidInput, match="no split 'june'"):
        run.data("june")


def test_categories_are_learned_from_the_train_split_alone(files, tmp_path):
    later = worlds.rows(50, seed=3, start=5000)
    position = later.column_names.index("carrier")
    later = later.set_column(position, "carrier", [["ZZ"] * 50])
    (tmp_path / "tune.parquet").write_bytes(worlds.parquet(later))
    run = TrainingRun(files={**files, "tune": tmp_path / "tune.parquet"}, params={}, seed=0)
    assert run.signature.inputs[1].categories == ("AA", "B6", "UA")
    assert np.isnan(run.data("tune").X[:, 1]).all()


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingClassifier(max_iter=20),
        make_pipeline(SimpleImputer(), LogisticRegression()),
        make_pipeline(SimpleImputer(), RandomForestClassifier(n_estimators=5, max_depth=4, random_state=0)),
        make_pipeline(SimpleImputer(), GradientBoostingClassifier(n_estimators=5, random_state=0)),
        make_pipeline(SimpleImputer(), LinearRegression()),
    ],
    ids=["hist", "logistic", "forest", "boosting", "linear"],
)
def test_an_estimator_and_its_export_give_the_same_answers(run, estimator):
    equality = run.save_sklearn(fitted(run, estimator))
    assert equality.rows == 1000
    assert equality.largest_difference <= 1e-5
    artifact.check(run.model, run.signature)
    assert from_bytes(to_bytes(run.signature)) == run.signature
    assert (run.signature.service, run.signature.label) == ("delay", "late")


@settings(deadline=None, max_examples=300)
@given(
    st.floats(allow_nan=False, allow_infinity=False, width=64),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
def test_rounding_a_threshold_down_never_changes_a_float32s_branch(threshold, x):
    assert (np.float32(x) <= np.float32(export.rounded_down(threshold))) == (x <= threshold)


def test_a_threshold_between_two_neighbouring_float32_values_survives_the_export():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    x = np.array([[low], [high]] * 50, dtype=np.float32)
    y = np.array([0, 1] * 50)
    model = HistGradientBoostingClassifier(max_iter=30, min_samples_leaf=1).fit(x, y)
    data, output = export.to_onnx(model, 1)
    signature = Signature(inputs=(Input(name="x", kind="number"),), outputs=(output,))
    exported = artifact.predict(artifact.session(data), signature, x[:2])
    assert exported == pytest.approx(model.predict_proba(x[:2])[:, 1], abs=1e-5)
    assert exported[1] - exported[0] > 0.5


def test_an_export_that_answers_otherwise_is_refused_with_the_largest_difference(run):
    model = fitted(run, HistGradientBoostingClassifier(max_iter=5))
    data, output = export.to_onnx(model, 3)
    with pytest.raises(InvalidInput, match=r"by up to 0\.\d+ .* in 1000 of 1000 rows") as error:
        run.save_onnx(
            data, predict=lambda x: model.predict_proba(x)[:, 1] + 0.25, tensor=output.tensor, column=output.column
        )
    assert error.value.details["largest_difference"] == pytest.approx(0.25, abs=1e-3)
    assert run.model == b""


def test_own_onnx_is_kept_when_it_equals_the_python_model(run):
    model = fitted(run, HistGradientBoostingClassifier(max_iter=5))
    data, output = export.to_onnx(model, 3)
    run.save_onnx(data, predict=lambda x: model.predict_proba(x)[:, 1], column=1)
    assert run.signature.outputs == (Output(name="probability", kind="probability", tensor=output.tensor, column=1),)


def test_what_does_not_export_is_refused_with_the_reason(run):
    class Own(HistGradientBoostingClassifier):
        pass

    own = fitted(run, Own(max_iter=2))
    with pytest.raises(InvalidInput, match="Own cannot be exported to ONNX"):
        run.save_sklearn(own)
    data = run.data("train")
    three = HistGradientBoostingClassifier(max_iter=2).fit(data.X, np.arange(len(data.y)) % 3)
    with pytest.raises(InvalidInput, match="3 classes"):
        run.save_sklearn(three)
    with pytest.raises(InvalidInput, match="is no ONNX model"):
        run.save_onnx(three, predict=three.predict)


@pytest.mark.parametrize("data", [b"\x80\x04\x95pickled", b"PK\x03\x04zip", b"not a model", b""])
def test_bytes_that_are_no_onnx_are_refused(run, data):
    with pytest.raises(InvalidInput):
        run.save_onnx(data, predict=lambda x: x[:, 0])


def test_a_model_of_another_width_or_without_the_output_is_refused(run):
    model = fitted(run, HistGradientBoostingClassifier(max_iter=2))
    data, output = export.to_onnx(model, 3)
    with pytest.raises(InvalidInput, match="takes 3 columns, expected float32 with 1"):
        artifact.check(data, Signature(inputs=(Input(name="a", kind="number"),), outputs=(output,)))
    with pytest.raises(InvalidInput, match="expected \\['other'\\]"):
        run.save_onnx(data, predict=lambda x: x[:, 0], tensor="other")


def test_metrics_keep_every_step_and_refuse_what_is_no_number(run):
    run.log_metric("loss", 1, 0)
    run.log_metric("loss", np.float32(0.5), 1)
    assert run.metrics == {"loss": 0.5}
    assert run.history == [("loss", 0, 1.0), ("loss", 1, 0.5)]
    for name, value in (("loss", float("nan")), ("a b", 1.0)):
        with pytest.raises(InvalidInput):
            run.log_metric(name, value)


def test_the_comparison_sees_the_rows_as_they_are_whatever_the_code_did_to_its_own(run):
    model = fitted(run, HistGradientBoostingClassifier(max_iter=5))
    data, _ = export.to_onnx(model, 3)
    for split in run.splits:
        run.data(split).X[:] = np.nan
    seen = []
    run.save_onnx(data, predict=lambda x: seen.append(x) or model.predict_proba(x)[:, 1], column=1)
    assert np.isfinite(seen[0][:, 2]).all()
