"""A source of files: CSV, Parquet and JSON lines under one folder, taken whole and in order.

A file's offset is its path, size and SHA-256, so a file that was swapped or grown after it was ingested shows.
Text stays text: typing is the contract's job. A file that is half-written is refused, never half-read. What has
been ingested already is `service`'s knowledge.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from macadam.errors import SourceInvalid, TooLarge
from macadam.lazy import lazy
from macadam.values import Digest, digest_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pa_parquet
else:
    pa = lazy("pyarrow")
    pa_csv = lazy("pyarrow.csv")
    pa_parquet = lazy("pyarrow.parquet")

MAX_BYTES = 536_870_912  # a file is read whole, so that what is hashed is what is parsed; half the memory of 1 GB
SHOWN_ROWS = 3
Format = Literal["csv", "parquet", "jsonl"]
_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_FIELD = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
_PARQUET_MAGIC = b"PAR1"
_PARQUET_LEAST = 12  # magic, footer length, magic


class FileOffset(msgspec.Struct, frozen=True, kw_only=True):
    """How far a file source was read. path: relative to the source's folder, with '/'."""

    path: str
    size: int
    sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBatch:
    """A file's rows. text: values are text in which the contract's null tokens stand for no value (CSV)."""

    rows: "pa.Table"
    offset: FileOffset
    text: bool


def list_files(root: Path, template: str) -> tuple[str, ...]:
    """Finds a source's files, in the order of their names.

    template: a path under `root`; `*` and `{month}` stand for any part of one name. Returns paths relative to
    `root`. Raises SourceInvalid if the folder is missing, nothing matches or a match leads out of the folder.
    """
    if Path(template).is_absolute() or ".." in Path(template).parts:
        raise SourceInvalid(
            f"The path {template!r} leads out of the project.", next_step="Give a path inside the project's folder."
        )
    if not root.is_dir():
        raise SourceInvalid(f"The folder {root} does not exist.", next_step="Check the source's path.")
    found = sorted(path for path in root.glob(_FIELD.sub("*", template)) if path.is_file())
    if not found:
        raise SourceInvalid(
            f"No file matches {template!r} in {root}.",
            next_step="Check the source's path, or put the first file there.",
        )
    inside = root.resolve()
    for path in found:
        if not path.resolve().is_relative_to(inside):
            raise SourceInvalid(f"{path} links out of {root}.", next_step="Copy the file into the folder.")
    return tuple(path.relative_to(root).as_posix() for path in found)


def read(root: Path, path: str, columns: Sequence[str], *, max_bytes: int = MAX_BYTES) -> FileBatch:
    """Reads one file whole.

    columns: the contract's; the file must have these and no others, in any order. CSV and JSON-lines columns
    come as text, Parquet columns as they are typed. Raises SourceInvalid if the file is missing, half-written,
    of the wrong shape or changing, and TooLarge.
    """
    file_format = format_of(path)
    data = _bytes(root / path, max_bytes)
    if not data:
        raise SourceInvalid(f"{path} is empty.", next_step="Wait until it is written, or remove it.")
    reader: Callable[[bytes, str, Sequence[str]], pa.Table] = {
        "csv": _read_csv,
        "parquet": _read_parquet,
        "jsonl": _read_json_lines,
    }[file_format]
    rows = reader(data, path, columns)
    return FileBatch(
        rows=rows.select(list(columns)),
        offset=FileOffset(path=path, size=len(data), sha256=digest_of(data)),
        text=file_format == "csv",
    )


def format_of(path: str) -> Format:
    """The format that a file's name says. Raises SourceInvalid."""
    try:
        return _FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise SourceInvalid(
            f"{path} is of no known format.", next_step=f"Name it with one of: {', '.join(_FORMATS)}."
        ) from None


def _bytes(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            if before.st_size > max_bytes:
                raise TooLarge(
                    f"{path} has {before.st_size:,} bytes; a file may have {max_bytes:,}.",
                    next_step="Split it into smaller files.",
                )
            data = file.read(max_bytes + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise SourceInvalid(
            f"{path} cannot be read: {error.strerror}.", next_step="Check that it exists and may be read."
        ) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise SourceInvalid(
            f"{path} changed while it was read ({before.st_size:,} bytes, then {after.st_size:,}).",
            next_step="Let its writer finish; write to another name and rename when complete.",
        )
    return data


def _require_shape(path: str, got: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in got]
    surplus = [name for name in got if name not in columns]
    twice = sorted({name for name in got if list(got).count(name) > 1})
    said = [
        f"{label} {', '.join(repr(name) for name in names)}"
        for label, names in (("lacks", missing), ("has surplus", surplus), ("repeats", twice))
        if names
    ]
    if said:
        raise SourceInvalid(
            f"{path} does not have the contract's columns: it {'; '.join(said)}.",
            next_step="Correct the file, or change the contract and raise its version.",
            details={"path": path, "missing": missing, "surplus": surplus, "repeated": twice},
        )


# CSV


def _read_csv(data: bytes, path: str, columns: Sequence[str]) -> "pa.Table":
    if not data.endswith((b"\n", b"\r")):
        raise _half_written(path, "it ends in the middle of a line")
    bad: list[str] = []

    def note(row: "pa_csv.InvalidRow") -> Literal["skip", "error"]:
        bad.append(f"row {row.number} has {row.actual_columns} fields, expected {row.expected_columns}")
        return "skip"

    try:
        header = next(csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")), [])
        _require_shape(path, header, columns)
        rows = pa_csv.read_csv(
            io.BytesIO(data),
            read_options=pa_csv.ReadOptions(use_threads=False),  # row numbers are only known in order
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
        raise SourceInvalid(
            f"{path} is not CSV in UTF-8: {str(error).splitlines()[0]}.", next_step="Correct the file."
        ) from error
    if bad:
        more = f"; and {len(bad) - SHOWN_ROWS} more" if len(bad) > SHOWN_ROWS else ""
        raise SourceInvalid(
            f"{path} is of the wrong shape: {'; '.join(bad[:SHOWN_ROWS])}{more}.",
            next_step="Let its writer finish, or quote fields that hold a comma.",
            details={"path": path, "bad_rows": len(bad)},
        )
    return rows


def _half_written(path: str, how: str) -> SourceInvalid:
    return SourceInvalid(
        f"{path} is half-written: {how}.",
        next_step="Let its writer finish; write to another name and rename when complete.",
        details={"path": path},
    )


# Parquet


def _read_parquet(data: bytes, path: str, columns: Sequence[str]) -> "pa.Table":
    if not data.startswith(_PARQUET_MAGIC):
        raise SourceInvalid(f"{path} is not Parquet.", next_step="Check its name and its writer.")
    if not data.endswith(_PARQUET_MAGIC) or len(data) < _PARQUET_LEAST:
        raise _half_written(path, "its footer is missing")
    try:
        with pa_parquet.ParquetFile(pa.BufferReader(data)) as file:
            _require_shape(path, file.schema_arrow.names, columns)
            return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceInvalid(
            f"{path} is damaged: {str(error).splitlines()[0]}.", next_step="Write the file again."
        ) from error


# JSON lines


def _read_json_lines(data: bytes, path: str, columns: Sequence[str]) -> "pa.Table":
    """Each value as its own JSON text (texts without quotes), so that the contract sees what was written."""
    if not data.endswith(b"\n"):
        raise _half_written(path, "it ends in the middle of a line")
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    values: dict[str, list[str | None]] = {name: [] for name in columns}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
            if len(row) != len(values) or row.keys() != values.keys():
                _require_shape(f"{path}, line {number},", list(row), columns)
            for name, raw in row.items():
                values[name].append(_text(raw))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SourceInvalid(
                f"{path}, line {number}, is not a JSON object: {error}.", next_step="Correct that line."
            ) from error
    return pa.table({name: pa.array(column, type=pa.string()) for name, column in values.items()})


def _text(raw: msgspec.Raw) -> str | None:
    written = bytes(raw)
    if written.startswith(b'"'):
        return msgspec.json.decode(written, type=str)
    return None if written == b"null" else written.decode()
