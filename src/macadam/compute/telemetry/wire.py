"""The least of Protocol Buffers and of bit streams that Prometheus's remote read needs, with every length checked.

Source: protobuf.dev/programming-guides/encoding; tsdb/docs/format/chunks.md and tsdb/chunkenc/xor.go of Prometheus, after
"Gorilla: A Fast, Scalable, In-Memory Time Series Database" (Pelkonen et al., VLDB 2015).
"""

import struct
from collections.abc import Iterator

from macadam.errors import SourceInvalid

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_MASK = (1 << 64) - 1
_FAULT = "Check that the URL is that of a Prometheus remote-read endpoint, such as http://HOST:9090/api/v1/read."


def broken(what: str) -> SourceInvalid:
    return SourceInvalid(f"The answer to the remote read is broken: {what}.", next_step=_FAULT)


def uvarint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises SourceInvalid."""
    found = 0
    for place in range(_LONGEST_VARINT):
        if at >= len(data):
            raise broken("it ends within a number")
        byte = data[at]
        at += 1
        found |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return found & _MASK, at
    raise broken("a number has more than ten bytes")


def signed(value: int) -> int:
    """An int64 out of its 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def zigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def put_uvarint(value: int) -> bytes:
    value &= _MASK
    out = bytearray()
    while value >= 0x80:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_number(field: int, value: int) -> bytes:
    return put_uvarint(field << 3 | VARINT) + put_uvarint(value)


def put_bytes(field: int, value: bytes) -> bytes:
    return put_uvarint(field << 3 | BYTES) + put_uvarint(len(value)) + value


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of each field of a message; fixed values are bytes. Raises SourceInvalid."""
    at, end = 0, len(data)
    while at < end:
        tag, at = uvarint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise broken("a field has the number 0")
        if kind == VARINT:
            value, at = uvarint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = uvarint(data, at)
        elif kind == FIXED64:
            length = 8
        elif kind == FIXED32:
            length = 4
        else:
            raise broken(f"a field has the wire type {kind}")
        if length > end - at:
            raise broken("a field is longer than its message")
        yield number, kind, data[at : at + length]
        at += length


class Bits:
    """Reads a chunk bit by bit, highest first. Raises SourceInvalid past its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        end = self._at + count
        if end > 8 * len(self._data):
            raise broken("a chunk ends within a sample")
        last = (end + 7) >> 3
        found = int.from_bytes(self._data[self._at >> 3 : last], "big") >> (8 * last - end)
        self._at = end
        return found & ((1 << count) - 1)

    def uvarint(self) -> int:
        found = 0
        for place in range(_LONGEST_VARINT):
            byte = self.take(8)
            found |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
                return found & _MASK
        raise broken("a number has more than ten bytes")


_DELTAS = ((1, 14), (2, 17), (3, 20), (4, 64))
"""After so many ones, the change of the time's step takes so many bits."""


def xor_chunk(data: bytes) -> list[tuple[int, float]]:
    """(ms since the epoch, value) of each sample of an XOR chunk; Prometheus cuts one at 120. Raises SourceInvalid."""
    if len(data) < 2 or len(data) > 64 * 1024:  # noqa: PLR2004 - its header
        raise broken(f"a chunk has {len(data)} bytes")
    (count,) = struct.unpack_from(">H", data)
    bits = Bits(data[2:])
    found: list[tuple[int, float]] = []
    at = step = leading = trailing = raw = 0
    for number in range(count):
        if number == 0:
            at, raw = zigzag(bits.uvarint()), bits.take(64)
        else:
            step = bits.uvarint() if number == 1 else step + _delta(bits)
            at += step
            raw, leading, trailing = _xored(bits, raw, leading, trailing)
        if not -(1 << 63) <= at < 1 << 63:
            raise broken("a time is out of range")
        found.append((at, struct.unpack(">d", raw.to_bytes(8, "big"))[0]))
    return found


def _delta(bits: Bits) -> int:
    ones = 0
    while ones < len(_DELTAS) and bits.take(1):
        ones += 1
    if ones == 0:
        return 0
    width = _DELTAS[ones - 1][1]
    value = bits.take(width)
    if width == 64:  # noqa: PLR2004 - the widest is a plain int64
        return signed(value)
    return value - (1 << width) if value > 1 << (width - 1) else value


def _xored(bits: Bits, raw: int, leading: int, trailing: int) -> tuple[int, int, int]:
    if not bits.take(1):
        return raw, leading, trailing
    if bits.take(1):
        leading, width = bits.take(5), bits.take(6) or 64
        if leading + width > 64:  # noqa: PLR2004 - of a double
            raise broken("a value has more than 64 bits")
        trailing = 64 - leading - width
    width = 64 - leading - trailing
    return raw ^ (bits.take(width) << trailing), leading, trailing
