"""What a token reaches, what it may issue, and how it is replaced."""

import threading
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.access.homes import Door

from macadam.access.authentication import PERSONAL, Reach, covers, within
from macadam.access.spiffe import Peer, SpiffeId
from macadam.access.types import (
    CreatePrincipal,
    CreateProject,
    DisablePrincipal,
    EnrollWorkload,
    GrantRole,
    IssueToken,
    ListPrincipals,
    ListProjects,
    ListTokens,
    RevokeToken,
    RotateToken,
    ShowProject,
    WhoAmI,
)
from macadam.errors import Conflict, InvalidInput, NotAuthenticated, NotAuthorised, NotFound
from macadam.operations import load, of_request

PERMISSIONS = ("models:read", "models:promote", "predictions:create", "tokens:issue", "principals:self", "roles:grant")
PROJECTS = ("flights", "trains", "", "*")
ASSETS = ("model:delay", "model:delay@3", "model:late", "endpoint:delay", "platform:home", "project:flights")

scopes = st.lists(st.sampled_from((*PERMISSIONS, "models:*", "predictions:*", "*")), max_size=3, unique=True)
places = st.lists(st.sampled_from(("flights", "trains", "*")), max_size=2, unique=True)
things = st.lists(st.sampled_from((*ASSETS, "model:*", "endpoint:*", "*")), max_size=3, unique=True)
reaches = st.builds(
    lambda s, p, a: Reach(scopes=tuple(s), projects=tuple(p), assets=tuple(a)), s=scopes, p=places, a=things
)


@given(reaches, reaches)
def test_what_is_within_another_reach_covers_nothing_that_the_other_does_not(inner: Reach, outer: Reach) -> None:
    if within(inner, outer):
        for permission in PERMISSIONS:
            for project in PROJECTS:
                for asset in ASSETS:
                    if covers(inner, permission, asset, project):
                        assert covers(outer, permission, asset, project), (permission, asset, project)


@given(reaches)
def test_a_reach_is_within_itself_and_within_no_limit(reach: Reach) -> None:
    assert within(reach, reach)
    assert within(reach, Reach())
    unlimited = all("*" in some or not some for some in (reach.scopes, reach.projects, reach.assets))
    if within(Reach(), reach):
        assert unlimited


@given(reaches, reaches, reaches)
def test_within_is_transitive_so_a_chain_of_tokens_never_widens(a: Reach, b: Reach, c: Reach) -> None:
    if within(a, b) and within(b, c):
        assert within(a, c)


@given(reaches)
def test_a_limit_in_one_dimension_takes_away_and_never_adds(reach: Reach) -> None:
    for permission in PERMISSIONS:
        for project in PROJECTS:
            for asset in ASSETS:
                if covers(reach, permission, asset, project):
                    for wider in ({"scopes": ()}, {"projects": ()}, {"assets": ()}):
                        assert covers(msgspec.structs.replace(reach, **wider), permission, asset, project)


def test_a_token_for_one_endpoint_reaches_that_endpoint_of_that_project_only() -> None:
    reach = Reach(projects=("flights",), assets=("endpoint:delay", "model:*"))
    assert covers(reach, "predictions:create", "endpoint:delay", "flights")
    assert covers(reach, "models:read", "model:late@7", "flights")
    assert covers(Reach(assets=("model:late",)), "models:read", "model:late@7", "flights")
    for asset, project in (("endpoint:delay", "trains"), ("endpoint:other", "flights"), ("endpoint:delay", "*"),
                           ("endpoint:delay@x:y", "trains"), ("endpoint:", "flights"), ("", "flights"),
                           ("endpoint:delay", "")):  # fmt: skip
        assert not covers(reach, "predictions:create", asset, project), (asset, project)
    assert {p for p in PERMISSIONS if covers(reach, p, "platform:home", "")} == PERSONAL & set(PERMISSIONS)


def test_a_token_limited_to_a_project_acts_there_and_nowhere_else(door: Door) -> None:
    for project in ("flights", "trains"):
        door.call(CreateProject(project=project))
    token = door.call(IssueToken(principal="local", projects=("flights",))).token
    assert door.call(ShowProject(project="flights"), token).name == "flights"
    assert [p.name for p in door.call(ListProjects(), token)] == ["flights"]
    assert door.call(WhoAmI(), token).projects == ("flights",)
    for refused in (ShowProject(project="trains"), ListPrincipals(), CreatePrincipal(principal="eve"),
                    GrantRole(project="*", principal="local", role="viewer"), CreateProject(project="ships")):  # fmt: skip
        with pytest.raises(NotAuthorised, match="projects: flights"):
            door.call(refused, token)


@pytest.mark.parametrize(
    ("limits", "wider"),
    [
        ({"projects": ("flights",)}, {"projects": ("flights", "trains")}),
        ({"projects": ("flights",)}, {"projects": ("*",)}),
        ({"projects": ("flights",)}, {}),
        ({"assets": ("model:*",)}, {"assets": ("*",)}),
        ({"assets": ("model:delay",)}, {"assets": ("model:*",)}),
        ({"assets": ("model:delay",)}, {"projects": ("flights",)}),
        ({"scopes": ("tokens:*",)}, {"scopes": ("*",)}),
        ({"scopes": ("tokens:*", "models:read")}, {"scopes": ("models:*",)}),
    ],
)
def test_a_narrow_token_issues_no_wider_one_in_any_dimension(
    door: Door, limits: dict[str, tuple[str, ...]], wider: dict[str, tuple[str, ...]]
) -> None:
    narrow = door.call(IssueToken(principal="local", **limits)).token
    with pytest.raises(NotAuthorised, match="cannot issue one"):
        door.call(IssueToken(principal="local", **wider), narrow)
    assert door.call(IssueToken(principal="local", **limits), narrow).principal == "principal:local"


def test_a_narrow_token_gets_no_wide_secret_by_rotating_a_wide_token(door: Door) -> None:
    wide = door.call(IssueToken(principal="local"))
    narrow = door.call(IssueToken(principal="local", assets=("model:delay",))).token
    with pytest.raises(NotAuthorised, match="cannot issue one"):
        door.call(RotateToken(token_id=wide.id), narrow)
    assert door.call(WhoAmI(), wide.token).id == "principal:local"


def test_a_service_s_token_lasts_a_day_unless_told_and_thirty_at_most(door: Door) -> None:
    door.call(CreatePrincipal(principal="service:web"))
    assert door.call(IssueToken(principal="service:web")).expires == door.now + timedelta(hours=24)
    assert door.call(IssueToken(principal="service:web", hours=2)).expires == door.now + timedelta(hours=2)
    with pytest.raises(InvalidInput, match="720 hours at most"):
        door.call(IssueToken(principal="service:web", days=31))
    with pytest.raises(InvalidInput, match="Both days and hours"):
        door.call(IssueToken(principal="service:web", days=1, hours=1))


def test_a_rotated_token_s_secret_changes_and_its_reach_does_not(door: Door) -> None:
    door.call(CreatePrincipal(principal="service:web"))
    limits = {"scopes": ("principals:self", "tokens:rotate"), "projects": ("flights",), "assets": ("endpoint:delay",)}
    old = door.call(IssueToken(principal="service:web", hours=10, **limits))
    door.now += timedelta(hours=9)
    new = door.call(RotateToken(token_id=old.id, grace=60), old.token)
    assert (new.scopes, new.projects, new.assets) == tuple(limits.values())
    assert new.expires == door.now + timedelta(hours=10)
    for token in (old.token, new.token):
        assert door.call(WhoAmI(), token).id == "service:web"
    door.now += timedelta(seconds=60)
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), old.token)
    assert door.call(WhoAmI(), new.token).token == new.id
    leaf = [leaf for leaf in door.leaves() if leaf.outcome == "done"][-1]
    assert (leaf.kind, leaf.body["rotated"]) == ("access.rotate_token", old.id)
    assert f"token:{old.id}" in leaf.uses
    listed = {t.id: t for t in door.call(ListTokens())}
    assert listed[old.id].replaced_by == new.id


def test_without_a_grace_the_old_token_ends_at_once(door: Door) -> None:
    old = door.call(IssueToken(principal="local"))
    door.call(RotateToken(token_id=old.id, grace=0))
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), old.token)
    assert next(t for t in door.call(ListTokens()) if t.id == old.id).revoked == door.now


def test_a_person_does_not_stay_signed_in_by_rotating(door: Door) -> None:
    alice = door.known("alice", "viewer", days=2)
    own = door.call(ListTokens(), alice)[0]
    door.now += timedelta(days=1)
    assert door.call(RotateToken(token_id=own.id), alice).expires == own.expires


def test_what_has_ended_or_was_rotated_is_not_rotated(door: Door) -> None:
    old = door.call(IssueToken(principal="local", hours=1))
    door.call(RotateToken(token_id=old.id))
    with pytest.raises(Conflict, match="rotated before"):
        door.call(RotateToken(token_id=old.id))
    revoked = door.call(IssueToken(principal="local", hours=1))
    door.call(RevokeToken(token_id=revoked.id))
    with pytest.raises(Conflict, match="has ended"):
        door.call(RotateToken(token_id=revoked.id))
    with pytest.raises(Conflict, match="never ends"):
        door.call(RotateToken(token_id=door.call(WhoAmI()).token))
    door.call(CreatePrincipal(principal="bob"))
    alice = door.known("alice", "viewer")
    theirs = door.call(IssueToken(principal="bob", hours=1))
    with pytest.raises(NotFound):
        door.call(RotateToken(token_id=theirs.id), alice)
    door.call(DisablePrincipal(principal="bob"))
    with pytest.raises(Conflict, match="has ended"):
        door.call(RotateToken(token_id=theirs.id))


def test_of_racing_rotations_and_a_revocation_the_outcome_is_a_serial_one(door: Door) -> None:
    old = door.call(IssueToken(principal="local", hours=1))
    outcomes: list[str] = []
    start = threading.Barrier(5)

    def race(request: RotateToken | RevokeToken) -> None:
        start.wait()
        try:
            door.call(request)
        except Conflict:
            outcomes.append("refused")
        else:
            outcomes.append(type(request).__name__)

    threads = [threading.Thread(target=race, args=(RotateToken(token_id=old.id, grace=0),)) for _ in range(4)]
    threads.append(threading.Thread(target=race, args=(RevokeToken(token_id=old.id),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("RevokeToken") == 1
    rotated = outcomes.count("RotateToken")
    assert rotated <= 1  # one before the revocation, or none after it
    assert len(door.call(ListTokens())) == 2 + rotated
    assert [leaf.kind for leaf in door.leaves()].count("access.rotate_token") == rotated
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), old.token)


def test_a_workload_s_certificate_does_not_renew_the_token_that_it_joined_with(door: Door) -> None:
    load("workloads")
    door.call(CreateProject(project="flights"))
    enrolled = door.call(EnrollWorkload(workload="gate", projects=("flights",)))
    joining = next(t for t in door.call(ListTokens()) if t.principal == enrolled.principal)
    peer = Peer(id=SpiffeId.parse(enrolled.spiffe_id), serial="1", expires=door.now + timedelta(hours=1))
    rotate = RotateToken(token_id=joining.id)
    with pytest.raises(NotAuthorised, match="proved itself by a certificate"):
        door.dispatcher.run(of_request(RotateToken), msgspec.to_builtins(rotate), token=peer)
    assert [t.id for t in door.call(ListTokens()) if t.principal == enrolled.principal] == [joining.id]
