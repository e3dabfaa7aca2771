"""Plans: what has to be done, and why. Pure: tables of values, no platform."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from macadam.data.types import Contract
from macadam.delivery.plan import compare
from macadam.delivery.project import Project, parse
from macadam.delivery.steps import REQUESTS, resolved
from macadam.delivery.types import Actual, Desired, EndpointState, From, ModelState, SourceState, Step
from macadam.errors import Conflict, SourceInvalid
from macadam.features.types import Materialisation, TrainingSet
from macadam.journal.types import JournalPolicy
from macadam.models.types import Code, Comparison, Evaluation, Hardware, ModelVersion, Run, Thresholds
from macadam.values import Money, digest_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
YAML = """
project: {name: p}
sources:
  a: {files: "raw/a-*.csv", contract: c/a.yaml}
features: features.py
models:
  m: {service: s, splits: {train: [2013-01-01, 2013-05-01], tune: [2013-05-01, 2013-06-01], holdout: [2013-06-01, 2013-07-01]}}
endpoints:
  e: {model: m}
"""
GATES = "metrics: {roc_auc: {at_least: 0.5}}"
COMPARING = GATES + "\ncompare_to_champion: {metric: roc_auc}"
VIEWS = "0123456789ab"
CODE = digest_of(b"code")


def desired(text: str = YAML, *, version: str = "1.0.0", files: tuple[str, ...] = ("raw/a-1.csv",)) -> Desired:
    document = parse(text)
    return Desired(
        project=Project(
            directory=Path("/p"),
            document=document,
            contracts={"a": "text"},
            gates=dict.fromkeys(document.models, GATES),
            files={"a": files},
        ),
        contracts={
            "a": Contract(id="a", version=version, status="active", api_version="v3.0.2", digest=digest_of(b"a"))
        },
        definitions={"services": []},
        views=VIEWS if document.features else "",
        tables={"s": ("a",)},
        code=CODE,
        files={"a": {name: digest_of(name.encode()) for name in files}},
    )


def training_set(split: str, start: tuple[int, int], end: tuple[int, int]) -> TrainingSet:
    return TrainingSet(
        ref=f"training_set:m-{split}@aaaaaaaaaaaa",
        project="p",
        name=f"m-{split}",
        service="s",
        views=f"views:p@{VIEWS}",
        digest=digest_of(b"x"),
        rows=1,
        unlabelled=0,
        start=datetime(2013, *start, tzinfo=UTC),
        end=datetime(2013, *end, tzinfo=UTC),
        snapshots=("table:a@1",),
        columns=(),
        seconds=0,
        at=NOW,
        by="principal:local",
    )


SETS = {
    "train": training_set("train", (1, 1), (5, 1)),
    "tune": training_set("tune", (5, 1), (6, 1)),
    "holdout": training_set("holdout", (6, 1), (7, 1)),
}
RUN = Run(
    ref="run:1",
    id="1",
    project="p",
    model="m",
    state="finished",
    entry="train.py:train",
    training_sets={split: SETS[split].ref for split in ("train", "tune")},
    snapshots=("table:a@1",),
    rows={},
    params={},
    seed=0,
    code=Code(archive=digest_of(b"tar"), files=1),
    environment=None,
    hardware=Hardware(cpu="x", cores=1, memory_bytes=1),
    metrics={},
    history="",
    artifact=digest_of(b"onnx"),
    artifact_bytes=1,
    signature=digest_of(b"s"),
    equality=None,
    seconds=1,
    cpu_seconds=1,
    peak_bytes=1,
    energy_joules=None,
    energy_note="",
    cost=Money(micros=1),
    author="principal:local",
    at=NOW,
)
VERSION = ModelVersion(
    ref="model:m@1",
    project="p",
    model="m",
    number=1,
    run="run:1",
    artifact=RUN.artifact,
    artifact_bytes=1,
    signature=RUN.signature,
    author="principal:local",
    trainer="principal:local",
    at=NOW,
)
THRESHOLDS = Thresholds(
    ref="thresholds:m@bbbbbbbbbbbb",
    project="p",
    model="m",
    digest=digest_of(b"gates"),
    text=GATES,
    author="principal:local",
    at=NOW,
)
EVALUATION = Evaluation(
    ref="evaluation:1",
    id="1",
    project="p",
    model="m",
    version=1,
    model_ref="model:m@1",
    thresholds=THRESHOLDS.ref,
    training_set=SETS["holdout"].ref,
    rows=1,
    positives=1,
    overlap=0,
    metrics={},
    slices=(),
    comparison=None,
    threshold=0.5,
    resamples=100,
    seed=0,
    seconds=1,
    author="principal:local",
    at=NOW,
)
ONLINE = Materialisation(
    ref="online:s",
    project="p",
    service="s",
    views=f"views:p@{VIEWS}",
    until=NOW,
    keys=1,
    rows=1,
    snapshots=("table:a@1",),
    seconds=0,
    at=NOW,
    by="principal:local",
)
SETTLED = Actual(
    exists=True,
    contracts={"contract:a@1.0.0": digest_of(b"a")},
    sources={
        "a": SourceState(
            directory="/p",
            path="raw/a-*.csv",
            format="csv",
            contract="contract:a@1.0.0",
            table="a",
            files={"raw/a-1.csv": digest_of(b"raw/a-1.csv")},
        )
    },
    snapshots={"a": "table:a@1"},
    views=VIEWS,
    training_sets=tuple(SETS.values()),
    models={
        "m": ModelState(
            runs=(RUN,),
            code={"run:1": CODE},
            versions=(VERSION,),
            thresholds=THRESHOLDS,
            evaluations=(EVALUATION,),
            aliases={"champion": 1},
        )
    },
    endpoints={"e": EndpointState(version="model:m@1")},
    online=(ONLINE,),
)


def keys(steps: tuple[Step, ...]) -> list[str]:
    return [step.key for step in steps]


def but(**changes: Any) -> Actual:
    return msgspec.structs.replace(SETTLED, **changes)


def model(**changes: Any) -> dict[str, ModelState]:
    return {"m": msgspec.structs.replace(SETTLED.models["m"], **changes)}


def test_where_all_is_as_asked_for_there_is_nothing_to_do() -> None:
    plan = compare(desired(), SETTLED)
    assert plan.nothing_to_do
    assert keys(plan.steps) == []


def test_a_fresh_home_gets_the_whole_road_in_order() -> None:
    plan = compare(desired(), Actual())
    assert keys(plan.steps) == [
        "project",
        "contract:a@1.0.0",
        "source:a",
        "ingest:a:raw/a-1.csv",
        "views",
        "training_set:train:m",
        "training_set:tune:m",
        "training_set:holdout:m",
        "run:m",
        "version:m",
        "thresholds:m",
        "evaluation:m",
        "gate:m",
        "alias:m",
        "online:s",
        "endpoint:e",
    ]
    assert all(step.why.endswith((".", ")")) and step.title for step in plan.steps)
    assert len({step.key for step in plan.steps}) == len(plan.steps)
    by_key = {step.key: step for step in plan.steps}
    assert by_key["contract:a@1.0.0"].why == "contract a 1.0.0 is new."
    assert "holdout" not in by_key["run:m"].arguments["training_sets"]  # never learned from
    assert [step.key for step in plan.steps if step.model] == ["alias:m", "endpoint:e"]


def test_every_step_is_a_request_that_its_type_accepts() -> None:
    outcome = {
        "training_set:train:m": {"ref": "training_set:m-train@aaaaaaaaaaaa"},
        "training_set:tune:m": {"ref": "training_set:m-tune@aaaaaaaaaaaa"},
        "training_set:holdout:m": {"ref": "training_set:m-holdout@aaaaaaaaaaaa"},
        "run:m": {"ref": "run:1"},
        "version:m": {"ref": "model:m@1", "number": 1},
    }
    plan = compare(desired(), Actual())
    stored = msgspec.json.decode(msgspec.json.encode(plan), type=type(plan))
    for step, kept in zip(plan.steps, stored.steps, strict=True):
        arguments = resolved(step, outcome, NOW)
        msgspec.convert(msgspec.to_builtins(arguments), REQUESTS[step.request])
        assert msgspec.to_builtins(arguments) == msgspec.to_builtins(resolved(kept, outcome, NOW))


def test_a_new_contract_version_says_which_one_is_registered() -> None:
    plan = compare(desired(version="1.1.0"), SETTLED)
    assert keys(plan.steps) == ["contract:a@1.1.0", "source:a"]
    assert plan.steps[0].why == "contract a 1.1.0 is new; 1.0.0 is registered."
    assert plan.steps[1].why == "its contract was contract:a@1.0.0."


def test_a_contract_changed_under_its_version_is_refused() -> None:
    with pytest.raises(Conflict, match=r"Contract a 1\.0\.0 was changed, but keeps its version"):
        compare(desired(), but(contracts={"contract:a@1.0.0": digest_of(b"other")}))


def test_a_source_without_files_is_refused_and_one_whose_files_were_taken_is_not():
    with pytest.raises(SourceInvalid, match=r"'a' finds no file: nothing in /p matches raw/a-\*\.csv") as told:
        compare(desired(files=()), Actual())
    assert "macadam.yaml" in told.value.next_step
    assert compare(desired(files=()), SETTLED).nothing_to_do


def test_a_new_file_is_ingested_and_what_is_built_on_its_table_is_built_anew() -> None:
    plan = compare(desired(files=("raw/a-1.csv", "raw/a-2.csv")), SETTLED)
    assert keys(plan.steps)[0] == "ingest:a:raw/a-2.csv"
    assert keys(plan.steps)[1:4] == ["training_set:train:m", "training_set:tune:m", "training_set:holdout:m"]
    assert "run:m" in keys(plan.steps)
    assert "online:s" in keys(plan.steps)
    assert plan.steps[1].why == "a has a newer snapshot than it was built from."


def test_a_file_with_bytes_that_were_taken_under_another_name_is_not_ingested_time_and_again() -> None:
    wanted = desired(files=("raw/a-1.csv", "raw/a-2.csv", "raw/a-3.csv"))
    again, new = wanted.files["a"]["raw/a-1.csv"], digest_of(b"new")
    files = {"a": {"raw/a-1.csv": again, "raw/a-1-copy.csv": again, "raw/a-2.csv": new, "raw/a-3.csv": new}}
    plan = compare(msgspec.structs.replace(wanted, files=files), SETTLED)
    assert [key for key in keys(plan.steps) if key.startswith("ingest")] == ["ingest:a:raw/a-2.csv"]
    del files["a"]["raw/a-2.csv"], files["a"]["raw/a-3.csv"]
    assert compare(msgspec.structs.replace(wanted, files=files), SETTLED).nothing_to_do


def test_a_file_that_was_changed_is_planned_so_that_ingesting_says_why_not() -> None:
    changed = {"a": {"raw/a-1.csv": digest_of(b"changed")}}
    plan = compare(msgspec.structs.replace(desired(), files=changed), SETTLED)
    assert plan.steps[0].why == "raw/a-1.csv has changed since it was ingested."


def test_what_the_files_no_longer_name_is_said_to_stay() -> None:
    more = but(
        sources={**SETTLED.sources, "old": SETTLED.sources["a"]},
        other_models=("former",),
        endpoints={**SETTLED.endpoints, "gone": EndpointState(version="model:former@3")},
    )
    plan = compare(desired(), more)
    assert plan.nothing_to_do
    assert plan.left == (
        "Source old is not in macadam.yaml: it stays, and so does its table a.",
        "Model former is not in macadam.yaml: its versions and aliases stay.",
        "Endpoint gone is not in macadam.yaml: it goes on answering with model:former@3.",
    )
    assert compare(desired(), SETTLED).left == ()


def test_an_endpoint_of_another_alias_follows_that_alias_and_no_gate_holds_it_back() -> None:
    wanted = desired(YAML.replace("e: {model: m}", "e: {model: m, alias: trial}"))
    two = model(aliases={"champion": 1, "trial": 2})
    assert compare(wanted, but(models=two, endpoints={"e": EndpointState(version="model:m@2")})).nothing_to_do
    plan = compare(wanted, but(models=two))
    assert [(step.key, step.model, step.arguments["version"]) for step in plan.steps] == [("endpoint:e", "", "trial")]


def test_changed_features_are_registered_and_rebuild_what_uses_them() -> None:
    plan = compare(desired(), but(views="ffffffffffff"))
    assert keys(plan.steps) == ["views"]  # the sets of this version are there already
    older = tuple(msgspec.structs.replace(s, views="views:p@ffffffffffff") for s in SETS.values())
    plan = compare(desired(), but(views="ffffffffffff", training_sets=older))
    assert keys(plan.steps)[:4] == ["views", "training_set:train:m", "training_set:tune:m", "training_set:holdout:m"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"code": {"run:1": digest_of(b"older")}}, "its code has changed."),
        ({"runs": (msgspec.structs.replace(RUN, seed=3),)}, "its parameters have changed."),
        ({"runs": (msgspec.structs.replace(RUN, training_sets={"train": "training_set:x@aaaaaaaaaaaa"}),)}, "its training sets have changed."),
        ({"runs": (msgspec.structs.replace(RUN, state="failed"),)}, "it was never trained."),
    ],
)  # fmt: skip
def test_a_model_is_trained_again_for_a_reason(change: dict[str, Any], why: str) -> None:
    plan = compare(desired(), but(models=model(**change)))
    assert keys(plan.steps) == ["run:m", "version:m", "evaluation:m", "gate:m", "alias:m", "endpoint:e"]
    assert plan.steps[0].why == why
    assert plan.steps[1].arguments["run"] == From(step="run:m")
    assert plan.steps[-1].why == "it serves model:m@1."


def test_changed_thresholds_are_declared_and_the_version_is_measured_again() -> None:
    plan = compare(
        desired(),
        but(models=model(thresholds=msgspec.structs.replace(THRESHOLDS, text="metrics: {roc_auc: {at_least: 0.4}}"))),
    )
    assert keys(plan.steps) == ["thresholds:m", "evaluation:m"]


def test_a_version_that_was_compared_with_a_former_champion_is_measured_again() -> None:
    asking = msgspec.structs.replace(THRESHOLDS, text=COMPARING)
    wanted = desired()
    wanted = msgspec.structs.replace(wanted, project=msgspec.structs.replace(wanted.project, gates={"m": COMPARING}))

    def steps(champion: int, *against: str) -> list[str]:
        found = tuple(
            msgspec.structs.replace(EVALUATION, comparison=Comparison(champion=ref, metrics={})) for ref in against
        )
        state = model(thresholds=asking, aliases={"champion": champion}, evaluations=found or (EVALUATION,))
        return keys(compare(wanted, but(models=state, endpoints={})).steps)

    assert steps(2) == ["evaluation:m", "gate:m", "alias:m", "endpoint:e"]
    assert steps(2, "model:m@3") == ["evaluation:m", "gate:m", "alias:m", "endpoint:e"]
    assert steps(2, "model:m@2") == ["gate:m", "alias:m", "endpoint:e"]
    assert "evaluation:m" in steps(2, "model:m@3", "model:m@2")  # the gate goes by the newest
    assert steps(1) == ["endpoint:e"]  # the champion is not compared with itself


def test_a_version_that_waits_for_approval_is_asked_about_again() -> None:
    plan = compare(desired(), but(models=model(aliases={}), endpoints={}))
    assert keys(plan.steps) == ["gate:m", "alias:m", "endpoint:e"]
    assert plan.steps[0].title == "Ask the gate about m version 1"
    assert plan.steps[0].why == "m has no champion yet."


def test_the_digest_of_what_is_asked_for_moves_with_all_of_it() -> None:
    one = desired()
    others = [
        desired(YAML.replace("service: s", "service: s, seed: 1")),
        desired(files=("raw/a-2.csv",)),
        msgspec.structs.replace(one, views="ffffffffffff"),
        msgspec.structs.replace(one, code=digest_of(b"other")),
    ]
    assert len({d.digest for d in (one, *others)}) == 5
    assert one.digest == desired().digest


def test_what_a_project_asks_of_its_journal_is_declared_once() -> None:
    asked = YAML.replace(
        "{name: p}", "{name: p, durability: answer-after-fsync, on_journal_failure: answer-unrecorded}"
    )
    steps = {step.key: step for step in compare(desired(asked), SETTLED).steps}
    assert steps["journal"].arguments["durability"] == "answer-after-fsync"
    assert "journal" not in keys(compare(desired(), SETTLED).steps)
    policy = JournalPolicy(durability="answer-after-fsync", on_journal_failure="answer-unrecorded")
    assert compare(desired(asked), but(journal=policy)).steps == compare(desired(), SETTLED).steps
