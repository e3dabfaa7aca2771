"""`macadam ledger export`: a copy of the ledger that can be checked without Macadam, written as it is read."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from macadam.errors import InvalidInput
from macadam.faces import printing
from macadam.faces.evidence_verbs import find_operation, keep_key
from macadam.faces.session import Session, Verb
from macadam.ledger.note import Checkpoint, Note
from macadam.ledger.types import Page, ReadLeaves
from macadam.operations import Progress

FORMAT = "macadam-ledger/1"
NAME = "ledger.jsonl"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", metavar="FILE", help=f"where the copy goes; in a folder it is called {NAME}")
    parser.add_argument("--key-file", metavar="FILE", help="where the ledger's keys go; default: ledger.key beside it")


def _export(options: argparse.Namespace, session: Session) -> int:
    to = Path(options.to)
    to = to / NAME if to.is_dir() or options.to.endswith(os.sep) else to
    project = session.project() or "*"
    with printing.progress() as progress, _written(to) as out:
        key, size, checkpoints = _copy(session, project, out, progress)
    key_file = Path(getattr(options, "key_file", to.parent / "ledger.key"))
    keep_key(key_file, key)  # the first key is enough: leaves of the copy announce the others
    if session.json:
        session.show({"file": str(to), "key_file": str(key_file), "leaves": size, "checkpoints": checkpoints})
        return 0
    of = "" if project == "*" else f"; only the leaves of {project!r} are told, of the others their hashes"
    session.say(f"{to}: {size} leaves and {checkpoints} checkpoints{of}.")
    session.say(f"Next: python -m macadam_verify --ledger {to} --key {key_file}")
    session.say("Who checks it for somebody else compares the key with one that they got by another way.")
    return 0


def _copy(session: Session, project: str, out: TextIO, progress: Progress) -> tuple[str, int, int]:
    """Returns the keys, and how many leaves and checkpoints were written. One page is in memory at a time."""
    page = _page(session, project, 0, 0)
    key, size, checkpoints, at = page.key, page.size, 0, 0
    _line(out, {"format": FORMAT, "key": key, "project": project, "size": size})
    while True:
        notes = {Checkpoint.parse(Note.parse(note).text).size: note for note in page.checkpoints}
        for leaf in page.leaves:
            _line(out, {"index": leaf.index, **({"leaf": leaf.text} if leaf.text else {"hash": leaf.hash})})
            if leaf.index + 1 in notes:
                _line(out, {"checkpoint": notes[leaf.index + 1]})
                checkpoints += 1
        at += len(page.leaves)
        progress("leaves", at, size)
        if at >= size or not page.leaves:
            return key, at, checkpoints
        page = _page(session, project, at, size)


def _page(session: Session, project: str, first: int, size: int) -> Page:
    arguments = {"project": project, "first": first, "size": size}
    found: Page = session.caller().dispatch(
        find_operation("ledger", ReadLeaves), arguments, idempotency_key="", progress=_silent
    )
    return found


def _silent(_what: str, _done: int, _of: int) -> None:
    """One page is quick: the pages are what is counted."""


def _line(out: TextIO, value: dict[str, object]) -> None:
    out.write(msgspec.json.encode(value, order="sorted").decode() + "\n")


@contextlib.contextmanager
def _written(to: Path) -> Iterator[TextIO]:
    """A file that appears under its name when it is whole. Raises InvalidInput."""
    draft = to.with_name(f".{to.name}.part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="\n") as out:
            yield out
        draft.replace(to)
    except OSError as error:
        raise InvalidInput(f"{to} cannot be written: {error.strerror}.", next_step="Name another file.") from error
    finally:
        draft.unlink(missing_ok=True)


EXPORT = Verb(configure=_configure, run=_export)
