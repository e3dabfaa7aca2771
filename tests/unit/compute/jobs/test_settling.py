"""What follows from how an attempt ended."""

from datetime import UTC, datetime, timedelta

import pytest

from macadam.compute.jobs import settling
from macadam.compute.jobs.types import AttemptRow, Job, Resources, Spec, Wish
from macadam.errors import InvalidInput
from macadam.ports import Sighting

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def job(*, restarts: int = 0, max_restarts: int = 1, preemptible: bool = True) -> Job:
    spec = Spec(name="", command=("true",), resources=Resources(), max_restarts=max_restarts, preemptible=preemptible)
    return Job(
        ref="job:j", id="j", project="p", state="running", spec=spec, priority=0, author="a", submitted=NOW,
        attempt=1, restarts=restarts,
    )  # fmt: skip


def attempt(wish: Wish = "") -> AttemptRow:
    return AttemptRow(id="j.1", job="j", project="p", number=1, places=(), started=NOW, wish=wish)


def ended(code: int = 0, why: str = "") -> Sighting:
    return Sighting(attempt="j.1", state="ended", exit_code=code, why=why, message="m", seconds=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "code", "why", "ending", "state", "restart"),
    [
        ("", 0, "", "succeeded", "succeeded", False),
        ("", 3, "", "failed", "failed", False),
        ("", 75, "", "failed", "waiting", True),
        ("", 137, "", "killed", "waiting", True),
        ("", 137, "lost", "lost", "waiting", True),
        ("", 143, "stopped", "lost", "waiting", True),
        ("", 143, "time limit", "time limit", "failed", False),
        ("", 137, "memory", "memory", "failed", False),
        ("", 126, "refused", "refused", "failed", False),
        ("preempt", 75, "stopped", "preempted", "waiting", False),
        ("preempt", 143, "stopped", "preempted", "waiting", False),
        ("preempt", 0, "stopped", "succeeded", "succeeded", False),
        ("preempt", 137, "lost", "preempted", "waiting", False),
        ("node", 137, "lost", "node", "waiting", False),
        ("money", 143, "stopped", "money", "waiting", False),
        ("cancel", 143, "stopped", "cancelled", "cancelled", False),
        ("cancel", 0, "stopped", "succeeded", "succeeded", False),
        ("cancel", 0, "", "succeeded", "succeeded", False),
        ("cancel", 137, "lost", "cancelled", "cancelled", False),
        ("cancel", 9, "", "cancelled", "cancelled", False),
    ],
)
def test_an_ending_has_one_meaning(wish: Wish, code: int, why: str, ending: str, state: str, restart: object) -> None:
    verdict = settling.judge(job(), attempt(wish), ended(code, why))
    assert (verdict.ending, verdict.state, verdict.restart) == (ending, state, restart)


@pytest.mark.parametrize(("code", "why"), [(75, ""), (137, ""), (137, "lost")])
def test_whoever_has_used_its_restarts_fails_and_says_so(code: int, why: str) -> None:
    verdict = settling.judge(job(restarts=1), attempt(), ended(code, why))
    assert (verdict.state, verdict.restart) == ("failed", False)
    assert "1 of 1 restarts are used" in verdict.message


def test_what_cannot_be_started_again_fails_when_it_is_stopped() -> None:
    verdict = settling.judge(job(preemptible=False), attempt("money"), ended(143, "stopped"))
    assert (verdict.ending, verdict.state) == ("money", "failed")


def test_what_never_began_waits_again_whatever_its_restarts() -> None:
    seen = Sighting(attempt="j.1", state="ended", exit_code=143, why="stopped")
    verdict = settling.judge(job(max_restarts=0), attempt(), seen)
    assert (verdict.ending, verdict.state, verdict.restart) == ("lost", "waiting", False)


def test_what_still_runs_is_not_judged() -> None:
    with pytest.raises(InvalidInput, match="running"):
        settling.judge(job(), attempt(), Sighting(attempt="j.1", state="running"))


def test_each_restart_waits_twice_as_long_as_the_one_before_up_to_five_minutes() -> None:
    waits = [(settling.ready_after(n, 1.0, NOW) - NOW).total_seconds() for n in (0, 1, 2, 8, 9, 1000)]
    assert waits == [1, 2, 4, 256, 300, 300]
    assert settling.ready_after(0, 0.0, NOW) == NOW + timedelta(0)
