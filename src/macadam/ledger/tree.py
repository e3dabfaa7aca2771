"""The Merkle tree of RFC 9162 over SHA-256: roots, growth, inclusion and consistency proofs, and C2SP tiles.

Pure: where hashes come from (a list, tiles in SQL, tiles on a web server) is the caller's affair, who passes a
reader. What a leaf says, and who signs the root, is for `leaf` and `note`.

Two coordinates are used. A *hash* is (level, index): the root of the complete subtree over the leaves
[index << level, (index + 1) << level). A *tile* is (level, index, width): `width` hashes side by side at
hash level 8 * level, as in https://c2sp.org/tlog-tiles.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256

import msgspec

from macadam.errors import IntegrityError, InvalidInput

HASH_SIZE = 32
"""Bytes in a hash."""
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
_TILE_LEVELS = 64
_SIZE_BYTES = 8
EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves (RFC 9162, 2.1.1)."""

HashReader = Callable[[int, int], bytes]
"""(level, index) -> the 32-byte root of that complete subtree. Only complete subtrees are asked for."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf: SHA-256 of 0x00 and the leaf's bytes."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256 of 0x01, the left child and the right child."""
    return sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root of a tree with these leaf hashes, in order."""
    frontier = Frontier()
    frontier.extend(leaf_hashes)
    return frontier.root()


class Frontier:
    """The roots of the complete subtrees that a tree of `size` leaves falls into, largest first: all that growing needs.

    Mutable, O(log size). `to_bytes` is 8 bytes of big-endian size and the hashes.
    """

    __slots__ = ("_hashes", "_size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(h) != HASH_SIZE for h in hashes):
            raise IntegrityError(
                f"A tree of {size} leaves needs one hash of {HASH_SIZE} bytes for each of the 1-bits of its size, "
                f"got {len(hashes)} hashes.",
                next_step="Rebuild the frontier from the tiles.",
            )
        self._size = size
        self._hashes = list(hashes)

    @property
    def size(self) -> int:
        """Leaves so far."""
        return self._size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """Roots of the complete subtrees, largest first."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Adds one leaf hash."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Adds leaf hashes in order. Raises InvalidInput (nothing of the offending leaf is added) if one is not 32 bytes."""
        hashes, size, digest = self._hashes, self._size, sha256
        for carried in leaves:
            if len(carried) != HASH_SIZE:
                raise InvalidInput(
                    f"A leaf hash has {HASH_SIZE} bytes, got {len(carried)}.",
                    next_step="Pass leaf_hash(data).",
                )
            node, bits = carried, size
            # Each trailing 1-bit of the size is a complete subtree as large as the one carried so far.
            while bits & 1:
                node = digest(b"\x01" + hashes.pop() + node).digest()
                bits >>= 1
            hashes.append(node)
            size += 1
            self._size = size

    def root(self) -> bytes:
        """The root hash of the tree."""
        if not self._hashes:
            return EMPTY_ROOT
        *rest, root = self._hashes
        for left in reversed(rest):
            root = node_hash(left, root)
        return root

    def copy(self) -> "Frontier":
        """An independent frontier of the same tree, to try a growth on."""
        return Frontier(self._size, self._hashes)

    def to_bytes(self) -> bytes:
        """The state to store."""
        return self._size.to_bytes(_SIZE_BYTES) + b"".join(self._hashes)

    @classmethod
    def from_bytes(cls, state: bytes) -> "Frontier":
        """Reads `to_bytes`. Raises IntegrityError if the length does not fit the size."""
        if len(state) < _SIZE_BYTES:
            raise IntegrityError(
                f"A frontier has at least 8 bytes, got {len(state)}.",
                next_step="Rebuild the frontier from the tiles.",
            )
        return cls(int.from_bytes(state[:_SIZE_BYTES]), _split(state[_SIZE_BYTES:]))

    @classmethod
    def of(cls, size: int, hashes: HashReader) -> "Frontier":
        """The frontier of a tree of `size` leaves whose hashes can be read."""
        return cls(size, [hashes(level, start >> level) for level, start in _complete_subtrees(size)])


def _complete_subtrees(size: int) -> Iterator[tuple[int, int]]:
    """(level, first leaf) of each complete subtree of a tree, largest first."""
    start = 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            yield level, start
            start += 1 << level


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def _pairs(hashes: Sequence[bytes]) -> list[bytes]:
    """The level above: an odd last hash has no parent yet."""
    return [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=False)]


def hashes_of(leaf_hashes: Sequence[bytes]) -> HashReader:
    """Reads the complete subtrees of a list of leaf hashes that is in memory: for journal segments. O(n) once."""
    levels = [list(leaf_hashes)]
    while len(levels[-1]) > 1:
        levels.append(_pairs(levels[-1]))
    return lambda level, index: levels[level][index]


# --- proofs -----------------------------------------------------------------------------------------------


def _split_point(count: int) -> int:
    """The largest power of two smaller than `count` (count > 1): where RFC 9162 divides a list."""
    return 1 << (count - 1).bit_length() - 1


def _range_root(start: int, end: int, hashes: HashReader) -> bytes:
    """The root over the leaves [start, end), which must be a subtree that RFC 9162's division arrives at."""
    count = end - start
    if count & count - 1 == 0:
        level = count.bit_length() - 1
        return hashes(level, start >> level)
    middle = start + _split_point(count)
    return node_hash(_range_root(start, middle, hashes), _range_root(middle, end, hashes))


def root_at(size: int, hashes: HashReader) -> bytes:
    """The root of the first `size` leaves."""
    return _range_root(0, size, hashes) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, hashes: HashReader) -> list[bytes]:
    """The path from leaf `index` to the root of the first `size` leaves, bottom first (RFC 9162, 2.1.3.1).

    Raises InvalidInput if there is no such leaf.
    """
    if not 0 <= index < size:
        raise InvalidInput(
            f"Leaf {index} is not in a tree of {size} leaves.",
            next_step="Wait for a later checkpoint, or check the index.",
        )
    start, end = 0, size
    path: list[bytes] = []
    while end - start > 1:
        middle = start + _split_point(end - start)
        if index < middle:
            path.append(_range_root(middle, end, hashes))
            end = middle
        else:
            path.append(_range_root(start, middle, hashes))
            start = middle
    path.reverse()
    return path


def consistency_proof(old: int, new: int, hashes: HashReader) -> list[bytes]:
    """Hashes that show the tree of `old` leaves to be the beginning of that of `new` leaves (RFC 9162, 2.1.4.1).

    Empty if old is 0 or equals new. Raises InvalidInput unless 0 <= old <= new.
    """
    if not 0 <= old <= new:
        raise InvalidInput(
            f"A tree of {old} leaves is not the beginning of one of {new}.",
            next_step="Give the older size first.",
        )
    if old in (0, new):
        return []
    start, end, on_left_edge = 0, new, True
    proof: list[bytes] = []
    while old != end:
        middle = start + _split_point(end - start)
        if old <= middle:
            proof.append(_range_root(middle, end, hashes))
            end = middle
        else:
            proof.append(_range_root(start, middle, hashes))
            start, on_left_edge = middle, False
    if not on_left_edge:  # on the edge, the verifier has this hash already: it is the old root
        proof.append(_range_root(start, end, hashes))
    proof.reverse()
    return proof


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a leaf hash and its inclusion path lead to (RFC 9162, 2.1.3.2).

    Raises IntegrityError if the path cannot belong to that index and size.
    """
    if not 0 <= index < size:
        raise _broken(f"Leaf {index} is not in a tree of {size} leaves.")
    position, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise _broken(f"The path of leaf {index} in a tree of {size} leaves is too long: {len(path)} hashes.")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while not position & 1 and position:  # levels at which the last node has no sibling
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        position >>= 1
        last >>= 1
    if last:
        raise _broken(f"The path of leaf {index} in a tree of {size} leaves is too short: {len(path)} hashes.")
    return node


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Raises IntegrityError unless the leaf hash is number `index` of the tree of `size` leaves with this root."""
    if root_from_path(leaf, index, size, path) != root:
        raise _broken(f"Leaf {index} does not lead to the root of the tree of {size} leaves.")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raises IntegrityError unless the tree (old, old_root) is the beginning of (new, new_root) (RFC 9162, 2.1.4.2).

    Any tree begins with the empty one, whose root must be EMPTY_ROOT.
    """
    if not 0 <= old <= new:
        raise _broken(f"The ledger shrank from {old} to {new} leaves.")
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        if proof or old_root != expected:
            raise _broken(f"The trees of {old} and {new} leaves do not agree.")
        return
    hashes = [old_root, *proof] if old & old - 1 == 0 else list(proof)
    if not hashes:
        raise _broken(f"The proof from {old} to {new} leaves is empty.")
    from_old, from_new = _fold_consistency(old, new, hashes)
    if from_old != old_root:
        raise _broken(f"The proof does not lead to the root of the tree of {old} leaves.")
    if from_new != new_root:
        raise _broken(f"The tree of {old} leaves is not the beginning of the tree of {new} leaves.")


def _fold_consistency(old: int, new: int, hashes: Sequence[bytes]) -> tuple[bytes, bytes]:
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    from_old = from_new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise _broken(f"The proof from {old} to {new} leaves is too long.")
        if position & 1 or position == last:
            from_old, from_new = node_hash(sibling, from_old), node_hash(sibling, from_new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            from_new = node_hash(from_new, sibling)
        position >>= 1
        last >>= 1
    if last:
        raise _broken(f"The proof from {old} to {new} leaves is too short.")
    return from_old, from_new


def _broken(what: str) -> IntegrityError:
    return IntegrityError(
        what,
        next_step="Keep this proof, and compare with a checkpoint kept elsewhere: macadam ledger verify.",
    )


# --- tiles: https://c2sp.org/tlog-tiles --------------------------------------------------------------------

_TILE_PATH = re.compile(r"tile/(0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)


class Tile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Names `width` hashes at hash level 8 * level, beginning with number 256 * index. Full when 256 wide."""

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not (0 <= self.level < _TILE_LEVELS and self.index >= 0 and 1 <= self.width <= TILE_WIDTH):
            raise InvalidInput(
                f"There is no tile {self.level}/{self.index} of width {self.width}.",
                next_step=f"Levels are 0 to 63 and widths 1 to {TILE_WIDTH}.",
            )

    @property
    def path(self) -> str:
        """Its path in a tiled log, such as `tile/0/x001/234.p/17`."""
        groups = f"{self.index:03d}"
        while len(groups) % 3:
            groups = "0" + groups
        *upper, lowest = [groups[at : at + 3] for at in range(0, len(groups), 3)]
        number = "".join(f"x{group}/" for group in upper) + lowest
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{self.level}/{number}{partial}"

    @classmethod
    def parse(cls, path: str) -> "Tile":
        """Reads `path`. Raises InvalidInput if it is not the one spelling of a tile."""
        match = _TILE_PATH.fullmatch(path)
        if match:
            index = int(match[2].replace("x", "").replace("/", ""))
            width = int(match[3] or TILE_WIDTH)
            if int(match[1]) < _TILE_LEVELS and width <= TILE_WIDTH:
                tile = cls(level=int(match[1]), index=index, width=width)
                if tile.path == path:
                    return tile
        raise InvalidInput(
            f"{path!r} is not the path of a tile.", next_step="Write it as tile/0/x001/234 or tile/0/000.p/5."
        )


TileReader = Callable[[Tile], bytes]
"""Tile -> its hashes, joined: 32 * width bytes. A wider version of the same tile will do."""


def changed_tiles(old: int, new: int) -> list[Tile]:
    """The tiles, full and partial, that growing from `old` to `new` leaves writes, lowest level first.

    A partial tile replaces the narrower one of the same level and index.
    """
    tiles: list[Tile] = []
    for level in range(_TILE_LEVELS):
        before, after = old >> TILE_HEIGHT * level, new >> TILE_HEIGHT * level
        if before >= after:
            break
        tiles += [
            Tile(level=level, index=index, width=min(TILE_WIDTH, after - index * TILE_WIDTH))
            for index in range(before // TILE_WIDTH, (after - 1) // TILE_WIDTH + 1)
        ]
    return tiles


def tile_content(tile: Tile, hashes: HashReader) -> bytes:
    """The bytes of a tile: its hashes, joined."""
    first = tile.index * TILE_WIDTH
    return b"".join(hashes(TILE_HEIGHT * tile.level, number) for number in range(first, first + tile.width))


def grow_tiles(old: int, leaf_hashes: Sequence[bytes], read: TileReader) -> list[tuple[Tile, bytes]]:
    """The tiles that appending leaf hashes to a tree of `old` leaves writes, in the order of `changed_tiles`.

    Reads at most one partial tile a level. Raises IntegrityError if a tile that is read is too short.
    """
    written: list[tuple[Tile, bytes]] = []
    added: Sequence[bytes] = leaf_hashes
    for level in range(_TILE_LEVELS):
        if not added:
            break
        index, kept = divmod(old >> TILE_HEIGHT * level, TILE_WIDTH)
        entries = [*_entries(Tile(level=level, index=index, width=kept), read), *added] if kept else added
        above: list[bytes] = []
        for at in range(0, len(entries), TILE_WIDTH):
            chunk = entries[at : at + TILE_WIDTH]
            tile = Tile(level=level, index=index + at // TILE_WIDTH, width=len(chunk))
            written.append((tile, b"".join(chunk)))
            if len(chunk) == TILE_WIDTH:
                above.append(_complete_root(chunk))
        added = above
    return written


def _entries(tile: Tile, read: TileReader) -> list[bytes]:
    data = read(tile)
    if len(data) < tile.width * HASH_SIZE or len(data) % HASH_SIZE:
        raise IntegrityError(
            f"Tile {tile.path} has {len(data)} bytes, expected {tile.width * HASH_SIZE}.",
            next_step="Run macadam ledger verify; tiles can be rebuilt from the leaves.",
        )
    return _split(data[: tile.width * HASH_SIZE])


def _complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root of a number of hashes that is a power of two."""
    row = list(hashes)
    while len(row) > 1:
        row = _pairs(row)
    return row[0]


class TileHashes:
    """Reads any hash of a tree from its tiles, and keeps the inner hashes of the tiles read last.

    One instance serves all sizes of one growing ledger: a tile of a given width never changes.
    """

    def __init__(self, read: TileReader, *, kept_tiles: int = 256) -> None:
        """kept_tiles: how many tiles to keep in memory, 16 KiB each: 256 hold the upper tiles of 10 M leaves."""

        def load(tile: Tile) -> list[list[bytes]]:
            rows = [_entries(tile, read)]
            while len(rows[-1]) > 1:
                rows.append(_pairs(rows[-1]))
            return rows

        self._rows = lru_cache(kept_tiles)(load)

    def at(self, size: int) -> HashReader:
        """The hashes of the tree of the first `size` leaves."""

        def read(level: int, index: int) -> bytes:
            if level < 0 or index < 0 or index + 1 << level > size:
                raise InvalidInput(
                    f"Hash {index} at level {level} is not complete in a tree of {size} leaves.",
                    next_step="Ask for a later size.",
                )
            tile_level, row = divmod(level, TILE_HEIGHT)
            tile_index, column = divmod(index, TILE_WIDTH >> row)
            width = min(TILE_WIDTH, (size >> TILE_HEIGHT * tile_level) - tile_index * TILE_WIDTH)
            return self._rows(Tile(level=tile_level, index=tile_index, width=width))[row][column]

        return read
