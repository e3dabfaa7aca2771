"""The road from a run to a champion, over a real platform and real processes."""

from pathlib import Path

import msgspec
import pytest
from unit.models import worlds

from macadam.access.types import CreatePrincipal, CreateProject, GrantRole, IssueToken
from macadam.app.platform import Platform
from macadam.errors import (
    Conflict,
    GateRefused,
    IntegrityError,
    InvalidInput,
    NotAuthorised,
    NotFound,
    UserCodeFailed,
)
from macadam.ledger import service as ledger
from macadam.models import capture, gate_service, service
from macadam.models.types import (
    Approve,
    CheckGate,
    DeclareThresholds,
    Evaluate,
    ListApprovals,
    ListEvaluations,
    ListModels,
    ListRuns,
    RegisterVersion,
    SetAlias,
    ShowEvaluation,
    ShowModel,
    ShowRun,
    ShowThresholds,
    ShowVersion,
    Train,
)
from macadam.settings import Settings

# Naming the rooms that are called: the platform would otherwise load all of them.
assert service.version
assert gate_service.PROTECTED

GATES = """
metrics: {roc_auc: {at_least: 0.7, bound: lower}}
slices: {carrier: {roc_auc: {at_least: 0.6}}}
equality: {max_difference: 0.00001}
compare_to_champion: {metric: roc_auc, not_worse_by: 0.2}
holdout: june
"""
WHERE = {"project": "flights", "model": "late"}


class World:
    """A platform in which ann trains, maria approves, and a good version stands evaluated."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.platform = Platform(Settings.load({}, home=place / "home"))
        self.platform.call(CreateProject(project="flights"))
        self.tokens = {"ann": self.person("ann", "developer"), "maria": self.person("maria", "approver")}
        splits = (("train", 1200), ("tune", 300), ("june", 900))
        tables = {s: worlds.rows(n, seed=i, start=i * 5000) for i, (s, n) in enumerate(splits)}
        self.refs = {split: worlds.plant(self.platform, split, table) for split, table in tables.items()}
        self.source("good", worlds.TRAIN)
        self.run = self.train("good")

    def person(self, name, role):
        self.platform.call(CreatePrincipal(principal=f"principal:{name}"))
        self.platform.call(GrantRole(project="flights", principal=f"principal:{name}", role=role))
        return self.platform.call(IssueToken(principal=f"principal:{name}")).token

    def source(self, name, text):
        (self.place / name).mkdir()
        (self.place / name / "train.py").write_text(text)
        return str(self.place / name)

    def call(self, request, who="ann"):
        return self.platform.call(request, token=self.tokens[who])

    def train(self, source, **more):
        sets = {split: self.refs[split] for split in ("train", "tune")}
        where = source if source.startswith("sha256:") else str(self.place / source)
        return self.call(Train(**WHERE, source=where, training_sets=sets, seed=3, **more))

    def leaves(self, **wanted):
        with self.platform.ports.sql.read() as sql:
            return [entry.leaf for entry in ledger.find(sql, project="flights", **wanted)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    opened = World(tmp_path_factory.mktemp("world"))
    yield opened
    opened.platform.close()


def test_a_run_records_all_that_is_needed_to_repeat_it(world):
    run = world.run
    assert run.state == "finished"
    assert run.rows == {"train": 1200, "tune": 300}
    assert run.metrics == {"loss": pytest.approx(1 / 3)}
    assert run.snapshots == ("table:flights@42",)
    assert run.author == "principal:ann"
    assert run.cpu_seconds > 0
    assert run.peak_bytes > 50_000_000
    assert run.cost.micros == round(run.cpu_seconds * 48_000 / 3600)
    assert run.energy_joules is not None or run.energy_note
    assert run.hardware.cores >= 1
    history = msgspec.json.decode(world.platform.ports.objects.get(run.history))
    assert [step for _, step, _ in history] == [0, 1, 2]
    lock = world.platform.ports.objects.get(run.environment.digest).decode()
    assert capture.environment(lock) == run.environment
    assert world.call(ShowRun(project="flights", run=run.ref)) == run
    assert run in world.call(ListRuns(project="flights", model="late"))


def test_a_runs_leaf_names_its_rows_snapshots_and_environment(world):
    (leaf,) = world.leaves(subject=world.run.ref)
    sets = [world.refs["train"], world.refs["tune"]]
    assert leaf.uses == [*sorted(sets), "table:flights@42", world.run.environment.ref]
    assert leaf.kind == "models.train"
    assert leaf.body["artifact"] == world.run.artifact
    assert leaf.body["seed"] == 3
    assert leaf.body["cost_micros"] == world.run.cost.micros
    (environment,) = world.leaves(subject=world.run.environment.ref)
    assert environment.body["digest"] == world.run.environment.digest


def test_an_archived_run_trains_again_to_the_same_bytes(world):
    again = world.train(world.run.code.archive)
    assert again.artifact == world.run.artifact
    assert again.code.archive == world.run.code.archive
    assert len(world.leaves(subject=world.run.environment.ref)) == 1


def test_the_code_of_another_projects_run_is_not_found(world):
    world.platform.call(CreateProject(project="rivals"))
    world.platform.call(GrantRole(project="rivals", principal="principal:ann", role="developer"))
    theirs = worlds.plant(world.platform, "theirs", worlds.rows(50, seed=9), project="rivals")
    with pytest.raises(NotFound, match="no run with the code"):
        world.call(
            Train(project="rivals", model="late", source=world.run.code.archive, training_sets={"train": theirs})
        )


def test_code_that_raises_is_a_recorded_failed_run_and_nothing_else(world):
    before = world.call(ListModels(project="flights"))
    world.source("raises", "def train(run):\n    run.log_metric('seen', 1)\n    1 / 0\n")
    with pytest.raises(UserCodeFailed, match="ZeroDivisionError") as error:
        world.train("raises")
    assert 'File "train.py", line 3, in train\n    1 / 0' in str(error.value.details["traceback"])
    failed = world.call(ShowRun(project="flights", run=str(error.value.details["run"])))
    assert (failed.state, failed.artifact, failed.metrics) == ("failed", "", {"seen": 1.0})
    (leaf,) = world.leaves(subject=failed.ref)
    assert leaf.body["state"] == "failed"
    with pytest.raises(InvalidInput, match="has no model: ZeroDivisionError"):
        world.call(RegisterVersion(**WHERE, run=failed.ref))
    assert world.call(ListModels(project="flights")) == before
    assert not list((world.place / "home" / "work").glob("run-*"))


def test_a_process_that_is_killed_is_a_failed_run_that_says_so(world):
    world.source("killed", "import os, signal\ndef train(run):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(UserCodeFailed, match="killed by signal 9"):
        world.train("killed")


def test_training_beyond_its_timeout_is_a_failed_run_that_says_so(world):
    world.source("slow", "import time\ndef train(run):\n    time.sleep(60)\n")
    with pytest.raises(UserCodeFailed, match=r"longer than its timeout of 3 s"):
        world.train("slow", timeout=3)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"training_sets": {"tune": "training_set:tune@1"}}, InvalidInput, "'train' is missing"),
        ({"training_sets": {"train": "training_set:none@1"}}, NotFound, "no training set 'training_set:none@1'"),
        ({"source": "relative/path"}, InvalidInput, "not an absolute path"),
        ({"source": "/nowhere/at/all"}, InvalidInput, "no project directory"),
        ({"source": "sha256:" + "0" * 64}, NotFound, "no run with the code"),
    ],
)
def test_a_request_that_cannot_be_run_leaves_no_run(world, changes, error, said):
    runs = len(world.call(ListRuns(project="flights")))
    good = {"source": str(world.place / "good"), "training_sets": {"train": world.refs["train"]}}
    with pytest.raises(error, match=said):
        world.call(Train(**WHERE, **{**good, **changes}))
    assert len(world.call(ListRuns(project="flights"))) == runs


@pytest.fixture(scope="module")
def version(world):
    """Version 1, registered by ann and evaluated on June."""
    with pytest.raises(NotFound, match="No thresholds are declared"):
        world.call(ShowThresholds(**WHERE))
    registered = world.call(RegisterVersion(**WHERE, run=world.run.ref))
    with pytest.raises(Conflict, match="No thresholds are declared"):
        world.call(Evaluate(**WHERE, version="1", training_set=world.refs["june"]))
    early = world.call(CheckGate(**WHERE, version="1"))
    assert early.reasons == ("no thresholds are declared for late: declare gates.yaml",)
    declared = world.call(DeclareThresholds(**WHERE, text=GATES))
    assert world.call(DeclareThresholds(**WHERE, text=GATES)) == declared
    assert world.call(ShowThresholds(**WHERE)) == declared
    world.evaluation = world.call(Evaluate(**WHERE, version="1", training_set=world.refs["june"], resamples=100))
    return registered


def test_a_version_is_numbered_and_names_its_run(world, version):
    assert version.ref == "model:late@1"
    assert (version.run, version.artifact, version.author) == (world.run.ref, world.run.artifact, "principal:ann")
    (leaf,) = world.leaves(subject="model:late@1")
    (announced,) = world.leaves(subject=f"signing_key:{leaf.body['signing_key']}")
    assert leaf.uses == [world.run.ref, announced.subject]
    assert leaf.body["artifact"] == version.artifact
    assert (leaf.body["model_signature"], leaf.body["provenance"]) == (version.model_signature, version.provenance)
    with pytest.raises(Conflict, match="registered already, as model:late@1"):
        world.call(RegisterVersion(**WHERE, run=world.run.ref))
    with pytest.raises(InvalidInput, match="trained the model 'late', not 'other'"):
        world.call(RegisterVersion(project="flights", model="other", run=world.run.ref))
    for unknown in ("9", "challenger"):
        with pytest.raises(NotFound):
            world.call(ShowVersion(**WHERE, version=unknown))


def test_an_evaluation_has_intervals_slices_and_the_rows_it_shares_with_training(world, version):
    found = world.evaluation
    assert (found.rows, found.overlap, found.comparison) == (900, 0, None)
    assert found.metrics["roc_auc"].low <= found.metrics["roc_auc"].value <= found.metrics["roc_auc"].high
    assert {s.value for s in found.slices} == {"AA", "B6", "UA"}
    assert sum(s.rows for s in found.slices) == 900
    (leaf,) = world.leaves(subject=found.ref)
    assert leaf.uses == [version.ref, found.thresholds, world.refs["june"]]
    report = msgspec.json.decode(world.platform.ports.objects.get(str(leaf.body["report"])))
    assert report["id"] == found.id
    assert world.call(ShowEvaluation(project="flights", evaluation=found.ref)) == found
    seen = world.call(Evaluate(**WHERE, version="1", training_set=world.refs["tune"], resamples=100))
    assert seen.overlap == seen.rows == 300
    assert world.call(ListEvaluations(**WHERE, limit=2)) == (seen, found)


def test_champion_moves_only_with_an_approval_by_someone_else_and_every_refusal_is_evidence(world, version):
    waiting = world.call(CheckGate(**WHERE, version="1"))
    assert (waiting.verdict, waiting.measures_pass, len(waiting.reasons)) == ("refused", True, 1)
    with pytest.raises(GateRefused, match="not approved") as refused:
        world.call(SetAlias(**WHERE, alias="champion", version="1"))
    assert refused.value.details["reasons"] == list(waiting.reasons)
    assert "gates approve" in refused.value.next_step
    assert world.call(ShowModel(**WHERE)).model.aliases == {}
    (denied,) = world.leaves(kind="models.set_alias", outcome="denied")
    assert denied.actor == "principal:ann"
    assert denied.body["details"]["checks"][0]["criterion"] == "approvals"

    with pytest.raises(NotAuthorised):
        world.call(Approve(**WHERE, version="1"))
    with pytest.raises(NotAuthorised):
        world.call(SetAlias(**WHERE, alias="champion", version="1"), "maria")
    approval = world.call(Approve(**WHERE, version="1", note="looks right"), "maria")
    assert approval.artifact == version.artifact
    with pytest.raises(Conflict, match="has approved model:late@1 already"):
        world.call(Approve(**WHERE, version="1"), "maria")
    assert world.call(ListApprovals(**WHERE, version="1")) == (approval,)

    alias = world.call(SetAlias(**WHERE, alias="champion", version="1"))
    assert (alias.version, alias.previous, alias.approvals) == (1, 0, (approval.ref,))
    (gate,) = world.leaves(subject=alias.gate)
    assert gate.body["verdict"] == "pass"
    assert gate.uses == [world.evaluation.ref, world.evaluation.thresholds, version.ref]
    (moved,) = world.leaves(subject="alias:late@champion")
    assert moved.uses == [version.ref, alias.gate, approval.ref]
    assert world.call(ShowVersion(**WHERE, version="champion")).aliases == ("champion",)


def test_who_registered_a_version_cannot_approve_it_even_as_an_administrator(world, version):
    local = world.platform.call(RegisterVersion(**WHERE, run=world.train("good").ref))
    with pytest.raises(GateRefused, match="principal:local registered model:late@2"):
        world.platform.call(Approve(**WHERE, version=str(local.number)))
    assert any(leaf.actor == "principal:local" for leaf in world.leaves(kind="models.approve", outcome="denied"))
    assert world.call(ListApprovals(**WHERE, version=str(local.number))) == ()


def test_a_bad_version_is_refused_with_the_reasons_and_the_champion_stays(world, version):
    world.source("bad", worlds.TRAIN.replace("model.fit(data.X, data.y)", "model.fit(data.X, 1 - data.y)"))
    bad = world.call(RegisterVersion(**WHERE, run=world.train("bad").ref))
    number = str(bad.number)
    found = world.call(Evaluate(**WHERE, version=number, training_set=world.refs["june"], resamples=100))
    assert found.comparison is None or found.comparison.champion == "model:late@1"
    world.call(Approve(**WHERE, version=number), "maria")
    with pytest.raises(GateRefused, match=r"roc_auc must be at least 0\.7"):
        world.call(SetAlias(**WHERE, alias="champion", version=number))
    criteria = {check.criterion for check in world.call(CheckGate(**WHERE, version=number)).checks if not check.passed}
    assert {"metrics.roc_auc", "slices.carrier.AA.roc_auc"} <= criteria
    moved = world.call(SetAlias(**WHERE, alias="worst", version=number))
    assert (moved.gate, moved.version) == ("", bad.number)


def test_an_artifact_that_was_changed_on_disk_is_never_loaded(world, version):
    path = world.place / "home" / "objects" / "sha256" / version.artifact[7:9] / version.artifact[9:]
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    try:
        with pytest.raises(IntegrityError, match="no longer has the bytes"):
            world.call(Evaluate(**WHERE, version="1", training_set=world.refs["june"]))
    finally:
        path.write_bytes(good)
