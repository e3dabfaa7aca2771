"""macadam.yaml: read strictly, refused in words."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from macadam.delivery import project
from macadam.errors import InvalidInput, NotFound

WHOLE = """
project: {name: flights, owner: principal:local, description: Late flights, risk: limited}
sources:
  flights: {files: "raw/flights/2013-*.csv", contract: contracts/flights.yaml, through: 2013-06}
  planes: {files: raw/planes.csv, contract: contracts/planes.yaml, table: aircraft}
features: features.py
models:
  delay-risk:
    service: delay_risk
    splits:
      train: [2013-01-01, 2013-05-01]
      tune: [2013-05-01, 2013-06-01]
      holdout: ["2013-06-01T00:00:00Z", "2013-07-01T00:00:00+02:00"]
    params: {learning_rate: 0.05, max_iter: 400, early: true, loss: no}
    seed: 7
endpoints:
  delay: {model: delay-risk}
"""


def test_a_whole_document_is_read_with_its_defaults() -> None:
    document = project.parse(WHOLE)
    model = document.models["delay-risk"]
    assert (model.train, model.gates, model.alias) == ("train.py:train", "gates.yaml", "champion")
    assert model.params == {"learning_rate": 0.05, "max_iter": 400, "early": True, "loss": "no"}
    assert document.endpoints["delay"].alias == "champion"
    windows = model.splits.windows()
    assert windows["train"] == (datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 5, 1, tzinfo=UTC))
    assert windows["holdout"][1] == datetime(2013, 6, 30, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("old", "new", "told", "next_step"),
    [
        ("owner:", "ownr:", "unknown key 'ownr' at project", "Did you mean 'owner'"),
        ("features:", "feature:", "unknown key 'feature' at the top level", "Did you mean 'features'"),
        ("through:", "thru:", r"unknown key 'thru' at sources\.\*", "Did you mean 'through'"),
        ("seed:", "zzz:", r"unknown key 'zzz' at models\.\*", "Known there: train, service"),
        ("tune:", "tunes:", r"unknown key 'tunes' at models\.\*\.splits", "Did you mean 'tune'"),
        ("seed: 7", "seed: -1", r"does not fit: .*`models\.\*\.seed`", "Correct macadam.yaml"),
        ("seed: 7", "seed: seven", "Expected `int`, got `str`", ""),
        ("name: flights,", "name: Flights!,", "matching regex", ""),
        ("{model: delay-risk}", "{model: delay-rsk}", "which is not among its models", "Did you mean 'delay-risk'"),
        ("2013-05-01, 2013-06-01", "2013-04-01, 2013-06-01", "train and tune overlap", "Let each split start"),
        ("2013-01-01, 2013-05-01", "2013-05-01, 2013-05-01", "split train is empty", ""),
        ("2013-01-01, 2013-05-01", "01/01/2013, 2013-05-01", "'01/01/2013', which is no date", ""),
        ("2013-01-01, 2013-05-01", "2013-01-01T00:00:00, 2013-05-01", "which is no date", "2013-01-31T06:00:00Z"),
        ("table: aircraft", "table: flights", "'flights' and 'planes' both fill table 'flights'", ""),
        ("features: features.py", "", "has models but no features", ""),
        ("raw/planes.csv", "/raw/planes.csv", "matching regex", ""),
        ("raw/planes.csv", "raw/../../planes.csv", "matching regex", ""),
        ("train: [", "train: {[", "not valid YAML at line", "Correct macadam.yaml"),
        ("seed: 7", "seed: 7\n    seed: 8", "'seed' is there twice", ""),
        ("seed: 7", "seed: !!python/name:os.system x", "not valid YAML", ""),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place_and_the_next_step(
    old: str, new: str, told: str, next_step: str
) -> None:
    assert old in WHOLE
    with pytest.raises(InvalidInput, match=told) as refused:
        project.parse(WHOLE.replace(old, new, 1))
    assert next_step in refused.value.next_step


@pytest.mark.parametrize("text", ["", "[]", "just words", "3"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="does not fit"):
        project.parse(text)


def write(directory: Path) -> None:
    for name, text in {
        "macadam.yaml": WHOLE,
        "contracts/flights.yaml": "id: flights",
        "contracts/planes.yaml": "id: planes",
        "gates.yaml": "metrics: {}",
        "raw/planes.csv": "",
        **{f"raw/flights/2013-{month:02}.csv": "" for month in range(1, 9)},
    }.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def test_a_directory_is_read_with_the_texts_and_files_it_names(tmp_path: Path) -> None:
    write(tmp_path)
    found = project.read(tmp_path)
    assert found.name == "flights"
    assert found.contracts == {"flights": "id: flights", "planes": "id: planes"}
    assert found.gates == {"delay-risk": "metrics: {}"}
    assert found.files["flights"] == tuple(f"raw/flights/2013-{month:02}.csv" for month in range(1, 7))
    assert found.files["planes"] == ("raw/planes.csv",)
    assert found.table("planes") == "aircraft"


@pytest.mark.parametrize(
    ("through", "last"),
    [
        ("2013-06", "f-2013-06-30.csv"),
        ("2013-06-15", "f-2013-06-15.csv"),
        ("f-2013-06-14.csv", "f-2013-06-14.csv"),
        ("", "f-2013-07-01.csv"),
    ],
)
def test_a_bound_is_a_date_in_the_name_or_a_name(tmp_path: Path, through: str, last: str) -> None:
    for day in ("06-14", "06-15", "06-30", "07-01"):
        (tmp_path / f"f-2013-{day}.csv").write_text("")
    source = project.SourceSection(files="f-*.csv", contract="c.yaml", through=through)
    assert project._files(tmp_path, source)[-1] == last


@pytest.mark.parametrize("missing", ["macadam.yaml", "contracts/planes.yaml", "gates.yaml"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(NotFound, match=missing):
        project.read(tmp_path)


def test_the_example_project_is_read() -> None:
    example = Path(__file__).parents[3] / "examples" / "flights" / "macadam.yaml"
    assert project.parse(example.read_text()).project.name == "flights"
