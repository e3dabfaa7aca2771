"""When requests came: what a time may look like, and rows of a CSV that each have one.

Lines are read one at a time and none longer than a limit, so that a file of any size can be given. What cannot be read is
refused with its line.
"""

import csv
import math
import re
import reprlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from macadam.errors import SourceInvalid, TooLarge

MOST_ROWS = 5_000_000
LONGEST = 1_000_000  # bytes of a line
TIME = "TIMESTAMP"
_HEAD = 200  # letters of a header that are told
_END = 1e20  # no Unix time, in whatever unit
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3), (1e8, 1.0))  # from which number on Unix time counts how many a second
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_COUNT = re.compile(r"[0-9]{1,18}")
_PACKED = {
    b"\x1f\x8b": "gunzip -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"PK\x03\x04": "unzip",
}  # by the first bytes of a file: what unpacks it


def seconds(value: object) -> float:
    """Since 1970, of ISO 8601 (UTC if it names no zone) or of Unix time in seconds or a thousandth, millionth … of them.
    Raises ValueError.
    """
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    number = _number(value)
    unit = next((unit for least, unit in _UNITS if number >= least), None)
    if unit is None or number >= _END:
        raise ValueError(f"{shown(value)} is no time")
    return number / unit


def _number(value: object) -> float:
    """As Unix time; not a number if it is none. In quotes it is one too: as a date, 1712110112000 would be a day of 1712."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(max(0, min(value, int(_END))))
    return float(value) if isinstance(value, (str, float)) else math.nan


def shown(value: object) -> str:
    """For an error: as it stands, but no more of it than can be read."""
    return reprlib.repr(value)


def refuse_packed(path: Path) -> None:
    """Raises SourceInvalid if a file is compressed, is a pipe or folder, or cannot be read."""
    if path.exists() and not path.is_file():
        raise SourceInvalid(
            f"{path} is no plain file: what a pipe gives is gone once it was looked at.",
            next_step="Write it into a file first.",
        )
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    for first, command in _PACKED.items():
        if head.startswith(first):
            raise SourceInvalid(f"{path} is compressed.", next_step=f"Unpack it first: {command} {path}")


def rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, float, list[str]]]:
    """Of a CSV with the column TIMESTAMP and `columns`: where each row stands, its time in seconds since 1970, and what stands
    in `columns`. Raises SourceInvalid, TooLarge.
    """
    refuse_packed(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows(file, path, columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(
            f"{path} cannot be read as CSV: {error}.", next_step="Correct the path or the file."
        ) from error


def count(text: str, most: int) -> int:
    """A whole number of 0 to `most`. Raises ValueError."""
    if not _COUNT.fullmatch(text) or int(text) > most:
        raise ValueError(f"{shown(text)} is no whole number of 0 to {most}")
    return int(text)


def wrong(where: str, error: object) -> SourceInvalid:
    """A line that says what cannot be."""
    return SourceInvalid(f"{where}: {error}.", next_step="Correct the line.")


def _rows(file: TextIO, path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, float, list[str]]]:
    reader = csv.reader(_lines(file, path), strict=True)
    head = [name.strip() for name in next(reader, [])]
    places = [_place(head, name, path, (TIME, *columns)) for name in (TIME, *columns)]
    found = 0
    for cells in reader:
        if not cells:
            continue
        found += 1
        if found > MOST_ROWS:
            raise TooLarge(f"{path} has more than {MOST_ROWS} requests.", next_step="Give a part of it.")
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(head):
            raise wrong(where, f"{len(cells)} cells under {len(head)} columns")
        at, *values = (cells[place].strip() for place in places)
        try:
            yield where, seconds(at), values
        except ValueError as error:
            raise wrong(where, f"{TIME}: {error}") from error


def _place(head: list[str], name: str, path: Path, columns: tuple[str, ...]) -> int:
    if head.count(name) == 1:
        return head.index(name)
    what = f"has {head.count(name)} columns {name}" if name in head else f"has no column {name}"
    raise SourceInvalid(
        f"{path} {what}; it has {', '.join(head)[:_HEAD] if any(head) else 'none'}.",
        next_step=f"Give a CSV with the columns {', '.join(columns)}.",
    )


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise TooLarge(f"{path}, line {number} has more than {LONGEST} bytes.", next_step="Give one row a line.")
        yield line
