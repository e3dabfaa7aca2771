"""A model's signature: its inputs in order, and how one row of features becomes the numbers that it takes.

Training and the gateway share this file, so a feature means the same number in both. `Encoder` turns one row
into a list in a few microseconds; `encode_table` does the same for an Arrow table; a property test holds them equal.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

MAX_CATEGORIES = 10_000
"""More values than this is an identifier, not a category: a tree would learn it by heart."""

TENSOR = "features"
"""Name of the one input tensor of every stored model: float32, shape (rows, inputs)."""

_NAN = float("nan")


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature. categories: the values seen in training, sorted; a value's code is its position."""

    name: str
    kind: Literal["number", "category"]
    categories: tuple[str, ...] = ()


class Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer. tensor: the ONNX output that holds it; column: in that tensor."""

    name: str
    kind: Literal["probability", "number"]
    tensor: str
    column: int


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model takes and gives. service: the feature service that its training sets came from; label: what it
    predicts.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...] = ()
    service: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        names = [i.name for i in self.inputs]
        if not names or len(set(names)) != len(names):
            raise InvalidInput(
                f"A signature needs at least one input and no name twice: {names}.",
                next_step="Give each feature its own name.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs)


def to_bytes(signature: Signature) -> bytes:
    """The signature as JSON, the same bytes for the same signature."""
    return msgspec.json.encode(signature, order="deterministic")


def from_bytes(data: bytes) -> Signature:
    """Raises IntegrityError if the bytes are no signature."""
    try:
        return msgspec.json.decode(data, type=Signature)
    except (msgspec.DecodeError, InvalidInput) as error:
        raise IntegrityError(
            f"The stored signature cannot be read: {error}", next_step="Restore it from a backup."
        ) from error


class Encoder:
    """Encodes one row after another; build it once per model version.

    A number is itself, a category its code. None (unknown) and a category that training never saw are both NaN:
    the model treats what it cannot know as missing, and does not mistake it for a neighbour in sorting order.
    """

    __slots__ = ("_plan",)

    def __init__(self, signature: Signature) -> None:
        self._plan: tuple[tuple[str, dict[str, float] | None], ...] = tuple(
            (i.name, {c: float(n) for n, c in enumerate(i.categories)} if i.kind == "category" else None)
            for i in signature.inputs
        )

    def __call__(self, features: Mapping[str, object]) -> list[float]:
        """Returns one float per input, in order; further features are ignored.

        Raises InvalidInput for a feature that is absent (None says that it is unknown) or of the wrong type.
        """
        row: list[float] = []
        add = row.append
        name = ""
        try:
            for name, codes in self._plan:
                value = features[name]
                if value is None:
                    add(_NAN)
                elif codes is None:
                    add(value if type(value) is float else _number(name, value))
                elif type(value) is str:
                    add(codes.get(value, _NAN))
                else:
                    add(codes.get(_category(name, value), _NAN))
        except KeyError:
            raise InvalidInput(
                f"The feature {name!r} is absent.",
                next_step="Send every feature of the signature; null says that its value is unknown.",
                details={"feature": name},
            ) from None
        return row


def encode(signature: Signature, features: Mapping[str, object]) -> list[float]:
    """Encodes a single row. For many rows build one `Encoder`."""
    return Encoder(signature)(features)


def _number(name: str, value: object) -> float:
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    raise InvalidInput(
        f"The feature {name!r} is {value!r}, expected a number or null.",
        next_step="Send it as a JSON number.",
        details={"feature": name},
    )


def _category(name: str, value: object) -> str:
    # bool is an int to Python, and Arrow spells it 'true': refuse it here as `encode_table` does.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidInput(
        f"The feature {name!r} is {value!r}, expected text, a whole number or null.",
        next_step="Send the category as text.",
        details={"feature": name},
    )


def encode_table(signature: Signature, table: "pa.Table") -> "npt.NDArray[np.float32]":
    """Encodes all rows: float32, shape (rows, inputs). Raises InvalidInput like `Encoder`."""
    matrix = np.empty((table.num_rows, len(signature.inputs)), dtype=np.float32)
    for position, wanted in enumerate(signature.inputs):
        if wanted.name not in table.column_names:
            raise InvalidInput(
                f"The rows have no column {wanted.name!r}.",
                next_step="Build the training set with the feature service that the model was trained on.",
                details={"feature": wanted.name},
            )
        column = table.column(wanted.name)
        values = _codes(wanted, column) if wanted.kind == "category" else _numbers(wanted, column)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for a single row
            matrix[:, position] = values
    return matrix


def _numbers(wanted: Input, column: "pa.ChunkedArray[Any]") -> "npt.NDArray[np.float64]":
    kind = column.type
    types = pa.types
    fits = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if not any(test(kind) for test in fits):
        raise _unfit(wanted, kind, "numbers")
    if types.is_boolean(kind):
        column = column.cast(pa.int8())
    # Through float64 first, as Python does, so that no value is rounded differently.
    plain: Any = column.cast(pa.float64(), safe=False)
    return _with_nan(plain)


def _codes(wanted: Input, column: "pa.ChunkedArray[Any]") -> "npt.NDArray[np.float64]":
    known: Any = pa.array(wanted.categories, type=pa.string())
    # index_in answers null for what is not in the set, and so for a null value.
    text: Any = category_text(wanted.name, column)
    found: Any = pc.index_in(text, value_set=known)
    return _with_nan(found.cast(pa.float64()))


def _with_nan(column: "pa.ChunkedArray[Any]") -> "npt.NDArray[np.float64]":
    filled: Any = pc.fill_null(column, _NAN)  # type: ignore[type-var]  # the stubs know scalars only
    return np.asarray(filled.to_numpy(), dtype=np.float64)


def category_text(name: str, column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    """A category column as text. Raises InvalidInput unless it holds text or whole numbers."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    types = pa.types
    if not any(test(kind) for test in (types.is_string, types.is_large_string, types.is_integer, types.is_null)):
        raise _unfit(Input(name=name, kind="category"), kind, "text or whole numbers")
    return column.cast(pa.string())


def _unfit(wanted: Input, kind: object, expected: str) -> InvalidInput:
    return InvalidInput(
        f"The column {wanted.name!r} has the type {kind}, expected {expected}.",
        next_step="Correct the feature's type in features.py.",
        details={"feature": wanted.name},
    )


def learn(table: "pa.Table", features: Sequence[tuple[str, str]], *, service: str = "", label: str = "") -> Signature:
    """The signature of rows to train on: the vocabulary of each category is what these rows hold, and no others.

    features: (name, 'number' or 'category') in order. Raises InvalidInput.
    """
    inputs = []
    for name, kind in features:
        if kind == "category":
            inputs.append(Input(name=name, kind="category", categories=_vocabulary(table, name)))
        elif kind == "number":
            inputs.append(Input(name=name, kind="number"))
        else:
            raise InvalidInput(
                f"The feature {name!r} is of the kind {kind!r}, expected number or category.",
                next_step="Correct it in features.py.",
            )
    return Signature(inputs=tuple(inputs), service=service, label=label)


def _vocabulary(table: "pa.Table", name: str) -> tuple[str, ...]:
    values = pc.unique(category_text(name, table.column(name)))
    found = sorted(str(v) for v in values.to_pylist() if v is not None)
    if len(found) > MAX_CATEGORIES:
        raise InvalidInput(
            f"The category {name!r} has {len(found)} values, at most {MAX_CATEGORIES} can be learned.",
            next_step="Group its values in features.py, or leave it out.",
        )
    return tuple(found)
