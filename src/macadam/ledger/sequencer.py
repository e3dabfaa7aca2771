"""Integrates queued leaves into the tree, in the order in which they were committed, and signs checkpoints.

The steps are ordered so that a kill between any two leaves a valid log: tiles first (their content depends only on the
leaves, so writing them again changes nothing), then one transaction numbers the leaves and adds the checkpoint.

Why no leaf is left out, doubled or put in front of another, however many processes append and integrate:

1. A leaf's `seq` is given inside a transaction that holds the writers' lock (SQLite's own; in Postgres an advisory lock) from
   its first statement until its commit can be seen. So of two transactions one is seen before the other takes a number,
   and all its numbers are lower. What is rolled back leaves a gap that nobody fills.
2. So the leaves of any snapshot are the beginning of the order: none with a lower `seq` than one that was seen comes later.
   Without 1 that would be false: a sequence gives numbers in one order, and commits happen in another.
3. So the queued leaves of a snapshot, by `seq`, are the next stretch of the tree. Two sequencers that start from one size hold
   two beginnings of the same stretch, and the tiles that both write have the same bytes.
4. Numbering happens under the writers' lock as well, and only if the size is still the one it started from: one of them wins,
   the other starts over. `_commit` refuses a leaf that was committed late all the same: somebody wrote without the lock.
"""

import logging
from collections.abc import Callable

import sqlalchemy as sa

from macadam.errors import IntegrityError, NotFound, Temporary
from macadam.ledger import keys
from macadam.ledger.note import Checkpoint, sign_checkpoint
from macadam.ledger.publishing import publish
from macadam.ledger.schema import checkpoints, leaves
from macadam.ledger.tree import TILE_HEIGHT, TILE_WIDTH, Frontier, Tile, grow_tiles
from macadam.nudged import Nudged
from macadam.ports import Ports
from macadam.values import utc_now

BATCH = 20_000
"""Leaves integrated at once: bounds memory (about 20 MB) and the time that one transaction takes."""
FIRST_RETRY = 1.0
"""Seconds until a failed integration is tried again without being asked; doubles up to LONGEST_RETRY."""
LONGEST_RETRY = 60.0

_log = logging.getLogger(__name__)


class Sequencer:
    """Runs `integrate` soon after each `nudge`, on a thread of its own; bursts share one checkpoint.

    failure: what the last try ended with, '' if it went well. An error stops nothing: the leaves stay queued in SQL, it
    is logged each time, and the next nudge, or the retry, or the next start of the platform tries again.
    """

    def __init__(self, ports: Ports, then: Callable[[], None] = lambda: None) -> None:
        """then: called, and to return at once, whenever there may be a new checkpoint."""
        self._ports = ports
        self._then = then
        self._thread = Nudged("ledger-sequencer", self._run)
        self.failure = ""

    def nudge(self) -> None:
        """Says that leaves may be queued. Returns at once; after `close` it does nothing."""
        self._thread.nudge()

    def close(self) -> None:
        """Integrates what is queued, then stops.

        Raises what `integrate` does, except Temporary errors: those leaves are integrated at the next start.
        """
        self._thread.close()
        try:
            integrate_all(self._ports)
            self._then()
        except Temporary as error:
            _log.warning("ledger: what is queued waits for the next start: %s", error)

    def _run(self) -> None:
        pause = FIRST_RETRY
        while not self._thread.closing.is_set():
            self._thread.wanted.wait(pause if self.failure else None)
            self._thread.wanted.clear()
            try:
                integrate_all(self._ports)
            except Exception as error:  # noqa: BLE001 - a sequencer that dies leaves changes without a checkpoint
                pause = min(pause * 2, LONGEST_RETRY) if self.failure else FIRST_RETRY
                self.failure = str(error) or repr(error)
                unexpected = not isinstance(error, Temporary)
                _log.log(
                    logging.ERROR if unexpected else logging.WARNING,
                    "ledger: leaves stay queued, the next try is in %g s: %s",
                    pause,
                    error,
                    exc_info=unexpected,
                )
            else:
                self.failure = ""
                self._then()


def integrate_all(ports: Ports) -> None:
    """Integrates until nothing is queued. Raises like `integrate`."""
    while integrate(ports):
        pass


def integrate(ports: Ports) -> int:
    """Integrates up to BATCH queued leaves under one checkpoint; returns how many.

    Raises Temporary errors of the ports, and IntegrityError if the stored frontier does not fit the last checkpoint.
    """
    with ports.sql.read() as sql:
        query = sa.select(leaves.c.seq, leaves.c.hash).where(leaves.c.idx.is_(None)).order_by(leaves.c.seq).limit(BATCH)
        rows = sql.execute(query).all()
        if not rows:
            return 0
        size, frontier = _latest(sql)
        known, queued = keys.held(sql), {row.seq for row in rows}
        names = keys.signing(known, queued)
    hashes = [bytes(row.hash) for row in rows]
    # 1. tiles: immutable for a given width, so two processes that integrate at once write the same bytes.
    grown = grow_tiles(size, hashes, lambda tile: read_tile(ports, tile))
    for tile, content in grown:
        ports.objects.set_name(f"ledger/{tile.path}", content)
    # 2. the checkpoint over all leaves up to here, signed by each key in force there.
    frontier.extend(hashes)
    try:
        signers = keys.signers(ports, names, known)
    except NotFound:
        if _size(ports) == size:
            raise
        return len(rows)  # another process has integrated these, and destroyed a key that they retire
    checkpoint = Checkpoint(
        origin=signers[0].name, size=frontier.size, root=frontier.root(), extensions=(f"previous {size}",)
    )
    note = sign_checkpoint(checkpoint, *signers)
    # 3. one transaction: number the leaves, add the checkpoint; a race with another process is lost here, harmlessly.
    state = frontier.to_bytes()
    if not ports.sql.write(lambda sql: _commit(sql, size, rows[0].seq, rows[-1].seq, note, frontier.size, state)):
        return len(rows)
    # 4. the published copy, and the published keys if these leaves announce or retire one.
    publish(ports)
    if keys.changed_by(known, queued):
        keys.settle(ports)
    # 5. what full tiles have taken the place of; a kill before this leaves at most 255 small files.
    _prune(ports, size, [tile for tile, _ in grown])
    return len(rows)


def _prune(ports: Ports, size: int, written: list[Tile]) -> None:
    """Removes the partial versions of the tiles that became full. Until then each stays, for readers of old checkpoints
    (https://c2sp.org/tlog-tiles: partial tiles may go once the full one is there).
    """
    for tile in written:
        before = (size >> TILE_HEIGHT * tile.level) - tile.index * TILE_WIDTH
        if tile.width == TILE_WIDTH and before > 0:
            for name in list(ports.objects.names(f"ledger/{tile.path}.p/")):
                ports.objects.remove_name(name)


def _size(ports: Ports) -> int:
    with ports.sql.read() as sql:
        return int(sql.execute(sa.select(sa.func.max(checkpoints.c.size))).scalar() or 0)


def _latest(sql: sa.Connection) -> tuple[int, Frontier]:
    row = sql.execute(sa.select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)).first()
    if row is None:
        return 0, Frontier()
    frontier = Frontier.from_bytes(bytes(row.frontier))
    if frontier.size != row.size:
        raise IntegrityError(
            f"The ledger's frontier is of size {frontier.size}, its checkpoint of {row.size}.",
            next_step="Run macadam ledger verify; write nothing more to this home.",
        )
    return int(row.size), frontier


def _commit(sql: sa.Connection, size: int, first: int, last: int, note: str, new_size: int, state: bytes) -> bool:
    latest = sql.execute(sa.select(sa.func.max(checkpoints.c.size))).scalar() or 0
    if latest != size:
        return False
    before = sql.execute(sa.select(leaves.c.seq).where(leaves.c.idx == size - 1)).scalar() or 0
    if before >= first:
        raise IntegrityError(
            f"Leaf {first} was committed after leaf {before}, which is in the tree already: it has no place any more.",
            next_step="Something writes to the ledger's tables beside Macadam: stop it, and run macadam ledger verify.",
        )
    place = sa.func.row_number().over(order_by=leaves.c.seq) - 1 + size
    queued = (
        sa.select(leaves.c.seq, place.label("place"))
        .where(leaves.c.idx.is_(None), leaves.c.seq >= first, leaves.c.seq <= last)
        .subquery()
    )
    numbered = sql.execute(sa.update(leaves).where(leaves.c.seq == queued.c.seq).values(idx=queued.c.place)).rowcount
    if numbered != new_size - size:
        raise IntegrityError(
            f"{new_size - size} queued leaves were read and {numbered} are there to be numbered.",
            next_step="Somebody changes the ledger's tables by hand: run macadam ledger verify.",
        )
    sql.execute(sa.insert(checkpoints).values(size=new_size, note=note, frontier=state, at=utc_now()))
    return True


def read_tile(ports: Ports, tile: Tile) -> bytes:
    """A tile's bytes, from its own width or the next wider one that is stored. Raises IntegrityError if none is."""
    for width in range(tile.width, TILE_WIDTH + 1):
        wider = Tile(level=tile.level, index=tile.index, width=width)
        try:
            return ports.objects.get_name(f"ledger/{wider.path}")[: tile.width << 5]
        except NotFound:
            continue
    raise IntegrityError(
        f"The ledger's tile {tile.path} (height {TILE_HEIGHT}) is missing.",
        next_step="Run macadam ledger verify; tiles can be rebuilt from the leaves.",
    )
