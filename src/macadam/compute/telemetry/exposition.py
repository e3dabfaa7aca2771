"""Reads the text that Prometheus exporters serve: the Prometheus format 0.0.4 and OpenMetrics 1.0, as gauges and counters.

A scrape repeats the same series every few seconds, so what stands before a value is understood once and then looked up.
A line that is not a sample is counted and named, and the rest is read: it never becomes a value.
Sources: prometheus.io/docs/instrumenting/exposition_formats; OpenMetrics 1.0 (IETF draft-richih-opsawg-openmetrics-00).
"""

import math
import re
from typing import NamedTuple

import msgspec

from macadam.errors import TooLarge

MOST_BYTES = 64 * 1024 * 1024
"""Of one scrape: some hundred thousand series; what is larger is not an exporter of devices."""
MOST_LABELS = 64
_MOST_LINE = 16 * 1024
_MOST_NAMED = 20
"""Malformed lines that are named; the rest are counted."""
MOST_LINES = 1_000_000
"""Of one scrape."""
_SPARE = 1000
"""Series that are remembered beyond twice those of the last scrape: labels that never come again must not pile up."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\\n]|\\["\\n])*)"\s*')
_OPEN, _CLOSE = re.compile(r"\s*\{"), re.compile(r"\s*\}")
_ESCAPED = re.compile(r'\\(["\\n])')
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf(?:inity)?|nan)", re.IGNORECASE)


class Series(NamedTuple):
    """A metric with its labels."""

    name: str
    labels: dict[str, str]


class Reading(NamedTuple):
    """at: ms since the epoch, None if the exporter gives none. value: may be NaN or infinite, as it was written."""

    series: Series
    value: float
    at: float | None


class BadLine(msgspec.Struct, frozen=True, kw_only=True):
    """number: from 1. text: its beginning."""

    number: int
    text: str
    why: str


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrape said. malformed: lines that were no samples, of which `named` shows the first."""

    readings: list[Reading]
    malformed: int
    named: tuple[BadLine, ...]


class Parser:
    """Parses scrapes; keeps the series that it has seen, so one for each exporter is quickest."""

    def __init__(self) -> None:
        self._known: dict[str, Series] = {}

    def parse(self, data: bytes) -> Scrape:
        """Raises TooLarge. Bytes that are no UTF-8 make their line malformed."""
        if len(data) > MOST_BYTES:
            raise TooLarge(
                f"The scrape has {len(data)} bytes, more than {MOST_BYTES}.",
                next_step="Have the exporter serve fewer metrics, such as by its collectors file.",
            )
        if data.count(b"\n") > MOST_LINES:
            raise TooLarge(
                f"The scrape has more than {MOST_LINES} lines.",
                next_step="Have the exporter serve fewer metrics, such as by its collectors file.",
            )
        openmetrics = b"# EOF" in data[-64:]
        readings: list[Reading] = []
        bad: list[BadLine] = []
        malformed = 0
        known, append = self._known, readings.append
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
            if not line or line[0] == "#":
                continue
            # The usual line, 'series value', costs two look-ups; all others go the long way.
            head, _, tail = line.rpartition(" ")
            series = known.get(head)
            if series is not None and _NUMBER.fullmatch(tail):
                append(Reading(series, float(tail), None))
                continue
            try:
                found = self._line(line, openmetrics=openmetrics)
            except ValueError as error:
                malformed += 1
                if len(bad) < _MOST_NAMED:
                    bad.append(BadLine(number=number, text=line[:120], why=str(error)))
                continue
            if found is not None:
                append(found)
        if outgrown(len(known), len(readings)):
            self._known = {}
        return Scrape(readings=readings, malformed=malformed, named=tuple(bad))

    def _line(self, line: str, *, openmetrics: bool) -> Reading | None:
        """Raises ValueError with the reason."""
        text = line.strip(" \t\r")
        if not text or text[0] == "#":
            return None
        if len(line) > _MOST_LINE:
            raise ValueError("the line is too long")
        if "\ufffd" in line or "\x00" in line:
            raise ValueError("it is no text in UTF-8")
        series, end = _series(text)
        rest = text[end:]
        if not rest[:1].isspace():
            raise ValueError("no space before the value")
        head, rest = text[:end], rest.partition(" # ")[0]  # what follows is an exemplar
        words = rest.split()
        if not 1 <= len(words) <= 2:  # noqa: PLR2004 - a value and perhaps a time
            raise ValueError(f"{len(words)} words where a value and perhaps a time should be")
        value = _number(words[0])
        at = None
        if len(words) > 1:
            # OpenMetrics writes seconds, the older format milliseconds.
            at = _number(words[1]) * (1000 if openmetrics else 1)
            if not math.isfinite(at):
                raise ValueError(f"{words[1]!r} is no time")
        self._known[head] = series
        return Reading(series, value, at)


def outgrown(remembered: int, seen: int) -> bool:
    """Whether more series are remembered than the scrapes of one exporter can account for."""
    return remembered > 2 * seen + _SPARE


def _series(text: str) -> tuple[Series, int]:
    """The series at the start of a line, and where it ends. Raises ValueError."""
    name = _NAME.match(text)
    if name is None:
        raise ValueError("it does not begin with a metric's name")
    at = name.end()
    labels: dict[str, str] = {}
    brace = _OPEN.match(text, at)
    if brace is None:
        return Series(name[0], {}), at
    at = brace.end()
    while True:
        closing = _CLOSE.match(text, at)
        if closing is not None:
            return Series(name[0], labels), closing.end()
        label = _LABEL.match(text, at)
        if label is None:
            raise ValueError(f"no label at character {at + 1}")
        if label[1] in labels:
            raise ValueError(f"the label {label[1]} stands twice")
        if len(labels) >= MOST_LABELS:
            raise ValueError(f"more than {MOST_LABELS} labels")
        labels[label[1]] = _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], label[2])
        at = label.end()
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "}":
            raise ValueError(f"neither , nor }} at character {at + 1}")


def _number(text: str) -> float:
    """As Go reads floats, without hexadecimal ones and underscores. Raises ValueError."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no number")
    return float(text)
