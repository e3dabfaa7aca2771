"""Rebuilds the whole ledger from its leaves and compares it with everything that was ever stored or signed about it.

Finds bytes that changed, rows, tiles or checkpoints that are gone, and order that was altered. What leaves point at
(objects, table files) is checked too when asked. A log that was rewritten *with its key* is found only by someone who
kept an old checkpoint: pass it as `since`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, InvalidInput, MacadamError, NotFound
from macadam.ledger.leaf import Leaf, decode
from macadam.ledger.note import VerifierKey, open_checkpoint
from macadam.ledger.schema import checkpoints, leaves, uses
from macadam.ledger.sequencer import CHECKPOINT_NAME
from macadam.ledger.tree import Frontier, Tile, changed_tiles, hashes_of, leaf_hash, tile_content
from macadam.ports import Ports
from macadam.values import DIGEST_PATTERN

# Facts of a leaf's body that name an object: the bytes must still be there and be those.
OBJECT_FIELDS = ("artifact", "signature", "archive", "parquet", "text_object")
Report = Callable[[str, int, int], None]


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
    problems: list[str] = []
    hashes: list[bytes] = []
    outside: list[Leaf] = []
    total = sql.execute(sa.select(sa.func.count()).select_from(leaves).where(leaves.c.idx.is_not(None))).scalar_one()
    for position, (row, said) in enumerate(_stored(sql)):
        problems += _leaf_problems(position, row, said)
        hashes.append(leaf_hash(bytes(row.leaf)))
        leaf = _decoded(row, problems)
        if leaf is not None:
            outside.append(leaf)
        if position % 1000 == 0:
            report("leaves", position, total)
    signed = _checkpoint_problems(sql, hashes, key, problems)
    problems += _named_checkpoint_problems(ports, sql, key)
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


def _named_checkpoint_problems(ports: Ports, sql: sa.Connection, key: VerifierKey) -> Iterator[str]:
    """The published copy may lag behind the rows by a kill between two steps, but never differ or be ahead."""
    rows = {row.size: row.note for row in sql.execute(sa.select(checkpoints.c.size, checkpoints.c.note))}
    if not rows:
        return
    try:
        note = ports.objects.get_name(CHECKPOINT_NAME).decode()
        size = open_checkpoint(note, [key]).size
    except NotFound:
        yield "the published checkpoint is missing"
    except (IntegrityError, InvalidInput, UnicodeDecodeError) as error:
        yield f"the published checkpoint: {error}"
    else:
        if rows.get(size) != note:
            yield f"the published checkpoint of size {size} is not among the stored ones"


def _tile_problems(ports: Ports, hashes: list[bytes]) -> Iterator[str]:
    expected = {tile.path: tile for tile in changed_tiles(0, len(hashes))}
    reader = hashes_of(hashes)
    stored = {f"tile/{name.split('tile/', 1)[1]}" for name in ports.objects.names("ledger/tile")}
    for path in sorted(expected.keys() - stored):
        yield f"tile {path} is missing"
    for path in sorted(stored):
        yield from _one_tile(ports, path, len(hashes), reader)


def _one_tile(ports: Ports, path: str, size: int, reader: Callable[[int, int], bytes]) -> Iterator[str]:
    try:
        tile = Tile.parse(path)
    except InvalidInput:
        yield f"tile {path} is not part of this ledger"
        return
    if tile.index * 256 + tile.width > size >> 8 * tile.level:
        return  # written ahead by an integration that was killed; it will be written again, with the same bytes
    if ports.objects.get_name(f"ledger/{path}") != tile_content(tile, reader):
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
    """Reads what the leaves point at: objects by digest, table snapshots by their files."""
    checked: set[str] = set()
    for position, leaf in enumerate(found):
        report("objects and tables", position, len(found))
        for field in OBJECT_FIELDS:
            digest = leaf.body.get(field)
            if isinstance(digest, str) and digest not in checked and _is_digest(digest):
                checked.add(digest)
                _note_problem(problems, f"{leaf.subject}: {field}", lambda d=digest: ports.objects.get(d))  # type: ignore[misc]
        place = leaf.body.get("metadata_location")
        if isinstance(place, str) and place not in checked and leaf.outcome == "done":
            checked.add(place)
            _note_problem(problems, leaf.subject, lambda b=leaf.body: _verify_table(ports, b))  # type: ignore[misc]
    return len(checked)


def _is_digest(text: str) -> bool:
    return text.startswith("sha256:") and len(text) == len(DIGEST_PATTERN.replace(r"[0-9a-f]{64}", "x" * 64)) - 2


def _verify_table(ports: Ports, body: Mapping[str, object]) -> None:
    ports.tables.verify(str(body["metadata_location"]), str(body["snapshot_id"]), str(body["digest"]))


def _note_problem(problems: list[str], what: str, check: Callable[[], object]) -> None:
    try:
        check()
    except MacadamError as error:
        problems.append(f"{what}: {error.what}")
