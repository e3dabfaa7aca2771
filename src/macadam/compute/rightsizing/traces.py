"""Request traces: when each came, how much it brought and how much it got. Read from CSV or JSON lines, checked line
by line.
"""

import itertools
from pathlib import Path

import msgspec

from macadam.compute.rightsizing import arrivals, logs
from macadam.compute.rightsizing.logs import MOST_TOKENS, Lines
from macadam.compute.rightsizing.types import Trace
from macadam.errors import InvalidInput, SourceInvalid

_COLUMNS = ("ContextTokens", "GeneratedTokens")  # beside TIMESTAMP: those of Azure's public traces
_LONGEST = 1100 * 86_400.0  # seconds of a trace, three years; above, a time was read wrongly or is the default of one


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
    """Reads a CSV with the columns TIMESTAMP (ISO 8601, UTC if it names no zone, or Unix time), ContextTokens, GeneratedTokens;
    or JSON lines, an access log or Mooncake's form (logs.py).

    Raises SourceInvalid with the line, TooLarge.
    """
    arrivals.refuse_packed(path)
    said = logs.read(path) if logs.are_these(path) else _table(path)
    kept = said.rows
    if not kept:
        raise SourceInvalid(f"{path} has no requests with tokens.", next_step="Give a trace with at least one.")
    late = sum(1 for row, after in itertools.pairwise(kept) if after[0] < row[0])
    kept.sort(key=lambda row: row[0])
    start = kept[0][0]
    if kept[-1][0] - start > _LONGEST:
        raise SourceInvalid(
            f"{path}: {(kept[-1][0] - start) / 86_400:,.0f} days lie between the first request and the last.",
            next_step="Give times of one kind, and a trace of at most three years.",
        )
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
    found = Lines()
    for where, at, cells in arrivals.rows(path, _COLUMNS):
        try:
            prompt, output = (_tokens(name, cell) for name, cell in zip(_COLUMNS, cells, strict=True))
        except ValueError as error:
            raise arrivals.wrong(where, error) from error
        found.keep((at, prompt, output, ()))
    return found


def _tokens(name: str, cell: str) -> int:
    try:
        return arrivals.count(cell, MOST_TOKENS)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


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
    if not trace.at[-1] <= _LONGEST * factor:
        raise InvalidInput(
            f"At {factor:g} times its load the trace would take more than three years.",
            next_step="Give a larger factor.",
        )
    return msgspec.structs.replace(trace, at=tuple(at / factor for at in trace.at))
