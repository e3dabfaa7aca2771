"""Finds one prediction among all that were sealed, and puts together what proves it.

A sealed record is found by the ids between which its segment lies, then by the segment's index: nothing is scanned.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, NotFound, TooLarge, Unavailable
from macadam.journal import places, record
from macadam.journal.layout import CLOSED, OPEN, VERIFY
from macadam.journal.places import Places
from macadam.journal.record import Prediction
from macadam.journal.sealing import folder_of
from macadam.journal.segment import SegmentReader
from macadam.journal.service import holding
from macadam.journal.types import Segment
from macadam.ledger import bundle
from macadam.ledger import receipt as receipts
from macadam.ledger import service as ledger
from macadam.ledger.bundle import ChainLeaf, SegmentPath
from macadam.ledger.service import Entry, Prover
from macadam.ledger.tree import leaf_hash, root_from_path
from macadam.lineage import chain
from macadam.operations import Granted
from macadam.ports import Objects, Ports

MOST_BYTES = 64 * 1024
"""Of a bundle without its record: a chain that needs more has too many leaves."""
_WAIT = "Segments are sealed within a minute while `macadam up` runs; `macadam journal seal` seals what is closed now."


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed record and its place. places: the index of its segment; path: from the record to the segment's root."""

    payload: bytes
    index: int
    segment: Segment
    places: Places
    path: tuple[bytes, ...]

    @property
    def prediction(self) -> Prediction:
        return record.decode(self.payload)


READS = ("predictions:read", "predictions:prove", "predictions:receipt")


def bare_id(text: str) -> str:
    """The id in `prediction:ID`, or the text itself."""
    return text.rpartition(":")[2]


def find(granted: Granted, objects: Objects, candidates: Iterable[Segment], prediction: str) -> Found | None:
    """The record with this id, out of the segments in which it can lie. Raises NotAuthorised, IntegrityError."""
    for segment in candidates:
        granted.require(f"project:{segment.project}", *READS)
        index = Places.of(objects, segment.places)
        place = index.find(prediction)
        if place is None:
            continue
        payload = places.payload_at(objects, segment.archive, place.offset)
        path = index.path(place.index)
        _require_sealed(segment, index.count, place.index, payload, path)
        if record.decode(payload).id != prediction:
            raise IntegrityError(
                f"The index of segment {segment.id} leads to another record than {prediction}.", next_step=VERIFY
            )
        return Found(payload=payload, index=place.index, segment=segment, places=index, path=path)
    return None


def _require_sealed(segment: Segment, count: int, index: int, payload: bytes, path: tuple[bytes, ...]) -> None:
    """Raises IntegrityError unless the record leads to the segment's root: parts of objects are read unchecked."""
    root = root_from_path(leaf_hash(payload), index, count, path)
    if count != segment.count or f"sha256:{root.hex()}" != segment.root:
        raise IntegrityError(
            f"The record number {index} of segment {segment.id} is not what was sealed.",
            next_step=VERIFY,
            details={"segment": segment.id, "index": index},
        )


def unsealed(granted: Granted, home: Path, project: str, prediction: str) -> bytes | None:
    """The record if it is in a segment that is not sealed yet. Raises NotAuthorised."""
    granted.require(f"project:{project}", *READS)
    folder = folder_of(home, project)
    wanted = f'"id":"{prediction}"'.encode()
    for path in sorted([*folder.glob(f"*{OPEN}"), *folder.glob(f"*{CLOSED}")]):
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                at = data.find(wanted)
            if at < 0:
                continue
            with SegmentReader(path, strict=False) as reader:
                for item in reader:
                    if wanted in item.payload and record.decode(item.payload).id == prediction:
                        return item.payload
        except (FileNotFoundError, NotFound):  # it was closed or sealed meanwhile
            continue
    return None


def waiting(granted: Granted, ports: Ports, project: str, prediction: str) -> bytes | None:
    """The record if the caller's snapshot of SQL does not show it as sealed: it waits, or was sealed after the snapshot."""
    payload = unsealed(granted, ports.settings.home, project, prediction)
    if payload is not None:
        return payload
    with ports.sql.read() as later:  # its file may have gone between the two looks, but never before its row came
        found = find(granted, ports.objects, holding(later, project, prediction), prediction)
    return found.payload if found else None


def require(granted: Granted, ports: Ports, sql: sa.Connection, project: str, prediction: str) -> Found:
    """Raises Unavailable if it is not sealed yet, NotFound if there is no such prediction, IntegrityError."""
    found = find(granted, ports.objects, holding(sql, project, prediction), prediction)
    if found is not None:
        return found
    if waiting(granted, ports, project, prediction) is not None:
        raise Unavailable(
            f"The prediction {prediction} is journaled, and not sealed into the ledger yet.", next_step=_WAIT
        )
    raise NotFound(
        f"Project {project!r} has no prediction {prediction!r}.",
        next_step="Its id is in the answer and its header x-macadam-prediction; if it is recent, seal the journal first.",
    )


def prove(granted: Granted, ports: Ports, sql: sa.Connection, project: str, prediction: str) -> tuple[bytes, int]:
    """The bundle's bytes, and how many leaves it holds. Raises like `require`, and TooLarge."""
    found = require(granted, ports, sql, project, prediction)
    told = found.prediction
    size, checkpoint = ledger.newest_checkpoint(sql)
    sealed, deployed = _leaf(sql, found.segment.leaf, size), _leaf(sql, told.deployment, size)
    behind = chain.behind_version(sql, project, told.version, before=deployed.index)
    entries = {entry.leaf.id: entry for entry in (sealed, deployed, *(link.entry for link in behind))}
    sets = [str(entry.leaf.decision["policy_set"]) for entry in (sealed, deployed)]
    entries.update({entry.leaf.id: entry for entry in chain.policies(sql, sets)})
    ordered = sorted(entries.values(), key=lambda entry: entry.index)
    made = bundle.build(
        record=found.payload,
        segment=SegmentPath(index=found.index, count=found.places.count, path=found.path),
        leaves=[_chained(entry) for entry in ordered],
        checkpoint=checkpoint,
        path=Prover(ports, size).path,
    )
    if len(made) - len(found.payload) > MOST_BYTES:
        raise TooLarge(
            f"The proof of {prediction} has {len(made)} bytes, more than {MOST_BYTES} beside its record.",
            next_step="Its chain has too many leaves: train on fewer snapshots.",
            details={"bytes": len(made), "leaves": len(ordered)},
        )
    return made, len(ordered)


def receipt(granted: Granted, ports: Ports, sql: sa.Connection, project: str, prediction: str, *, actor: str) -> bytes:
    """The receipt of a prediction that `actor` asked for.

    Raises Unavailable if it is not sealed yet, and NotFound in the same words for one that is unknown and for one that
    another asked for: an id that somebody else holds tells nothing.
    """
    found = find(granted, ports.objects, holding(sql, project, prediction), prediction)
    payload = found.payload if found else waiting(granted, ports, project, prediction)
    if payload is None or record.decode(payload).actor != actor:
        raise NotFound(
            f"{actor} has no prediction {prediction!r} in project {project!r}.",
            next_step="Its id is in the answer and its header x-macadam-prediction; only who asked can fetch its receipt.",
        )
    if found is None:
        raise Unavailable(f"The prediction {prediction} is journaled, and not sealed yet.", next_step=_WAIT)
    size, checkpoint = ledger.newest_checkpoint(sql)
    sealed = _leaf(sql, found.segment.leaf, size)
    return receipts.build(
        prediction=prediction,
        record=found.payload,
        segment=SegmentPath(index=found.index, count=found.places.count, path=found.path),
        leaf=ChainLeaf(role="segment", index=sealed.index, data=sealed.text),
        checkpoint=checkpoint,
        path=Prover(ports, size).path(sealed.index),
    )


def _chained(entry: Entry) -> ChainLeaf:
    role: bundle.Role = chain.role(entry)  # type: ignore[assignment] # the table of roles holds these names only
    return ChainLeaf(role=role, index=entry.index, data=entry.text)


def _leaf(sql: sa.Connection, leaf_id: str, size: int) -> Entry:
    entries = ledger.by_id(sql, [leaf_id])
    if not entries:
        raise IntegrityError(f"The ledger has no leaf {leaf_id}, which the record rests on.", next_step=VERIFY)
    if not 0 <= entries[0].index < size:
        raise Unavailable(
            f"The leaf of {entries[0].leaf.subject} waits for its checkpoint.", next_step="Ask again in a second."
        )
    return entries[0]
