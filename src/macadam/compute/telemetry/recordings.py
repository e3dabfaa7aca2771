"""Samples in files: recordings of collectors (JSON lines), tables (Parquet), and scrapes as text.

What is wrong with a line is named with its number; nothing of a file is taken that is not what it says it is.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.telemetry import exposition
from macadam.compute.telemetry.dcgm import Translator
from macadam.compute.telemetry.types import Sample, as_json, brought_up, from_table, sample_schema
from macadam.errors import InvalidInput, SourceInvalid, TooLarge
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")
pq: Any = lazy("pyarrow.parquet")

MOST_BYTES = 2 * 1024**3
_PIECE = 5000
JSON_LINES, PARQUET = (".jsonl", ".ndjson"), (".parquet", ".pq")


def read(path: Path, *, now: datetime) -> Iterator[tuple[list[Sample], list[str]]]:
    """Samples piece by piece, with what was left out of each. now: the instant of a scrape that gives none, UTC.

    '.jsonl' and '.parquet' by name, anything else is a scrape's text. Raises InvalidInput, SourceInvalid, TooLarge.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    if size > MOST_BYTES:
        raise TooLarge(f"{path} has {size} bytes, more than {MOST_BYTES}.", next_step="Divide it.")
    if path.suffix in JSON_LINES:
        yield from ((piece, []) for piece in _lines(path))
    elif path.suffix in PARQUET:
        yield from ((piece, []) for piece in _table(path))
    else:
        if size > exposition.MOST_BYTES:
            raise TooLarge(f"{path} has {size} bytes, more than a scrape has.", next_step="Give one scrape's text.")
        scrape = exposition.Parser().parse(path.read_bytes())
        samples, problems = Translator(source="dcgm").samples(scrape.readings, now=now, live=False)
        said = [f"line {line.number}: {line.why}: {line.text!r}" for line in scrape.named]
        more = scrape.malformed - len(said) + problems.count - len(problems.named)
        yield samples, [*said, *problems.named, *([f"and {more} more"] if more > 0 else [])]


def _lines(path: Path) -> Iterator[list[Sample]]:
    decoder = msgspec.json.Decoder(Sample)
    piece: list[Sample] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                piece.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise SourceInvalid(
                    f"Line {number} of {path} is no sample: {error}.", next_step="Record it with macadam gpu watch."
                ) from error
            if len(piece) >= _PIECE:
                yield piece
                piece = []
    if piece:
        yield piece


def _table(path: Path) -> Iterator[list[Sample]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PIECE):
                whole = brought_up(pa.Table.from_batches([batch]), sample_schema())
                yield from_table(whole.select(sample_schema().names).cast(sample_schema()))
    except (pa.ArrowException, KeyError, msgspec.ValidationError, OSError) as error:
        raise SourceInvalid(
            f"{path} is no table of samples: {error}.", next_step="Its columns are those of `sample_schema()`."
        ) from error


def append(path: Path, samples: Sequence[Sample]) -> None:
    """Adds samples to a recording. Raises InvalidInput if it cannot be written."""
    try:
        with path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(as_json(sample)) + b"\n" for sample in samples))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another file.") from error
