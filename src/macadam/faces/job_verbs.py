"""`macadam jobs run` works the queue in the foreground; `macadam jobs follow` prints a job's log as it grows."""

import argparse
import signal
import sys
import threading

import msgspec

from macadam.compute.jobs import loop
from macadam.compute.jobs.types import LogText, ReadLog, ShowJob
from macadam.errors import InvalidInput, NotFound
from macadam.faces.session import Session, Verb
from macadam.operations import of_request
from macadam.values import utc_now

_PAUSE = 0.5  # s between two looks at a log


def _configure_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--until-idle", action="store_true", help="end when nothing waits or runs any more")


def _run(options: argparse.Namespace, session: Session) -> int:
    """One at a time: raises Busy while another process works this home's queue."""
    platform = session.platform()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with loop.claimed(platform.settings.home):
        queue = loop.Queue(platform.ports, clock=utc_now, committed=platform.committed)
        session.say("Working the queue; Ctrl-C ends that, and what runs goes on.")
        loop.run(queue, platform.settings.jobs.every, stop, until_idle=getattr(options, "until_idle", False))
    return 0


def _configure_follow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id or job:id")
    parser.add_argument("--attempt", type=int, default=0, metavar="N", help="default: the newest")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="member of a gang; default: 0")


def _follow(options: argparse.Namespace, session: Session) -> int:
    """Prints until the attempt has ended; goes on with the next attempt, unless one was named. Raises NotFound."""
    project = session.project()
    if not project:
        raise InvalidInput("`macadam jobs follow` needs a project.", next_step="Give --project NAME.")
    at, number, pause = 0, options.attempt, threading.Event()
    while True:
        job = session.call(of_request(ShowJob), {"project": project, "job": options.job}).job
        number = number or job.attempt
        page = _page(session, project, options, number, at) if number else None
        if page is not None:
            sys.stdout.write(f"… {page.cut} bytes were dropped …\n" if page.cut else "")
            sys.stdout.write(page.text)
            sys.stdout.flush()
            at = page.next
        if page is None or page.ended:
            if job.ended is not None or options.attempt:
                session.say(f"{job.ref} has {job.state}." if job.ended else "")
                return 0
            if number and job.attempt > number:
                at, number = 0, job.attempt
                continue
        if page is None or not page.text:
            pause.wait(_PAUSE)


def _page(session: Session, project: str, options: argparse.Namespace, number: int, at: int) -> LogText | None:
    """None while it has written nothing, or once its log was removed."""
    request = ReadLog(project=project, job=options.job, attempt=number, rank=options.rank, offset=at)
    try:
        found: LogText = session.call(of_request(ReadLog), msgspec.to_builtins(request))
    except NotFound:
        return None
    return found


RUN = Verb(configure=_configure_run, run=_run)
FOLLOW = Verb(configure=_configure_follow, run=_follow)
