"""Pickle in any disguise is found by content, and what is safe is let through. Nothing here unpickles anything."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict

import joblib
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression

from macadam.errors import InvalidInput
from macadam.models import export, pickles, safety


class Bomb:
    """Would run a command if it were loaded."""

    def __reduce__(self):
        return os.system, ("touch /nowhere/at/all",)


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
FITTED = LogisticRegression().fit(np.arange(20.0).reshape(10, 2), np.arange(10) > 4)
VALUES = {
    "bomb": Bomb(),
    "estimator": FITTED,
    "array": np.arange(30.0),
    "dict": {"weights": [1.5, 2.5], "names": ("a", "b"), "flag": True, "none": None, "big": 10**40},
    "state dict": OrderedDict(w=[0.25] * 10),
    "text": "x" * 300,
    "bytes": b"\x00\xff" * 40,
}


def zipped(data: bytes, name: str = "data.pkl", **how: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr(name, data)
    return buffer.getvalue()


def tarred(data: bytes, *, form: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
        entry = tarfile.TarInfo("weights.bin")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def with_codec(codec: str):
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


def in_onnx(data: bytes) -> bytes:
    """A model with one tensor that holds the bytes."""
    tensor = helper.make_tensor("w", TensorProto.UINT8, [len(data)], data, raw=True)
    node = helper.make_node("Identity", ["w"], ["out"])
    result = helper.make_tensor_value_info("out", TensorProto.UINT8, [len(data)])
    return helper.make_model(helper.make_graph([node], "g", [], [result], [tensor])).SerializeToString()


def old_tar(data: bytes) -> bytes:
    """The format before POSIX, which has no magic bytes."""
    whole = bytearray(tarred(data, form=tarfile.USTAR_FORMAT))
    whole[257:512] = bytes(255)
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    return bytes(whole)


CONTAINERS = {
    "itself": lambda data: data,
    "zip": zipped,
    "deflated zip": lambda data: zipped(data, compression=zipfile.ZIP_DEFLATED),
    "bzip2 in zip": lambda data: zipped(data, compression=zipfile.ZIP_BZIP2),
    "lzma in zip": lambda data: zipped(data, compression=zipfile.ZIP_LZMA),
    "zip behind an ONNX model": lambda data: in_onnx(b"\0" * 50) + zipped(data),
    "zip in zip": lambda data: zipped(zipped(data, compression=zipfile.ZIP_DEFLATED)),
    "tar": tarred,
    "GNU tar": lambda data: tarred(data, form=tarfile.GNU_FORMAT),
    "tar without magic": old_tar,
    "tar.gz": lambda data: tarred(data, mode="w:gz"),
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "bzip2 behind an empty stream": lambda data: bz2.compress(b"") + bz2.compress(data),
    "xz": lzma.compress,
    "xz behind an empty stream": lambda data: lzma.compress(b"") + lzma.compress(data),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zlib": zlib.compress,
    "zlib, best": lambda data: zlib.compress(data, 9),
    "zstd": with_codec("zstd"),
    "lz4": with_codec("lz4"),
    "gzip in tar in zip": lambda data: zipped(tarred(gzip.compress(data)), name="model.onnx"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES)
def test_a_pickle_of_any_protocol_is_found_in_any_container(value, protocol):
    data = pickle.dumps(VALUES[value], protocol)
    for name, wrap in CONTAINERS.items():
        found = safety.scan(wrap(data), "model.onnx")
        assert found is not None, name
        assert "is a pickle" in found.what, (name, found)
        assert found.path.startswith("model.onnx"), name


def around(data: bytes) -> bytes:
    return os.urandom(1000) + data + os.urandom(1000)


def cut_off(data: bytes) -> bytes:
    """Compressed, and the end is missing: a reader acts on what it got."""
    return zlib.compress(data + os.urandom(5000))[:-2000]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_would_run_code_is_found_inside_of_anything_and_though_it_is_cut_off(protocol):
    data = pickle.dumps(Bomb(), protocol)
    assert pickles.is_pickle(data[:-1] + b"\xff and more")
    for wrap in (in_onnx, lambda d: b"RIFF" + d, around, cut_off):
        found = safety.scan(wrap(data), "model.onnx")
        assert found is not None
        assert "pickle" in found.what


def joblib_of(value: object, compress: object) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer, compress=compress)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_joblib_is_a_pickle_however_it_is_compressed(compress):
    for value in (FITTED, np.arange(5000.0), {"a": np.eye(3)}):
        assert safety.scan(joblib_of(value, compress), "model.onnx") is not None


def npy(array: "np.ndarray") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: "np.ndarray") -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def torch_legacy() -> bytes:
    """The old format of torch.save: pickles one after the other, a number first."""
    return b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, OrderedDict()))


def skops(**changes: object) -> bytes:
    node = {
        "__class__": "LogisticRegression",
        "__module__": "sklearn.linear_model._logistic",
        "__loader__": "ObjectNode",
    }
    inner = {"__class__": "float", "__module__": "builtins", "__loader__": "JsonNode", "content": "1.5"}
    array = {"__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode", "file": "1.npy"}
    schema = {**node, "content": {"C": {**inner, **changes}, "coef_": array}, "protocol": 2, "_skops_version": "0.13"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.npy", npy(np.arange(3.0)))
        archive.writestr("schema.json", json.dumps(schema))
    return buffer.getvalue()


KERAS = b'{"class_name": "Sequential", "config": {"layers": [{"class_name": "%s", "config": {}}]}}'
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(500)


def link_in_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("model.bin")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def link_in_tar(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("model.bin")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    return buffer.getvalue()


def doubled_name() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for data in (b"one", b"two"):
            entry = tarfile.TarInfo("model.bin")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def encrypted() -> bytes:
    whole = bytearray(zipped(b"x" * 50))
    for at in range(len(whole) - 4):
        if whole[at : at + 4] == b"PK\x01\x02":
            whole[at + 8] |= 1
    return bytes(whole)


def nested(times: int) -> bytes:
    data = b"harmless"
    for _ in range(times):
        data = gzip.compress(data)
    return data


UNSAFE = {
    "array of objects": (npy(np.array([{"a": 1}, None], dtype=object)), "array of Python objects"),
    "record with an object": (npy(np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")])), "array of Python objects"),
    "array of objects in npz": (npz(a=np.eye(2), b=np.array([None], dtype=object)), "array of Python objects"),
    "array with a broken header": (b"\x93NUMPY\x01\x00\x10\x00{'descr': open()}", "header cannot be read"),
    "torch, old": (torch_legacy(), "is a pickle"),
    "torch": (zipped(pickle.dumps(OrderedDict(w=1), 2), name="archive/data.pkl"), "is a pickle"),
    "skops with a type of its own": (skops(__module__="os", __class__="system"), "makes os.system"),
    "skops with a function": (
        skops(__loader__="FunctionNode", content={"module_path": "subprocess", "function": "run"}),
        "makes subprocess.run",
    ),
    "skops with a builtin": (skops(__module__="builtins", __class__="eval"), "makes builtins.eval"),
    "Keras with a Lambda": (KERAS % b"Lambda", "Lambda layer"),
    "Keras with a Lambda, in zip": (zipped(KERAS % b"Lambda", name="config.json"), "Lambda layer"),
    "Keras with a Lambda, HDF5": (HDF5 + KERAS % b"Lambda", "Lambda layer"),
    "link in zip": (link_in_zip(), "symbolic link"),
    "symbolic link in tar": (link_in_tar(tarfile.SYMTYPE), "link or a special file"),
    "hard link in tar": (link_in_tar(tarfile.LNKTYPE), "link or a special file"),
    "device in tar": (link_in_tar(tarfile.CHRTYPE), "link or a special file"),
    "way out of a zip": (zipped(b"x", name="../../etc/cron.d/x"), "leads out of the archive"),
    "absolute path in a zip": (zipped(b"x", name="/etc/cron.d/x"), "leads out of the archive"),
    "way out of a zip on Windows": (zipped(b"x", name="..\\x"), "leads out of the archive"),
    "a name twice": (doubled_name(), "is there twice"),
    "encrypted zip": (encrypted(), "is encrypted"),
    "damaged zip": (zipped(b"x")[:-30], "damaged zip"),
    "damaged gzip": (b"\x1f\x8b\x08\x00garbage", "cannot be looked into"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "a 7z archive"),
    "RAR": (b"Rar!\x1a\x07\x01\x00" + bytes(30), "a RAR archive"),
    "too deep": (nested(8), "more than 5 archives"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_what_can_run_code_or_cannot_be_looked_into_is_refused(name):
    data, said = UNSAFE[name]
    with pytest.raises(InvalidInput, match=said):
        safety.refuse(data, "model.onnx")


CALL = b"\x8c\x02os\x94\x8c\x06system\x93)R."
"""Without a protocol's header, which no machine asks for."""


@pytest.mark.parametrize(
    "first",
    [b"", b"L0x1L\n0", b"I+1\n0", b"I 1\n0", b"L1_0\n0", b"I1\0junk\n0", b"Finfinity\n0", b"FNaN\n0", b"I1\np+1\n0"],
)
def test_numbers_in_every_spelling_that_the_machine_takes_hide_no_call(first):
    assert pickles.is_pickle(first + CALL)


def test_the_last_line_may_lack_its_end():
    """As in `pickle._Unpickler`, which joblib builds on."""
    assert pickles.is_pickle(b"(ios\nsystem.")


PIECES = [
    b"\x8c\x02os", b"\x8c\x06system", b"\x8d\x02\0\0\0\0\0\0\0os", b"\x93", b"cos\nsystem\n", b"(ios\nsystem\n", b"(cos\nsystem\no",
    b")", b"R", b"(", b"o", b"\x81", b"}", b"\x92", b"b", b"t", b"0", b"1", b"2", b"\x85", b"\x94", b"q\0", b"h\0", b"p0\n",
    b"g 0\n", b"I01\n", b"I1\0x\n", b"F-.5e+3\n", b"L0b1L\n", b"V\n", b"S'a'\n", b"\x80\x04", b"\x95" + bytes(8), b".", b"N",
    b"\x8a\1\5", b"\x97", b"\x8f", b"\x90", b"]", b"e", b"l", b"d", b"u", b"\x82\1", b"Px\n", b"Q", b"\n", b"_", b"\xff",
]  # fmt: skip


@settings(max_examples=int(os.environ.get("MACADAM_SOAK", "0")) * 200_000 or 500)
@given(
    st.lists(st.sampled_from(PIECES), max_size=10),
    st.sampled_from([b"", b"\x8c\x02os\x8c\x06system\x93)R", b"cos\nx\n)R"]),
)
def test_whatever_makes_a_real_machine_call_something_is_a_pickle(pieces, end):
    called = []

    def call(*_: object, **__: object) -> None:
        called.append(1)

    for kind in (pickle.Unpickler, pickle._Unpickler):

        class Machine(kind):
            def find_class(self, module: str, name: str) -> object:
                if not f"{module}.{name}".replace(".", "_").isidentifier():
                    raise ImportError(module)  # as the real one does
                return call

        data = b"".join(pieces) + end
        with contextlib.suppress(BaseException):  # a machine fails as it likes
            Machine(io.BytesIO(data)).load()
        assert not called or pickles.is_pickle(data)


def npy_of(descr: str) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + CALL


def small_window(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=9)
    return machine.compress(data) + machine.flush()


SMALL = [{"id": lzma.FILTER_LZMA1, "dict_size": 4096}]
EVASIONS = {
    "objects in a record by its short form": npy_of("'f4,O'"),
    "objects by name": npy_of("'object'"),
    "objects in a sub-array": npy_of("'(2,)O'"),
    "objects in a field's short form": npy_of("[('a', 'f4,O')]"),
    "a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 200_000) + b"(" * 200_000,
    "a call behind other bytes": b"\0\1\2" + CALL,
    "lzma with a small dictionary": lzma.compress(CALL, format=lzma.FORMAT_ALONE, filters=SMALL),
    "zlib with a small window": small_window(CALL),
    "zstd behind a frame that is skipped": b"\x5a\x2a\x4d\x18" + bytes(4) + with_codec("zstd")(CALL),
    "a file that is called like a folder": zipped(CALL, name="data.pkl/", compression=zipfile.ZIP_DEFLATED),
    "a tar behind a tar": tarred(b"x") + tarred(gzip.compress(CALL)),
    "Keras with a Lambda behind a space": b" " + KERAS % b"Lambda",
    "Keras with an escaped Lambda": KERAS % rb"\u004cambda",
    "Keras with a function": KERAS % b"__lambda__",
    "skops with NumPy's own exec": skops(
        __loader__="FunctionNode", content={"module_path": "numpy.testing._private.utils", "function": "runstring"}
    ),
}


@pytest.mark.parametrize("name", EVASIONS)
def test_what_other_readers_take_for_code_is_found_in_other_spellings(name):
    assert safety.scan(EVASIONS[name], "model.onnx") is not None


def safetensors() -> bytes:
    weights = np.arange(640, dtype=np.float32).tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [640], "data_offsets": [0, len(weights)]}}).encode()
    return struct.pack("<Q", len(header)) + header + weights


def safetensors_whose_length_begins_like(*prefix: int) -> bytes:
    size = int.from_bytes(bytes(prefix), "little")
    return struct.pack("<Q", size) + b"{" + b" " * (size - 2) + b"}"


SAFE = {
    "ONNX": export.to_onnx(FITTED, 2)[0],
    "ONNX with random weights": in_onnx(np.random.default_rng(0).bytes(500_000)),
    "ONNX with weights of all kinds": in_onnx(
        np.random.default_rng(1).normal(size=50_000).astype(np.float16).tobytes()
    ),
    "negative zeros": in_onnx(np.full(100_000, -0.0, dtype=np.float32).tobytes()),
    "safetensors": safetensors(),
    "safetensors of length 80 02": safetensors_whose_length_begins_like(0x80, 0x02),
    "safetensors of length 80 04": safetensors_whose_length_begins_like(0x80, 0x04),
    "safetensors of length 5d": safetensors_whose_length_begins_like(0x5D),
    "npy": npy(np.arange(10.0)),
    "npz": npz(a=np.eye(3), b=np.array(["x", "yy"]), c=np.array([(1, 2.0)], dtype=[("a", "i4"), ("Order", "f8")])),
    "skops": skops(),
    "JSON": json.dumps({"inputs": [{"name": "x", "kind": "number"}]}).encode(),
    "JSON list": b"[1, 2, 3]",
    "Keras without code": KERAS % b"Dense",
    "a Keras layer of another name": KERAS % b"LambdaRank",
    "labels": b"cat\ndog\nhorse\ncos\nsin\ntan\n",
    "imports": b"cos\nsystem\n",
    "code": b"import os\nprint(1)\n",
    "prose": b"(I am here.)\nN. Korea\n",
    "x^2": b"x^2 + y^2\n",
    "BZ": b"BZhang\n",
    "PK": b"PK\x05\x06 is how a zip archive ends",
    "nothing": b"",
    "zeros": bytes(100_000),
    "pyc-like": b"\xa7\r\r\n" + bytes(12),
    "zip of text": zipped(b"hello", name="README.txt"),
    "gzip of text": gzip.compress(b"hello " * 1000),
}


@pytest.mark.parametrize("name", SAFE)
def test_what_is_data_is_let_through(name):
    assert safety.scan(SAFE[name], name) is None


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: gzip.compress(bytes(200 * 1024 * 1024), 9),
        lambda: zipped(bytes(200 * 1024 * 1024), compression=zipfile.ZIP_DEFLATED),
        lambda: bz2.compress(bytes(200 * 1024 * 1024)),
    ],
    ids=["gzip", "zip", "bzip2"],
)
def test_a_bomb_is_refused_before_it_fills_the_memory(bomb):
    data = bomb()
    tracemalloc.start()
    try:
        found = safety.scan(data, "model.onnx")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert "unpacks to more" in found.what
    assert peak < 100 * 1024 * 1024


@pytest.mark.parametrize("pattern", [b"\x80\x02", b"\x80\x04N", b"ca\nb\n", b"(", b"N", b"\x80\x04]"], ids=repr)
def test_bytes_made_to_be_slow_are_answered_in_bounded_time(pattern):
    begin = time.process_time()
    safety.scan(b"\0" + pattern * (1_000_000 // len(pattern)), "model.onnx")
    safety.scan(pattern * (1_000_000 // len(pattern)), "model.onnx")
    assert time.process_time() - begin < 20  # seconds; both take about two on a quiet machine


def containers(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    wraps = [zipped, tarred, gzip.compress, bz2.compress, lzma.compress, zlib.compress, old_tar]
    return st.builds(lambda wrap, inner: wrap(inner), st.sampled_from(wraps), data)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """What a container may look like after somebody worked on it."""
    seeds = st.sampled_from([*SAFE.values(), *(data for data, _ in UNSAFE.values()), pickle.dumps(Bomb())])
    data = bytearray(draw(st.one_of(st.binary(max_size=300), containers(st.binary(max_size=100)), seeds))[:20_000])
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return bytes(data)


@settings(max_examples=int(os.environ.get("MACADAM_SOAK", "0")) * 200_000 or 300)
@given(spoiled())
@example(b"")
def test_the_scanner_answers_whatever_it_is_given(data):
    found = safety.scan(data, "x")
    assert found is None or found.path.startswith("x")


@settings(max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    ),
    st.sampled_from(PROTOCOLS),
)
def test_every_value_that_python_pickles_is_a_pickle(value, protocol):
    assert pickles.is_pickle(pickle.dumps(value, protocol))
