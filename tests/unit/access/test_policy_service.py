"""The way of a project's policies: proposed, approved by others, in force, taken back; and what the ledger says of it."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from unit.access.homes import Door, ports_of

from macadam.access import bootstrap as bootstrapping
from macadam.access import service as access
from macadam.access.policies import PolicyText, built_in, effective_digest
from macadam.access.policy_types import (
    ActivatePolicies,
    ApprovePolicies,
    ListPolicies,
    PolicyHistory,
    ProposePolicies,
    RollBackPolicies,
    ShowPolicies,
)
from macadam.access.types import CreateProject, GrantRole, ListRoles, RevokeRole, ShowProject
from macadam.errors import Conflict, InvalidInput, MacadamError, NotAuthorised, NotFound
from macadam.ledger import service as ledger
from macadam.lineage import chain
from macadam.operations import Declared, Request, of_request
from macadam.ports import Ports

SHUT = {"policies/shut.cedar": '@id("no-roles") forbid (principal, action == Action::"roles:read", resource);'}
OPEN = {
    "policies/open.cedar": '@id("callers-look") permit (principal in Role::"caller", action in Action::"reading", resource);'
}


@pytest.fixture
def project(door: Door) -> Door:
    door.call(CreateProject(project="flights"))
    return door


@pytest.fixture
def people(project: Door) -> dict[str, str]:
    roles = {"dev": ("developer",), "ann": ("approver",), "ben": ("approver", "developer"), "ops": ("operator",)}
    return {name: project.known(name, *held, project="flights") for name, held in roles.items()}


def in_force(door: Door, people: dict[str, str], files: dict[str, str], *approvers: str) -> int:
    made = door.call(ProposePolicies(project="flights", files=files), people["dev"])
    for approver in approvers or ("ann",):
        door.call(ApprovePolicies(project="flights", version=made.version, ref=made.ref), people[approver])
    door.call(ActivatePolicies(project="flights", version=made.version), people["ops"])
    return int(made.version)


def test_a_proposal_changes_nothing_until_it_is_approved_and_activated(project: Door, people: dict[str, str]) -> None:
    viewer = project.known("vic", "viewer", project="flights")
    made = project.call(ProposePolicies(project="flights", files=SHUT, note="roles are private"), people["dev"])
    assert (made.version, made.state, made.needed, made.policies) == (1, "proposed", 1, ("flights/no-roles",))
    with pytest.raises(NotAuthorised, match="0 of 1 approvals"):
        project.call(ActivatePolicies(project="flights", version=1), people["ops"])
    approved = project.call(ApprovePolicies(project="flights", version=1), people["ann"])
    assert (approved.state, [a.by for a in approved.approvals]) == ("approved", ["principal:ann"])
    project.call(ListRoles(project="flights"), viewer)
    active = project.call(ActivatePolicies(project="flights", version=1), people["ops"])
    with pytest.raises(NotAuthorised, match="'flights/no-roles' forbids it") as refused:
        project.call(ListRoles(project="flights"), viewer)
    assert refused.value.details["policy_set"] == active.policy_set
    assert project.call(ShowPolicies(project="flights"), viewer).files == SHUT
    assert [v.state for v in project.call(ListPolicies(project="flights"), viewer)] == ["active"]


def test_nobody_approves_what_they_proposed_also_not_when_another_repeats_it(
    project: Door, people: dict[str, str]
) -> None:
    project.call(ProposePolicies(project="flights", files=SHUT), people["ben"])
    with pytest.raises(NotAuthorised, match="cannot approve it"):
        project.call(ApprovePolicies(project="flights", version=1), people["ben"])
    project.call(ProposePolicies(project="flights", files=OPEN), people["dev"])
    project.call(ProposePolicies(project="flights", files=SHUT), people["dev"])
    with pytest.raises(NotAuthorised, match="cannot approve it"):
        project.call(ApprovePolicies(project="flights", version=3), people["ben"])
    made = project.call(ProposePolicies(project="flights", files=SHUT | OPEN))
    with pytest.raises(NotAuthorised, match="cannot approve it"):  # nor may the administrator their own
        project.call(ApprovePolicies(project="flights", version=made.version))


def test_a_high_risk_project_asks_for_two_people(project: Door, people: dict[str, str]) -> None:
    with project.ports.sql.read() as sql:
        assert access.project(sql, "flights").risk == "limited"
    project.ports.sql.write(lambda sql: sql.execute(sa.text("UPDATE access_projects SET risk = 'high'")))
    made = project.call(ProposePolicies(project="flights", files=SHUT), people["dev"])
    assert made.needed == 2
    for _ in range(2):
        project.call(ApprovePolicies(project="flights", version=1), people["ann"])
    with pytest.raises(NotAuthorised, match="1 of 2 approvals"):
        project.call(ActivatePolicies(project="flights", version=1), people["ops"])
    project.call(ApprovePolicies(project="flights", version=1), people["ben"])
    assert project.call(ActivatePolicies(project="flights", version=1), people["ops"]).version == 1


def test_an_approval_does_not_outlive_its_giver_s_role(project: Door, people: dict[str, str]) -> None:
    project.call(ProposePolicies(project="flights", files=SHUT), people["dev"])
    project.call(ApprovePolicies(project="flights", version=1), people["ann"])
    project.call(RevokeRole(project="flights", principal="ann", role="approver"))
    (shown,) = project.call(ListPolicies(project="flights"))
    assert (shown.state, shown.counted, len(shown.approvals)) == ("proposed", 0, 1)
    with pytest.raises(NotAuthorised, match="0 of 1 approvals"):
        project.call(ActivatePolicies(project="flights", version=1), people["ops"])


def test_what_was_reviewed_is_what_is_approved(project: Door, people: dict[str, str]) -> None:
    first = project.call(ProposePolicies(project="flights", files=SHUT), people["dev"])
    project.call(ProposePolicies(project="flights", files=OPEN), people["dev"])
    with pytest.raises(Conflict, match="reviewed was"):
        project.call(ApprovePolicies(project="flights", version=2, ref=first.ref), people["ann"])


def test_roles_alone_say_who_takes_the_steps(project: Door, people: dict[str, str]) -> None:
    in_force(project, people, OPEN)
    caller = project.known("cal", "caller", project="flights")
    project.call(ListRoles(project="flights"), caller)  # what the project permits
    with pytest.raises(NotAuthorised):
        project.call(ProposePolicies(project="flights", files=SHUT), caller)
    with pytest.raises(NotAuthorised):
        project.call(ActivatePolicies(project="flights", version=1), people["dev"])
    with pytest.raises(NotAuthorised):
        project.call(ApprovePolicies(project="flights", version=1), people["ops"])
    with pytest.raises(NotAuthorised):
        project.call(GrantRole(project="flights", principal="cal", role="admin"), caller)


def test_a_project_that_shuts_everybody_out_can_be_rolled_back(project: Door, people: dict[str, str]) -> None:
    in_force(project, people, {"policies/all.cedar": '@id("none") forbid (principal, action, resource);'})
    with pytest.raises(NotAuthorised, match="flights/none"):
        project.call(ShowProject(project="flights"))
    back = project.call(RollBackPolicies(project="flights", reason="nobody could work"), people["ops"])
    assert (back.version, back.policy_set) == (0, built_in().digest)
    assert project.call(ShowProject(project="flights")).name == "flights"
    with pytest.raises(NotFound, match="no policies of its own"):
        project.call(ShowPolicies(project="flights"))


def test_rolling_back_goes_to_what_was_in_force_and_nowhere_else(project: Door, people: dict[str, str]) -> None:
    with pytest.raises(Conflict):
        project.call(RollBackPolicies(project="flights"))
    in_force(project, people, SHUT)
    in_force(project, people, OPEN)
    project.call(ProposePolicies(project="flights", files=SHUT | OPEN), people["dev"])
    with pytest.raises(NotFound, match="never in force"):
        project.call(RollBackPolicies(project="flights", to=3))
    assert project.call(RollBackPolicies(project="flights")).version == 1
    assert [a.version for a in project.call(PolicyHistory(project="flights"))] == [1, 2, 1]
    states = {v.version: v.state for v in project.call(ListPolicies(project="flights"))}
    assert states == {3: "proposed", 2: "superseded", 1: "active"}


def test_a_text_that_does_not_fit_is_refused_and_leaves_no_version(project: Door, people: dict[str, str]) -> None:
    for text in (
        '@id("a") permit (principal, action == Action::"models:raed", resource);',
        "permit (",
        " // nothing\n",
    ):
        with pytest.raises(InvalidInput):
            project.call(ProposePolicies(project="flights", files={"policies/a.cedar": text}), people["dev"])
    with pytest.raises(InvalidInput, match="no policy in the proposal"):
        project.call(ProposePolicies(project="flights", files={}), people["dev"])
    with pytest.raises(InvalidInput):
        project.call(ProposePolicies(project="flights", files={"../a.cedar": "x"}), people["dev"])
    assert project.call(ListPolicies(project="flights")) == ()


def test_proposing_the_same_twice_is_one_version(project: Door, people: dict[str, str]) -> None:
    first = project.call(ProposePolicies(project="flights", files=SHUT), people["dev"])
    assert project.call(ProposePolicies(project="flights", files=SHUT), people["dev"]) == first


def test_every_step_is_a_leaf_and_a_decision_s_set_leads_to_all_of_them(project: Door, people: dict[str, str]) -> None:
    in_force(project, people, SHUT)
    project.call(GrantRole(project="flights", principal="ann", role="viewer"))
    leaves = [leaf for leaf in project.leaves() if "polic" in leaf.kind]
    kinds = [leaf.kind.removeprefix("access.") for leaf in leaves]
    assert kinds == ["propose_policies", "approve_policies", "activate_policies"]
    assert leaves[2].body["approved_by"] == ["principal:ann"]
    assert project.ports.objects.exists(leaves[2].subject.removeprefix("policy:"))
    with project.ports.sql.read() as sql:
        found = chain.policies(sql, [leaves[2].subject.removeprefix("policy:")])
        platform = ledger.find(sql, subject=f"policy:{built_in().digest}")
    assert {entry.leaf.id for entry in found} == {*(leaf.id for leaf in leaves), platform[-1].leaf.id}


def test_another_release_s_policies_decide_together_with_the_project_s_and_are_recorded(
    project: Door, people: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force(project, people, SHUT)
    newer = PolicyText(policies=built_in().policies + "\n// a newer release\n", schema=built_in().schema)
    monkeypatch.setattr(bootstrapping, "built_in", lambda: newer)
    access.bootstrap(project.ports)
    active = project.call(PolicyHistory(project="flights"))[0]
    own = project.call(ShowPolicies(project="flights")).ref.removeprefix("policy:")
    assert (active.version, active.policy_set) == (1, effective_digest(newer.digest, "flights", own))
    assert project.leaves()[-1].subject == f"policy:{active.policy_set}"
    with pytest.raises(NotAuthorised, match="no-roles"):
        project.call(ListRoles(project="flights"))


def test_what_a_caller_declares_reaches_the_policies_and_the_ledger(project: Door, people: dict[str, str]) -> None:
    text = '@id("say-why") forbid (principal, action == Action::"roles:read", resource) unless { context has purpose };'
    in_force(project, people, {"policies/p.cedar": text})

    def run(request: Request[Any], **declared: str) -> None:
        project.dispatcher.run(
            of_request(type(request)),
            msgspec.to_builtins(request),
            token=project.local,
            declared=Declared(**declared),
        )

    with pytest.raises(NotAuthorised, match="say-why"):
        run(ListRoles(project="flights"))
    run(ListRoles(project="flights"), purpose="audit")
    run(GrantRole(project="flights", principal="ann", role="viewer"), purpose="audit")
    assert project.leaves()[-1].body["declared"] == {"purpose": "audit", "location": ""}


def test_two_who_activate_at_once_leave_one_history(project: Door, people: dict[str, str]) -> None:
    for files in (SHUT, OPEN):
        made = project.call(ProposePolicies(project="flights", files=files), people["dev"])
        project.call(ApprovePolicies(project="flights", version=made.version), people["ann"])

    def activate(version: int) -> str:
        try:
            project.call(ActivatePolicies(project="flights", version=version), people["ops"])
        except MacadamError as error:
            return error.code
        return "done"

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(activate, (1, 2, 1, 2))) == {"done"}
    history = project.call(PolicyHistory(project="flights"))
    assert [a.number for a in history] == list(range(len(history), 0, -1))
    assert all(a.version != b.version for a, b in itertools.pairwise(history))


def test_revoking_an_approver_and_activating_at_once_is_one_after_the_other(
    project: Door, people: dict[str, str]
) -> None:
    project.call(ProposePolicies(project="flights", files=SHUT), people["dev"])
    project.call(ApprovePolicies(project="flights", version=1), people["ann"])

    def activate() -> bool:
        try:
            project.call(ActivatePolicies(project="flights", version=1), people["ops"])
        except NotAuthorised:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        active = pool.submit(activate)
        pool.submit(lambda: project.call(RevokeRole(project="flights", principal="ann", role="approver"))).result()
    kinds = [leaf.kind for leaf in project.leaves() if leaf.outcome == "done"]
    order = [kind for kind in kinds if kind in ("access.revoke_role", "access.activate_policies")]
    expected = ["access.activate_policies", "access.revoke_role"] if active.result() else ["access.revoke_role"]
    assert order == expected


def test_a_home_that_is_opened_again_has_its_policies_in_force(
    tmp_path: Path, project: Door, people: dict[str, str], ports: Ports
) -> None:
    in_force(project, people, SHUT)
    again = ports_of(ports.settings.home)
    with again.sql.read() as sql:
        assert access.snapshot(sql).projects["flights"].policies is not None
    again.sql.close()
