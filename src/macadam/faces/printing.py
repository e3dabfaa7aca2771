"""Prints answers, errors and progress: JSON for scripts, tables and panels for people. Rich is loaded when it draws."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from macadam.errors import MacadamError
from macadam.faces import problem
from macadam.lazy import lazy
from macadam.operations import Progress
from macadam.values import Money

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
_TEXT_LEFT = 120  # characters of a value in a table before it is cut
_MOST_COLUMNS = 9
_FEWEST_COLUMNS = 3  # are shown however narrow the console is
_FOLDED = 16  # characters down to which a column of words is made narrower
_GAP = 3  # characters between two columns
_DIGEST_LEFT = len("sha256:") + 12
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}\Z")
_INSTANT = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\Z")


def as_json(value: object) -> None:
    """One document on stdout, indented, keys in the order of declaration."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def as_text(value: object, *, title: str = "", ranked: bool = False) -> None:
    """Lists of records as a table, a record as two columns, anything else as it is. ranked: the first columns matter most."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, (list, tuple)):
        _records(plain, title, ranked=ranked)
    elif isinstance(plain, dict):
        _record(plain, title, ranked=ranked)
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
def progress() -> Iterator[Progress]:
    """Gives the function that operations report to. On a terminal it draws bars on stderr, also beside `--json`; else it does nothing."""
    if not sys.stderr.isatty():
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


def _records(rows: Sequence[object], title: str, *, ranked: bool = False, within: bool = True) -> None:
    if not rows:
        line("None.")
        return
    records = [row for row in rows if isinstance(row, dict)]
    if len(records) < len(rows):
        for row in rows:
            line(cell(row))
        return
    out = console()
    table = rich_table.Table(title=title or None, box=rich_box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    telling = _telling(records, within=within)
    names = _fitting(records, telling, out.width, ranked=ranked)
    fits = _space(records, names) <= out.width
    for name in names:
        numbers = all(_is_number(row.get(name)) for row in records)
        whole = fits and not any(" " in text for text in _cells(records, name))
        justify: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(name.replace("_", " "), justify=justify, overflow="fold", no_wrap=whole)
    for row in records:
        table.add_row(*(rich_text.Text(cell(row.get(name), short=True)) for name in names))
    out.print(table)
    if left_out := [name.replace("_", " ") for name in telling if name not in names]:
        line(f"Not shown: {', '.join(left_out)}. --json has everything.")


def _telling(records: Sequence[Mapping[str, Any]], *, within: bool = True) -> list[str]:
    """The fields that tell rows apart: not those empty in all, nor what the reference or the question says already.

    within: the rows are of one project, as whoever asked knows.
    """
    names = list(dict.fromkeys(name for row in records for name in row))
    said = {"id", "project"} if "ref" in names else {"project"} if len(names) > 1 and within else set()
    several = {name for name in said if len({str(row.get(name)) for row in records}) > 1 and "ref" not in names}
    return [n for n in names if (n not in said or n in several) and any(not _is_empty(row.get(n)) for row in records)]


def _fitting(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], width: int, *, ranked: bool = False
) -> list[str]:
    """At most so many columns that each stays readable, and no wider than the console: first go nested values and digests,
    then the middle. ranked: the first columns matter most, so the last ones go instead.
    """
    found = list(names)
    if len(found) > _MOST_COLUMNS:
        found = [
            n for n in found if not any(_is_nested(row.get(n)) or _DIGEST.match(str(row.get(n))) for row in records)
        ]
    while len(found) > _FEWEST_COLUMNS and (len(found) > _MOST_COLUMNS or _space(records, found) > width):
        found.pop(-1 if ranked else len(found) * 2 // 3)
    return found


def _space(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> int:
    """Characters that columns need: texts are folded between words, and nothing else is."""
    needed = []
    for name in names:
        lines = [one for text in (*_cells(records, name), name.replace("_", " ")) for one in text.splitlines()]
        word = max(len(word) for one in lines for word in (one.split() or [""]))
        needed.append(min(max(map(len, lines)), max(word, _FOLDED)))
    return sum(needed) + _GAP * (len(names) - 1)


def _cells(records: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [cell(row.get(name), short=True) for row in records]


def _record(value: Mapping[str, Any], title: str, *, ranked: bool = False) -> None:
    """Plain fields in two columns; lists of records below, as tables of their own."""
    tables = {
        k: v
        for k, v in value.items()
        if isinstance(v, (list, tuple)) and v and isinstance(v[0], dict) and not _is_money(v[0])
    }
    table = rich_table.Table(
        title=title or None, box=None, show_header=False, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, inside in value.items():
        if name not in tables:
            table.add_row(name.replace("_", " "), rich_text.Text(cell(inside)))
    console().print(table)
    for name, rows in tables.items():
        _records(rows, name.replace("_", " "), ranked=ranked, within="project" in value)


def cell(value: object, *, short: bool = False) -> str:
    """A value in words. short: for a table, where digests and long texts are cut; `--json` has them whole."""
    if _is_empty(value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return _money(value) if _is_money(value) else _mapping(value, short=short)
    if isinstance(value, (list, tuple)):
        if any(not _is_money(item) and isinstance(item, (dict, list, tuple)) for item in value):
            return f"{len(value)} of them"
        return _cut(", ".join(cell(item, short=short) for item in value), short=short)
    return _cut(_text(str(value), short=short), short=short)


def _is_money(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"micros", "currency"}


def _money(value: Mapping[str, Any]) -> str:
    return str(Money(micros=value["micros"], currency=value["currency"]))


def _mapping(value: Mapping[str, Any], *, short: bool) -> str:
    if {"value", "low", "high"} <= value.keys():
        estimate, low, high = (_bound(value[name]) for name in ("value", "low", "high"))
        return f"{estimate} ({low} to {high})"
    if short and "ref" in value:
        return str(value["ref"])
    return "\n".join(f"{name}: {cell(inside, short=short)}" for name, inside in value.items())


def _bound(value: object) -> str:
    """Of an estimate in money, or a plain number."""
    return _money(value) if isinstance(value, dict) and _is_money(value) else _short(value)


def _short(number: object) -> str:
    """Four digits; leaves hold numbers with a fraction as text."""
    try:
        return f"{float(str(number)):.4g}"
    except ValueError:
        return str(number)


def _text(text: str, *, short: bool) -> str:
    if _INSTANT.match(text):
        return f"{text[:10]} {text[11:19]}Z"
    return text[:_DIGEST_LEFT] + "…" if short and _DIGEST.match(text) else text


def _cut(text: str, *, short: bool) -> str:
    return text[: _TEXT_LEFT - 1] + "…" if short and len(text) > _TEXT_LEFT else text


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], {}, ())


def _is_nested(value: object) -> bool:
    return isinstance(value, (dict, list, tuple)) and bool(value) and not _is_money(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
