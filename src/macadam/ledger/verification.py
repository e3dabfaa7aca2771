"""Rebuilds the whole ledger from its leaves and compares it with everything that was ever stored or signed about it.

Finds bytes that changed, rows, tiles or checkpoints that are gone, and order that was altered. What leaves point at
(objects, table files) is checked too when asked. A log that was rewritten *with its key* is found only by someone who
kept an old checkpoint: pass it as `since`.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, InvalidInput, MacadamError, NotFound
from macadam.ledger.leaf import Leaf, decode
from macadam.ledger.note import VerifierKey, open_checkpoint
from macadam.ledger.schema import checkpoints, leaves, uses
from macadam.ledger.sequencer import CHECKPOINT_NAME, read_tile
from macadam.ledger.tree import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Frontier,
    Tile,
    changed_tiles,
    hashes_of,
    leaf_hash,
    tile_content,
)
from macadam.ports import Ports
from macadam.values import DIGEST_PATTERN

# Facts of a leaf's body that name an object, at any depth: the bytes must still be there and be those.
OBJECT_FIELDS = ("artifact", "signature", "archive", "parquet", "text_object", "report", "history")
# Kinds of subject whose `digest` is that of an object: a training set's rows, an environment's lock.
OBJECT_SUBJECTS = ("training_set:", "environment:")
Report = Callable[[str, int, int], None]
_SETTLING = 1.0
"""Seconds in which whoever has just added a checkpoint publishes it: it is two steps, and a kill before may add one."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What verification found. problems: sentences; empty means that everything is as recorded."""

    size: int
    root: str
    checkpoints: int
    queued: int
    objects: int
    problems: tuple[str, ...]


def verify(ports: Ports, sql: sa.Connection, key: VerifierKey, *, since: str = "", deep: bool, report: Report) -> Found:
    """Checks everything. since: a signed checkpoint that was kept elsewhere ('' = none)."""
    # Before the first query: the snapshot then holds at least what was published, also while others go on appending.
    published = _published(ports)
    problems: list[str] = []
    hashes: list[bytes] = []
    outside: list[Leaf] = []
    total = sql.execute(sa.select(sa.func.count()).select_from(leaves).where(leaves.c.idx.is_not(None))).scalar_one()
    last_seq = 0
    for position, (row, said) in enumerate(_stored(sql)):
        if row.seq <= last_seq:
            problems.append(f"leaf {row.idx} was committed before the leaf in front of it: order was changed")
        last_seq = row.seq
        problems += _leaf_problems(position, row, said)
        hashes.append(leaf_hash(bytes(row.leaf)))
        leaf = _decoded(row, problems)
        if leaf is not None:
            outside.append(leaf)
        if position % 1000 == 0:
            report("leaves", position, total)
    signed = _checkpoint_problems(sql, hashes, key, problems)
    problems += _copy_problems(ports, published, sql, key)
    problems += _stray_uses(sql)
    problems += _tile_problems(ports, hashes)
    if since:
        problems += _since_problems(since, hashes, key)
    objects = _outside_problems(ports, outside, problems, report) if deep else 0
    frontier = Frontier()
    frontier.extend(hashes)
    queued = sql.execute(sa.select(sa.func.count()).select_from(leaves).where(leaves.c.idx.is_(None))).scalar_one()
    return Found(
        size=len(hashes),
        root=frontier.root().hex(),
        checkpoints=signed,
        queued=queued,
        objects=objects,
        problems=tuple(problems),
    )


def _stored(sql: sa.Connection) -> Iterator[tuple[sa.Row[Any], list[str]]]:
    """Integrated leaves in tree order, each with the references that the index holds for it."""
    said: dict[str, list[str]] = {}
    for leaf_id, ref in sql.execute(sa.select(uses.c.leaf_id, uses.c.ref)):
        said.setdefault(leaf_id, []).append(ref)
    for row in sql.execute(sa.select(leaves).where(leaves.c.idx.is_not(None)).order_by(leaves.c.idx)):
        yield row, said.get(row.id, [])


def _leaf_problems(position: int, row: sa.Row[Any], said: list[str]) -> Iterator[str]:
    if row.idx != position:
        yield f"leaf {position} is missing or its number was changed (found number {row.idx} in its place)"
    if leaf_hash(bytes(row.leaf)) != bytes(row.hash):
        yield f"leaf {row.idx} does not have the bytes of its hash"
    try:
        leaf = decode(bytes(row.leaf))
    except IntegrityError:
        return  # reported by _decoded
    for column in ("id", "at", "kind", "outcome", "actor", "project", "subject"):
        if getattr(leaf, column) != getattr(row, column):
            yield f"leaf {row.idx}: the index says {column} {getattr(row, column)!r}, the leaf says otherwise"
    if sorted(set(leaf.uses)) != sorted(said):
        yield f"leaf {row.idx}: the index of what it uses differs from the leaf"


def _decoded(row: sa.Row[Any], problems: list[str]) -> Leaf | None:
    try:
        return decode(bytes(row.leaf))
    except IntegrityError as error:
        problems.append(f"leaf {row.idx} cannot be read: {error.what}")
        return None


def _checkpoint_problems(sql: sa.Connection, hashes: list[bytes], key: VerifierKey, problems: list[str]) -> int:
    """Each checkpoint is signed, follows the one before it, and has the root of the leaves that are there."""
    frontier, previous, count = Frontier(), 0, 0
    for row in sql.execute(sa.select(checkpoints).order_by(checkpoints.c.size)):
        count += 1
        try:
            signed = open_checkpoint(row.note, [key])
        except (IntegrityError, InvalidInput) as error:
            problems.append(f"checkpoint {row.size}: {error.what}")
            previous = row.size
            continue
        if signed.size != row.size:
            problems.append(f"checkpoint {row.size} holds the note of size {signed.size}: order was changed")
        if signed.extensions != (f"previous {previous}",):
            problems.append(f"checkpoint {row.size} does not follow checkpoint {previous}: one between is missing")
        previous = row.size
        if row.size > len(hashes):
            problems.append(f"checkpoint {row.size} covers leaves that are gone: only {len(hashes)} are there")
            continue
        frontier.extend(hashes[frontier.size : row.size])
        if frontier.size == row.size and frontier.root() != signed.root:
            problems.append(f"checkpoint {row.size}: its leaves no longer have the root that was signed")
        if frontier.to_bytes() != bytes(row.frontier):
            problems.append(f"checkpoint {row.size}: the stored frontier is not that of its leaves")
    if previous < len(hashes):
        problems.append(f"leaves {previous} to {len(hashes) - 1} are numbered but no checkpoint covers them")
    return count


def _published(ports: Ports) -> bytes | None:
    try:
        return ports.objects.get_name(CHECKPOINT_NAME)
    except NotFound:
        return None


def _copy_problems(ports: Ports, published: bytes | None, sql: sa.Connection, key: VerifierKey) -> list[str]:
    """A copy that does not fit is looked at again, since others may be about to publish; one that was put back stays."""
    found = list(_named_checkpoint_problems(published, sql, key))
    end = time.monotonic() + _SETTLING
    while found and time.monotonic() < end:
        time.sleep(_SETTLING / 20)
        published = _published(ports)
        with ports.sql.read() as later:
            found = list(_named_checkpoint_problems(published, later, key))
    return found


def _named_checkpoint_problems(published: bytes | None, sql: sa.Connection, key: VerifierKey) -> Iterator[str]:
    """The published copy is one of the stored ones. A kill between two steps leaves it one behind, not more."""
    sizes = list(sql.execute(sa.select(checkpoints.c.size).order_by(checkpoints.c.size)).scalars())
    if published is None:
        if len(sizes) > 1:
            yield "the published checkpoint is missing"
        return
    try:
        note = published.decode()
        size = open_checkpoint(note, [key]).size
    except (IntegrityError, InvalidInput, UnicodeDecodeError) as error:
        yield f"the published checkpoint: {error}"
        return
    stored = sql.execute(sa.select(checkpoints.c.note).where(checkpoints.c.size == size)).scalar_one_or_none()
    if stored != note:
        yield f"the published checkpoint of size {size} is not among the stored ones: checkpoints or leaves are gone"
    elif size < sizes[-2:][0]:
        yield f"the published checkpoint is of size {size}, the newest stored one of {sizes[-1]}: an old one was put back"


def _stray_uses(sql: sa.Connection) -> Iterator[str]:
    unknown = sa.select(uses.c.leaf_id).where(uses.c.leaf_id.not_in(sa.select(leaves.c.id))).distinct()
    for leaf_id in sql.execute(unknown).scalars():
        yield f"the index says what leaf {leaf_id} uses, but there is no such leaf"


def _tile_problems(ports: Ports, hashes: list[bytes]) -> Iterator[str]:
    reader = hashes_of(hashes)
    stored = {f"tile/{name.split('tile/', 1)[1]}" for name in ports.objects.names("ledger/tile")}
    for tile in changed_tiles(0, len(hashes)):
        if tile.path not in stored:
            yield from _missing_tile(ports, tile, reader)
    for path in sorted(stored):
        yield from _one_tile(ports, path, len(hashes), reader)


def _missing_tile(ports: Ports, tile: Tile, reader: Callable[[int, int], bytes]) -> Iterator[str]:
    """A partial tile may have been widened and removed since the snapshot that is verified."""
    try:
        held = read_tile(ports, tile)
    except IntegrityError:
        yield f"tile {tile.path} is missing"
        return
    if held != tile_content(tile, reader):
        yield f"tile {tile.path} is missing, and the wider one in its place does not hold the hashes of its leaves"


def _one_tile(ports: Ports, path: str, size: int, reader: Callable[[int, int], bytes]) -> Iterator[str]:
    try:
        tile = Tile.parse(path)
    except InvalidInput:
        yield f"tile {path} is not part of this ledger"
        return
    if tile.index * TILE_WIDTH + tile.width > size >> TILE_HEIGHT * tile.level:
        return  # written ahead: by an integration that is running, or was killed and will write the same bytes again
    try:
        held = ports.objects.get_name(f"ledger/{path}")
    except NotFound:
        return  # a partial tile that was removed after the listing, its full one being there
    if held != tile_content(tile, reader):
        yield f"tile {path} does not hold the hashes of its leaves"


def _since_problems(since: str, hashes: list[bytes], key: VerifierKey) -> Iterator[str]:
    try:
        old = open_checkpoint(since, [key])
    except (IntegrityError, InvalidInput) as error:
        yield f"the checkpoint given: {error.what}"
        return
    frontier = Frontier()
    frontier.extend(hashes[: old.size])
    if old.size > len(hashes):
        yield f"the checkpoint given covers {old.size} leaves, the ledger has only {len(hashes)}: it was truncated"
    elif frontier.root() != old.root:
        yield f"the first {old.size} leaves are not those that the given checkpoint signed: history was rewritten"


def _outside_problems(ports: Ports, found: list[Leaf], problems: list[str], report: Report) -> int:
    """Reads what the leaves point at, once each: objects by digest, table snapshots by their files."""
    known: dict[str, str] = {}
    for position, leaf in enumerate(found):
        report("objects and tables", position, len(found))
        for field, digest in _objects_of(leaf):
            if digest not in known:
                known[digest] = _problem_of(lambda d=digest: ports.objects.get(d))  # type: ignore[misc]
            if known[digest]:
                problems.append(f"{leaf.subject}: {field}: {known[digest]}")
        place = leaf.body.get("metadata_location")
        if isinstance(place, str) and leaf.outcome == "done":
            if place not in known:
                known[place] = _problem_of(lambda b=leaf.body: _verify_table(ports, b))  # type: ignore[misc]
            if known[place]:
                problems.append(f"{leaf.subject}: {known[place]}")
    return len(known)


def _objects_of(leaf: Leaf) -> Iterator[tuple[str, str]]:
    """(field, digest) of each object that a leaf names. A denied call's details name nothing that has to be there."""
    if leaf.outcome == "done":
        digest = leaf.body.get("digest")
        if leaf.subject.startswith(OBJECT_SUBJECTS) and isinstance(digest, str):
            yield "digest", digest
        yield from _named_objects(leaf.body)


def _named_objects(body: object) -> Iterator[tuple[str, str]]:
    if isinstance(body, dict):
        for field, value in body.items():
            if field in OBJECT_FIELDS and isinstance(value, str) and _DIGEST.fullmatch(value):
                yield field, value
            else:
                yield from _named_objects(value)
    elif isinstance(body, list):
        for item in body:
            yield from _named_objects(item)


_DIGEST = re.compile(DIGEST_PATTERN)


def _verify_table(ports: Ports, body: Mapping[str, object]) -> None:
    ports.tables.verify(str(body["metadata_location"]), str(body["snapshot_id"]), str(body["digest"]))


def _problem_of(check: Callable[[], object]) -> str:
    try:
        check()
    except MacadamError as error:
        return error.what
    return ""
