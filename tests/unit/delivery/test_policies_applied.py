"""A project's policies on the road, on a real home: proposed once, approved by another, in force; killed in between."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from unit.delivery.test_flows import CHILD

from macadam.access.policy_types import (
    ActivatePolicies,
    ApprovePolicies,
    ListPolicies,
    PolicyHistory,
    ProposePolicies,
    RollBackPolicies,
    ShowPolicies,
)
from macadam.access.types import CreatePrincipal, GrantRole, IssueToken, ListRoles, RevokeRole
from macadam.app.platform import Platform
from macadam.delivery import flows, observe
from macadam.delivery.flows import Event, WaitingPolicies
from macadam.delivery.project import read
from macadam.errors import Conflict, InvalidInput, NotAuthorised
from macadam.ledger import service as ledger
from macadam.settings import Settings

SHUT = '@id("no-roles") forbid (principal, action == Action::"roles:read", resource);\n'
TABLE = "- {who: viewer, does: roles:read, expect: deny}\n- {who: viewer, does: tables:read, expect: allow}\n"
STEPS = ["policies:proposal", "policies:approval", "policies:in-force"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """With policies and their table, and nothing else: quick to apply."""
    place = tmp_path / "p"
    (place / "policies").mkdir(parents=True)
    (place / "macadam.yaml").write_text("project: {name: p}\n")
    (place / "policies" / "shut.cedar").write_text(SHUT)
    (place / "policies" / "test.yaml").write_text(TABLE)
    return place


def platform(project: Path) -> Platform:
    return Platform(Settings.load({}, home=project.parent / "home"))


def somebody(opened: Platform, name: str, role: str) -> str:
    opened.call(CreatePrincipal(principal=name))
    opened.call(GrantRole(project="p", principal=name, role=role))
    return opened.call(IssueToken(principal=name)).token


def approve(opened: Platform, number: int, name: str = "ann") -> str:
    token = somebody(opened, name, "approver")
    opened.call(ApprovePolicies(project="p", version=number), token=token)
    return token


def killed(project: Path, number: int, moment: str) -> None:
    command = [sys.executable, "-c", CHILD, str(project.parent / "home"), str(project), str(number), moment]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL


def keys(applied: flows.Applied) -> list[str]:
    return [step.key for step in applied.steps]


def test_policies_are_proposed_once_wait_for_another_person_and_come_into_force(project: Path) -> None:
    with platform(project) as opened:
        assert [step.key for step in flows.plan(opened, project).steps] == ["project", *STEPS]
        first = flows.apply(opened, project)
        assert (first.state, flows.EXIT_CODES[first.state], keys(first)) == ("waiting", 20, ["project", *STEPS[:2]])
        (proposed,) = opened.call(ListPolicies(project="p"))
        assert first.policies == WaitingPolicies(
            version=1, ref=proposed.ref, proposed_by="principal:local", approvals=0, needed=1
        )
        assert first.skipped == ("Put the proposed policies in force",)
        with pytest.raises(NotAuthorised, match="cannot approve it"):
            opened.call(ApprovePolicies(project="p", version=1))

        again = flows.apply(opened, project)
        assert (again.state, keys(again)) == ("waiting", STEPS[1:2])
        assert len(opened.call(ListPolicies(project="p"))) == 1
        assert "waits for approval (0 of 1" in flows.plan(opened, project).steps[0].why

        viewer = somebody(opened, "vic", "viewer")
        opened.call(ListRoles(project="p"), token=viewer)
        approve(opened, 1)
        last = flows.apply(opened, project)
        assert (last.state, keys(last), last.policies) == ("done", STEPS[1:], None)
        assert opened.call(ShowPolicies(project="p")).files == {"policies/shut.cedar": SHUT}
        with pytest.raises(NotAuthorised, match="p/no-roles"):
            opened.call(ListRoles(project="p"), token=viewer)

        assert flows.plan(opened, project).nothing_to_do
        assert flows.apply(opened, project).state == "nothing"
        with opened.ports.sql.read() as sql:
            assert len(ledger.find(sql, kind="access.propose_policies", project="p")) == 1
            assert len(ledger.find(sql, kind="access.activate_policies", project="p")) == 1


def test_an_apply_killed_behind_its_proposal_or_activation_goes_on_and_does_neither_twice(project: Path) -> None:
    killed(project, 2, "after")
    with platform(project) as opened:
        applied = flows.apply(opened, project)
        assert (applied.state, applied.resumed) == ("waiting", True)
        assert [v.version for v in opened.call(ListPolicies(project="p"))] == [1]
        approve(opened, 1)
    killed(project, 2, "after")  # now the activation
    events: list[Event] = []
    with platform(project) as opened:
        done = flows.apply(opened, project, events.append)
        assert (done.state, done.resumed) == ("done", True)
        assert [event.key for event in events if event.kind == "before"] == ["policies:approval"]
        assert [a.version for a in opened.call(PolicyHistory(project="p"))] == [1]
        assert flows.apply(opened, project).state == "nothing"


def test_an_apply_that_goes_on_late_does_not_undo_what_came_into_force_meanwhile(project: Path) -> None:
    with platform(project) as opened:
        flows.apply(opened, project)
        approver = approve(opened, 1)
    killed(project, 2, "before")  # it saw the approval and was about to activate
    with platform(project) as opened:
        files = {"policies/shut.cedar": SHUT.replace("no-roles", "later")}
        opened.call(ProposePolicies(project="p", files=files))
        opened.call(ApprovePolicies(project="p", version=2), token=approver)
        opened.call(ActivatePolicies(project="p", version=2))
        with pytest.raises(Conflict, match="In force is version 2 by now, not 0"):
            flows.apply(opened, project)
        assert opened.call(ShowPolicies(project="p")).version == 2
        assert [step.key for step in flows.plan(opened, project).steps] == STEPS


def test_an_approval_whose_giver_lost_the_role_is_waited_for_and_no_error(project: Path) -> None:
    with platform(project) as opened:
        flows.apply(opened, project)
        approve(opened, 1)
        opened.call(RevokeRole(project="p", principal="ann", role="approver"))
        waiting = flows.apply(opened, project)
        assert waiting.state == "waiting"
        assert waiting.policies is not None
        assert (waiting.policies.approvals, waiting.policies.needed) == (0, 1)


def test_what_is_not_sound_is_refused_before_anything_is_done(project: Path) -> None:
    with platform(project) as opened:
        with opened.ports.sql.read() as sql:
            before = len(ledger.find(sql))
        (project / "policies" / "shut.cedar").write_text(SHUT + "permit (principal, action;\n")
        for call in (flows.plan, flows.apply):
            with pytest.raises(InvalidInput, match=r"policies/shut\.cedar:2"):
                call(opened, project)
        (project / "policies" / "shut.cedar").write_text(SHUT.replace("roles:read", "tables:read"))
        for call in (flows.plan, flows.apply):
            with pytest.raises(InvalidInput, match=r"policies/test\.yaml:1: viewer roles:read is allow, not deny"):
                call(opened, project)
        with opened.ports.sql.read() as sql:
            assert len(ledger.find(sql)) == before


def test_a_rollback_is_not_undone_and_removed_files_drop_nothing(project: Path) -> None:
    with platform(project) as opened:
        flows.apply(opened, project)
        approve(opened, 1)
        flows.apply(opened, project)
        for file in (project / "policies").iterdir():
            file.rename(project / f"{file.name}.away")
        events: list[Event] = []
        assert flows.apply(opened, project, events.append).state == "nothing"
        assert [e.text for e in events if "stays in force" in e.text]
        assert opened.call(ShowPolicies(project="p")).version == 1

        (project / "shut.cedar.away").rename(project / "policies" / "shut.cedar")
        opened.call(RollBackPolicies(project="p", to=0, reason="callers are not ready"))
        assert flows.apply(opened, project, events.append).state == "nothing"
        assert "was taken out of force" in events[-1].text
        assert opened.call(PolicyHistory(project="p"))[0].version == 0


def test_other_policies_and_another_table_are_no_other_code_to_train_with(project: Path) -> None:
    def code() -> str:
        return observe.desired(read(project)).code

    (project / "train.py").write_text("x = 1\n")
    before = code()
    (project / "policies" / "test.yaml").write_text(TABLE + TABLE)
    (project / "policies" / "shut.cedar").unlink()
    assert code() == before
    (project / "train.py").write_text("x = 2\n")
    assert code() != before
