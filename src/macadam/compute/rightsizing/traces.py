"""Request traces: when each came, how much it brought and how much it got. Read from CSV, checked line by line."""

import csv
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from macadam.compute.rightsizing.types import Trace
from macadam.errors import InvalidInput, SourceInvalid, TooLarge

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")  # those of Azure's public traces
_MOST_ROWS = 5_000_000
_MOST_TOKENS = 10_000_000  # of one request; above, a column was mistaken for another


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A trace and what was left out of it. empty: requests without tokens. late: rows whose time lay before the row
    above (they were put in their place).
    """

    trace: Trace
    empty: int
    late: int


def read(path: Path) -> Read:
    """Reads a CSV with the columns TIMESTAMP (ISO 8601; UTC if it names no zone), ContextTokens, GeneratedTokens.

    Raises SourceInvalid with the line, TooLarge.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(csv.DictReader(file), path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(
            f"{path} cannot be read as CSV: {error}.", next_step="Correct the path or the file."
        ) from error
    kept = [row for row in rows if row[1] > 0 and row[2] > 0]
    if not kept:
        raise SourceInvalid(f"{path} has no requests with tokens.", next_step="Give a trace with at least one.")
    late = sum(1 for row, after in itertools.pairwise(kept) if after[0] < row[0])
    kept.sort(key=lambda row: row[0])
    start = kept[0][0]
    trace = Trace(
        at=tuple(row[0] - start for row in kept),
        prompt=tuple(row[1] for row in kept),
        output=tuple(row[2] for row in kept),
    )
    return Read(trace=trace, empty=len(rows) - len(kept), late=late)


def faster(trace: Trace, factor: float) -> Trace:
    """The same requests, `factor` times as many a second."""
    if not 0 < factor < float("inf"):
        raise InvalidInput(f"A load of {factor} times the trace's is none.", next_step="Give a factor above zero.")
    return Trace(at=tuple(at / factor for at in trace.at), prompt=trace.prompt, output=trace.output)


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[tuple[float, int, int]]:
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise SourceInvalid(
            f"{path} has no column {missing[0]}; it has {', '.join(reader.fieldnames or ()) or 'none'}.",
            next_step=f"Give a CSV with the columns {', '.join(_COLUMNS)}.",
        )
    for number, row in enumerate(reader):
        if number >= _MOST_ROWS:
            raise TooLarge(f"{path} has more than {_MOST_ROWS} requests.", next_step="Give a part of it.")
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"])
            prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise SourceInvalid(f"{path}, line {number + 2}: {error}.", next_step="Correct the line.") from error
        if not (0 <= prompt <= _MOST_TOKENS and 0 <= output <= _MOST_TOKENS):
            raise SourceInvalid(
                f"{path}, line {number + 2}: {prompt} and {output} tokens.",
                next_step=f"Tokens are 0 to {_MOST_TOKENS}: correct the line.",
            )
        yield (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(), prompt, output
