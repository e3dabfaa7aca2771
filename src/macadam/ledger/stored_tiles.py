"""Compares the stored tiles with the leaves, one leaf at a time: what verification holds of them is one tile a level."""

from collections.abc import Iterator

from macadam.errors import IntegrityError, InvalidInput, NotFound
from macadam.ledger.problems import Problems
from macadam.ledger.sequencer import read_tile
from macadam.ledger.tree import HASH_SIZE, TILE_WIDTH, Tile, root_of
from macadam.ports import Ports


class StoredTiles:
    """Give it each leaf hash in order, then `end`. What does not fit goes to `problems`."""

    def __init__(self, ports: Ports, problems: Problems) -> None:
        self._ports = ports
        self._problems = problems
        self._open: list[list[bytes]] = []
        self._done: list[int] = []
        # Partial tiles are few: those of a tile that became full are removed.
        self._partial: dict[tuple[int, int], list[Tile]] = {}
        for tile in self._listed():
            if tile.width < TILE_WIDTH:
                self._partial.setdefault((tile.level, tile.index), []).append(tile)

    def append(self, leaf: bytes) -> None:
        carried = leaf
        for level in range(len(self._open) + 1):
            if level == len(self._open):
                self._open.append([])
                self._done.append(0)
            entries = self._open[level]
            entries.append(carried)
            if len(entries) < TILE_WIDTH:
                return
            self._check(level, entries)
            carried = root_of(entries)
            entries.clear()
            self._done[level] += 1

    def end(self) -> None:
        """No more leaves: checks the tiles that are not full. Wider ones are an integration's that has not ended."""
        for level, entries in enumerate(self._open):
            if entries:
                self._check(level, entries)

    def _listed(self) -> Iterator[Tile]:
        for name in self._ports.objects.names("ledger/tile"):
            path = f"tile/{name.split('tile/', 1)[1]}"
            try:
                yield Tile.parse(path)
            except InvalidInput:
                self._problems.add(f"tile {path} is not part of this ledger")

    def _check(self, level: int, entries: list[bytes]) -> None:
        tile = Tile(level=level, index=self._done[level], width=len(entries))
        content = b"".join(entries)
        try:
            held = self._ports.objects.get_name(f"ledger/{tile.path}")
        except NotFound:
            self._problems.extend(_missing(self._ports, tile, content))
        else:
            if held != content:
                self._problems.add(f"tile {tile.path} does not hold the hashes of its leaves")
        for narrower in self._partial.pop((tile.level, tile.index), []):
            if narrower.width < tile.width:
                self._check_narrower(narrower, content[: narrower.width * HASH_SIZE])

    def _check_narrower(self, tile: Tile, content: bytes) -> None:
        try:
            held = self._ports.objects.get_name(f"ledger/{tile.path}")
        except NotFound:
            return  # removed after the listing, its full one being there
        if held != content:
            self._problems.add(f"tile {tile.path} does not hold the hashes of its leaves")


def _missing(ports: Ports, tile: Tile, content: bytes) -> Iterator[str]:
    """A partial tile may have been widened and removed since the snapshot that is verified."""
    try:
        held = read_tile(ports, tile)
    except IntegrityError:
        yield f"tile {tile.path} is missing"
        return
    if held != content:
        yield f"tile {tile.path} is missing, and the wider one in its place does not hold the hashes of its leaves"
