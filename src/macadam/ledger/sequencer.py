"""Integrates queued leaves into the tree, in the order in which they were committed, and signs checkpoints.

The steps are ordered so that a kill between any two leaves a valid log: tiles first (their content depends only on the
leaves, so writing them again changes nothing), then one transaction numbers the leaves and adds the checkpoint.
"""

import logging
import threading

import sqlalchemy as sa

from macadam.errors import IntegrityError, NotFound, Temporary
from macadam.ledger.note import Checkpoint, SignerKey, sign_checkpoint
from macadam.ledger.schema import checkpoints, leaves
from macadam.ledger.tree import TILE_HEIGHT, TILE_WIDTH, Frontier, Tile, grow_tiles
from macadam.ports import Ports
from macadam.values import utc_now

KEY_SECRET = "ledger-key"  # noqa: S105 - the name of a secret, not a secret
CHECKPOINT_NAME = "ledger/checkpoint"
BATCH = 20_000
"""Leaves integrated at once: bounds memory (about 20 MB) and the time that one transaction takes."""

_log = logging.getLogger(__name__)


class Sequencer:
    """Runs `integrate` soon after each `nudge`, on a thread of its own; bursts share one checkpoint."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._wanted = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()

    def nudge(self) -> None:
        """Says that leaves may be queued. Returns at once."""
        self._wanted.set()
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="ledger-sequencer", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Integrates what is queued, then stops."""
        self._closing = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        integrate_all(self._ports)

    def _run(self) -> None:
        while not self._closing:
            self._wanted.wait()
            self._wanted.clear()
            try:
                integrate_all(self._ports)
            except Temporary as error:
                # The leaves stay queued in SQL; the next nudge or the next start integrates them.
                _log.warning("ledger: not integrated yet: %s", error)


def integrate_all(ports: Ports) -> None:
    """Integrates until nothing is queued."""
    while integrate(ports):
        pass


def integrate(ports: Ports) -> int:
    """Integrates up to BATCH queued leaves under one checkpoint; returns how many.

    Raises Temporary errors of the ports, and IntegrityError if the stored frontier does not fit the last checkpoint.
    """
    with ports.sql.read() as sql:
        size, frontier = _latest(sql)
        query = sa.select(leaves.c.seq, leaves.c.hash).where(leaves.c.idx.is_(None)).order_by(leaves.c.seq).limit(BATCH)
        rows = sql.execute(query).all()
    if not rows:
        return 0
    hashes = [bytes(row.hash) for row in rows]
    # 1. tiles: immutable for a given width, so two processes that integrate at once write the same bytes.
    for tile, content in grow_tiles(size, hashes, lambda tile: read_tile(ports, tile)):
        ports.objects.set_name(f"ledger/{tile.path}", content)
    # 2. the signed checkpoint over all leaves up to here.
    frontier.extend(hashes)
    signer = SignerKey.parse(ports.secrets.get(KEY_SECRET).decode())
    checkpoint = Checkpoint(
        origin=signer.name, size=frontier.size, root=frontier.root(), extensions=(f"previous {size}",)
    )
    note = sign_checkpoint(checkpoint, signer)
    # 3. one transaction: number the leaves, add the checkpoint; a race with another process is lost here, harmlessly.
    state = frontier.to_bytes()
    if not ports.sql.write(lambda sql: _commit(sql, size, rows[0].seq, rows[-1].seq, note, frontier.size, state)):
        return len(rows)
    ports.objects.set_name(CHECKPOINT_NAME, note.encode())
    return len(rows)


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
    place = sa.func.row_number().over(order_by=leaves.c.seq) - 1 + size
    queued = (
        sa.select(leaves.c.seq, place.label("place"))
        .where(leaves.c.idx.is_(None), leaves.c.seq >= first, leaves.c.seq <= last)
        .subquery()
    )
    sql.execute(sa.update(leaves).where(leaves.c.seq == queued.c.seq).values(idx=queued.c.place))
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
