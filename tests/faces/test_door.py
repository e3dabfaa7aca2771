"""Walks the table of operations: whoever is not known or not allowed gets nowhere, by every way in.

A new operation is covered by being declared.
"""

import pytest

from macadam import operations
from macadam.app.platform import Platform
from macadam.errors import NotAuthenticated, NotAuthorised
from macadam.faces import fields
from macadam.ledger.types import ShowLog
from macadam.operations import Operation
from macadam.testing import Http

OPERATIONS = list(operations.table().values())
# What the policy "everyone-is-someone" lets any known caller do with what is their own.
OWN = {
    "principals:self",
    "projects:list",
    "tokens:issue",
    "tokens:revoke",
    "tokens:read",
    "tokens:rotate",
    "workloads:certify",
    "link:state",
}
every = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
guarded = pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.permission not in OWN], ids=lambda o: o.name)
changing = pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.changes], ids=lambda o: o.name)


def named(operation: Operation) -> dict[str, object]:
    """Values for the fields in the path: enough to be asked who one is."""
    known = {field.name: field for field in fields.of_request(operation.request)}
    samples = {"integer": 1, "text": "sample"}
    return {n: "flights" if n == "project" else samples[known[n].kind] for n in fields.in_path(operation)}


def target(operation: Operation) -> str:
    return operation.path.format(**named(operation))


@every
def test_http_answers_401_without_a_token(operation: Operation, http: Http) -> None:
    reply = http.request(operation.method, target(operation), body=b"{ not even json")
    assert reply.status == 401
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert reply.json()["code"] == "not-authenticated"
    assert reply.json()["next"]


@every
def test_http_answers_401_to_a_wrong_token(operation: Operation, http: Http) -> None:
    assert http.request(operation.method, target(operation), token="mcd_guessed").status == 401


@every
def test_in_process_an_empty_or_wrong_token_is_nobody(operation: Operation, platform: Platform) -> None:
    for token in ("", "mcd_guessed"):
        with pytest.raises(NotAuthenticated):
            platform.dispatcher.run(operation, named(operation), token=token)


@guarded
def test_http_answers_403_to_a_caller_without_a_role(operation: Operation, http: Http, nobody: str) -> None:
    reply = http.request(operation.method, target(operation), token=nobody, body=b"{ not even json")
    assert reply.status == 403
    said = reply.json()
    assert said["code"] == "not-authorised"
    assert operation.permission in said["detail"]
    assert said["details"]["permission"] == operation.permission
    assert said["details"]["policy_set"]
    assert said["next"]


@every
def test_a_token_carries_no_more_than_its_scopes_and_the_problem_names_the_policy(
    operation: Operation, platform: Platform, scoped: str
) -> None:
    with pytest.raises(NotAuthorised) as refused:
        platform.dispatcher.run(operation, named(operation), token=scoped)
    assert refused.value.details["policies"] == ["token-scope-limits"]


@changing
def test_a_refused_change_leaves_a_leaf_about_the_denial(
    operation: Operation, platform: Platform, http: Http, scoped: str
) -> None:
    reply = http.request(operation.method, target(operation), token=scoped)
    assert reply.status == 403
    newest = platform.call(ShowLog(kind=operation.name, limit=1)).entries[0]
    assert (newest.outcome, newest.actor) == ("denied", "principal:scoped")
    assert newest.body["reason"]


@every
def test_an_administrator_is_admitted_so_no_permission_is_unknown_to_the_policies(
    operation: Operation, platform: Platform, admin: str
) -> None:
    assert platform.dispatcher.admit(operation, named(operation), admin).decision.allowed


@every
def test_what_the_policies_are_asked_about_stands_in_the_path(operation: Operation) -> None:
    # Otherwise a caller could be refused, or let in, before the field that decides it is known.
    in_path = fields.in_path(operation)
    asked = {part.partition("}")[0] for part in operation.resource.split("{")[1:]}
    assert asked <= set(in_path)
    if "project" in operation.request.__struct_fields__ and operation.resource != "platform:home":
        assert "project" in in_path


@every
def test_a_declaration_is_complete(operation: Operation) -> None:
    known = set(operation.request.__struct_fields__)
    assert operation.summary.endswith(".")
    assert operation.method in ("GET", "POST", "PUT", "DELETE")
    assert operation.path.startswith("/api/v1/")
    assert set(fields.in_path(operation)) <= known
    assert operation.cli.split()[0] in operations.GROUPS
    words = operation.cli.split()
    # A third word stands only below an operation of two, as `cost prices import` below `cost prices`.
    assert len(words) == 2 or (len(words) == 3 and " ".join(words[:2]) in {o.cli for o in operations.table().values()})
    assert ":" in operation.permission


def test_anonymous_floods_are_counted_not_written_one_by_one(platform: Platform, http: Http) -> None:
    change = next(o for o in OPERATIONS if o.changes)
    before = len(platform.call(ShowLog(actor="anonymous", limit=1000)).entries)
    for _ in range(50):
        assert http.request(change.method, target(change)).status == 401
    assert len(platform.call(ShowLog(actor="anonymous", limit=1000)).entries) - before <= 2
