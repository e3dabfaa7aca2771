"""Projects, principals, roles and tokens through the real dispatcher."""

from datetime import timedelta
from typing import Any

import pytest
from unit.access.homes import Door, ports_of

from macadam.access import service as access
from macadam.access.types import (
    CreatePrincipal,
    CreateProject,
    DisablePrincipal,
    GrantRole,
    IssueToken,
    ListPrincipals,
    ListProjects,
    ListRoles,
    ListTokens,
    RevokeRole,
    RevokeToken,
    ShowProject,
    WhoAmI,
)
from macadam.errors import Conflict, InvalidInput, NotAuthenticated, NotAuthorised, NotFound
from macadam.operations import Request


def refused(door: Door, request: Request[Any], token: str) -> NotAuthorised:
    with pytest.raises(NotAuthorised) as caught:
        door.call(request, token)
    return caught.value


def test_the_local_administrator_is_known_by_the_home_s_secret(door: Door) -> None:
    me = door.call(WhoAmI())
    assert (me.id, me.kind, me.roles, me.expires) == ("principal:local", "person", ("*: admin",), None)


def test_a_project_says_who_owns_it_and_is_evidence(door: Door) -> None:
    made = door.call(CreateProject(project="flights", description="Late arrivals", risk="high"))
    assert made == door.call(ShowProject(project="flights"))
    assert (made.owner, made.risk) == ("principal:local", "high")
    leaf = door.leaves()[-1]
    assert (leaf.kind, leaf.subject, leaf.project) == ("access.create_project", "project:flights", "flights")
    assert leaf.body["owner"] == "principal:local"
    assert leaf.decision["policies"] == ["admins-administer"]
    with pytest.raises(Conflict):
        door.call(CreateProject(project="flights"))


def test_a_project_s_owner_must_be_known(door: Door) -> None:
    with pytest.raises(NotFound, match="principal:ghost"):
        door.call(CreateProject(project="flights", owner="principal:ghost"))


def test_people_see_only_the_projects_that_they_may_read(door: Door) -> None:
    for name in ("flights", "claims"):
        door.call(CreateProject(project=name))
    alice = door.known("alice", "viewer", project="flights")
    assert [p.name for p in door.call(ListProjects(), alice)] == ["flights"]
    assert "no policy allows it (roles: none)" in str(refused(door, ShowProject(project="claims"), alice))


def test_only_who_may_read_everywhere_learns_that_a_project_does_not_exist(door: Door) -> None:
    alice = door.known("alice", "viewer", project="*")
    bob = door.known("bob")
    with pytest.raises(NotFound, match="no project 'ghost'"):
        door.call(ShowProject(project="ghost"), alice)
    refused(door, ShowProject(project="ghost"), bob)


def test_names_carry_their_kind(door: Door) -> None:
    assert door.call(CreatePrincipal(principal="alice")).id == "principal:alice"
    replay = door.call(CreatePrincipal(principal="replay", kind="service"))
    assert (replay.id, replay.kind) == ("service:replay", "service")
    assert door.call(CreatePrincipal(principal="service:train")).kind == "service"
    with pytest.raises(InvalidInput, match="names a service"):
        door.call(CreatePrincipal(principal="service:odd", kind="person"))
    with pytest.raises(Conflict):
        door.call(CreatePrincipal(principal="principal:alice"))
    listed = [p.id for p in door.call(ListPrincipals())]
    assert listed == ["principal:alice", "principal:local", "service:replay", "service:train"]


def test_a_grant_takes_effect_at_once_and_so_does_its_revocation(door: Door) -> None:
    door.call(CreateProject(project="flights"))
    alice = door.known("alice")
    refused(door, ShowProject(project="flights"), alice)
    door.call(GrantRole(project="flights", principal="alice", role="viewer"))
    assert door.call(ShowProject(project="flights"), alice).name == "flights"
    door.call(GrantRole(project="flights", principal="alice", role="viewer"))
    assert [g.role for g in door.call(ListRoles(project="flights")) if g.principal == "principal:alice"] == ["viewer"]
    door.call(RevokeRole(project="flights", principal="alice", role="viewer"))
    refused(door, ShowProject(project="flights"), alice)
    with pytest.raises(NotFound):
        door.call(RevokeRole(project="flights", principal="alice", role="viewer"))


def test_a_project_s_administrator_cannot_reach_beyond_the_project(door: Door) -> None:
    door.call(CreateProject(project="flights"))
    door.call(CreateProject(project="claims"))
    alice = door.known("alice", "admin", project="flights")
    door.call(CreatePrincipal(principal="bob"))
    door.call(GrantRole(project="flights", principal="bob", role="admin"), alice)
    for request in (
        GrantRole(project="*", principal="alice", role="admin"),
        GrantRole(project="claims", principal="alice", role="viewer"),
        CreatePrincipal(principal="mallory"),
        CreateProject(project="mine"),
        DisablePrincipal(principal="local"),
        IssueToken(principal="local"),
        IssueToken(principal="bob"),
        ListPrincipals(),
    ):
        refused(door, request, alice)


@pytest.mark.parametrize("role", ["viewer", "developer", "approver", "operator", "auditor", "caller"])
def test_nobody_but_an_administrator_grants_anything(door: Door, role: str) -> None:
    alice = door.known("alice", role)
    refused(door, GrantRole(project="*", principal="alice", role="admin"), alice)
    refused(door, RevokeRole(project="*", principal="local", role="admin"), alice)


def test_the_last_active_administrator_can_neither_resign_nor_be_shut_out(door: Door) -> None:
    with pytest.raises(Conflict, match="last active administrator"):
        door.call(RevokeRole(project="*", principal="local", role="admin"))
    with pytest.raises(Conflict, match="last active administrator"):
        door.call(DisablePrincipal(principal="local"))
    alice = door.known("alice", "admin")
    door.call(DisablePrincipal(principal="local"), alice)
    with pytest.raises(Conflict, match="last active administrator"):
        door.call(RevokeRole(project="*", principal="alice", role="admin"), alice)
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI())


def test_disabling_revokes_every_token_and_lets_none_be_issued(door: Door) -> None:
    alice = door.known("alice", "developer")
    door.call(DisablePrincipal(principal="alice"))
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), alice)
    with pytest.raises(Conflict, match="disabled"):
        door.call(IssueToken(principal="alice"))
    with pytest.raises(Conflict, match="disabled"):
        door.call(GrantRole(project="*", principal="alice", role="viewer"))
    with pytest.raises(Conflict):
        door.call(CreatePrincipal(principal="alice"))


def test_a_token_ends_with_its_time_and_with_its_revocation(door: Door) -> None:
    alice = door.known("alice", "viewer", days=1)
    bob = door.known("bob", "viewer")
    assert door.call(WhoAmI(), alice).id == "principal:alice"
    mine = door.call(ListTokens(), bob)
    assert [t.principal for t in mine] == ["principal:bob"]
    door.call(RevokeToken(token_id=mine[0].id), bob)
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), bob)
    door.now += timedelta(days=1)
    with pytest.raises(NotAuthenticated):
        door.call(WhoAmI(), alice)


def test_a_token_carries_the_prefix_that_secret_scanners_look_for_and_256_random_bits(door: Door) -> None:
    issued = door.call(IssueToken(principal="local"))
    assert issued.token.startswith("mcd_")
    assert len(issued.token) == 4 + 43
    assert "digest" not in repr(door.call(ListTokens()))


def test_a_token_s_value_is_stored_nowhere(door: Door) -> None:
    issued = door.call(IssueToken(principal="local"), key="once")
    with pytest.raises(Conflict, match="holds a credential and is not kept"):
        door.call(IssueToken(principal="local"), key="once")
    home = door.ports.settings.home
    files = [p for p in home.rglob("*") if p.is_file()]
    assert len(files) > 3
    assert not [p for p in files if issued.token[4:].encode() in p.read_bytes()]


def test_nobody_reaches_another_s_tokens_without_administering(door: Door) -> None:
    alice = door.known("alice", "developer")
    door.known("bob", "admin")
    bobs = next(t for t in door.call(ListTokens()) if t.principal == "principal:bob")
    with pytest.raises(NotFound):
        door.call(RevokeToken(token_id=bobs.id), alice)
    refused(door, IssueToken(principal="bob"), alice)
    auditor = door.known("ann", "auditor")
    assert {t.principal for t in door.call(ListTokens(), auditor)} >= {"principal:bob", "principal:alice"}


def test_a_scoped_token_cannot_issue_a_wider_one(door: Door) -> None:
    narrow = door.known("alice", "admin", scopes=("models:read", "tokens:*", "runs:*"))
    for scopes in ((), ("*",), ("models:*",), ("models:read", "ledger:read")):
        with pytest.raises(NotAuthorised, match="cannot issue one"):
            door.call(IssueToken(principal="alice", scopes=scopes), narrow)
    issued = door.call(IssueToken(principal="alice", scopes=("runs:read", "models:read")), narrow)
    assert issued.scopes == ("runs:read", "models:read")


def test_a_token_cannot_prolong_itself(door: Door) -> None:
    alice = door.known("alice", "developer", days=2)
    with pytest.raises(NotAuthorised, match="lasts longer"):
        door.call(IssueToken(principal="alice", days=3), alice)
    door.call(IssueToken(principal="alice", days=1), alice)


@pytest.mark.parametrize("days", [0, 366])
def test_a_token_lasts_between_a_day_and_a_year(door: Door, days: int) -> None:
    with pytest.raises(InvalidInput):
        door.call(IssueToken(principal="local", days=days))


def test_a_denied_change_leaves_a_leaf_that_names_the_policy(door: Door) -> None:
    scoped = door.known("alice", "admin", scopes=("models:read",))
    refusal = refused(door, CreateProject(project="mine"), scoped)
    assert "token-scope-limits" in str(refusal)
    leaf = door.leaves()[-1]
    assert (leaf.outcome, leaf.kind, leaf.actor) == ("denied", "access.create_project", "principal:alice")
    assert leaf.decision["policies"] == ["token-scope-limits"]
    with pytest.raises(NotFound):
        door.call(ShowProject(project="mine"))


def test_a_decision_made_inside_an_undone_change_is_not_remembered(door: Door) -> None:
    alice = door.known("alice")

    def grant_and_fail(sql: Any) -> None:
        sql.exec_driver_sql(
            "INSERT INTO access_grants VALUES ('*', 'principal:alice', 'admin', '2026-01-01T00:00:00.000000Z', 'x')"
        )
        access.access.touch(sql)
        actor = access.authenticate(sql, alice, door.now)
        assert access.decide(sql, actor, "roles:grant", "project:*", "*", door.now).allowed
        raise Conflict("Undone.")

    with pytest.raises(Conflict):
        door.ports.sql.write(grant_and_fail)
    refused(door, GrantRole(project="*", principal="alice", role="admin"), alice)


def test_a_revocation_by_another_process_takes_effect_on_the_next_call(door: Door) -> None:
    door.call(CreateProject(project="flights"))
    alice = door.known("alice", "viewer", project="flights")
    elsewhere = Door(ports_of(door.ports.settings.home))
    try:
        assert elsewhere.call(ShowProject(project="flights"), alice).name == "flights"
        door.call(RevokeRole(project="flights", principal="alice", role="viewer"))
        refused(elsewhere, ShowProject(project="flights"), alice)
        door.call(DisablePrincipal(principal="alice"))
        with pytest.raises(NotAuthenticated):
            elsewhere.call(WhoAmI(), alice)
    finally:
        elsewhere.ports.sql.close()


def test_a_snapshot_holds_no_revoked_token_and_no_secret(door: Door) -> None:
    alice = door.known("alice", "viewer")
    own = door.call(ListTokens(), alice)[0]
    door.call(RevokeToken(token_id=own.id), alice)
    with door.ports.sql.read() as sql:
        taken = access.snapshot(sql)
    assert {t.principal for t in taken.tokens.values()} == {"principal:local"}
    assert "mcd_" not in repr(taken)
