"""What follows from how an attempt ended: pure rules, one place for them.

An exit code is the job's own word and final: 0 is done, others have failed, those in `restart_codes` ask for another
attempt. A signal that nobody here sent, or a machine or supervisor that died, is nobody's word: it is tried again as
often as `max_restarts` says. Whoever was asked to stop and ends with 0 has finished; with anything else there is work left.
"""

from datetime import datetime, timedelta

import msgspec

from macadam.compute.jobs.types import AttemptRow, Ending, Job, State
from macadam.errors import InvalidInput
from macadam.ports import Sighting

_SIGNALLED = 128
_LONGEST_DELAY = 300.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How the attempt ended and what the job is now. restart: whether it counts against `max_restarts`."""

    ending: Ending
    state: State
    restart: bool = False
    message: str = ""


def judge(job: Job, attempt: AttemptRow, seen: Sighting) -> Verdict:
    """seen: must have ended. Raises InvalidInput otherwise."""
    if seen.state != "ended":
        raise InvalidInput(f"{attempt.id} is {seen.state}.", next_step="Judge an attempt once it has ended.")
    if seen.why in ("", "stopped") and seen.exit_code == 0:
        message = "it finished when it was asked to stop" if seen.why else ""
        return Verdict(ending="succeeded", state="succeeded", message=message)
    if seen.why in ("refused", "memory", "time limit"):
        return Verdict(ending=_NAMED[seen.why], state="failed", message=seen.message)
    if attempt.wish == "cancel":
        return Verdict(ending="cancelled", state="cancelled")
    if attempt.wish:
        return _stopped(job, attempt)
    if seen.why in ("lost", "stopped"):  # nobody here asked it to stop
        return _lost(job, attempt, seen)
    if seen.exit_code in job.spec.restart_codes:
        return _again(job, "failed", f"it ended with code {seen.exit_code}, which asks for another attempt")
    if seen.exit_code > _SIGNALLED:
        return _again(job, "killed", f"it was killed by signal {seen.exit_code - _SIGNALLED}")
    return Verdict(ending="failed", state="failed", message=f"it ended with code {seen.exit_code}")


_NAMED: dict[str, Ending] = {"refused": "refused", "memory": "memory", "time limit": "time limit"}

_WISHED: dict[str, Ending] = {"node": "node", "money": "money", "move": "moved"}


def _stopped(job: Job, attempt: AttemptRow) -> Verdict:
    ending = _WISHED.get(attempt.wish, "preempted")
    if job.spec.preemptible:
        return Verdict(ending=ending, state="waiting")
    return Verdict(ending=ending, state="failed", message="it was stopped and said that it cannot be started again")


def _lost(job: Job, attempt: AttemptRow, seen: Sighting) -> Verdict:
    if attempt.began is None and not seen.seconds:  # see `never_began`
        return Verdict(ending="lost", state="waiting", message="it was lost before it began")
    return _again(job, "lost", seen.message or "it was stopped by somebody else")


def _again(job: Job, ending: Ending, message: str) -> Verdict:
    if job.restarts < job.spec.max_restarts:
        return Verdict(ending=ending, state="waiting", restart=True, message=message)
    return Verdict(
        ending=ending, state="failed", message=f"{message}; {job.restarts} of {job.spec.max_restarts} restarts are used"
    )


def abandoned(job: Job, attempt: AttemptRow, message: str) -> Verdict:
    """Of an attempt of which nothing can be known any more: it may have begun, be running, or have done its work."""
    if attempt.wish == "cancel":
        return Verdict(ending="cancelled", state="cancelled", message=message)
    return _again(job, "lost", message)


def never_began(attempt: AttemptRow) -> bool:
    """Whether it was lost before any process of it was seen. That counts as no restart, so that only a pause bounds it."""
    return attempt.ending == "lost" and attempt.began is None and not attempt.seconds


def ready_after(restarts: int, delay: float, now: datetime) -> datetime:
    """When a job that has died so often may start again: what dies at once must not keep the machine busy."""
    return now + timedelta(seconds=min(_LONGEST_DELAY, delay * 2 ** min(restarts, 20)))
