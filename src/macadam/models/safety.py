"""Refuses what can run code when it is loaded: pickles in every disguise, by content and never by name.

Looks into archives and compressed data to a depth, within bounds of size, and at what is hidden inside of other
bytes. What cannot be looked into is refused, because nobody can say that it is safe. Pure: bytes in, findings out;
nothing is unpacked to disk and nothing is loaded. Whether bytes are a pickle is for `pickles`.
"""

import ast
import bz2
import gzip
import io
import json
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from macadam.errors import InvalidInput
from macadam.lazy import lazy
from macadam.models import pickles

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")

MAX_DEPTH = 5
"""Archives inside of archives. Model formats have two."""
MAX_MEMBERS = 10_000
MAX_UNPACKED = 512 * 1024 * 1024
"""Bytes of everything that is unpacked, all together: as many as the largest model that is taken has."""
MAX_RATIO = 50
"""How many times larger than the file everything unpacked may be, from 16 MiB on; weights hardly compress."""
_FREE = 16 * 1024 * 1024
_CHUNK = 1024 * 1024
_MEMORY = 256 * 1024 * 1024
"""Bytes that a decompressor may use: the format's strongest preset needs 65 MiB."""
_TAR_MAGIC_AT, _TAR_BLOCK = 257, 512
_LONGEST_HEADER = 64 * 1024
"""Bytes of a NumPy array's header, which is evaluated as a literal."""

# Behind an escape any name can stand, and names of layers need none.
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"((?:[A-Za-z_.>]*[.>])?Lambda"|__lambda__"|[^"]{0,200}\\)')
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*[\[{]")
_MORE = re.compile(rb"[^\x00]")
_SEALED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"LZIP": "lzip data",
    b"\x1f\x9d": "compress data",
    b"\xff\x06\x00\x00sNaPpY": "snappy data",
    b"\x02\x21\x4c\x18": "lz4 data of the old format",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NOT_FOR_MODELS = {"testing", "_testing", "_private", "tests", "f2py", "distutils"}
"""Parts of those libraries that run text as code, or other programs."""
_TRUSTED = ("sklearn.", "numpy.", "scipy.", "collections.")
_PLAIN = {"int", "float", "complex", "bool", "str", "bytes", "bytearray", "list", "tuple", "dict", "set", "slice"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """path: the file, and through '!' what it lies in; what: 'is a pickle …'."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


class _Unsafe(Exception):
    """Carries the first finding up: one is enough to refuse."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.finding = Finding(path=path, what=what)


def scan(data: bytes, name: str) -> Finding | None:
    """What makes the bytes unsafe, None if nothing does. name: said in the finding, and not looked at otherwise."""
    try:
        _Scan(len(data)).look(data, name, 0)
    except _Unsafe as unsafe:
        return unsafe.finding
    return None


def refuse(data: bytes, name: str) -> None:
    """Raises InvalidInput with what `scan` finds."""
    found = scan(data, name)
    if found is not None:
        raise InvalidInput(
            f"The model is refused: {found}.",
            next_step="Save it in train.py with run.save_sklearn(estimator) or run.save_onnx(model): data without code.",
            details={"file": found.path, "finding": found.what},
        )


class _Scan:
    """One file and all that is in it, under one budget."""

    def __init__(self, size: int) -> None:
        self._left = min(MAX_UNPACKED, max(_FREE, size * MAX_RATIO))
        self._members = MAX_MEMBERS

    def look(self, data: bytes, path: str, depth: int) -> None:
        if pickles.is_pickle(data):
            raise _Unsafe(path, "is a pickle, which can run code when it is loaded")
        if depth > MAX_DEPTH:
            raise _Unsafe(path, f"lies in more than {MAX_DEPTH} archives")
        for magic, what in _SEALED.items():
            if data.startswith(magic):
                raise _Unsafe(path, f"is {what}, which cannot be looked into")
        if data[1:4] == b"\x2a\x4d\x18" and data[0] >> 4 == 5:  # noqa: PLR2004 - RFC 8878, 3.1.2
            raise _Unsafe(path, "begins with a frame that readers skip, so it cannot be looked into")
        self._containers(data, path, depth)
        _refuse_object_array(data, path)
        _refuse_keras_code(data, path)
        at = pickles.hidden(data)
        if at >= 0:
            raise _Unsafe(path, f"hides a pickle at byte {at}, which runs code when it is loaded")

    def _containers(self, data: bytes, path: str, depth: int) -> None:
        if b"PK\x05\x06" in data[-65_558:] or data[:4] == b"PK\x03\x04":
            self._zip(data, path, depth)
        if data[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar" or _is_old_tar(data):
            self._tar(data, path, depth)
        for inner in self._unpacked(data, path):
            self.look(inner, f"{path}!unpacked", depth + 1)

    # --- compressed data

    def _unpacked(self, data: bytes, path: str) -> Iterator[bytes]:
        """What decompressors make of the bytes. Half a stream counts: a reader may act on it before it fails."""
        for magic, opened in _STREAMS.items():
            if data.startswith(magic):
                inner = self._drain(opened(data), path, sure=magic in _SURE)
                if inner:
                    yield inner

    def _drain(self, chunks: Iterator[bytes], path: str, *, sure: bool) -> bytes:
        """sure: the first bytes leave no doubt about the format, so that what does not open was made not to."""
        parts: list[bytes] = []
        try:
            for chunk in chunks:
                self._spend(len(chunk), path)
                parts.append(chunk)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            if (sure and not parts) or "emory" in str(error):
                raise _Unsafe(path, "is compressed data that cannot be looked into") from error
        return b"".join(parts)

    def _spend(self, size: int, path: str) -> None:
        self._left -= size
        if self._left < 0:
            raise _Unsafe(path, "unpacks to more than a model may hold")

    # --- archives

    def _zip(self, data: bytes, path: str, depth: int) -> None:
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError) as error:
            if data[:4] == b"PK\x03\x04":
                raise _Unsafe(path, "is a damaged zip archive, which cannot be looked into") from error
            return  # the end of a zip by chance
        with archive:
            seen: set[str] = set()
            for member in archive.infolist():
                inner = self._member(member.orig_filename, path, seen)
                if member.flag_bits & 1:
                    raise _Unsafe(inner, "is encrypted, so it cannot be looked into")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise _Unsafe(inner, "is a symbolic link")
                if not member.is_dir() or member.file_size or member.compress_size:  # by its name, a folder
                    self.look(self._read_zip(archive, member, inner), inner, depth + 1)
            _refuse_skops(archive, seen, path)

    def _read_zip(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> bytes:
        try:
            with archive.open(member) as file:
                return b"".join(self._chunks(file.read, path))
        except _Unsafe:
            raise
        except Exception as error:  # damaged members raise what the decompressor raises, which shares no base
            raise _Unsafe(path, f"cannot be looked into ({type(error).__name__})") from error

    def _chunks(self, read: Callable[[int], bytes], path: str) -> Iterator[bytes]:
        while chunk := read(_CHUNK):
            self._spend(len(chunk), path)
            yield chunk

    def _tar(self, data: bytes, path: str, depth: int) -> None:
        seen: set[str] = set()
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for member in archive:
                    inner = self._member(member.name, path, seen)
                    if member.isdir():
                        continue
                    self.look(self._read_tar(archive, member, inner), inner, depth + 1)
                end = archive.offset
        except _Unsafe:
            raise
        except Exception as error:  # tarfile lets errors of integers, encodings and recursion through
            raise _Unsafe(
                path, f"is a damaged tar archive, which cannot be looked into ({type(error).__name__})"
            ) from error
        if _MORE.search(data, end):
            raise _Unsafe(path, "has more behind the end of the archive, where other readers go on")

    def _read_tar(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> bytes:
        file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
        if file is None:
            raise _Unsafe(path, "is a link or a special file")
        return b"".join(self._chunks(file.read, path))

    def _member(self, name: str, path: str, seen: set[str]) -> str:
        """The member's path. Raises _Unsafe for one that leads out of the archive, is doubled or one too many."""
        inner = f"{path}!{name[:200]}"
        self._members -= 1
        if self._members < 0:
            raise _Unsafe(path, f"has more than {MAX_MEMBERS} members")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith(("/", "\\")) or "\0" in name or name[1:2] == ":":
            raise _Unsafe(inner, "leads out of the archive")
        if name in seen:
            raise _Unsafe(inner, "is there twice, and readers disagree about which one counts")
        seen.add(name)
        return inner


def _is_old_tar(data: bytes) -> bool:
    """Tar without a magic (v7): the header's checksum is all that says so."""
    header = data[:_TAR_BLOCK]
    if len(header) < _TAR_BLOCK or not header[0]:
        return False
    field = header[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", field):
        return False
    return int(field, 8) == sum(header) - sum(header[148:156]) + 8 * 0x20


# --- formats that hold data, and can hold code


def _refuse_object_array(data: bytes, path: str) -> None:
    """NumPy's own format keeps arrays of Python objects as a pickle behind its header."""
    if not data.startswith(b"\x93NUMPY"):
        return
    wide = data[6:7] != b"\x01"
    start = 12 if wide else 10
    size = int.from_bytes(data[8:start], "little")
    if size > _LONGEST_HEADER:
        raise _Unsafe(path, "is a NumPy array with a header that is too long to be read")
    try:
        header: Any = ast.literal_eval(data[start : start + size].decode("utf-8" if wide else "latin-1").strip())
        has_object = np.lib.format.descr_to_dtype(header["descr"]).hasobject
    except Exception as error:  # literal_eval raises by what the text is: also of memory and recursion
        raise _Unsafe(path, "is a NumPy array whose header cannot be read") from error
    if has_object:
        raise _Unsafe(path, "is a NumPy array of Python objects, which are kept as a pickle")


def _refuse_keras_code(data: bytes, path: str) -> None:
    """A Keras model is JSON, in HDF5 or in a zip; a Lambda layer in it is Python bytecode."""
    if (data.startswith(_HDF5) or _JSON.match(data)) and _LAMBDA.search(data):
        raise _Unsafe(path, "has a Lambda layer, which is Python code")


def _refuse_skops(archive: zipfile.ZipFile, members: set[str], path: str) -> None:
    """A skops file names the types and functions that its reader is to make: only those of known libraries are data."""
    if "schema.json" not in members:
        return
    try:
        schema = json.loads(archive.read("schema.json"))
        waiting, strange = [schema], ""
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                strange = strange or _strange(node)
            waiting += [v for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, (dict, list))]
    except (ValueError, RecursionError, KeyError) as error:
        raise _Unsafe(path, "is a skops file whose schema cannot be read") from error
    if strange:
        raise _Unsafe(path, f"is a skops file that makes {strange}, which is not of a library that is trusted")


def _strange(node: dict[str, Any]) -> str:
    module, name = node.get("__module__"), node.get("__class__")
    if not isinstance(module, str) or not isinstance(name, str):
        return ""
    content = node.get("content")
    if node.get("__loader__") in ("FunctionNode", "MethodNode") and isinstance(content, dict):
        module = str(content.get("module_path", module))
        name = str(content.get("function", name))
    trusted = f"{module}.".startswith(_TRUSTED) and not _NOT_FOR_MODELS & set(f"{module}.{name}".split("."))
    known = trusted or (module == "builtins" and name in {*_PLAIN, "NoneType", "type"})
    return "" if known else f"{module}.{name}"[:100]


# --- decompressors: each yields what comes out, piece by piece


def _with_object(make: Callable[[], Any]) -> Callable[[bytes], Iterator[bytes]]:
    """For bz2 and lzma, whose objects hand out a bounded piece at a time."""

    def unpack(data: bytes) -> Iterator[bytes]:
        machine, waiting = make(), data
        while True:
            chunk = machine.decompress(waiting, _CHUNK)
            waiting = b""
            yield chunk
            if machine.eof:  # another stream may follow: readers go on with it
                machine, waiting = make(), machine.unused_data
            if not chunk and not waiting and machine.needs_input:
                return

    return unpack


def _zlib(data: bytes) -> Iterator[bytes]:
    machine, waiting = zlib.decompressobj(), data
    while waiting and not machine.eof:
        yield machine.decompress(waiting, _CHUNK)
        waiting = machine.unconsumed_tail


def _gzip(data: bytes) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _arrow(codec: Literal["lz4", "zstd"]) -> Callable[[bytes], Iterator[bytes]]:
    def unpack(data: bytes) -> Iterator[bytes]:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    return unpack


_STREAMS: dict[bytes, Callable[[bytes], Iterator[bytes]]] = {
    b"\x1f\x8b\x08": _gzip,
    b"BZh": _with_object(bz2.BZ2Decompressor),
    b"\xfd7zXZ\x00": _with_object(lambda: lzma.LZMADecompressor(memlimit=_MEMORY)),
    b"\x5d\x00": _with_object(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY)),
    b"\x28\xb5\x2f\xfd": _arrow("zstd"),
    b"\x04\x22\x4d\x18": _arrow("lz4"),
    # Every window, and every level without a dictionary (RFC 1950, 2.2).
    **{
        bytes((method, flags)): _zlib
        for method in range(0x08, 0x80, 0x10)
        for flags in range(256)
        if (method << 8 | flags) % 31 == 0 and not flags & 0x20
    },
}
_SURE = {b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"}
