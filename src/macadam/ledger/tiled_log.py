"""What a client of a tiled log fetches (https://c2sp.org/tlog-tiles): checkpoint, hash tiles and entry bundles, as bytes.

Nothing is served that no signed checkpoint covers. Who may fetch what, and the headers, are the HTTP face's affair.
"""

import sqlalchemy as sa

from macadam.errors import IntegrityError, InvalidInput, NotFound
from macadam.ledger.schema import checkpoints, leaves
from macadam.ledger.tree import HASH_SIZE, TILE_HEIGHT, TILE_WIDTH, Tile
from macadam.ports import Ports

ENTRIES = "tile/entries/"
_LENGTH_BYTES = 2
"""An entry's length in a bundle is a uint16; `leaf.MAX_BYTES` is the longest that it can say."""


def hash_tile(ports: Ports, path: str) -> bytes:
    """The hashes of a tile, such as `tile/0/x001/234.p/17`. Raises NotFound for what is no tile of this ledger."""
    tile = _parsed(path, path)
    with ports.sql.read() as sql:
        size = sql.execute(sa.select(sa.func.max(checkpoints.c.size))).scalar() or 0
    _require_covered(path, tile, size)
    full = Tile(level=tile.level, index=tile.index)
    for stored in (tile, full):  # a partial tile is removed once the full one is there
        try:
            held = ports.objects.get_name(f"ledger/{stored.path}")
        except NotFound:
            continue
        if len(held) != stored.width * HASH_SIZE:
            raise IntegrityError(
                f"The ledger's {stored.path} has {len(held)} bytes, expected {stored.width * HASH_SIZE}.",
                next_step="Run macadam ledger verify.",
            )
        return held[: tile.width * HASH_SIZE]
    raise _no_tile(path)


def entry_bundle(sql: sa.Connection, path: str) -> bytes:
    """The leaves under a tile of level 0, such as `tile/entries/x001/234`: each after its length, a big-endian uint16.

    Raises NotFound for what is no bundle of this ledger.
    """
    bundle = _parsed(path, f"tile/0/{path.removeprefix(ENTRIES)}")
    size = sql.execute(sa.select(sa.func.max(checkpoints.c.size))).scalar() or 0
    _require_covered(path, bundle, size)
    first = bundle.index * TILE_WIDTH
    query = sa.select(leaves.c.leaf).where(leaves.c.idx >= first, leaves.c.idx < first + bundle.width)
    found = [bytes(text) for text in sql.execute(query.order_by(leaves.c.idx)).scalars()]
    if len(found) != bundle.width:
        raise IntegrityError(
            f"{bundle.width - len(found)} of the leaves from {first} on are gone.",
            next_step="Run macadam ledger verify.",
        )
    return b"".join(len(text).to_bytes(_LENGTH_BYTES) + text for text in found)


def _parsed(path: str, as_tile: str) -> Tile:
    try:
        return Tile.parse(as_tile)
    except InvalidInput as error:
        raise _no_tile(path) from error


def _require_covered(path: str, tile: Tile, size: int) -> None:
    if tile.index * TILE_WIDTH + tile.width > size >> TILE_HEIGHT * tile.level:
        raise _no_tile(path)


def _no_tile(path: str) -> NotFound:
    return NotFound(
        f"The ledger has no {path[:200]}.", next_step="Fetch the checkpoint first; its size says which tiles there are."
    )
