"""`macadam init`, `plan` and `apply`: a project's files, what they would change, and changing it."""

import argparse
import sys
from pathlib import Path

from macadam.delivery import flows, scaffold
from macadam.delivery.flows import Applied, Event, StepDone, WaitingPolicies
from macadam.delivery.types import Plan
from macadam.faces import printing
from macadam.faces.session import Session, Verb
from macadam.operations import Progress

_HERE = "."


def _configure_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the project's name; its folder is made here")


def _init(options: argparse.Namespace, session: Session) -> int:
    place = scaffold.init(Path(), options.name)
    files = sorted(str(path) for path in place.rglob("*") if path.is_file())
    if session.json:
        session.show({"directory": str(place), "files": files})
        return 0
    session.say(f"A project that works as it is, with made-up data, to change step by step into your own ({place}):")
    for file in files:
        session.say(f"  {file}")
    session.say(f"Next: cd {place} && macadam plan")
    return 0


def _configure_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", default=_HERE, help="where macadam.yaml is; default: here")


def _plan(options: argparse.Namespace, session: Session) -> int:
    made = flows.plan(session.platform(), Path(options.directory))
    if session.json:
        session.show(made)
    else:
        _say_plan(made, session)
    return 0


def _say_plan(made: Plan, session: Session) -> None:
    for note in made.left:
        session.say(note)
    if made.nothing_to_do:
        session.say(f"{made.project}: the platform is as the files say. Nothing to do.")
        return
    session.say(f"{made.project}: {_steps(len(made.steps))}.")
    width = max(len(step.title) for step in made.steps)
    for number, step in enumerate(made.steps, 1):
        session.say(f"  {number:3}  {step.title:{width}}  {step.why}")
    session.say("Next: `macadam apply`.")


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"


def _apply(options: argparse.Namespace, session: Session) -> int:
    platform = session.platform()
    with printing.progress() as bars:
        applied = flows.apply(platform, Path(options.directory), _Teller(session, bars).tell)
    if session.json:
        session.show(applied)
    else:
        _say_applied(applied, session)
    return flows.EXIT_CODES[applied.state]


class _Teller:
    """Says what happens while a plan is applied: a line a step, a bar for a long one."""

    def __init__(self, session: Session, bars: Progress) -> None:
        self._session = session
        self._bars = bars

    def tell(self, event: Event) -> None:
        where = f"{event.number}/{event.of}" if event.of else ""
        if event.kind == "progress":
            self._bars(event.text or event.title, event.count, event.total)
        elif event.kind == "resumed":
            self._session.say("An apply that was cut off goes on.")
        elif event.kind == "abandoned":
            self._session.say("An apply that was cut off is given up: the files have changed since.")
        elif event.kind == "left":
            self._session.say(event.text)
        elif event.kind == "done":
            self._session.say(f"  {where:>7}  {event.title}  {event.seconds:.1f} s{_outcome(event)}")
        elif event.kind == "before":
            self._session.say(f"  {where:>7}  {event.title}  done before")
        elif event.kind == "skipped":
            self._session.say(f"  {where:>7}  {event.title}  skipped: {event.text}")
        sys.stdout.flush()


def _outcome(event: Event) -> str:
    """The few figures of an outcome that a person looks for."""
    found = event.outcome
    if {"rows_in", "published", "quarantined"} <= found.keys():
        return f"  {found['rows_in']} rows in, {found['published']} published, {found['quarantined']} quarantined"
    return f"  {found['ref']}" if "ref" in found else ""


def _say_applied(applied: Applied, session: Session) -> None:
    if applied.state == "nothing":
        session.say(f"{applied.project}: the platform is as the files say. Nothing to do.")
        return
    done: list[StepDone] = list(applied.steps)
    session.say(f"{applied.project}: {_steps(len(done))} in {applied.seconds:.1f} s.")
    if applied.policies is not None:
        _say_waiting(applied.policies, session)
    for held in applied.held:
        verb = "waits for approval" if held.waiting else "was refused by its gate"
        session.say(f"{held.model} version {held.version} {verb}:")
        for reason in held.reasons:
            session.say(f"  - {reason}")
        if held.waiting:
            session.say(
                f"Next: someone other than its author runs `macadam gates approve {held.model} {held.version}`,"
                " then `macadam apply` again."
            )
    for title in applied.skipped:
        session.say(f"Not done: {title}.")


def _say_waiting(policies: WaitingPolicies, session: Session) -> None:
    number = policies.version
    session.say(f"Version {number} of the policies waits for approval: {policies.approvals} of {policies.needed}.")
    session.say(
        f"Next: someone other than {policies.proposed_by} runs `macadam policy approve {number}`, then `macadam apply` again."
    )


INIT = Verb(configure=_configure_init, run=_init)
PLAN = Verb(configure=_configure_directory, run=_plan)
APPLY = Verb(configure=_configure_directory, run=_apply)
