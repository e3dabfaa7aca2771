"""What a project's train.py works with. Light to import; it is all that user code needs to know of Macadam.

    from macadam.models.training import TrainingRun

    def train(run: TrainingRun) -> None:
        train, tune = run.data("train"), run.data("tune")
        estimator = HistGradientBoostingClassifier(random_state=run.seed).fit(train.X, train.y)
        run.log_metric("tune_auc", roc_auc_score(tune.y, estimator.predict_proba(tune.X)[:, 1]))
        run.save_sklearn(estimator)

Models are stored as ONNX only, which computes in 32-bit floats. `TrainingData.X` is float32 already: train on it as
it is. A tree that is trained on 64-bit values can put a threshold between two values that are one and the same in 32
bits; the exported model then takes another branch than the Python model, and the answer jumps. Nothing is pickled.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from macadam.errors import InvalidInput
from macadam.lazy import lazy
from macadam.models import artifact, export, rows, safety, signature
from macadam.models.signature import Output, Signature
from macadam.models.types import Equality, Parameter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float32]
    Predict = Callable[[Floats], npt.NDArray[Any]]
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")

TOLERANCE = 1e-5
"""Largest difference between the exported and the Python model, absolute, that float32 arithmetic explains."""
EQUALITY_ROWS = 1000
MAX_METRICS = 200
"""Different names; each may have any number of steps."""

_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """One split.

    X: float32, shape (n, k); categories are codes of what the train split holds, unknown and unseen values are NaN.
    y: the label, shape (n,). columns: names of X's columns. rows: all columns as an Arrow table, before encoding.
    keys: the columns that name a row. times: UTC, datetime64[us], shape (n,).
    """

    X: "Floats"
    y: "npt.NDArray[Any]"
    columns: tuple[str, ...]
    rows: "pa.Table"
    keys: tuple[str, ...]
    times: "npt.NDArray[np.datetime64]"


class TrainingRun:
    """One run, as user code sees it. files: split → Parquet file."""

    def __init__(self, *, files: Mapping[str, Path], params: Mapping[str, Parameter], seed: int) -> None:
        self.params = dict(params)
        self.seed = seed
        self.splits = tuple(files)
        self.history: list[tuple[str, int, float]] = []
        self.model: bytes = b""
        self.equality: Equality | None = None
        self._read = {split: rows.read(path) for split, path in files.items()}
        learned_from = self._read["train"]
        self.signature = signature.learn(
            learned_from.table,
            [(f.name, f.kind) for f in learned_from.about.features],
            service=learned_from.about.service,
            label=learned_from.about.label,
        )
        self._data: dict[str, TrainingData] = {}

    def data(self, split: str) -> TrainingData:
        """The rows of one split, as given to the run. Raises InvalidInput if there is no such split."""
        if split not in self._read:
            raise InvalidInput(f"The run has no split {split!r}.", next_step=f"Use one of: {', '.join(self.splits)}.")
        if split not in self._data:
            self._data[split] = self._encode(self._read[split])
        return self._data[split]

    def _encode(self, found: rows.Rows) -> TrainingData:
        table = found.table
        times = table.column(rows.AT).to_numpy() if rows.AT in table.column_names else np.array([], "datetime64[us]")
        return TrainingData(
            X=signature.encode_table(self.signature, table),
            y=found.labels(),
            columns=self.signature.names,
            rows=table,
            keys=tuple(name for name in found.identity if name != rows.AT),
            times=times,
        )

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        """Records a number. The last one of each name stands in the run's metrics. Raises InvalidInput."""
        number = float(value)
        if not math.isfinite(number):
            raise InvalidInput(f"The metric {name!r} is {number}.", next_step="Log only finite numbers.")
        if not _METRIC.fullmatch(name):
            raise InvalidInput(
                f"{name!r} is no name for a metric.", next_step="Use letters, digits and any of '_', '.', '/', '-'."
            )
        if name not in self.metrics and len(self.metrics) >= MAX_METRICS:
            raise InvalidInput(
                f"A run has at most {MAX_METRICS} different metrics.", next_step="Use `step` for a metric over time."
            )
        self.history.append((name, int(step), number))

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: value for name, _, value in self.history}

    def rows_per_split(self) -> dict[str, int]:
        return {split: found.table.num_rows for split, found in self._read.items()}

    def save_sklearn(self, estimator: Any) -> Equality:
        """Exports a fitted scikit-learn classifier of two classes, or a regressor, to ONNX, and keeps it.

        Returns how far the two are apart on up to 1,000 rows. Raises InvalidInput if it does not export, or if
        the difference is above 1e-5.
        """
        model, output = export.to_onnx(estimator, len(self.signature.inputs))
        if output.kind == "probability":
            return self._keep(model, output, lambda x: estimator.predict_proba(x)[:, 1])
        return self._keep(model, output, lambda x: np.asarray(estimator.predict(x)).reshape(-1))

    def save_onnx(
        self,
        model: Any,
        *,
        predict: "Predict",
        kind: Literal["probability", "number"] = "probability",
        tensor: str = "",
        column: int = 0,
    ) -> Equality:
        """Keeps an ONNX model (bytes or ModelProto) whose one input is `features`, float32, shape (None, k).

        predict: the Python model, from X to one answer per row, that the ONNX must equal. tensor: the output that
        holds the answer ('' = the last one); column: in that output. Returns and raises like `save_sklearn`.
        """
        data = model if isinstance(model, bytes) else _serialised(model)
        safety.refuse(data, artifact.MODEL)
        name = tensor or _last_output(data)
        output = Output(name="probability" if kind == "probability" else "value", kind=kind, tensor=name, column=column)
        return self._keep(data, output, predict)

    def _keep(self, model: bytes, output: Output, predict: "Predict") -> Equality:
        signed = Signature(
            inputs=self.signature.inputs,
            outputs=(output,),
            service=self.signature.service,
            label=self.signature.label,
        )
        artifact.check(model, signed)
        sample = self._sample()
        exported = artifact.predict(artifact.session(model), signed, sample)
        expected = np.asarray(predict(sample), dtype=np.float64).reshape(-1)
        self.equality = _compare(exported, expected)
        self.model, self.signature = model, signed
        return self.equality

    def _sample(self) -> "Floats":
        """Up to 1,000 rows, drawn from all splits alike. Encoded anew: the code may have changed the X that it got."""
        tables = [found.table for found in self._read.values()]
        ends = np.cumsum([table.num_rows for table in tables])
        chosen = np.random.default_rng(self.seed).permutation(int(ends[-1]))[:EQUALITY_ROWS]
        parts = []
        for table, end in zip(tables, ends, strict=True):
            begin = end - table.num_rows
            here = np.sort(chosen[(chosen >= begin) & (chosen < end)]) - begin
            parts.append(signature.encode_table(self.signature, table.take(pa.array(here))))
        return np.concatenate(parts)


def _compare(exported: "npt.NDArray[np.float64]", expected: "npt.NDArray[np.float64]") -> Equality:
    if exported.shape != expected.shape:
        raise InvalidInput(
            f"The ONNX model gives {exported.shape[0]} answers for {expected.shape[0]} of the Python model.",
            next_step="Let predict return one answer per row.",
        )
    apart = np.abs(exported - expected)
    # A NaN on both sides is the same answer; on one side it is none.
    apart[np.isnan(exported) & np.isnan(expected)] = 0.0
    largest = float(np.max(np.nan_to_num(apart, nan=np.inf))) if len(apart) else 0.0
    if largest > TOLERANCE:
        worst = int(np.argmax(np.nan_to_num(apart, nan=np.inf)))
        beyond = int(np.sum(~(apart <= TOLERANCE)))
        raise InvalidInput(
            f"The ONNX model differs from the Python model by up to {largest:.3g} ({exported[worst]:.6f} instead of "
            f"{expected[worst]:.6f}), more than {TOLERANCE:g}, in {beyond} of {len(apart)} rows.",
            next_step="Train on run.data(split).X as it is: float32, so that no threshold is crossed by rounding.",
            details={"largest_difference": largest, "rows": len(apart), "rows_beyond": beyond},
        )
    return Equality(rows=len(apart), largest_difference=largest)


def _serialised(model: Any) -> bytes:
    try:
        data: bytes = model.SerializeToString()
    except AttributeError:
        raise InvalidInput(
            f"{type(model).__name__} is no ONNX model.",
            next_step="Give bytes or an onnx.ModelProto; for a scikit-learn estimator use run.save_sklearn.",
        ) from None
    return data


def _last_output(model: bytes) -> str:
    return artifact.outputs(model)[-1]
