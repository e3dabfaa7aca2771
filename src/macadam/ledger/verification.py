"""Rebuilds the whole ledger from its leaves and compares it with everything that was ever stored or signed about it.

Finds bytes that changed, rows, tiles or checkpoints that are gone, and order that was altered. What leaves point at
(objects, table files) is checked too when asked. A log that was rewritten *with its key* is found only by someone who
kept an old checkpoint (pass it as `since`), or by witnesses.

Which keys had to sign a checkpoint is taken from the leaves that it covers: see `keyring`.

One pass over the leaves in tree order; tiles, checkpoints and objects are compared as the tree grows past them, so that
memory does not grow with the ledger.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, InvalidInput, NotFound
from macadam.ledger import keys
from macadam.ledger.keyring import KeyHistory, KeyRing
from macadam.ledger.leaf import Leaf, decode
from macadam.ledger.named_objects import NamedObjects
from macadam.ledger.note import Checkpoint, Note, VerifierKey, open_checkpoint
from macadam.ledger.problems import Problems
from macadam.ledger.publishing import CHECKPOINT_NAME
from macadam.ledger.schema import checkpoints, leaves, uses
from macadam.ledger.stored_tiles import StoredTiles
from macadam.ledger.tree import Frontier, leaf_hash
from macadam.ports import Ports

Report = Callable[[str, int, int], None]
_PAGE = 1000
"""Rows read at once: at most 64 MB of leaves, usually 1 MB."""
_SETTLING = 1.0
"""Seconds in which whoever has just added a checkpoint publishes it: it is two steps, and a kill before may add one."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What verification found. problems: sentences; empty means that everything is as recorded. cosigned: how many of
    the known witnesses have cosigned the newest checkpoint.
    """

    size: int
    root: str
    checkpoints: int
    queued: int
    objects: int
    problems: tuple[str, ...]
    cosigned: int = 0


def verify(ports: Ports, sql: sa.Connection, ring: KeyRing, *, since: str = "", deep: bool, report: Report) -> Found:
    """Checks everything. ring: the published keys. since: a signed checkpoint that was kept elsewhere ('' = none)."""
    # Before the first query: the snapshot then holds at least what was published, also while others go on appending.
    published = _published(ports)
    problems = Problems()
    total = sql.execute(sa.select(sa.func.count()).select_from(leaves).where(leaves.c.idx.is_not(None))).scalar_one()
    tiles = StoredTiles(ports, problems)
    history = KeyHistory()
    signed = _SignedCheckpoints(sql, lambda: history.ring(ring.keys[0]), problems)
    kept = _KeptCheckpoint(since, problems)
    objects = NamedObjects(ports, problems)
    frontier = Frontier()
    last_seq = 0
    for position, (row, said) in enumerate(_stored(sql)):
        if row.seq <= last_seq:
            problems.add(f"leaf {row.idx} was committed before the leaf in front of it: order was changed")
        last_seq = row.seq
        leaf = _decoded(row, problems)
        hashed = leaf_hash(bytes(row.leaf))
        problems.extend(_leaf_problems(position, row, hashed, leaf, said))
        if leaf is not None:
            history.read(position, leaf)
        frontier.append(hashed)
        tiles.append(hashed)
        signed.reached(frontier)
        kept.reached(frontier)
        if deep and leaf is not None:
            objects.check(leaf)
        if position % 1000 == 0:
            report("leaves", position, total)
    tiles.end()
    signed.end(frontier.size)
    announced = history.ring(ring.keys[0])
    kept.end(frontier.size, announced)
    problems.extend(history.problems)
    problems.extend(_key_problems(ports, sql, announced))
    problems.extend(_copy_problems(ports, published, sql, announced))
    problems.extend(_stray_uses(sql))
    queued = sql.execute(sa.select(sa.func.count()).select_from(leaves).where(leaves.c.idx.is_(None))).scalar_one()
    return Found(
        size=frontier.size,
        root=frontier.root().hex(),
        checkpoints=signed.count,
        queued=queued,
        objects=objects.count,
        problems=problems.all(),
    )


# --- leaves


def _stored(sql: sa.Connection) -> Iterator[tuple[sa.Row[Any], list[str]]]:
    """Integrated leaves in tree order, each with the references that the index holds for it."""
    last = -1
    while True:
        query = sa.select(leaves).where(leaves.c.idx > last).order_by(leaves.c.idx).limit(_PAGE)
        page = sql.execute(query).all()
        if not page:
            return
        last = page[-1].idx
        said: dict[str, list[str]] = {}
        named = sa.select(uses.c.leaf_id, uses.c.ref).where(uses.c.leaf_id.in_([row.id for row in page]))
        for leaf_id, ref in sql.execute(named):
            said.setdefault(leaf_id, []).append(ref)
        for row in page:
            yield row, said.get(row.id, [])


def _leaf_problems(position: int, row: sa.Row[Any], hashed: bytes, leaf: Leaf | None, said: list[str]) -> Iterator[str]:
    if row.idx != position:
        yield f"leaf {position} is missing or its number was changed (found number {row.idx} in its place)"
    if hashed != bytes(row.hash):
        yield f"leaf {row.idx} does not have the bytes of its hash"
    if leaf is None:
        return  # reported by _decoded
    for column in ("id", "at", "kind", "outcome", "actor", "project", "subject"):
        if getattr(leaf, column) != getattr(row, column):
            yield f"leaf {row.idx}: the index says {column} {getattr(row, column)!r}, the leaf says otherwise"
    if sorted(set(leaf.uses)) != sorted(said):
        yield f"leaf {row.idx}: the index of what it uses differs from the leaf"


def _decoded(row: sa.Row[Any], problems: Problems) -> Leaf | None:
    try:
        return decode(bytes(row.leaf))
    except IntegrityError as error:
        problems.add(f"leaf {row.idx} cannot be read: {error.what}")
        return None


def _stray_uses(sql: sa.Connection) -> Iterator[str]:
    unknown = sa.select(uses.c.leaf_id).where(uses.c.leaf_id.not_in(sa.select(leaves.c.id))).distinct()
    for leaf_id in sql.execute(unknown).scalars():
        yield f"the index says what leaf {leaf_id} uses, but there is no such leaf"


# --- checkpoints


class _SignedCheckpoints:
    """Each checkpoint is signed, follows the one before it, and has the root of the leaves that are there."""

    def __init__(self, sql: sa.Connection, ring: Callable[[], KeyRing], problems: Problems) -> None:
        """ring: the keys that the leaves read so far announce."""
        self._ring = ring
        self._problems = problems
        self._rows = _checkpoint_rows(sql)
        self._next = next(self._rows, None)
        self._previous = 0
        self._trusted: set[VerifierKey] = set()
        self.count = 0

    def reached(self, frontier: Frontier) -> None:
        """The tree has grown to this."""
        while self._next is not None and self._next.size <= frontier.size:
            row = self._take(self._next)
            root = self._signed_root(row)
            if root is None or row.size != frontier.size:
                continue
            if root != frontier.root():
                self._problems.add(f"checkpoint {row.size}: its leaves no longer have the root that was signed")
            if frontier.to_bytes() != bytes(row.frontier):
                self._problems.add(f"checkpoint {row.size}: the stored frontier is not that of its leaves")

    def end(self, size: int) -> None:
        """The tree grows no further."""
        while self._next is not None:
            row = self._take(self._next)
            if self._signed_root(row) is not None:
                self._problems.add(f"checkpoint {row.size} covers leaves that are gone: only {size} are there")
        if self._previous < size:
            self._problems.add(f"leaves {self._previous} to {size - 1} are numbered but no checkpoint covers them")

    def _take(self, row: sa.Row[Any]) -> sa.Row[Any]:
        self.count += 1
        self._next = next(self._rows, None)
        return row

    def _signed_root(self, row: sa.Row[Any]) -> bytes | None:
        """The root that a row's note vouches for, None if it cannot be read."""
        previous, self._previous = self._previous, row.size
        ring = self._ring()
        try:
            signed = ring.open(row.note)
        except (IntegrityError, InvalidInput) as error:
            self._problems.add(f"checkpoint {row.size}: {error.what}")
            return None
        signers = {key.verifier for key in ring.keys if key.signs(signed.size)}
        if not signers & (self._trusted or {ring.keys[0].verifier}):
            self._problems.add(
                f"checkpoint {row.size}: no key that signed before has signed it, so nothing vouches for those that did"
            )
        self._trusted = signers
        if signed.size != row.size:
            self._problems.add(f"checkpoint {row.size} holds the note of size {signed.size}: order was changed")
        if signed.extensions != (f"previous {previous}",):
            self._problems.add(f"checkpoint {row.size} does not follow checkpoint {previous}: one between is missing")
        return signed.root


def _checkpoint_rows(sql: sa.Connection) -> Iterator[sa.Row[Any]]:
    last = -1
    while True:
        page = sql.execute(
            sa.select(checkpoints).where(checkpoints.c.size > last).order_by(checkpoints.c.size).limit(_PAGE)
        ).all()
        if not page:
            return
        last = page[-1].size
        yield from page


class _KeptCheckpoint:
    """A checkpoint that somebody kept: the ledger must still begin with the leaves that it signs. note: '' = none."""

    def __init__(self, note: str, problems: Problems) -> None:
        self._note, self._problems = note, problems
        self._kept: Checkpoint | None = None
        self._same = True
        if note:
            try:
                self._kept = Checkpoint.parse(Note.parse(note).text)
            except InvalidInput as error:
                problems.add(f"the checkpoint given: {error.what}")
        self.reached(Frontier())

    def reached(self, frontier: Frontier) -> None:
        if self._kept is not None and frontier.size == self._kept.size:
            self._same = frontier.root() == self._kept.root

    def end(self, size: int, ring: KeyRing) -> None:
        if self._kept is None:
            return
        covered = self._kept.size
        try:
            if covered > size:  # which keys were in force there is not known here
                open_checkpoint(self._note, ring.verifiers)
            else:
                ring.open(self._note)
        except IntegrityError as error:
            self._problems.add(f"the checkpoint given: {error.what}")
            return
        if covered > size:
            self._problems.add(
                f"the checkpoint given covers {covered} leaves, the ledger has only {size}: it was truncated"
            )
        elif not self._same:
            self._problems.add(
                f"the first {covered} leaves are not those that the given checkpoint signed: history was rewritten"
            )


# --- keys


def _key_problems(ports: Ports, sql: sa.Connection, announced: KeyRing) -> Iterator[str]:
    """The index of keys and the published list say what the leaves say."""
    known = keys.held(sql)
    if known and keys.ring_of(known) != announced:
        yield "the index of the ledger's keys differs from the leaves that announce and retire them"
    end = time.monotonic() + _SETTLING
    while not _published_fits(ports, announced):
        if time.monotonic() > end:
            yield "the published keys are not those that the leaves announce"
            return
        time.sleep(_SETTLING / 20)


def _published_fits(ports: Ports, announced: KeyRing) -> bool:
    """Also if another key was announced, or retired, after the snapshot that is verified."""
    published = keys.published(ports)
    if published == announced:
        return True
    with ports.sql.read() as later:
        known = keys.held(later)
    now = keys.ring_of(known) if known else announced
    return published == now and now.grew_from(announced)


# --- the published copy


def _published(ports: Ports) -> bytes | None:
    try:
        return ports.objects.get_name(CHECKPOINT_NAME)
    except NotFound:
        return None


def _copy_problems(ports: Ports, published: bytes | None, sql: sa.Connection, ring: KeyRing) -> list[str]:
    """A copy that does not fit is looked at again, since others may be about to publish; one that was put back stays."""
    found = list(_named_checkpoint_problems(published, sql, ring))
    end = time.monotonic() + _SETTLING
    while found and time.monotonic() < end:
        time.sleep(_SETTLING / 20)
        published = _published(ports)
        with ports.sql.read() as later:
            found = list(_named_checkpoint_problems(published, later, ring))
    return found


def _named_checkpoint_problems(published: bytes | None, sql: sa.Connection, ring: KeyRing) -> Iterator[str]:
    """The published copy is one of the stored ones, and maybe cosigned. A kill between two steps leaves it one behind,
    not more.
    """
    newest = list(
        sql.execute(sa.select(checkpoints.c.size).order_by(checkpoints.c.size.desc()).limit(2)).scalars()
    )  # and the one before it
    if published is None:
        if len(newest) > 1:
            yield "the published checkpoint is missing"
        return
    try:
        note = published.decode()
        parsed = Note.parse(note)
        size = Checkpoint.parse(parsed.text).size
    except (IntegrityError, InvalidInput, UnicodeDecodeError) as error:
        yield f"the published checkpoint: {error}"
        return
    stored = sql.execute(sa.select(checkpoints.c.note).where(checkpoints.c.size == size)).scalar_one_or_none()
    own = [line for line in parsed.signatures if line.name == ring.origin]
    if stored is None or not note.startswith(stored) or own != [*Note.parse(stored).signatures]:
        yield f"the published checkpoint of size {size} is not among the stored ones: checkpoints or leaves are gone"
    elif size < newest[-1]:
        yield f"the published checkpoint is of size {size}, the newest stored one of {newest[0]}: an old one was put back"
