"""How the demo tells its story: numbered chapters, aligned facts, tables and bars, and how long each chapter took."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from macadam.lazy import lazy

if TYPE_CHECKING:
    import rich.console as rich_console
    import rich.progress as rich_progress
    import rich.table as rich_table
else:
    rich_console = lazy("rich.console")
    rich_progress = lazy("rich.progress")
    rich_table = lazy("rich.table")

_WIDTH = 100


class Story:
    """Prints to stdout; bars go to stderr and only to a terminal."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH
        self._console = rich_console.Console(highlight=False, width=width)
        self._chapters: list[tuple[str, float]] = []
        self._began = time.monotonic()

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """A numbered heading, and the seconds when it ends."""
        number = len(self._chapters) + 1
        self._console.print()
        self._console.rule(f"[bold]{number}. {title}", align="left", style="dim")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._chapters.append((title, seconds))
        self._console.print(f"[dim]{seconds:.1f} s[/dim]", justify="right")

    def say(self, text: str) -> None:
        """A paragraph. Text in square brackets is rich markup."""
        self._console.print(text)

    def fact(self, name: str, value: str) -> None:
        self._console.print(f"  [cyan]{name:<34}[/cyan] {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows of text; all but the first column are set to the right."""
        grid = rich_table.Table(box=None, padding=(0, 2), header_style="dim")
        for position, column in enumerate(columns):
            grid.add_column(column, justify="right" if position else "left")
        for row in rows:
            grid.add_row(*(str(cell) for cell in row))
        self._console.print(grid)

    @contextmanager
    def bar(self, what: str, total: int) -> "Iterator[rich_progress.Progress]":
        """A progress bar with one task; advance it with `bars.advance(bars.task_ids[0])`."""
        shown = rich_console.Console(stderr=True)
        with rich_progress.Progress(console=shown, transient=True, disable=not shown.is_terminal) as bars:
            bars.add_task(what, total=total)
            yield bars

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._began
