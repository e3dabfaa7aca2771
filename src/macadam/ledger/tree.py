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
                    f"A leaf hash has {HASH_SIZE} bytes, got {len(carried)}.", next_step="Pass leaf_hash(data)."
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
        return self._size.to_bytes(8) + b"".join(self._hashes)

    @classmethod
    def from_bytes(cls, state: bytes) -> "Frontier":
        """Reads `to_bytes`. Raises IntegrityError if the length does not fit the size."""
        hashes = _split(state[8:])
        return cls(int.from_bytes(state[:8]), hashes)

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
            f"A tree of {old} leaves is not the beginning of one of {new}.", next_step="Give the older size first."
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
        what, next_step="Keep this proof, and compare with a checkpoint kept elsewhere: macadam ledger verify."
    )
