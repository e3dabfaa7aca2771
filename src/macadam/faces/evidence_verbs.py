"""`macadam prove` and `macadam inspect`: evidence for people who did not build what it is about."""

import argparse

from macadam import operations
from macadam.errors import ChecksFailed, InvalidInput
from macadam.faces import printing
from macadam.faces.session import Session, Verb
from macadam.governance.types import Inspect, Inspection
from macadam.operations import Operation

_MARKS = {"pass": "pass", "fail": "FAIL", "not_applicable": "does not apply", "did_not_run": "did not run"}


def _operation(group: str, request: type) -> Operation:
    operations.load(group)
    return operations.of_request(request)


def _project(session: Session) -> str:
    found = session.project()
    if not found:
        raise InvalidInput(
            "No project was named.", next_step="Give --project, set MACADAM_PROJECT, or run it where macadam.yaml is."
        )
    return found


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="end with an error if a point failed")


def _inspect(options: argparse.Namespace, session: Session) -> int:
    found: Inspection = session.call(_operation("inspection", Inspect), {"project": _project(session)})
    if session.json:
        session.show(found)
    else:
        _say_inspection(found, session)
    failed = [point.id for point in found.points if point.status == "fail"]
    if failed and getattr(options, "strict", False):
        raise ChecksFailed(
            f"{len(failed)} points failed: {', '.join(failed)}.",
            next_step="Read what each of them found.",
            details={"points": failed},
        )
    return 0


def _say_inspection(found: Inspection, session: Session) -> None:
    rows = [
        {"point": point.id, "status": _MARKS[point.status], "what is checked": point.check, "found": point.detail}
        for point in found.points
    ]
    printing.as_text(rows, title=f"Inspection of {found.project}")
    said = ", ".join(f"{count} {_MARKS[status].lower()}" for status, count in found.counts.items())
    session.say(f"{len(found.points)} points: {said}.")
    session.say(f"Kept as {found.digest}; leaf {found.ref}.")


INSPECT = Verb(configure=_configure_inspect, run=_inspect)
