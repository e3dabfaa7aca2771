"""Training sets as this room sees them: a reference whose ledger leaf names the Parquet file and its snapshots.

Who builds them is above this room, so they are found by their evidence: what has no leaf does not exist.
"""

from pathlib import Path

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, NotFound
from macadam.ledger import service as ledger
from macadam.operations import Context, Granted
from macadam.ports import Objects

KIND = "features.build_training_set"


class TrainingSet(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of the Parquet file. snapshots: references of the table snapshots that it was built from."""

    ref: str
    digest: str
    snapshots: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.ref.partition(":")[2].partition("@")[0]


def find(sql: sa.Connection, project: str, ref: str) -> TrainingSet:
    """Raises NotFound, IntegrityError."""
    entries = ledger.find(sql, kind=KIND, subject=ref, project=project, outcome="done", limit=1)
    if not entries:
        raise NotFound(
            f"Project {project!r} has no training set {ref!r}.",
            next_step="Build it: macadam training-sets build, or list them: macadam training-sets list.",
        )
    leaf = entries[0].leaf
    digest = leaf.body.get("digest")
    if not isinstance(digest, str):
        raise IntegrityError(f"The ledger leaf of {ref} names no Parquet file.", next_step="Run macadam ledger verify.")
    snapshots = tuple(used for used in leaf.uses if used.startswith("table:"))
    return TrainingSet(ref=ref, digest=digest, snapshots=snapshots)


def fetch(context: Context, wanted: TrainingSet, to: Path) -> None:
    """Copies a set's Parquet file, checked. Raises NotAuthorised, NotFound, IntegrityError."""
    granted = context.authorise("training_sets:read", f"training_set:{wanted.name}")
    _fetch(granted, context.ports.objects, wanted, to)


def _fetch(granted: Granted, objects: Objects, wanted: TrainingSet, to: Path) -> None:
    granted.require(wanted.ref, "training_sets:read")
    objects.fetch(wanted.digest, to)
