"""Reads history out of a Prometheus (or Thanos, Mimir, VictoriaMetrics) through its remote-read API.

Asks for streamed XOR chunks and takes plain samples where the server has only those. Messages are those of `remote.proto`
and `types.proto`; both ways are checked and bounded, and what is broken is an error, never a shorter history.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import google_crc32c
import msgspec

from macadam.compute.telemetry import wire
from macadam.compute.telemetry.exposition import Reading, Series
from macadam.errors import SourceInvalid, TooLarge
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")

MOST_BYTES = 256 * 1024 * 1024
"""Of one answer: ask for less time at once if it is larger."""
MOST_SAMPLES = 10_000_000
"""Of one answer: a thousand GPUs' hour every 15 s has half of it. Two bits can hold a sample, so bytes do not bound them."""
_MOST_FRAME = 64 * 1024 * 1024
_SAMPLES, _CHUNKS = 0, 1
_XOR = 1
_EQUAL, _NOT_EQUAL, _MATCHES, _NOT_MATCHES = 0, 1, 2, 3
_KINDS = {"=": _EQUAL, "!=": _NOT_EQUAL, "=~": _MATCHES, "!~": _NOT_MATCHES}
_STREAMED = "application/x-streamed-protobuf"

HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "Accept-Encoding": "snappy",
    "X-Prometheus-Remote-Read-Version": "0.1.0",
    "User-Agent": "macadam",
}


class Matcher(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on a label: kind is '=', '!=', '=~' or '!~'."""

    name: str
    kind: str
    value: str


def request(start: datetime, end: datetime, matchers: Sequence[Matcher]) -> bytes:
    """The body that asks for series with these labels between two instants (aware), in snappy's block format."""
    query = wire.put_number(1, _milliseconds(start)) + wire.put_number(2, _milliseconds(end))
    for one in matchers:
        body = wire.put_number(1, _KINDS[one.kind]) + wire.put_bytes(2, one.name.encode())
        query += wire.put_bytes(3, body + wire.put_bytes(3, one.value.encode()))
    message = wire.put_bytes(1, query) + wire.put_number(2, _CHUNKS) + wire.put_number(2, _SAMPLES)
    compressed: bytes = pa.compress(message, codec="snappy", asbytes=True)
    return compressed


def readings(body: bytes, content_type: str, start: datetime, end: datetime) -> Iterator[Reading]:
    """What a server answered, between the two instants (a chunk may hold more). Raises SourceInvalid, TooLarge."""
    first, last = _milliseconds(start), _milliseconds(end)
    streamed = content_type.partition(";")[0].strip() == _STREAMED
    found = _streamed(body) if streamed else _plain(uncompressed(body))
    count = 0
    for series, samples in found:
        for at, value in samples:
            count += 1
            if count > MOST_SAMPLES:
                raise TooLarge(
                    f"The answer has more than {MOST_SAMPLES} samples.", next_step="Ask for less time at once."
                )
            if first <= at <= last and not _is_stale(value):
                yield Reading(series, value, float(at))


def uncompressed(body: bytes) -> bytes:
    """Snappy's block format, which begins with the length of what is in it. Raises SourceInvalid, TooLarge."""
    length, _ = wire.uvarint(body, 0)
    if length > MOST_BYTES:
        raise TooLarge(
            f"The answer has {length} bytes, more than {MOST_BYTES}.", next_step="Ask for less time at once."
        )
    try:
        found: bytes = pa.decompress(body, decompressed_size=length, codec="snappy", asbytes=True) if length else b""
    except (pa.ArrowInvalid, OSError) as error:
        raise wire.broken("it is not compressed with snappy") from error
    return found


def _plain(message: bytes) -> Iterator[tuple[Series, Iterable[tuple[int, float]]]]:
    """ReadResponse → QueryResult → TimeSeries."""
    for result in _messages(message, 1):
        for series in _messages(result, 1):
            yield _series(series), (_sample(one) for one in _messages(series, 2))


def _streamed(body: bytes) -> Iterator[tuple[Series, Iterable[tuple[int, float]]]]:
    """Frames: length, CRC32C (Castagnoli, big endian), ChunkedReadResponse → ChunkedSeries → Chunk."""
    at = 0
    while at < len(body):
        length, at = wire.uvarint(body, at)
        if length > _MOST_FRAME or length > len(body) - at - 4:
            raise wire.broken("it ends within a frame")
        (crc,) = struct.unpack_from(">I", body, at)
        frame = body[at + 4 : at + 4 + length]
        at += 4 + length
        if google_crc32c.value(frame) != crc:
            raise wire.broken("the checksum of a frame does not fit")
        for series in _messages(frame, 1):
            yield _series(series), (sample for chunk in _messages(series, 2) for sample in _chunk(chunk))


def _chunk(message: bytes) -> list[tuple[int, float]]:
    kind, data = 0, b""
    for number, wire_type, value in wire.fields(message):
        if number == 3 and wire_type == wire.VARINT and isinstance(value, int):  # noqa: PLR2004 - Chunk.type
            kind = value
        elif number == 4 and isinstance(value, bytes):  # noqa: PLR2004 - Chunk.data
            data = value
    if kind != _XOR:
        raise SourceInvalid(
            f"A chunk is encoded as {kind}, which is no plain number.", next_step="Ask for gauges and counters only."
        )
    return wire.xor_chunk(data)


def _messages(message: bytes, wanted: int) -> Iterator[bytes]:
    for number, kind, value in wire.fields(message):
        if number == wanted:
            if kind != wire.BYTES or not isinstance(value, bytes):
                raise wire.broken(f"field {wanted} is no message")
            yield value


def _sample(message: bytes) -> tuple[int, float]:
    at, found = 0, 0.0
    for number, kind, value in wire.fields(message):
        if number == 1 and kind == wire.FIXED64 and isinstance(value, bytes):
            found = struct.unpack("<d", value)[0]
        elif number == 2 and kind == wire.VARINT and isinstance(value, int):  # noqa: PLR2004 - Sample.timestamp
            at = wire.signed(value)
    return at, found


def _series(message: bytes) -> Series:
    labels: dict[str, str] = {}
    for one in _messages(message, 1):
        pair = {n: v for n, k, v in wire.fields(one) if k == wire.BYTES and isinstance(v, bytes)}
        try:
            labels[pair.get(1, b"").decode()] = pair.get(2, b"").decode()
        except UnicodeDecodeError as error:
            raise wire.broken("a label is no text") from error
    return Series(labels.pop("__name__", ""), labels)


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _is_stale(value: float) -> bool:
    """Prometheus's mark that a series ended (`value.StaleNaN`): no measurement."""
    return value != value and struct.pack(">d", value) == b"\x7f\xf0\x00\x00\x00\x00\x00\x02"  # noqa: PLR0124 - only NaN


def any_of(names: Sequence[str]) -> Matcher:
    """A matcher of metric names."""
    return Matcher(name="__name__", kind="=~", value="|".join(re.escape(name) for name in names))
