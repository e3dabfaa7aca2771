"""The order of the door: authenticate, authorise, validate, prepare, one transaction, evidence."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from macadam.access.types import ListProjects
from macadam.app.platform import Platform
from macadam.errors import Conflict, InvalidInput, NotAuthenticated, NotAuthorised
from macadam.ledger.types import LogEntry, ShowLog
from macadam.operations import Context, Operation, Request, Transaction, plain
from macadam.testing import local_token, open_platform, token_of


class Act(Request[str], frozen=True, kw_only=True):
    """Do something."""

    name: str
    times: int = 1


def acting(handler: Any, *, prepare: Any = None, changes: bool = True) -> Operation:
    """An operation that is in no table, so that other tests do not walk over it."""
    return Operation(
        name="kernel.act",
        summary="Do something.",
        request=Act,
        permission="projects:create",
        http="POST /api/v1/acts",
        cli="acts do",
        resource="platform:home",
        changes=changes,
        prepare=prepare,
        handler=handler,
    )


def note(sql: sa.Connection, name: str) -> None:
    sql.exec_driver_sql("CREATE TABLE IF NOT EXISTS notes (name TEXT)")
    sql.exec_driver_sql("INSERT INTO notes VALUES (?)", (name,))


def notes(platform: Platform) -> list[str]:
    with platform.ports.sql.read() as sql:
        if not sa.inspect(sql).has_table("notes"):
            return []
        return list(sql.exec_driver_sql("SELECT name FROM notes").scalars())


def leaves(platform: Platform) -> list[LogEntry]:
    return list(platform.call(ShowLog(kind="kernel.act")).entries)


@pytest.fixture
def platform() -> Iterator[Platform]:
    with open_platform() as opened:
        yield opened


def record_and_note(tx: Transaction, request: Act) -> str:
    note(tx.sql, request.name)
    tx.record(f"act:{request.name}", uses=["project:a"], share=0.25, ok=True, none=None)
    return request.name


def test_state_and_leaf_commit_together(platform: Platform) -> None:
    assert platform.dispatch(acting(record_and_note), {"name": "a"}) == "a"
    assert notes(platform) == ["a"]
    leaf = leaves(platform)[0]
    assert (leaf.subject, leaf.uses, leaf.outcome, leaf.actor) == ("act:a", ("project:a",), "done", "principal:local")
    assert leaf.body == {"share": "0.25", "ok": "true"}


def test_a_handler_that_fails_leaves_neither_state_nor_leaf(platform: Platform) -> None:
    def fail(tx: Transaction, request: Act) -> str:
        record_and_note(tx, request)
        raise Conflict("Somebody was faster.")

    with pytest.raises(Conflict):
        platform.dispatch(acting(fail), {"name": "a"})
    assert notes(platform) == []
    assert leaves(platform) == []


def test_a_change_that_records_nothing_still_leaves_a_leaf(platform: Platform) -> None:
    platform.dispatch(acting(lambda tx, request: note(tx.sql, request.name) or "done"), {"name": "a"})
    assert [leaf.subject for leaf in leaves(platform)] == ["platform:home"]


def test_a_reading_cannot_record(platform: Platform) -> None:
    with pytest.raises(TypeError, match="reading"):
        platform.dispatch(acting(record_and_note, changes=False), {"name": "a"})


def test_who_is_settled_before_what(platform: Platform) -> None:
    nobody = token_of(platform, "principal:nobody")
    wrong = {"name": 7, "colour": "red"}
    with pytest.raises(NotAuthenticated):
        platform.dispatcher.run(acting(record_and_note), wrong, token="mcd_guessed")
    with pytest.raises(NotAuthorised):
        platform.dispatcher.run(acting(record_and_note), wrong, token=nobody)
    with pytest.raises(InvalidInput, match=r"kernel\.act does not fit"):
        platform.dispatcher.run(acting(record_and_note), wrong, token=local_token(platform))


def test_nothing_is_prepared_for_who_may_not_or_for_what_does_not_fit(platform: Platform) -> None:
    prepared: list[str] = []

    def prepare(_context: Context, request: Act) -> str:
        prepared.append(request.name)
        return "made"

    operation = acting(lambda _tx, _request, made: str(made), prepare=prepare)
    nobody = token_of(platform, "principal:nobody")
    with pytest.raises(NotAuthorised):
        platform.dispatcher.run(operation, {"name": "a"}, token=nobody)
    with pytest.raises(InvalidInput):
        platform.dispatch(operation, {"name": "a", "times": "2"})
    assert prepared == []
    assert platform.dispatch(operation, {"name": "a"}) == "made"
    assert prepared == ["a"]


def test_a_repeated_key_gets_the_first_answer_and_the_work_is_done_once(platform: Platform) -> None:
    prepared: list[str] = []
    operation = acting(
        lambda tx, request, _made: record_and_note(tx, request),
        prepare=lambda _c, request: prepared.append(request.name),
    )
    for _ in range(3):
        assert platform.dispatch(operation, {"name": "a"}, idempotency_key="k") == "a"
    assert (notes(platform), prepared, len(leaves(platform))) == (["a"], ["a"], 1)
    with pytest.raises(Conflict, match="another request"):
        platform.dispatch(operation, {"name": "b"}, idempotency_key="k")


def test_a_key_belongs_to_its_caller(platform: Platform) -> None:
    other = token_of(platform, "principal:other", {"*": "admin"})
    platform.dispatch(acting(record_and_note), {"name": "a"}, idempotency_key="k")
    platform.dispatch(acting(record_and_note), {"name": "b"}, token=other, idempotency_key="k")
    assert notes(platform) == ["a", "b"]


def test_a_failed_call_does_not_use_up_its_key(platform: Platform) -> None:
    tries: list[int] = []

    def fail_once(tx: Transaction, request: Act) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise Conflict("Not yet.")
        return record_and_note(tx, request)

    with pytest.raises(Conflict):
        platform.dispatch(acting(fail_once), {"name": "a"}, idempotency_key="k")
    assert platform.dispatch(acting(fail_once), {"name": "a"}, idempotency_key="k") == "a"


def test_what_follows_a_commit_runs_after_it_and_not_after_a_failure(platform: Platform) -> None:
    seen: list[list[str]] = []

    def act(tx: Transaction, request: Act) -> str:
        note(tx.sql, request.name)
        tx.after_commit(lambda: seen.append(notes(platform)))
        if request.times == 2:
            raise Conflict("No.")
        return "done"

    platform.dispatch(acting(act), {"name": "a"})
    with pytest.raises(Conflict):
        platform.dispatch(acting(act), {"name": "b", "times": 2})
    assert seen == [["a"]]


def test_text_stands_for_a_number_only_where_the_face_says_so(platform: Platform) -> None:
    operation = acting(lambda _tx, request: str(request.times))
    assert platform.dispatch(operation, {"name": "a", "times": "2"}, lax=True) == "2"
    with pytest.raises(InvalidInput, match=r"\$\.times"):
        platform.dispatch(operation, {"name": "a", "times": "2"})


def test_what_the_request_implies_is_authorised_by_the_handler(platform: Platform) -> None:
    def act(tx: Transaction, _request: Act) -> str:
        tx.authorise("roles:grant", "project:elsewhere")
        return "done"

    scoped = token_of(platform, "principal:scoped", {"*": "admin"}, scopes=("projects:create",))
    assert platform.dispatch(acting(act), {"name": "a"}) == "done"
    with pytest.raises(NotAuthorised, match="roles:grant"):
        platform.dispatch(acting(act), {"name": "a"}, token=scoped)


def test_a_leaf_names_the_decision_and_the_digest_of_the_request(platform: Platform) -> None:
    platform.dispatch(acting(record_and_note), {"name": "a"})
    with platform.ports.sql.read() as sql:
        text = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves WHERE kind = 'kernel.act'").scalar_one()
    said = text if isinstance(text, str) else bytes(text).decode()
    assert '"request":"sha256:' in said
    assert '"policies":["admins-administer"]' in said
    assert '"policy_set":"sha256:' in said


def test_a_platform_reopens_its_home_with_everything_in_it(platform: Platform) -> None:
    platform.dispatch(acting(record_and_note), {"name": "a"})
    platform.close()
    platform.close()
    with open_platform(platform.settings.home) as again:
        assert notes(again) == ["a"]
        assert again.call(ListProjects()) == ()
        assert len(leaves(again)) == 1


def test_bodies_of_leaves_hold_only_what_has_one_spelling() -> None:
    assert plain({"a": 0.1, "b": True, "c": None, "d": (1, "x")}) == {"a": "0.1", "b": "true", "d": [1, "x"]}
    with pytest.raises(InvalidInput, match="cannot be recorded"):
        plain(float("nan"))
