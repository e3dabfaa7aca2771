"""Prints answers, errors and progress: JSON for scripts, tables and panels for people. Rich is loaded when it draws."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.errors import MacadamError
from macadam.faces import problem
from macadam.lazy import lazy
from macadam.operations import Progress

if TYPE_CHECKING:
    import rich.box as rich_box
    import rich.console as rich_console
    import rich.progress as rich_progress
    import rich.table as rich_table
    import rich.text as rich_text
else:
    rich_box = lazy("rich.box")
    rich_console = lazy("rich.console")
    rich_progress = lazy("rich.progress")
    rich_table = lazy("rich.table")
    rich_text = lazy("rich.text")

_PIPE_WIDTH = 200  # characters: a table in a pipe is for grep, not for a screen
_TOKEN_LEFT = 120  # characters of a nested value before it is cut in a table


def as_json(value: object) -> None:
    """One document on stdout, indented, keys in the order of declaration."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def as_text(value: object, *, title: str = "") -> None:
    """Lists of records as a table, a record as two columns, anything else as it is."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, (list, tuple)):
        _records(plain, title)
    elif isinstance(plain, dict):
        _record(plain, title)
    elif plain is not None:
        line(str(plain))


def line(text: str) -> None:
    """One line on stdout, as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def error(problem_: MacadamError, *, json: bool) -> None:
    """One line and the next step on stderr; with json the problem details on stdout."""
    if json:
        as_json({**problem.of_error(problem_), "exit_code": problem_.exit_code})
        return
    sys.stdout.flush()
    sys.stderr.write(f"Error: {problem_.what}\n")
    if problem_.next_step:
        sys.stderr.write(f"Next: {problem_.next_step}\n")


@contextmanager
def progress(*, shown: bool) -> Iterator[Progress]:
    """Gives the function that operations report to. On a terminal it draws bars on stderr, else it does nothing."""
    if not shown or not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    columns = (
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
    )
    with rich_progress.Progress(*columns, console=console(stderr=True), transient=True) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield report


def console(*, stderr: bool = False) -> "rich_console.Console":
    """A console for stdout (or stderr) as they are now. Colour only on a terminal and without NO_COLOR."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return rich_console.Console(file=file, width=width, highlight=False, markup=False, soft_wrap=False)


def _records(rows: Sequence[object], title: str) -> None:
    if not rows:
        line("None.")
        return
    if not all(isinstance(row, dict) for row in rows):
        for row in rows:
            line(_cell(row))
        return
    records: list[dict[str, Any]] = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in records for name in row))
    table = rich_table.Table(title=title or None, box=rich_box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in names:
        numbers = all(isinstance(row.get(name), (int, float)) for row in records)
        table.add_column(name.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in records:
        table.add_row(*(rich_text.Text(_cell(row.get(name))) for name in names))
    console().print(table)


def _record(value: Mapping[str, Any], title: str) -> None:
    """Plain fields in two columns; lists of records below, as tables of their own."""
    tables = {k: v for k, v in value.items() if isinstance(v, (list, tuple)) and v and isinstance(v[0], dict)}
    table = rich_table.Table(
        title=title or None, box=None, show_header=False, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, cell in value.items():
        if name not in tables:
            table.add_row(name.replace("_", " "), rich_text.Text(_cell(cell, cut=False)))
    console().print(table)
    for name, rows in tables.items():
        _records(rows, name.replace("_", " "))


def _cell(value: object, *, cut: bool = True) -> str:
    if value is None or value in ("", [], {}, ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
        text = ", ".join(_cell(v) for v in value)
    elif isinstance(value, (dict, list, tuple)):
        text = msgspec.json.encode(value).decode()
    else:
        text = str(value)
    return text[: _TOKEN_LEFT - 1] + "…" if cut and len(text) > _TOKEN_LEFT else text
