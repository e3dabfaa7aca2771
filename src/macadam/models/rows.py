"""Rows to learn from or to measure on: one Parquet file with features, label, time and keys.

The file's schema metadata says which columns are features and of which kind, so that the file is complete in
itself. Columns that begin with '_' say which row it is (`_at` and the keys) and are never learned from.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")
    pq = lazy("pyarrow.parquet")

LABEL = "label"
AT = "_at"
_METADATA = b"macadam"


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """kind: 'number' or 'category'."""

    name: str
    kind: str


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of the file. label: what the label means; service: the feature service that gave the features."""

    features: tuple[Feature, ...]
    label: str = ""
    service: str = ""


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """table: all columns, as they are in the file."""

    table: "Any"
    about: About

    @property
    def identity(self) -> list[str]:
        """Names of the columns that say which row it is."""
        return [name for name in self.table.column_names if name.startswith("_")]

    def labels(self) -> "npt.NDArray[Any]":
        """The label of each row, shape (n,). Raises InvalidInput if one is missing."""
        column = self.table.column(LABEL)
        if column.null_count:
            raise InvalidInput(
                f"{column.null_count} of {len(column)} rows have no label.",
                next_step="Build the training set only up to a time from which all outcomes are known.",
            )
        values: npt.NDArray[Any] = column.to_numpy()
        return values

    def binary_labels(self) -> "npt.NDArray[np.int8]":
        """Labels as 0 and 1. Raises InvalidInput if there are others."""
        found = self.labels()
        if not np.isin(found, (0, 1)).all():
            raise InvalidInput(
                "The labels are not all 0 or 1, so this is no yes-or-no question.",
                next_step="Evaluation measures binary outcomes; make the label one in features.py.",
            )
        return found.astype(np.int8)


def read(path: Path) -> Rows:
    """Reads a training set's file. Raises InvalidInput if it lacks its metadata or a column that it names."""
    table = pq.read_table(path)
    said = (table.schema.metadata or {}).get(_METADATA)
    if said is None:
        raise _unfit("it does not say which columns are features")
    try:
        about = msgspec.json.decode(said, type=About)
    except msgspec.DecodeError as error:
        raise _unfit(f"its description is damaged ({error})") from error
    missing = {*(f.name for f in about.features), LABEL} - set(table.column_names)
    if missing:
        raise _unfit(f"it lacks the columns {', '.join(sorted(missing))}")
    return Rows(table=table, about=about)


def with_metadata(table: "pa.Table", about: About) -> "pa.Table":
    """The table with its description, ready to be written. For who builds training sets."""
    return table.replace_schema_metadata({_METADATA: msgspec.json.encode(about)})


def overlap(measured: Rows, seen: Rows) -> int:
    """How many rows of `measured` are in `seen`, by time and keys.

    Raises InvalidInput if the two cannot be compared: then nobody can say that a model did not learn from them.
    """
    by = measured.identity
    if not by or set(by) != set(seen.identity):
        raise InvalidInput(
            f"The two training sets name their rows by different columns: {by} and {seen.identity}.",
            next_step="Build both with the same feature service.",
        )
    common = _identities(measured).join(_identities(seen), keys=by, join_type="left semi")
    return int(common.num_rows)


def _identities(rows: Rows) -> Any:
    """The columns that say which row it is, sorted. A join takes no null for equal to another: here it must be."""
    columns = {name: rows.table.column(name) for name in sorted(rows.identity)}
    filled = {
        name: pc.fill_null(column.cast(pa.string()), "\0") if column.null_count else column.cast(pa.string())
        for name, column in columns.items()
    }
    return pa.table(filled)


def _unfit(why: str) -> InvalidInput:
    return InvalidInput(f"The file is no training set: {why}.", next_step="Build it with macadam training-sets build.")
