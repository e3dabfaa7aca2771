"""Turns a fitted scikit-learn estimator into ONNX through skl2onnx, with trees that branch exactly as before.

Two corrections are made to every tree node on its way. ONNX compares 32-bit floats: a threshold is rounded down to
one, never up, so that for a float32 input x the test `x <= threshold` has the same answer before and after. And the
flag for missing values is made a whole number, which protobuf 7 insists on and skl2onnx 1.20 forgets.
"""

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from macadam.errors import InvalidInput
from macadam.lazy import lazy
from macadam.models.signature import TENSOR, Output

np: Any = lazy("numpy")
skl2onnx: Any = lazy("skl2onnx")
onnx_types: Any = lazy("skl2onnx.common.data_types")
sklearn_base: Any = lazy("sklearn.base")

_CLASSES = 2


def is_classifier(estimator: Any) -> bool:
    """Raises InvalidInput for what is no estimator, and for a classifier of other than two classes."""
    if not isinstance(estimator, sklearn_base.BaseEstimator):
        raise InvalidInput(
            f"{type(estimator).__name__} is no scikit-learn estimator.",
            next_step="Give a fitted estimator, or your own ONNX to run.save_onnx.",
        )
    if not sklearn_base.is_classifier(estimator):
        return False
    if len(estimator.classes_) != _CLASSES:
        raise InvalidInput(
            f"The classifier has {len(estimator.classes_)} classes, expected two.",
            next_step="Train one that answers yes or no.",
        )
    return True


def to_onnx(estimator: Any, width: int) -> tuple[bytes, Output]:
    """The model's bytes, taking `features` (float32, shape (None, width)), and where its answer is.

    Raises InvalidInput if skl2onnx cannot convert the estimator.
    """
    classifier = is_classifier(estimator)
    features = [(TENSOR, onnx_types.FloatTensorType([None, width]))]
    options = {id(estimator): {"zipmap": False}} if classifier else None
    try:
        with _exact_trees():
            proto = skl2onnx.convert_sklearn(estimator, initial_types=features, options=options)
    except Exception as error:  # skl2onnx's errors share no base with each other
        raise InvalidInput(
            f"{type(estimator).__name__} cannot be exported to ONNX: {_first_line(error)}",
            next_step="Use an estimator that skl2onnx supports, or give your own ONNX to run.save_onnx.",
        ) from error
    proto.graph.name = type(estimator).__name__  # not skl2onnx's random one: the same training gives the same bytes
    tensors = [output.name for output in proto.graph.output]
    if classifier:
        return proto.SerializeToString(), Output(name="probability", kind="probability", tensor=tensors[1], column=1)
    return proto.SerializeToString(), Output(name="value", kind="number", tensor=tensors[0], column=0)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error  # skl2onnx wraps the reason in a page of attributes
    return (str(cause).splitlines() or [type(cause).__name__])[0]


@contextmanager
def _exact_trees() -> Iterator[None]:
    """skl2onnx offers no hook for a node, so its function is replaced for the duration of one conversion."""
    tree_ensemble: Any = importlib.import_module("skl2onnx.common.tree_ensemble")  # itself, not a lazy stand-in
    original = tree_ensemble.add_node
    parameters = inspect.signature(original)

    def add_node(*arguments: Any, **named: Any) -> None:
        bound = parameters.bind(*arguments, **named)
        given = bound.arguments
        if given["mode"] == "BRANCH_LEQ":
            given["value"] = rounded_down(float(given["value"]))
        given["nodes_missing_value_tracks_true"] = int(given.get("nodes_missing_value_tracks_true", 0))
        original(*bound.args, **bound.kwargs)

    tree_ensemble.add_node = add_node
    try:
        yield
    finally:
        tree_ensemble.add_node = original


def rounded_down(threshold: float) -> float:
    """The largest 32-bit float that is not above the threshold."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))
