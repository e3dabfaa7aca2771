"""Model artifacts: ONNX bytes under their digest, checked each time they are loaded.

Only ONNX from the standard operator sets is taken: it is data, and loading it runs no code. Pickle in any disguise is
refused by `safety`, and what was not signed, or is no longer what was signed, is not loaded.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from macadam.errors import IntegrityError, InvalidInput
from macadam.lazy import lazy
from macadam.models import safety, signing
from macadam.models import signature as signatures
from macadam.models.signature import Signature
from macadam.operations import Granted
from macadam.ports import Objects

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = lazy("numpy")
onnx: Any = lazy("onnx")
ort: Any = lazy("onnxruntime")

MAX_BYTES = 512 * 1024 * 1024
"""A model that answers in milliseconds on a CPU is smaller; protobuf itself ends at 2 GiB."""

MODEL, SCHEMA = "model.onnx", "signature.json"
"""What the files of a version are called: in a run's folder, in its signature and where it is exported."""

READS = ("models:read", "models:register")
"""Registering reads back what it registers."""
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}


def load(granted: Granted, objects: Objects, artifact: str, signature: str, *, model: str) -> tuple[bytes, Signature]:
    """The ONNX bytes and the signature of a run's model, by their digests. model: whose they are, by name.

    Raises NotAuthorised, IntegrityError if either is not what was stored, NotFound if it is gone, InvalidInput if it can run code.
    """
    granted.require(f"model:{model}", *READS)
    data, schema = objects.get(artifact), objects.get(signature)
    safety.refuse(data, MODEL)
    safety.refuse(schema, SCHEMA)
    return data, signatures.from_bytes(schema)


def files(artifact: str, signature: str) -> dict[str, str]:
    """The files of a version: name → digest."""
    return {MODEL: artifact, SCHEMA: signature}


def require_signed(
    objects: Objects, artifact: str, signature: str, model_signature: str, keys: Iterable[str], *, what: str
) -> None:
    """Raises IntegrityError unless one of the keys (PEM) has signed a version's two files. what: the version, in words.

    model_signature: digest of the bundle, '' if the version has none.
    """
    if not model_signature:
        raise IntegrityError(f"{what} is not signed.", next_step="Train and register it again: registering signs it.")
    signing.require_files(objects.get(model_signature), keys, files(artifact, signature))


def load_signed(
    granted: Granted,
    objects: Objects,
    artifact: str,
    signature: str,
    model_signature: str,
    keys: Iterable[str],
    *,
    what: str,
) -> tuple[bytes, Signature]:
    """Like `load`, for what answers or is measured: `require_signed` comes before anything else reads the bytes.

    what: the version, as model:NAME@N.
    """
    model = what.removeprefix("model:").partition("@")[0]
    granted.require(f"model:{model}", *READS)
    require_signed(objects, artifact, signature, model_signature, keys, what=what)
    return load(granted, objects, artifact, signature, model=model)


def session(model: bytes, *, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU. threads: 0 = one per core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Waiting threads sleep: spinning costs more than it gains as soon as the machine does something else besides.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predict(running: Any, signature: Signature, rows: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float64]":
    """The signature's first output for encoded rows: shape (n,), a probability or a number."""
    output = signature.outputs[0]
    values = running.run([output.tensor], {signatures.TENSOR: np.ascontiguousarray(rows, dtype=np.float32)})[0]
    return np.asarray(values, dtype=np.float64).reshape(len(rows), -1)[:, output.column]


def outputs(model: bytes) -> list[str]:
    """Names of the outputs, in order. Raises InvalidInput."""
    return [o.name for o in _parse(model).graph.output]


def _parse(model: bytes) -> Any:
    safety.refuse(model, MODEL)
    try:
        proto = onnx.load_model_from_string(model)
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf and onnx raise types of their own that share no base
        raise _unfit(f"is not valid ONNX: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    return proto


def check(model: bytes, signature: Signature) -> None:
    """Raises InvalidInput unless the bytes are ONNX of the standard operators that takes and gives what the signature says."""
    if len(model) > MAX_BYTES:
        raise _unfit(f"has {len(model)} bytes, at most {MAX_BYTES} are taken")
    proto = _parse(model)
    _refuse_foreign(proto)
    _compare(proto.graph, signature)


def _refuse_foreign(proto: Any) -> None:
    foreign = sorted({o.domain for o in proto.opset_import} - _DOMAINS)
    if foreign:
        raise _unfit(f"uses operators from {', '.join(foreign)}, which need code of their own")
    # ONNX Runtime opens such files wherever the tensor stands, also in a constant or in a branch of an If.
    if any(isinstance(p, onnx.TensorProto) and p.data_location == onnx.TensorProto.EXTERNAL for p in _parts(proto)):
        raise _unfit("keeps weights in files beside it")


def _parts(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                yield from _parts(part)


def _compare(graph: Any, signature: Signature) -> None:
    if [i.name for i in graph.input] != [signatures.TENSOR]:
        raise _unfit(f"has the inputs {[i.name for i in graph.input]}, expected one called {signatures.TENSOR!r}")
    kind = graph.input[0].type.tensor_type
    width = kind.shape.dim[1].dim_value if len(kind.shape.dim) == 2 else 0  # noqa: PLR2004 - rows and columns
    if kind.elem_type != onnx.TensorProto.FLOAT or width != len(signature.inputs):
        raise _unfit(f"takes {width} columns, expected float32 with {len(signature.inputs)}")
    given = {o.name for o in graph.output}
    wanted = {o.tensor for o in signature.outputs}
    if not wanted or not wanted <= given:
        raise _unfit(f"gives {sorted(given)}, expected {sorted(wanted)}")


def _unfit(what: str) -> InvalidInput:
    return InvalidInput(
        f"The model {what}.", next_step="Save it in train.py with run.save_sklearn(estimator) or run.save_onnx(model)."
    )
