import sys

import pytest
from unit.models import worlds

from macadam.models import worker
from macadam.models.worker import Task


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Runs a train.py in this process; what the worker changes is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "train", raising=False)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    rows = tmp_path / "train.parquet"
    rows.write_bytes(worlds.parquet(worlds.rows(200, seed=0)))

    def run(text, *, entry="train.py:train", params=None):
        (source / "train.py").write_text(text)
        task = Task(
            source=str(source), entry=entry, files={"train": str(rows)}, params=params or {}, seed=3, out=str(out)
        )
        try:
            return worker.run(task)
        finally:
            sys.modules.pop("train", None)

    return run


def test_a_good_run_leaves_a_model_a_signature_and_its_metrics(attempt, tmp_path):
    outcome = attempt(worlds.TRAIN, params={"trees": 2})
    assert (outcome.state, outcome.error, outcome.rows) == ("finished", "", {"train": 200})
    assert outcome.history[-1] == ("loss", 2, pytest.approx(1 / 3))
    assert outcome.equality.rows == 200
    assert "numpy==" in outcome.lock
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [worker.MODEL, worker.SIGNATURE]


def test_the_same_seed_gives_the_same_bytes(attempt, tmp_path):
    attempt(worlds.TRAIN)
    first = (tmp_path / "out" / worker.MODEL).read_bytes()
    attempt(worlds.TRAIN)
    assert (tmp_path / "out" / worker.MODEL).read_bytes() == first


def test_a_traceback_shows_the_users_frames_and_no_others(attempt):
    outcome = attempt(
        "import json\n\ndef deep():\n    json.loads('{')\n\n"
        "def train(run):\n    run.log_metric('before', 1)\n    deep()\n"
    )
    assert outcome.state == "failed"
    assert outcome.error.startswith("json.decoder.JSONDecodeError")
    assert outcome.history == (("before", 0, 1.0),)
    assert 'File "train.py", line 8, in train' in outcome.traceback
    assert "json.loads('{')" in outcome.traceback
    assert "decoder.py" not in outcome.traceback


@pytest.mark.parametrize(
    ("text", "entry", "said"),
    [
        ("def train(run): pass", "train.py:train", "without saving a model"),
        ("def other(run): pass", "train.py:train", "has no function 'train'"),
        ("train = 3", "train.py:train", "has no function 'train'"),
        ("", "model.py:train", "has no file 'model.py'; its Python files: train.py"),
        ("def train(run:\n", "train.py:train", "SyntaxError"),
        ("import nowhere_to_be_found", "train.py:train", "No module named 'nowhere_to_be_found'"),
        ("import sys\ndef train(run): sys.exit(4)", "train.py:train", "sys.exit(4)"),
        ("def train(run): run.data('june')", "train.py:train", "no split 'june'"),
        ("def train(run): run.log_metric('x', float('inf'))", "train.py:train", "metric 'x' is inf"),
        ("def train(run): run.save_sklearn(3)", "train.py:train", "int is no scikit-learn estimator"),
    ],
)
def test_every_way_to_fail_is_an_outcome_in_words(attempt, text, entry, said):
    outcome = attempt(text, entry=entry)
    assert outcome.state == "failed"
    assert said in outcome.error
    assert outcome.lock
