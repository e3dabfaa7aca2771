"""What proposed policies would change, told from the ledger before they are in force."""

from datetime import timedelta

import pytest
from unit.access.homes import Door

from macadam.access.policy_types import Difference, DiffPolicies, ProposePolicies
from macadam.access.types import CreateProject, GrantRole, RevokeRole
from macadam.data.types import Ingest
from macadam.errors import InvalidInput, NotAuthorised
from macadam.operations import load

load("tables")

LATER = {
    "policies/a.cedar": '@id("no-grants") forbid (principal in Role::"viewer", action == Action::"runs:read", resource);'
}
INGEST = Ingest(project="flights", source="orders")
OPENED = {
    "policies/a.cedar": '@id("ask") forbid (principal, action == Action::"inspection:run", resource);\n'
    '@id("open") permit (principal in Role::"viewer", action == Action::"tables:ingest", resource);'
}


@pytest.fixture
def project(door: Door) -> Door:
    door.call(CreateProject(project="flights"))
    door.call(CreateProject(project="trains"))
    return door


def diff(door: Door, files: dict[str, str], **more: int) -> Difference:
    found = door.call(DiffPolicies(project="flights", files=files, **more))
    assert isinstance(found, Difference)
    return found


def test_a_set_that_changes_nothing_says_so(project: Door) -> None:
    for _ in range(3):
        project.call(GrantRole(project="flights", principal="local", role="viewer"))
    found = diff(project, {})
    assert (found.newly_denied, found.newly_allowed, found.changes, found.roles) == (0, 0, (), ())
    assert (found.replayed, found.otherwise) == (4, 0)  # the project's creation, and three grants


def test_calls_that_would_be_refused_or_allowed_are_listed_with_who_and_how_often(project: Door) -> None:
    # Refusals of what a project's policies may permit, and a change that they may forbid.
    viewer = project.known("vic", "viewer", project="flights")
    for _ in range(2):
        with pytest.raises(NotAuthorised):
            project.call(INGEST, viewer)
    found = diff(project, OPENED)
    (change,) = found.changes
    assert (change.verdict, change.who, change.permission, change.calls) == (
        "newly allowed",
        "principal:vic",
        "tables:ingest",
        2,
    )
    assert change.roles == ("viewer",)
    assert (found.newly_allowed, found.newly_denied, found.otherwise) == (2, 0, 0)
    said = {(m.role, m.permission, m.verdict) for m in found.roles}
    assert ("viewer", "tables:ingest", "newly allowed") in said
    assert ("admin", "inspection:run", "newly denied") in said


def test_roles_are_those_of_the_time_not_of_today(project: Door) -> None:
    viewer = project.known("vic", "viewer", project="flights")
    with pytest.raises(NotAuthorised):
        project.call(INGEST, viewer)
    project.call(RevokeRole(project="flights", principal="vic", role="viewer"))
    with pytest.raises(NotAuthorised):
        project.call(INGEST, viewer)
    (change,) = diff(project, OPENED).changes
    assert change.calls == 1, "the second time vic was no viewer, and the policy would not have let them"


def test_only_the_days_that_were_asked_for_and_only_this_project_count(project: Door) -> None:
    viewer = project.known("vic", "viewer", project="*")
    with pytest.raises(NotAuthorised):
        project.call(INGEST, viewer)
    with pytest.raises(NotAuthorised):
        project.call(Ingest(project="trains", source="orders"), viewer)
    assert diff(project, OPENED).newly_allowed == 1
    project.now += timedelta(days=10)
    assert diff(project, OPENED, days=5).replayed == 0
    assert diff(project, OPENED, days=11).newly_allowed == 1


def test_what_is_refused_as_text_is_refused_here_too_and_nothing_is_recorded(project: Door) -> None:
    before = len(project.leaves())
    with pytest.raises(InvalidInput, match=r"a\.cedar:1"):
        diff(project, {"policies/a.cedar": "permit ("})
    diff(project, LATER)
    assert len(project.leaves()) == before


def test_who_may_not_read_the_ledger_learns_nothing_from_it(project: Door) -> None:
    caller = project.known("cal", "caller", project="flights")
    with pytest.raises(NotAuthorised):
        project.call(DiffPolicies(project="flights", files=LATER), caller)
    project.call(ProposePolicies(project="flights", files=LATER))
