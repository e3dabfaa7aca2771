"""`macadam policy test`: a table of who may do what, held against a text or against what is in force. Needs no server."""

import argparse
from pathlib import Path

from macadam import operations
from macadam.access import policy_table
from macadam.access.policies import ProjectText, built_in
from macadam.access.policies.compiled import compiled
from macadam.access.policy_table import Outcome
from macadam.access.policy_types import ShowPolicies
from macadam.errors import InvalidInput, NotFound
from macadam.faces import printing
from macadam.faces.cli import files_below
from macadam.faces.session import Session, Verb
from macadam.operations import of_request

_FAILED = 1


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="FILE", help="who, does, on, when, expect: as .yaml, .csv or .md")
    parser.add_argument(
        "--policies", metavar="PATH", action="append",
        help="the text to test, a file or a folder; may be repeated; default: ./policies, else what is in force",
    )  # fmt: skip


def _test(options: argparse.Namespace, session: Session) -> int:
    project = session.project() or "project"
    own, tested = _text(options, session, project)
    compiled(built_in(), own)  # a text that is refused is said to be, not tested
    path = Path(options.table)
    cases = policy_table.read(path.name, _read(path))
    outcomes = policy_table.hold(cases, project, built_in(), own)
    wrong = [one for one in outcomes if not one.held]
    if session.json:
        session.show({"tested": tested, "rows": len(outcomes), "wrong": len(wrong), "outcomes": outcomes})
    else:
        printing.as_text([_shown(one) for one in outcomes], title=f"{path.name} against {tested}")
        session.say(f"{len(outcomes)} rows, {len(wrong)} otherwise than expected.")
    return _FAILED if wrong else 0


def _shown(one: Outcome) -> dict[str, object]:
    shown = {name: getattr(one, name) for name in ("line", "who", "does", "on", "when", "expect", "got")}
    return {**shown, "": "" if one.held else "WRONG", "why": one.reason}


def _text(options: argparse.Namespace, session: Session, project: str) -> tuple[ProjectText | None, str]:
    """The text to test, and what to call it."""
    given = getattr(options, "policies", None) or (["policies"] if Path("policies").is_dir() else [])
    if given:
        files: dict[str, str] = {}
        for name in given:
            path = Path(name)
            files |= files_below(path) if path.is_dir() else {path.as_posix(): _read(path)}
        chosen = {name: text for name, text in files.items() if name.endswith(".cedar")}
        return ProjectText.of(project, chosen), ", ".join(given)
    try:
        operations.load("policy")
        active = session.call(of_request(ShowPolicies), {"project": project})
    except NotFound:
        return None, "the platform's roles"
    return ProjectText.of(project, active.files), f"version {active.version}, which is in force"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as text: {error}.", next_step="Correct the path.") from error


TEST = Verb(configure=_configure, run=_test)
