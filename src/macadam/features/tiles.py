"""Window aggregates as prefix sums over tiles, packed so that a window costs two binary searches.

A value holds one entity: its non-empty tiles in order, and up to each the running count and running sum. A window
is the difference of two running values, so no tile is added up when a request comes; quiet entities stay small; and a
late row changes only the running values after it. What is older than any window is folded into one first entry.

Layout, little endian: first (i64), n (i64), n tile numbers (i64), n running counts (f64), n running sums (f64).
Running values before tile `first` are unknown, as they were folded.
"""

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from macadam.errors import IntegrityError

# Tiles kept beyond the longest window, for requests about the recent past (replays, retries, late callers). A week
# of hours: rows can become known long after most others of their time, as delayed flights do.
SLACK = 168
_ALWAYS = -(2**62)
_HEADER = struct.Struct("<qq")

Window = tuple[float, float] | None
"""(count, sum), or None if the window reaches back before what is kept."""

if sys.byteorder != "little":
    raise ImportError("Stored tiles are read in place and are little endian, which this machine is not.")


def windows(value: bytes | None, edge: int, lengths: Sequence[int]) -> list[Window]:
    """Count and sum of the tiles in [edge - length, edge), for each length.

    edge: number of whole tiles since 1970. value: None or empty stands for an entity without rows.
    """
    if not value:
        return [(0.0, 0.0)] * len(lengths)
    first, n = _HEADER.unpack_from(value)
    body = memoryview(value)
    tiles = body[16 : 16 + 8 * n].cast("q")
    running = body[16 + 8 * n :].cast("d")
    if edge < first:
        return [None] * len(lengths)
    i = bisect_left(tiles, edge)
    count, total = (running[i - 1], running[n + i - 1]) if i else (0.0, 0.0)
    found: list[Window] = []
    for length in lengths:
        start = edge - length
        if start < first:
            found.append(None)
            continue
        j = bisect_left(tiles, start, 0, i)
        found.append((count - running[j - 1], total - running[n + j - 1]) if j else (count, total))
    return found


class Prefix:
    """One entity's running values while they are changed."""

    def __init__(self, value: bytes | None = None) -> None:
        self._first, n = _HEADER.unpack_from(value) if value else (_ALWAYS, 0)
        if value and len(value) != _HEADER.size + 24 * n:
            raise IntegrityError(
                f"A stored window value has {len(value)} bytes for {n} tiles.",
                next_step="Materialise the service again: macadam online materialise.",
            )
        self._tiles, self._counts, self._sums = array("q"), array("d"), array("d")
        body = memoryview(value or b"")[_HEADER.size :]
        parts: tuple[array[Any], ...] = (self._tiles, self._counts, self._sums)
        for i, part in enumerate(parts):
            part.frombytes(body[8 * n * i : 8 * n * (i + 1)])

    @classmethod
    def of(cls, tiles: Iterable[int], counts: Iterable[float], sums: Iterable[float]) -> "Prefix":
        """From tile numbers in order and the running values up to each."""
        made = cls()
        made._tiles, made._counts, made._sums = array("q", tiles), array("d", counts), array("d", sums)
        return made

    def add(self, tile: int, count: float, total: float) -> bool:
        """Adds rows to a tile. Returns whether any window can still see it."""
        if tile < self._first:
            return False
        i = bisect_left(self._tiles, tile)
        if i == len(self._tiles) or self._tiles[i] != tile:
            self._tiles.insert(i, tile)
            self._counts.insert(i, self._counts[i - 1] if i else 0.0)
            self._sums.insert(i, self._sums[i - 1] if i else 0.0)
        for j in range(i, len(self._tiles)):
            self._counts[j] += count
            self._sums[j] += total
        return True

    def trim(self, longest: int, newest: int | None = None) -> None:
        """Folds what no window of `longest` tiles reaches, counted back from `newest` (by default the newest tile)."""
        if not self._tiles:
            return
        horizon = (self._tiles[-1] if newest is None else newest) - longest - SLACK
        folded = bisect_left(self._tiles, horizon) - 1
        if folded < 0:
            return
        self._first = self._tiles[folded] + 1
        for values in (self._tiles, self._counts, self._sums):
            del values[:folded]

    def pack(self) -> bytes:
        head = _HEADER.pack(self._first, len(self._tiles))
        return head + self._tiles.tobytes() + self._counts.tobytes() + self._sums.tobytes()
