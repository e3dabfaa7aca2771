"""`macadam jobs start` submits a command as it is typed, `follow` prints a job's log as it grows, `run` works the queue.

`jobs submit` takes every field of a job; `start` is for people at a terminal, and sends the files of the folder they are in.
"""

import argparse
import re
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import msgspec

from macadam.compute.jobs import loop
from macadam.compute.jobs.types import ExplainJob, Explanation, Job, LogText, ReadLog, ShowJob, SubmitJob
from macadam.errors import InvalidInput, NotFound
from macadam.faces import printing
from macadam.faces.cli import files_below
from macadam.faces.session import Session, Verb
from macadam.operations import of_request
from macadam.values import parse_duration, parse_instant, utc_now

_AS_TYPED = (
    "name",
    "priority",
    "time_limit",
    "max_restarts",
    "checkpoint",
    "checkpoint_every",
    "deadline",
    "grace",
    "preemptible",
)
_SIZE = re.compile(r"^(\d{1,12})([KMGT]?)(?:i?B)?\Z")
_PAUSE = 0.5  # s between two looks at a log
_AT_ONCE = 2.0  # s; what starts within them did not wait
_EXPLAIN_EVERY = 10.0  # s between two looks at why a job waits


def _configure_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until-idle", action="store_true", default=False, help="end when nothing waits or runs any more"
    )


def _run(options: argparse.Namespace, session: Session) -> int:
    """One at a time: raises Busy while another process works this home's queue."""
    platform = session.platform()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with loop.claimed(platform.settings.home):
        queue = loop.Queue(platform.ports, clock=utc_now, committed=platform.committed)
        session.say("Working the queue; Ctrl-C ends that, and what runs goes on.")
        loop.run(queue, platform.settings.jobs.every, stop, until_idle=options.until_idle)
    return 0


def _configure_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="whole GPUs")
    parser.add_argument("--part", type=int, default=0, metavar="N", help="thousandths of one GPU, instead")
    parser.add_argument("--gpu", action="append", default=[], metavar="MODEL", help="that will do; may be repeated")
    parser.add_argument("--cpus", type=float, default=1.0, metavar="X", help="cores; default: 1")
    parser.add_argument("--memory", default="1G", metavar="SIZE", help="such as 512M or 64G (binary); default: 1G")
    parser.add_argument("--name", default="", help="for people, and for what is expected of its like")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher goes first where the policy asks")
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        default=0.0,
        metavar="TIME",
        help="of each attempt: 90m, 2h, or seconds; default: none",
    )
    parser.add_argument(
        "--max-restarts", type=int, default=0, metavar="N", help="after it was killed or lost; default: 0"
    )
    parser.add_argument(
        "--checkpoint", action="store_true", default=False, help="keep MACADAM_CHECKPOINT from attempt to attempt"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=_seconds,
        default=0.0,
        metavar="TIME",
        help="that it saves by itself; default: when asked",
    )
    parser.add_argument(
        "--deadline", type=_until, default=None, metavar="TIME", help="an instant (RFC 3339), or so long from now: 30h"
    )
    parser.add_argument(
        "--grace", type=_seconds, default=30.0, metavar="TIME", help="to save in when it is asked to end; default: 30"
    )
    parser.add_argument(
        "--no-preemptible",
        dest="preemptible",
        action="store_false",
        default=True,
        help="never stop it for others, nor put it on spot",
    )
    parser.add_argument("--files", default="", metavar="DIR", help="send the text files below it; it runs among them")
    parser.add_argument("--follow", action="store_true", default=False, help="print its log until it has ended")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="behind --, so that its options are its own")


def _start(options: argparse.Namespace, session: Session) -> int:
    """Prints the job; with --follow its log, and ends with 1 unless it succeeded."""
    resources = {
        "gpus": options.gpus,
        "milli": options.part,
        "models": options.gpu,
        "cpus": options.cpus,
        "memory": size(options.memory),
    }
    request = {
        "project": _project(session),
        "command": options.command,
        "resources": resources,
        "files": _files(options.files),
        **{one: getattr(options, one) for one in _AS_TYPED},
    }
    job: Job = session.call(of_request(SubmitJob), request)
    if options.follow:
        options.job, options.attempt, options.rank = job.id, 0, 0
        _follow(options, session)
        return int(session.call(of_request(ShowJob), {"project": job.project, "job": job.id}).job.state != "succeeded")
    if session.json:
        session.show(job)
        return 0
    session.say(f"{job.ref} waits to be started.")
    session.say(f"Next: macadam jobs follow {job.id}, or why it waits: macadam jobs explain {job.id}")
    return 0


def size(text: str) -> int:
    """Bytes of '512M' or '64GiB': binary multiples. Raises InvalidInput."""
    match = _SIZE.match(text)
    if not match:
        raise InvalidInput(f"{text!r} is no size.", next_step="Write it as 512M or 64G.")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def _seconds(text: str) -> float:
    """A plain number of them, or a duration with its unit."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            return parse_duration(text).total_seconds()
        except (InvalidInput, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is neither seconds nor a duration, such as 90m") from error
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time")
    return seconds


def _until(text: str) -> datetime:
    """An instant, or a duration from now."""
    try:
        return parse_instant(text) if "T" in text else utc_now() + parse_duration(text)
    except (InvalidInput, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an instant, such as 2026-11-23T08:00:00Z, nor a duration, such as 30h"
        ) from error


def _files(folder: str) -> dict[str, str]:
    if not folder:
        return {}
    root = Path(folder)
    return {Path(name).relative_to(root).as_posix(): text for name, text in files_below(root).items()}


def _project(session: Session) -> str:
    project = session.project()
    if not project:
        raise InvalidInput("A job needs a project.", next_step="Give --project NAME.")
    return project


def _configure_follow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id or job:id")
    parser.add_argument("--attempt", type=int, default=0, metavar="N", help="default: the newest")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="member of a gang; default: 0")


def _follow(options: argparse.Namespace, session: Session) -> int:
    """Prints until the attempt has ended; goes on with the next attempt, unless one was named. Raises NotFound.

    With --json the log goes to stderr, and the job is the one value on stdout.
    """
    project, out = _project(session), sys.stderr if session.json else sys.stdout
    at, number, pause, patience = 0, options.attempt, threading.Event(), _Patience(session, project, options.job)
    while True:
        job: Job = session.call(of_request(ShowJob), {"project": project, "job": options.job}).job
        number = number or job.attempt
        page = _page(session, project, options, number, at) if number else None
        if page is not None:
            out.write(f"… {page.cut} bytes were dropped …\n" if page.cut else "")
            out.write(page.text)
            out.flush()
            at = page.next
        if page is None or page.ended:
            if job.ended is not None or options.attempt:
                break
            if number and job.attempt > number:
                at, number = 0, job.attempt
                continue
            patience.tell(job)
        if page is None or not page.text:
            pause.wait(_PAUSE)
    if session.json:
        session.show(job)
    elif job.ended is not None:
        session.say(f"{job.ref} has {job.state}{f': {job.message}' if job.message else ''}.")
    return 0


class _Patience:
    """Tells on stderr why a job that is followed waits, how long likely, and what it will cost: once it has waited, and when that changes."""

    def __init__(self, session: Session, project: str, job: str) -> None:
        self._session, self._request = session, {"project": project, "job": job}
        self._next = time.monotonic() + _AT_ONCE
        self._said = ""

    def tell(self, job: Job) -> None:
        if job.state != "waiting" or time.monotonic() < self._next:
            return
        found: Explanation = self._session.call(of_request(ExplainJob), self._request)
        self._next = time.monotonic() + _EXPLAIN_EVERY
        if found.words != self._said:
            self._said = found.words
            sys.stderr.write(f"{job.ref} waits: {found.words}{_outlook(found)}\n")
            sys.stderr.write(f"{found.next_step}\n" if found.next_step else "")


def _outlook(found: Explanation) -> str:
    known = {"Likely start": found.start.likely, "likely cost": found.cost.likely}
    said = [f"{what} {printing.cell(msgspec.to_builtins(value))}" for what, value in known.items() if value is not None]
    return f" {', '.join(said)}." if said else ""


def _page(session: Session, project: str, options: argparse.Namespace, number: int, at: int) -> LogText | None:
    """None while it has written nothing, or once its log was removed."""
    request = ReadLog(project=project, job=options.job, attempt=number, rank=options.rank, offset=at)
    try:
        found: LogText = session.call(of_request(ReadLog), msgspec.to_builtins(request))
    except NotFound:
        return None
    return found


RUN = Verb(configure=_configure_run, run=_run)
START = Verb(configure=_configure_start, run=_start)
FOLLOW = Verb(configure=_configure_follow, run=_follow)
