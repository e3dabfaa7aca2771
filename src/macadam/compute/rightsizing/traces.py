"""Request traces: when each came, how much it brought and how much it got. Read from CSV or JSON lines, checked line
by line.
"""

import csv
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from macadam.compute.rightsizing import logs
from macadam.compute.rightsizing.logs import MOST_ROWS, MOST_TOKENS, Lines
from macadam.compute.rightsizing.types import Trace
from macadam.errors import InvalidInput, SourceInvalid, TooLarge

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")  # those of Azure's public traces


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A trace and what was left out of it. empty: requests without tokens. late: rows whose time lay before the row
    above (they were put in their place). twice: lines with the id of one before. cached: part of the tokens read that the
    server says it had read before, None if it does not say.
    """

    trace: Trace
    empty: int
    late: int
    twice: int = 0
    cached: float | None = None


def read(path: Path) -> Read:
    """Reads a CSV with the columns TIMESTAMP (ISO 8601; UTC if it names no zone), ContextTokens, GeneratedTokens; or JSON
    lines, an access log or Mooncake's form (logs.py).

    Raises SourceInvalid with the line, TooLarge.
    """
    said = logs.read(path) if logs.are_these(path) else _table(path)
    kept = said.rows
    if not kept:
        raise SourceInvalid(f"{path} has no requests with tokens.", next_step="Give a trace with at least one.")
    late = sum(1 for row, after in itertools.pairwise(kept) if after[0] < row[0])
    kept.sort(key=lambda row: row[0])
    start = kept[0][0]
    with_ids = bool(kept[0][3])
    trace = Trace(
        at=tuple(row[0] - start for row in kept),
        prompt=tuple(row[1] for row in kept),
        output=tuple(row[2] for row in kept),
        ids=tuple(row[3] for row in kept) if with_ids else (),
        unit=said.unit if with_ids else 0,
    )
    cached = said.cached / sum(trace.prompt) if said.cached >= 0 else None
    return Read(trace=trace, empty=said.empty, late=late, twice=said.twice, cached=cached)


def _table(path: Path) -> Lines:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(csv.DictReader(file), path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(
            f"{path} cannot be read as CSV: {error}.", next_step="Correct the path or the file."
        ) from error
    kept: list[tuple[float, int, int, tuple[int, ...]]] = [(*row, ()) for row in rows if row[1] > 0 and row[2] > 0]
    return Lines(rows=kept, empty=len(rows) - len(kept))


def cached(trace: Trace, share: float) -> Trace:
    """The same, with that part of each prompt taken to be cached: the last token is always computed. Raises InvalidInput."""
    if not 0 <= share < 1:
        raise InvalidInput(
            f"A part of {share} of each prompt cannot be cached.", next_step="Give 0 or more and less than 1."
        )
    return msgspec.structs.replace(
        trace, ids=(), unit=0, hit=tuple(int(share * prompt) for prompt in trace.prompt) if share else ()
    )


def faster(trace: Trace, factor: float) -> Trace:
    """The same requests, `factor` times as many a second."""
    if not 0 < factor < float("inf"):
        raise InvalidInput(f"A load of {factor} times the trace's is none.", next_step="Give a factor above zero.")
    return msgspec.structs.replace(trace, at=tuple(at / factor for at in trace.at))


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[tuple[float, int, int]]:
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise SourceInvalid(
            f"{path} has no column {missing[0]}; it has {', '.join(reader.fieldnames or ()) or 'none'}.",
            next_step=f"Give a CSV with the columns {', '.join(_COLUMNS)}.",
        )
    for number, row in enumerate(reader):
        if number >= MOST_ROWS:
            raise TooLarge(f"{path} has more than {MOST_ROWS} requests.", next_step="Give a part of it.")
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"])
            prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise SourceInvalid(f"{path}, line {number + 2}: {error}.", next_step="Correct the line.") from error
        if not (0 <= prompt <= MOST_TOKENS and 0 <= output <= MOST_TOKENS):
            raise SourceInvalid(
                f"{path}, line {number + 2}: {prompt} and {output} tokens.",
                next_step=f"Tokens are 0 to {MOST_TOKENS}: correct the line.",
            )
        yield (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(), prompt, output
