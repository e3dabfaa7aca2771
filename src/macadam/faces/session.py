"""What every command works with: its options, the caller it goes through (this machine's home or a server), printing.

Nothing is opened until a command asks for it, so that help and version stay quick.
"""

import argparse
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from macadam.errors import InvalidInput
from macadam.faces import printing, tables
from macadam.lazy import lazy
from macadam.operations import Operation, Progress

if TYPE_CHECKING:
    import yaml

    from macadam.app.platform import Platform
else:
    yaml = lazy("yaml")

PROJECT_FILE = "macadam.yaml"


class Caller(Protocol):
    """Carries out operations: a Platform in process, or a Client over HTTP."""

    def dispatch(
        self, operation: Operation, arguments: Mapping[str, object], *, idempotency_key: str, progress: Progress
    ) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A command written by hand. configure: declares its arguments; run: does it and returns the exit code."""

    configure: Callable[[argparse.ArgumentParser], None]
    run: "Callable[[argparse.Namespace, Session], int]"


class Session:
    """One run of the command line. Use as a context manager."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.json = bool(getattr(options, "json", False))
        self.idempotency_key = str(getattr(options, "idempotency_key", ""))
        self._options = options
        self._caller: Caller | None = None

    @property
    def home(self) -> Path | None:
        """The home that was asked for; None: MACADAM_HOME, else `.macadam` here."""
        given = getattr(self._options, "home", "")
        return Path(given) if given else None

    @property
    def url(self) -> str:
        """The server to talk to; '' means the home on this machine, in process."""
        return str(getattr(self._options, "url", "") or os.environ.get("MACADAM_URL", ""))

    @property
    def token(self) -> str:
        return str(getattr(self._options, "token", "") or os.environ.get("MACADAM_TOKEN", ""))

    def project(self) -> str:
        """--project, else MACADAM_PROJECT, else the project of ./macadam.yaml, else ''."""
        given = getattr(self._options, "project", "") or os.environ.get("MACADAM_PROJECT", "")
        return str(given) or _project_here(Path(PROJECT_FILE))

    def caller(self) -> Caller:
        """The server or the home. Opened once, closed at the end."""
        if self._caller is None:
            # By name, as rooms are: it brings the database layer, which help and version must not wait for.
            callers = importlib.import_module("macadam.faces.callers")
            opened: Caller = callers.open_caller(self.url, self.token, self.home)
            self._caller = opened
        return self._caller

    def platform(self) -> "Platform":
        """The home on this machine. Raises InvalidInput if a server was named: the command needs the files."""
        if self.url:
            raise InvalidInput(
                f"This command works on this machine's home, but {self.url} was named.",
                next_step="Unset MACADAM_URL (--url), or run it on that machine.",
            )
        return cast("Platform", self.caller())

    def call(self, operation: Operation, arguments: Mapping[str, object]) -> Any:
        """Carries out one operation, showing its progress on a terminal."""
        with printing.progress() as progress:
            return self.caller().dispatch(operation, arguments, idempotency_key=self.idempotency_key, progress=progress)

    def show(self, value: object, *, title: str = "") -> None:
        """Prints an answer: JSON with --json, else a table or panel."""
        if self.json:
            printing.as_json(value)
        else:
            printing.as_text(value, title=title)

    def show_answer(self, operation: Operation, value: object) -> None:
        """Prints what an operation answered: as it is with --json, else as people look at it."""
        shape = None if self.json else tables.shaped(operation.name, value)
        if shape is None:
            self.show(value)
        else:
            printing.as_text(shape, ranked=True)
        rows = shape if shape is not None else list(value) if isinstance(value, (list, tuple)) else ""
        if said := tables.hint(operation.name, rows):
            self.say(said)

    def say(self, text: str) -> None:
        """Prints a line for a person; nothing with --json."""
        if not self.json:
            printing.line(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._caller is not None:
            self._caller.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options that every command takes. Absent ones leave no attribute, so they may stand anywhere."""
    parser.add_argument("--json", action="store_true", help="print one JSON document, errors included")
    parser.add_argument("--project", metavar="NAME", help="default: MACADAM_PROJECT, else that of ./macadam.yaml")
    parser.add_argument("--home", metavar="DIR", help="where state lives; default: MACADAM_HOME, else ./.macadam")
    parser.add_argument("--url", metavar="URL", help="talk to a server instead; default: MACADAM_URL")
    parser.add_argument("--token", metavar="TOKEN", help="who you are; default: MACADAM_TOKEN, else the home's own")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="a repeated call with the same key gets the first answer"
    )


def _project_here(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(
            f"{path} is not YAML: {error}.", next_step=f"Correct {path}, or name the project with --project."
        ) from error
    found = said.get("project", "") if isinstance(said, dict) else ""
    if isinstance(found, dict):
        found = found.get("name", "")
    return str(found)
