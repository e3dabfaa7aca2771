"""What is planned for a project's policies. Pure: tables of values, no platform."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from macadam.access.policies import PolicyText, built_in
from macadam.access.policy_types import PolicyVersion, State
from macadam.delivery import policy_files
from macadam.delivery.plan import compare
from macadam.delivery.project import Project, parse, read
from macadam.delivery.steps import REQUESTS, resolved
from macadam.delivery.types import Actual, Desired, EndpointState, ModelState, Plan
from macadam.errors import InvalidInput

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CARE = '@id("care") forbid (principal, action == Action::"predictions:create", resource);\n'
FILES = {"policies/care.cedar": CARE}
OTHER = {"policies/care.cedar": CARE.replace("care", "other")}
PLATFORM: PolicyText = built_in()


def desired(files: dict[str, str], text: str = "project: {name: p}") -> Desired:
    project = Project(
        directory=Path("/p"), document=parse(text), contracts={}, gates={}, files={}, policies=files, policy_tables={}
    )
    return Desired(
        project=project,
        contracts={},
        definitions={},
        views="",
        tables={},
        code="",
        files={},
        policies=policy_files.reference("p", files),
    )


def version(number: int, state: State, files: dict[str, str] = FILES, *, counted: int = 0) -> PolicyVersion:
    return PolicyVersion(
        ref=policy_files.reference("p", files),
        project="p",
        version=number,
        state=state,
        policies=(),
        approvals=(),
        counted=counted,
        needed=1,
        note="",
        proposed=NOW,
        proposed_by="principal:dev",
    )


def planned(files: dict[str, str], *versions: PolicyVersion) -> Plan:
    """versions: newest first."""
    return compare(desired(files), Actual(exists=True, policies=versions))


def keys(plan: Plan) -> list[str]:
    return [step.key for step in plan.steps]


def test_a_project_without_policies_has_no_step_for_them() -> None:
    assert planned({}).nothing_to_do
    assert planned({}).left == ()


def test_policies_that_nobody_proposed_are_proposed_looked_at_and_activated() -> None:
    for versions in ((), (version(1, "active", OTHER),), (version(1, "proposed", OTHER),)):
        plan = planned(FILES, *versions)
        assert keys(plan) == ["policies:proposal", "policies:approval", "policies:in-force"]
        assert plan.steps[0].arguments == {"project": "p", "files": FILES}
        assert [step.under_policies for step in plan.steps] == [False, False, True]
    assert planned(FILES, version(1, "active", OTHER)).steps[0].why == "they differ from version 1, which is in force."


def test_what_was_proposed_is_not_proposed_again_and_the_plan_says_what_it_waits_for() -> None:
    plan = planned(FILES, version(2, "proposed"), version(1, "active", OTHER))
    assert keys(plan) == ["policies:approval", "policies:in-force"]
    assert plan.steps[0].why == (
        "it waits for approval (0 of 1 approvals): somebody else than principal:dev runs `macadam policy approve 2`."
    )
    assert plan.steps[1].arguments == {"project": "p", "version": 2, "instead_of": 1}


def test_an_approved_proposal_goes_before_a_newer_one_of_the_same_text() -> None:
    plan = planned(FILES, version(3, "proposed"), version(2, "proposed", OTHER), version(1, "approved", counted=1))
    assert plan.steps[-1].arguments["version"] == 1


def test_what_is_in_force_needs_nothing() -> None:
    assert planned(FILES, version(1, "active")).nothing_to_do


def test_an_approval_from_before_the_policies_in_force_does_not_bring_the_old_text_back() -> None:
    plan = planned(FILES, version(2, "active", OTHER), version(1, "approved", counted=1))
    assert keys(plan)[0] == "policies:proposal"
    plan = planned(FILES, version(2, "active", OTHER), version(1, "superseded"))
    assert keys(plan)[0] == "policies:proposal"


def test_what_somebody_rolled_back_stays_rolled_back_and_is_said() -> None:
    for older in ((version(1, "active", OTHER),), ()):  # to an older version, to none
        plan = planned(FILES, version(2, "superseded"), *older)
        assert plan.nothing_to_do
        assert any("which was taken out of force" in note and "policy activate 2" in note for note in plan.left)
    assert keys(planned(FILES, version(3, "proposed"), version(2, "superseded", OTHER)))[0] == "policies:approval"


def test_removing_the_files_drops_nothing_and_says_so() -> None:
    plan = planned({}, version(2, "proposed", OTHER), version(1, "active"))
    assert plan.nothing_to_do
    in_force = "There is no policies/*.cedar: version 1 of the policies stays in force."
    assert plan.left == (
        f"{in_force} To take it out of force: `macadam policy rollback --to 0`.",
        "Version 2 of the policies, proposed by principal:dev, is not in policies/: it stays proposed.",
    )


def test_an_endpoint_opens_only_under_the_policies_and_one_that_answers_goes_on() -> None:
    text = """
project: {name: p}
features: features.py
models: {m: {service: s, splits: {train: [2013-01-01, 2013-05-01]}}}
endpoints: {e: {model: m, alias: trial}}
"""
    wanted = desired(FILES, text)
    project = msgspec.structs.replace(wanted.project, gates={"m": "metrics: {roc_auc: {at_least: 0.5}}"})
    wanted = msgspec.structs.replace(wanted, project=project, tables={"s": ()})
    actual = Actual(exists=True, models={"m": ModelState(aliases={"trial": 2})})
    deploys = {step.key: step for step in compare(wanted, actual).steps}
    assert deploys["endpoint:e"].under_policies
    answering = msgspec.structs.replace(actual, endpoints={"e": EndpointState(version="model:m@1")})
    assert not {s.key: s for s in compare(wanted, answering).steps}["endpoint:e"].under_policies
    settled = msgspec.structs.replace(actual, policies=(version(1, "active"),))
    assert not {s.key: s for s in compare(wanted, settled).steps}["endpoint:e"].under_policies


def test_each_step_is_a_request_that_its_type_accepts() -> None:
    plan = planned(FILES)
    stored = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    for step in stored.steps:
        arguments = resolved(step, {"policies:proposal": {"version": 7}}, NOW)
        made = msgspec.convert(arguments, REQUESTS[step.request])
        assert step.request == "ProposePolicies" or getattr(made, "version") == 7  # noqa: B009 - of two types


def test_other_policies_are_another_wish_so_that_a_killed_apply_is_not_carried_on_for_them() -> None:
    assert len({desired(files).digest for files in ({}, FILES, OTHER)}) == 3


# --- the files


def written(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "macadam.yaml").write_text("project: {name: p}")
    for name, text in files.items():
        (tmp_path / "policies" / name.replace("_", ".")).write_text(text)
    return tmp_path


def refused(directory: Path) -> InvalidInput:
    project = read(directory)
    with pytest.raises(InvalidInput) as told:
        policy_files.require_sound("p", project.policies, project.policy_tables, PLATFORM)
    return told.value


def test_the_folder_is_read_as_propose_reads_it_without_tables_and_hidden_files(tmp_path: Path) -> None:
    place = written(tmp_path, care_cedar=CARE, test_yaml="- {}", README_md="why")
    (place / "policies" / ".draft.cedar").write_text("nonsense")
    (place / "policies" / "more").mkdir()
    (place / "policies" / "more" / "b.cedar").write_text(CARE.replace("care", "b"))
    project = read(place)
    assert set(project.policies) == {"policies/care.cedar", "policies/more/b.cedar"}
    assert project.policy_tables == {"policies/test.yaml": "- {}"}


def test_text_that_does_not_parse_is_refused_with_file_and_line(tmp_path: Path) -> None:
    assert "policies/care.cedar:2" in refused(written(tmp_path, care_cedar=CARE + "forbid (principal;")).what


def test_a_file_whose_name_is_not_taken_is_refused_and_not_left_out(tmp_path: Path) -> None:
    place = written(tmp_path, care_cedar=CARE)
    (place / "policies" / "my rule.cedar").write_text(CARE.replace("care", "mine"))
    assert "name of a file in policies/" in refused(place).what


def test_files_without_a_policy_and_a_table_without_files_are_refused(tmp_path: Path) -> None:
    place = written(tmp_path, care_cedar="// nothing yet\n")
    assert "There is no policy in policies/care.cedar" in refused(place).what
    (place / "policies" / "care.cedar").rename(place / "care.cedar")
    (place / "policies" / "test.csv").write_text("who,does,expect\ncaller,predictions:create,deny\n")
    assert "no policies/*.cedar" in refused(place).what


def test_a_table_that_does_not_hold_is_refused_with_the_line_and_one_that_holds_is_not(tmp_path: Path) -> None:
    table = "who,does,on,when,expect\nviewer,tables:read,,,allow\ncaller,predictions:create,endpoint:e,,{}\n"
    place = written(tmp_path, care_cedar=CARE, test_csv=table.format("allow"))
    error = refused(place)
    assert "policies/test.csv:3: caller predictions:create is deny, not allow" in error.what
    assert "macadam policy test policies/test.csv" in error.next_step
    (place / "policies" / "test.csv").write_text(table.format("deny").replace("viewer", "queen"))
    assert refused(place).what.startswith("policies/test.csv: Line 2: there is no role queen")
    (place / "policies" / "test.csv").write_text(table.format("deny"))
    project = read(place)
    policy_files.require_sound("p", project.policies, project.policy_tables, PLATFORM)
