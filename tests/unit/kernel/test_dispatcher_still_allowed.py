"""A call is judged again in its transaction: what was allowed before a long preparation may not be after it."""

import dataclasses

import pytest

from macadam import operations
from macadam.access.types import CreateProject, GrantRole, ListTokens, RevokeRole, RevokeToken
from macadam.errors import NotAuthenticated, NotAuthorised
from macadam.ledger.types import ShowLog
from macadam.testing import local_token, open_platform, token_of


@pytest.fixture
def platform():
    with open_platform() as opened:
        opened.call(CreateProject(project="shop", description="Sells"), token=local_token(opened))
        yield opened


def _during_preparation(monkeypatch, act):
    """Makes granting a role an operation with a long preparation, in which `act` happens."""
    declared = operations.of_request(GrantRole)
    slow = dataclasses.replace(declared, prepare=lambda _context, _request: act())
    slow = dataclasses.replace(slow, handler=lambda tx, request, _prepared: declared.handler(tx, request))
    monkeypatch.setitem(operations._by_request, GrantRole, slow)


def test_a_role_that_is_revoked_while_a_call_prepares_stops_it_at_its_transaction(platform, monkeypatch):
    admin = local_token(platform)
    token = token_of(platform, "principal:maria", {"shop": "admin"})
    revoke = RevokeRole(project="shop", principal="principal:maria", role="admin")
    _during_preparation(monkeypatch, lambda: platform.call(revoke, token=admin))
    with pytest.raises(NotAuthorised):
        platform.call(GrantRole(project="shop", principal="principal:maria", role="viewer"), token=token)
    newest = platform.call(ShowLog(kind="access.grant_role", limit=1), token=admin).entries[0]
    assert (newest.outcome, newest.actor) == ("denied", "principal:maria")


def test_a_token_that_is_revoked_while_a_call_prepares_stops_it_at_its_transaction(platform, monkeypatch):
    admin = local_token(platform)
    token = token_of(platform, "principal:maria", {"shop": "admin"})
    issued = next(t for t in platform.call(ListTokens(), token=admin) if t.principal == "principal:maria")
    _during_preparation(monkeypatch, lambda: platform.call(RevokeToken(token_id=issued.id), token=admin))
    with pytest.raises(NotAuthenticated):
        platform.call(GrantRole(project="shop", principal="principal:maria", role="viewer"), token=token)
    newest = platform.call(ShowLog(kind="access.grant_role", limit=1), token=admin).entries[0]
    assert newest.outcome == "denied"
