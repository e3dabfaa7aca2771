"""What a closed segment becomes: rows of the predictions table, an archived file, an index into it, and facts for a leaf.

Files and objects only; making them visible is the transaction in `service`.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.errors import Busy, IntegrityError, InvalidInput, NotFound
from macadam.journal import places, record
from macadam.journal.layout import ANSWERS, CLOSED, DRAFT, OPEN, VERIFY
from macadam.journal.places import Place
from macadam.journal.segment import Record, SealedSegment, is_written, recover, seal
from macadam.lazy import lazy
from macadam.ledger.tree import leaf_hash, root_of
from macadam.ports import Objects
from macadam.values import parse_instant

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")

_log = logging.getLogger(__name__)
_UNBEGUN_SECONDS = 60.0
"""Until a draft is nobody's: beginning a segment takes milliseconds."""
MOST_BYTES = 128 * 1024 * 1024
"""Of segments sealed at once: their rows are in memory until they are staged."""


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """A closed segment, read and checked to its last byte, and stored. rows: one per record."""

    path: Path
    facts: SealedSegment
    archive: str
    places: str
    first_id: str
    last_id: str
    rows: list[dict[str, Any]]


def folder_of(home: Path, project: str) -> Path:
    """Where gateways write the segments of a project."""
    return home / "journal" / project


def waiting(home: Path) -> list[str]:
    """Projects with segments that are closed, or open while nobody writes them; sorted."""
    folders = {path.parent for path in (home / "journal").glob(f"*/*{CLOSED}")}
    folders |= {path.parent for path in (home / "journal").glob(f"*/*{OPEN}") if not is_written(path)}
    return sorted(folder.name for folder in folders)


def unsealed(home: Path, project: str) -> frozenset[str]:
    """References of the project's segments that are still files: being written, or closed."""
    folder = folder_of(home, project)
    return frozenset(f"segment:{path.stem}" for suffix in (OPEN, CLOSED) for path in folder.glob(f"*{suffix}"))


def recover_dead(folder: Path) -> list[str]:
    """Finishes the open segments of a folder whose writers are gone. Returns what is damaged, in sentences."""
    damaged = []
    for path in sorted(folder.glob(f"*{OPEN}")):
        try:
            found = recover(path)
        except (Busy, NotFound):  # its gateway lives, or another process was quicker
            continue
        except IntegrityError as error:
            damaged.append(str(error))
        else:
            torn = found.torn.length if found.torn else 0
            _log.warning("recovered the segment %s: %d records, %d torn bytes", path.stem, found.count, torn)
    _forget_unbegun(folder)
    return damaged


def _forget_unbegun(folder: Path) -> None:
    """Removes what a kill left of a segment that never began: a draft without a name, and counters that belong to none."""
    for path in [*folder.glob(f"*{DRAFT}"), *folder.glob(f"*{ANSWERS}")]:
        # In this order: a segment that is being closed has one name or the other.
        if path.with_suffix(OPEN).exists() or path.with_suffix(CLOSED).exists():
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _UNBEGUN_SECONDS:
                path.unlink()


def batch(paths: Sequence[Path]) -> list[Path]:
    """As many as are sealed at once, at least one."""
    chosen: list[Path] = []
    size = 0
    for path in paths:
        size += path.stat().st_size if path.exists() else 0
        if chosen and size > MOST_BYTES:
            break
        chosen.append(path)
    return chosen


def store(path: Path, objects: Objects) -> Closed:
    """Raises IntegrityError if a byte is not as it was written, StorageFull."""
    found: list[Place] = []
    rows: list[dict[str, Any]] = []

    def each(item: Record) -> None:
        row, identity = _read(path, item)
        rows.append(row)
        found.append(Place(identity, item.offset, item.index))

    facts = seal(path, leaf_hash=leaf_hash, root=root_of, each=each)
    ids = [row["id"] for row in rows]
    return Closed(
        path=path,
        facts=facts,
        archive=objects.put_file(path),
        places=objects.put(places.build(found, facts.leaf_hashes)),
        first_id=min(ids, default=""),
        last_id=max(ids, default=""),
        rows=rows,
    )


def _read(path: Path, item: Record) -> tuple[dict[str, Any], bytes]:
    """The row of a record, and its id's bytes. Raises IntegrityError: a record that says nonsense is damage as well."""
    try:
        row = _row(item.payload, path.stem, item.index)
        return row, uuid.UUID(row["id"]).bytes
    except (InvalidInput, ValueError, OverflowError) as error:
        raise IntegrityError(
            f"The record at offset {item.offset} of {path} cannot be read: {error}",
            next_step=VERIFY,
            details={"path": str(path), "offset": item.offset},
        ) from error


def _row(payload: bytes, segment: str, position: int) -> dict[str, Any]:
    told = record.decode(payload)
    score = told.output.get("score")
    return {
        "id": told.id,
        "at": parse_instant(told.at),
        "endpoint": told.endpoint,
        "variant": told.variant,
        "version": told.version,
        "model_digest": told.model_digest,
        "deployment": told.deployment,
        "actor": told.actor,
        "outcome": told.outcome,
        "score": float(score) if isinstance(score, int | float) else None,
        "clock": parse_instant(told.clock) if told.clock else None,
        "record": payload.decode(),
        "segment": segment,
        "position": position,
    }


def table(closed: Sequence[Closed]) -> "pa.Table":
    """The rows of all segments as one Arrow table."""
    instant = pa.timestamp("us", tz="UTC")
    text = ("id", "endpoint", "variant", "version", "model_digest", "deployment", "actor", "outcome", "record")
    kinds: dict[str, Any] = {name: pa.string() for name in (*text, "segment")}
    kinds |= {"at": instant, "clock": instant, "score": pa.float64(), "position": pa.int64()}
    rows = [row for one in closed for row in one.rows]
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})
