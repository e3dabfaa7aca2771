"""Measures a model on labelled rows: overall, by slices, and against another model. Pure; no SQL, no objects.

Metrics and their intervals are computed in `metrics`; what is good enough is for `gates`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from macadam.errors import InvalidInput
from macadam.lazy import lazy
from macadam.models import artifact, metrics, signature
from macadam.models.metrics import Scored
from macadam.models.rows import AT, Rows
from macadam.models.signature import Signature
from macadam.models.types import Comparison, Interval, Slice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow.compute as pc
else:
    np = lazy("numpy")
    pc = lazy("pyarrow.compute")

MIN_OUTCOMES = 10
"""A slice needs this many of each outcome: below, an AUC is an anecdote."""
MAX_SLICES = 200
"""Of one column, the largest ones: more is an identifier."""
FEWEST_DAYS = 10
"""Rows of at least so many days (UTC) are drawn day by day: what happens on one day, such as a storm, happens to many
rows. Of fewer days, a resample of days would say little, and rows are drawn one by one.
"""


class Resampling(msgspec.Struct, frozen=True, kw_only=True):
    """How intervals are made, and from which probability on a row counts as positive."""

    resamples: int
    seed: int
    threshold: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. rows and positives: counts; drawn_by: what the bootstrap drew."""

    rows: int
    positives: int
    metrics: dict[str, Interval]
    slices: tuple[Slice, ...]
    drawn_by: Literal["row", "day"]


class _Answers(NamedTuple):
    """What was answered and what came true, per row. days: the number of the row's day, None if rows have no time."""

    outcomes: "npt.NDArray[np.int8]"
    probabilities: "npt.NDArray[np.float64]"
    days: "npt.NDArray[np.int64] | None"

    def among(self, chosen: "npt.NDArray[np.bool_]") -> "_Answers":
        days = None if self.days is None else self.days[chosen]
        return _Answers(self.outcomes[chosen], self.probabilities[chosen], days)

    def groups(self) -> "npt.NDArray[np.int64] | None":
        """The days, numbered from 0 on, if there are enough of them to draw from."""
        if self.days is None:
            return None
        found, numbers = np.unique(self.days, return_inverse=True)
        return numbers.astype(np.int64) if len(found) >= FEWEST_DAYS else None

    def measured(self, how: Resampling) -> dict[str, Interval]:
        scored = Scored(self.outcomes, self.probabilities, threshold=how.threshold)
        return metrics.intervals(scored, resamples=how.resamples, seed=how.seed, groups=self.groups())


def _answers(rows: Rows, probabilities: "npt.NDArray[np.float64]") -> _Answers:
    days = None
    if AT in rows.table.column_names:
        days = rows.table.column(AT).to_numpy().astype("datetime64[D]").astype(np.int64)
    return _Answers(rows.binary_labels(), probabilities, days)


def score(model: bytes, signed: Signature, rows: Rows) -> "npt.NDArray[np.float64]":
    """The model's probability for each row. Raises InvalidInput if the rows lack a feature, or it gives no probability."""
    if signed.outputs[0].kind != "probability":
        raise InvalidInput(
            "The model answers with a number; evaluation measures probabilities of a yes-or-no outcome.",
            next_step="Train a classifier.",
        )
    return artifact.predict(artifact.session(model), signed, signature.encode_table(signed, rows.table))


def measure(
    rows: Rows, probabilities: "npt.NDArray[np.float64]", how: Resampling, *, slices: Mapping[str, int]
) -> Measured:
    """slices: column → smallest number of rows that is measured."""
    answers = _answers(rows, probabilities)
    positives = int(answers.outcomes.sum())
    if not 0 < positives < len(answers.outcomes):
        raise InvalidInput(
            "All rows have the same outcome, so nothing can be told apart.",
            next_step="Evaluate on a training set with both outcomes.",
        )
    found = [one for column, least in slices.items() for one in _slices_of(rows, column, least, answers, how)]
    return Measured(
        rows=len(answers.outcomes),
        positives=positives,
        metrics=answers.measured(how),
        slices=tuple(found),
        drawn_by="row" if answers.groups() is None else "day",
    )


def _slices_of(rows: Rows, column: str, least: int, answers: _Answers, how: Resampling) -> list[Slice]:
    """One slice per value of the column, the largest first. Rows without a value are in none."""
    if column not in rows.table.column_names:
        raise InvalidInput(
            f"The rows have no column {column!r} to slice by.",
            next_step="Add it as a feature, or take it out of gates.yaml.",
        )
    text: Any = signature.category_text(column, rows.table.column(column))
    values: Any = pc.value_counts(text.combine_chunks()).to_pylist()
    counts = sorted(
        ((v["counts"], v["values"]) for v in values if v["values"] is not None), key=lambda c: (-c[0], c[1])
    )
    codes: Any = pc.index_in(text, value_set=pc.unique(text))
    positions = {value: n for n, value in enumerate(pc.unique(text).to_pylist())}
    which = np.asarray(codes.to_numpy())
    return [
        _slice(column, value, least, answers.among(which == positions[value]), how) for _, value in counts[:MAX_SLICES]
    ]


def _slice(column: str, value: str, least: int, answers: _Answers, how: Resampling) -> Slice:
    n, positives = len(answers.outcomes), int(answers.outcomes.sum())
    found: dict[str, Interval] = {}
    note = ""
    if n < least:
        note = f"too few rows: {n} of {least}"
    elif min(positives, n - positives) < MIN_OUTCOMES:
        note = f"too few of one outcome: {min(positives, n - positives)} of {MIN_OUTCOMES}"
    else:
        found = answers.measured(how)
    return Slice(column=column, value=value, rows=n, positives=positives, metrics=found, note=note)


def compare(
    rows: Rows,
    new: "npt.NDArray[np.float64]",
    champion: str,
    old: "npt.NDArray[np.float64]",
    how: Resampling,
) -> Comparison:
    """New minus champion on the same rows. champion: its reference."""
    answers = _answers(rows, new)
    first = Scored(answers.outcomes, new, threshold=how.threshold)
    second = Scored(answers.outcomes, old, threshold=how.threshold)
    found = metrics.differences(first, second, resamples=how.resamples, seed=how.seed, groups=answers.groups())
    return Comparison(champion=champion, metrics=found)
