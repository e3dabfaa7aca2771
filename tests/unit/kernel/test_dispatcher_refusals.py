"""The door under strain: refusals that must leave evidence, repeated keys at once, and what goes wrong after a commit."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from macadam.access.types import CreateProject, GrantRole, ListProjects
from macadam.app.platform import Platform
from macadam.errors import Conflict, GateRefused, InvalidInput, NotAuthorised, UserCodeFailed
from macadam.ledger.types import LogEntry, ShowLog, VerifyLedger
from macadam.operations import Operation, Request, Transaction, of_request
from macadam.testing import open_platform, token_of


class Move(Request[str], frozen=True, kw_only=True):
    """Move something."""

    name: str
    facts: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it


def moving(handler: Any, *, prepare: Any = None) -> Operation:
    return Operation(
        name="kernel.move",
        summary="Move something.",
        request=Move,
        permission="projects:create",
        http="POST /api/v1/moves",
        cli="moves do",
        resource="platform:home",
        changes=True,
        prepare=prepare,
        handler=handler,
    )


def done(tx: Transaction, request: Move) -> str:
    tx.record(f"move:{request.name}")
    return request.name


def leaves(platform: Platform, kind: str = "kernel.move") -> list[LogEntry]:
    return list(platform.call(ShowLog(kind=kind)).entries)


@pytest.fixture
def platform() -> Iterator[Platform]:
    with open_platform() as opened:
        yield opened


def refusing(details: dict[str, object]) -> Operation:
    def handler(tx: Transaction, request: Move) -> str:
        tx.record(f"move:{request.name}")
        raise GateRefused("The gate refuses it.", details=details)

    return moving(handler)


def test_a_gate_that_refuses_inside_a_handler_undoes_its_work_and_leaves_a_denial(platform: Platform) -> None:
    with pytest.raises(GateRefused):
        platform.dispatch(refusing({"missing": ["approval"], "auc": 0.5}), {"name": "a"})
    (leaf,) = leaves(platform)
    assert (leaf.outcome, leaf.subject) == ("denied", "platform:home")
    assert leaf.body == {
        "reason": "The gate refuses it.",
        "others_since_last": 0,
        "details": {"missing": ["approval"], "auc": "0.5"},
    }


@pytest.mark.parametrize(
    "details",
    [{"auc": float("nan"), "at": object()}, {"reasons": ["x" * 100] * 5000}],
    ids=["not a number", "too long for a leaf"],
)
def test_no_details_of_a_refusal_keep_it_out_of_the_ledger(platform: Platform, details: dict[str, object]) -> None:
    with pytest.raises(GateRefused):
        platform.dispatch(refusing(details), {"name": "a"})
    assert [leaf.outcome for leaf in leaves(platform)] == ["denied"]


def test_no_length_of_a_refused_request_keeps_it_out_of_the_ledger(platform: Platform) -> None:
    nobody = token_of(platform, "principal:nobody")
    grant = of_request(GrantRole)
    arguments = {"project": "p" * 100_000, "principal": "principal:nobody", "role": "admin"}
    with pytest.raises(NotAuthorised):
        platform.dispatch(grant, arguments, token=nobody)
    denied = [leaf for leaf in leaves(platform, grant.name) if leaf.outcome == "denied"]
    assert [leaf.actor for leaf in denied] == ["principal:nobody"]
    assert len(denied[0].project) < 500
    assert platform.call(VerifyLedger()).problems == ()


def test_text_that_is_no_unicode_is_refused_as_input(platform: Platform) -> None:
    with pytest.raises(InvalidInput, match="no Unicode"):
        platform.dispatch(of_request(CreateProject), {"project": "a", "description": "\udcff"})
    assert platform.call(ListProjects()) == ()


def test_the_order_of_a_requests_fields_makes_no_other_request(platform: Platform) -> None:
    first = {"name": "a", "facts": {"x": 1, "y": 2}}
    second = {"facts": {"y": 2, "x": 1}, "name": "a"}
    assert platform.dispatch(moving(done), first, idempotency_key="k") == "a"
    assert platform.dispatch(moving(done), second, idempotency_key="k") == "a"
    assert len(leaves(platform)) == 1


def test_a_key_that_is_too_long_is_refused(platform: Platform) -> None:
    with pytest.raises(InvalidInput, match="at most 200"):
        platform.dispatch(moving(done), {"name": "a"}, idempotency_key="k" * 201)


def test_calls_with_one_key_at_once_are_carried_out_once(platform: Platform) -> None:
    together = threading.Barrier(8)

    def prepare(_context: object, _request: Move) -> str:
        together.wait(20)  # all are past the first look at the key
        return "made"

    operation = moving(lambda tx, request, _made: done(tx, request), prepare=prepare)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(platform.dispatch, operation, {"name": "a"}, idempotency_key="k") for _ in range(8)]
        assert {call.result() for call in calls} == {"a"}
    assert len(leaves(platform)) == 1


def test_of_two_requests_with_one_key_at_once_one_is_refused(platform: Platform) -> None:
    together = threading.Barrier(2)
    operation = moving(lambda tx, request, _made: done(tx, request), prepare=lambda _c, _r: together.wait(20))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(platform.dispatch, operation, {"name": name}, idempotency_key="k") for name in "ab"]
        errors = [call.exception() for call in calls]
    assert [type(error) for error in errors if error] == [Conflict]
    assert len(leaves(platform)) == 1


def test_two_platforms_on_one_home_share_keys(platform: Platform) -> None:
    with open_platform(platform.settings.home) as other:
        assert platform.dispatch(moving(done), {"name": "a"}, idempotency_key="k") == "a"
        assert other.dispatch(moving(done), {"name": "a"}, idempotency_key="k") == "a"
    assert len(leaves(platform)) == 1


def test_every_act_after_a_commit_runs_and_the_first_error_is_raised(platform: Platform) -> None:
    seen: list[str] = []

    def fail(name: str) -> None:
        seen.append(name)
        raise UserCodeFailed(f"{name} failed.")

    def act(tx: Transaction, request: Move) -> str:
        tx.after_commit(lambda: fail("first"))
        tx.after_commit(lambda: fail("second"))
        tx.after_commit(lambda: seen.append("third"))
        return done(tx, request)

    with pytest.raises(UserCodeFailed, match="first"):
        platform.dispatch(moving(act), {"name": "a"}, idempotency_key="k")
    assert seen == ["first", "second", "third"]
    assert [leaf.outcome for leaf in leaves(platform)] == ["done"]
    assert platform.dispatch(moving(act), {"name": "a"}, idempotency_key="k") == "a"


def test_a_breach_of_the_schema_undoes_only_its_own_call(platform: Platform) -> None:
    def twice(tx: Transaction, request: Move) -> str:
        tx.record(f"move:{request.name}")
        tx.sql.exec_driver_sql("INSERT INTO ledger_uses VALUES ('x', 'y'), ('x', 'y')")
        return "never"

    with ThreadPoolExecutor(4) as pool:
        bad = [pool.submit(platform.dispatch, moving(twice), {"name": "bad"}) for _ in range(4)]
        good = [pool.submit(platform.dispatch, moving(done), {"name": f"good{n}"}) for n in range(8)]
        assert [type(call.exception()) for call in bad] == [sa.exc.IntegrityError] * 4
        assert [call.result() for call in good] == [f"good{n}" for n in range(8)]
    assert sorted(leaf.subject for leaf in leaves(platform)) == sorted(f"move:good{n}" for n in range(8))


def test_what_a_killed_process_left_queued_gets_its_checkpoint_at_the_next_start(platform: Platform) -> None:
    platform.dispatch(moving(done), {"name": "a"})
    platform.close()
    with open_platform(platform.settings.home) as again:
        found = again.call(VerifyLedger())
    assert (found.problems, found.queued) == ((), 0)
