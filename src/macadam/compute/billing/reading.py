"""Files of bills as batches of text columns: CSV (also gzipped) and Parquet, with limits on what they may unpack to.

Nothing is judged here but the file's form. Memory is bounded by one batch, whatever the file's size.
"""

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from macadam.errors import SourceInvalid, TooLarge
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")
    pa_csv = lazy("pyarrow.csv")
    pq = lazy("pyarrow.parquet")

MAX_BYTES = 8 * 2**30  # of a file when unpacked: a month of hourly rows of a large account
MAX_COLUMNS = 500
MAX_CELL = 65_536  # characters: tags and price details are the longest, some kilobytes
_BLOCK = 16 * 2**20
_ROWS = 65_536
_BATCH = 128 * 2**20
"""Bytes of one batch of Parquet's rows; a usual one has a tenth of it."""
_NULLS = ("", "null", "NULL", "Null")
_SUFFIX = re.compile(r"\.(csv|csv\.gz|parquet|pq)\Z", re.IGNORECASE)
_GZIP = b"\x1f\x8b"


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is: its columns in order, and whether it is Parquet or gzipped."""

    path: Path
    columns: tuple[str, ...]
    parquet: bool
    zipped: bool


def is_bill(path: Path) -> bool:
    """Whether a file's name says that it may be one."""
    return bool(_SUFFIX.search(path.name))


def look(path: Path) -> Layout:
    """Raises SourceInvalid if it is no CSV or Parquet file, TooLarge."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Check the path.") from error
    if not start:
        raise SourceInvalid(f"{path} is empty.", next_step="Wait until it is written.")
    parquet, zipped = start == b"PAR1", start[:2] == _GZIP
    columns = _parquet_columns(path) if parquet else _csv_columns(path, zipped=zipped)
    if len(columns) > MAX_COLUMNS:
        raise TooLarge(
            f"{path.name} has {len(columns)} columns, more than {MAX_COLUMNS}.", next_step="Import FOCUS columns only."
        )
    return Layout(path=path, columns=columns, parquet=parquet, zipped=zipped)


def batches(layout: Layout, left_out: Callable[[], None]) -> "Iterator[pa.RecordBatch]":
    """Batches of string columns in the file's order; what stands for no value is null. Raises SourceInvalid, TooLarge.

    left_out: told of each row of a wrong width, which is in no batch: `misfits` finds its line.
    """
    try:
        yield from _parquet_batches(layout) if layout.parquet else _csv_batches(layout, left_out)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise SourceInvalid(
            f"{layout.path.name} cannot be read to its end: {_first_line(error)}.",
            next_step="Fetch it again from whoever wrote it; nothing of it was taken.",
        ) from error


def misfits(layout: Layout, wanted: Sequence[int], limit: int) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Lines of a CSV file, which are not its rows' numbers where there are blank lines or line breaks in values.

    wanted: numbers of rows of the right width, from 0. Returns the line of each, from 1, and (line, number of values) of
    the first rows of a wrong width. For Parquet, rows are counted from 1.
    """
    if layout.parquet:
        return {row: row + 1 for row in wanted}, []
    asked = set(wanted)
    lines: dict[int, int] = {}
    wrong: list[tuple[int, int]] = []
    number = -1
    for line, width in _widths(layout):
        if len(lines) == len(asked) and len(wrong) >= limit:
            break
        if width != len(layout.columns):
            wrong.append((line, width))
            continue
        number += 1
        if number in asked:
            lines[number] = line
    return lines, wrong[:limit]


def _widths(layout: Layout) -> Iterator[tuple[int, int]]:
    """Of each row after the header the line that it begins in, and how many values it has. Ends where a row cannot be read:
    what is asked for in lines after it has none.
    """
    with _text(layout.path, zipped=layout.zipped) as file, contextlib.suppress(csv.Error):
        rows = csv.reader(file)
        begins = 1
        for values in rows:
            line, begins = begins, rows.line_num + 1
            if values and line > 1:
                yield line, len(values)


def open_quote(layout: Layout, rows: int) -> int:
    """The line of a CSV file in which a quotation mark stands that nothing closes rightly, so that its cell swallows rows;
    0 if there is none. rows: as many as were found, of any width: where each has a line of its own, no cell can have more.
    """
    if _lines(layout) <= rows + 1:
        return 0
    with _text(layout.path, zipped=layout.zipped) as file:
        found = csv.reader(file, strict=True)
        begins = 1
        try:
            for _ in found:
                begins = found.line_num + 1
        except csv.Error:
            return begins
    return 0


def _lines(layout: Layout) -> int:
    """How many lines a CSV file has, whatever ends them; rather one too many than too few."""
    count, last = 0, b""
    with _bytes(layout) as file:
        while block := file.read(_BLOCK):
            count += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
            last = block[-1:]
    return count + (last not in (b"\n", b"\r"))


# CSV


def _csv_columns(path: Path, *, zipped: bool) -> tuple[str, ...]:
    try:
        with _text(path, zipped=zipped) as file:
            header = next(csv.reader(io.StringIO(file.readline(MAX_CELL * 4))), [])
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError, OSError, csv.Error) as error:
        raise SourceInvalid(
            f"{path.name} is neither CSV in UTF-8, nor that gzipped, nor Parquet: {_first_line(error)}.",
            next_step="Export the bill as FOCUS CSV or Parquet.",
        ) from error
    if not any(name.strip() for name in header):
        raise SourceInvalid(f"{path.name} has no header.", next_step="Its first line must name the columns.")
    return tuple(header)


def _text(path: Path, *, zipped: bool) -> IO[str]:
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("r", encoding="utf-8-sig", newline="")


def _bytes(layout: Layout) -> IO[bytes]:
    if layout.zipped:
        return gzip.open(layout.path, "rb")  # type: ignore[return-value] # a GzipFile reads like any other
    return layout.path.open("rb")


class _Bounded(io.RawIOBase):
    """Refuses to read on where a file unpacks to more than anyone would send."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__()
        self._file = file
        self._name = name
        self._left = MAX_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(
                f"{self._name} unpacks to more than {MAX_BYTES} bytes.", next_step="Split it, and import the folder."
            )
        buffer[: len(data)] = data
        return len(data)


def _csv_batches(layout: Layout, left_out: Callable[[], None]) -> "Iterator[pa.RecordBatch]":
    def skip(_row: object) -> Literal["skip"]:
        left_out()
        return "skip"

    with _bytes(layout) as plain, io.BufferedReader(_Bounded(plain, layout.path.name), _BLOCK) as file:
        reader = pa_csv.open_csv(
            file,
            read_options=pa_csv.ReadOptions(
                block_size=_BLOCK, column_names=list(layout.columns), skip_rows=1, use_threads=False
            ),
            parse_options=pa_csv.ParseOptions(
                newlines_in_values=True, ignore_empty_lines=True, invalid_row_handler=skip
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in layout.columns},
                null_values=list(_NULLS),
                strings_can_be_null=True,
            ),
        )
        yield from reader


# Parquet


def _parquet_columns(path: Path) -> tuple[str, ...]:
    try:
        with pq.ParquetFile(path) as file:
            size = sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
            names = tuple(file.schema_arrow.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceInvalid(f"{path.name} is no whole Parquet file.", next_step="Fetch it again.") from error
    if size > MAX_BYTES:
        raise TooLarge(f"{path.name} unpacks to {size} bytes, more than {MAX_BYTES}.", next_step="Split it.")
    return names


def _parquet_batches(layout: Layout) -> "Iterator[pa.RecordBatch]":
    """Texts stay in dictionaries until they are cut into parts of bounded size: a value that is written once may stand in
    millions of rows.
    """
    names, left = list(layout.columns), MAX_BYTES
    with pq.ParquetFile(layout.path) as plain:
        schema = plain.schema_arrow
        texts = [name for name in schema.names if pa.types.is_string(schema.field(name).type)]
        mean = sum(plain.metadata.row_group(n).total_byte_size for n in range(plain.metadata.num_row_groups))
        rows = max(1, min(_ROWS, _BATCH * plain.metadata.num_rows // max(mean, 1)))
    with pq.ParquetFile(layout.path, read_dictionary=texts) as file:
        for batch in file.iter_batches(rows):
            size = sum(_unpacked(column) for column in batch.columns)
            left -= size
            if left < 0:
                raise TooLarge(f"{layout.path.name} unpacks to more than {MAX_BYTES} bytes.", next_step="Split it.")
            step = max(1, batch.num_rows * _BATCH // max(size, 1))
            for at in range(0, batch.num_rows, step):
                part = [_as_text(column) for column in batch.slice(at, step).columns]
                yield pa.RecordBatch.from_arrays(part, names=names)


def _unpacked(column: Any) -> int:
    """Bytes of a column as text, of those that are in a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _as_text(column: Any) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _as_text(column.dictionary_decode())
    if pa.types.is_map(kind):
        return pa.array([_json(None if v is None else dict(v)) for v in column.to_pylist()], pa.string())
    if pa.types.is_nested(kind):
        return pa.array([_json(value) for value in column.to_pylist()], pa.string())
    text = column.cast(pa.string())
    if pa.types.is_timestamp(kind) and kind.tz is None:
        # Parquet has no place to write a zone in such a column, and FOCUS says that all of them are UTC.
        return pc.binary_join_element_wise(text, "Z", "")
    empty = pc.is_in(text, value_set=pa.array(_NULLS, pa.string()))
    return pc.if_else(empty, pa.scalar(None, pa.string()), text)


def _json(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value, enc_hook=str).decode()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
