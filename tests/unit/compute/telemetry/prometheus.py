"""A Prometheus's remote read over real HTTP: answers encoded by the published formats, without our own coding.

Messages are built with Google's protobuf from the fields of `remote.proto`, and XOR chunks by a writer after Prometheus's
`chunkenc/xor.go`, so that a mistake in our reader does not meet the same one here.
"""

import math
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import google_crc32c
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Samples = list[tuple[int, float]]
Stored = list[tuple[dict[str, str], Samples]]

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "Sample": [("value", 1, _FIELD.TYPE_DOUBLE, ""), ("timestamp", 2, _FIELD.TYPE_INT64, "")],
    "Label": [("name", 1, _FIELD.TYPE_STRING, ""), ("value", 2, _FIELD.TYPE_STRING, "")],
    "TimeSeries": [("*labels", 1, None, "Label"), ("*samples", 2, None, "Sample")],
    "QueryResult": [("*timeseries", 1, None, "TimeSeries")],
    "ReadResponse": [("*results", 1, None, "QueryResult")],
    "LabelMatcher": [
        ("type", 1, _FIELD.TYPE_INT32, ""),
        ("name", 2, _FIELD.TYPE_STRING, ""),
        ("value", 3, _FIELD.TYPE_STRING, ""),
    ],
    "Query": [
        ("start_timestamp_ms", 1, _FIELD.TYPE_INT64, ""),
        ("end_timestamp_ms", 2, _FIELD.TYPE_INT64, ""),
        ("*matchers", 3, None, "LabelMatcher"),
    ],
    "ReadRequest": [("*queries", 1, None, "Query"), ("*accepted_response_types", 2, _FIELD.TYPE_INT32, "")],
    "Chunk": [
        ("min_time_ms", 1, _FIELD.TYPE_INT64, ""),
        ("max_time_ms", 2, _FIELD.TYPE_INT64, ""),
        ("type", 3, _FIELD.TYPE_INT32, ""),
        ("data", 4, _FIELD.TYPE_BYTES, ""),
    ],
    "ChunkedSeries": [("*labels", 1, None, "Label"), ("*chunks", 2, None, "Chunk")],
    "ChunkedReadResponse": [("*chunked_series", 1, None, "ChunkedSeries"), ("query_index", 2, _FIELD.TYPE_INT64, "")],
}


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="remote_read.proto", package="prometheus", syntax="proto3")
    for name, fields in _TYPES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = _FIELD.LABEL_REPEATED if field.startswith("*") else _FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field.lstrip("*"), number=number, label=label)
            added.type = kind if kind is not None else _FIELD.TYPE_MESSAGE
            if of:
                added.type_name = f".prometheus.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"prometheus.{name}")) for name in _TYPES}


MESSAGES = _messages()


class BitWriter:
    """As text of bits: slow and plain."""

    def __init__(self) -> None:
        self.bits: list[str] = []

    def put(self, value: int, width: int) -> None:
        self.bits.append(format(value & ((1 << width) - 1), f"0{width}b"))

    def uvarint(self, value: int) -> None:
        while value >= 0x80:
            self.put(value & 0x7F | 0x80, 8)
            value >>= 7
        self.put(value, 8)

    def done(self) -> bytes:
        text = "".join(self.bits)
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big") if text else b""


def xor_chunk(samples: Samples) -> bytes:
    """chunkenc.XORChunk: first time and value plain, then the change of the step, and values by XOR."""
    out = BitWriter()
    before = step = raw = 0
    leading, trailing = 0xFF, 0
    for number, (at, value) in enumerate(samples):
        bits = struct.unpack(">Q", struct.pack(">d", value))[0]
        if number == 0:
            out.uvarint((at << 1) ^ (at >> 63))
            out.put(bits, 64)
        else:
            if number == 1:
                step = at - before
                out.uvarint(step)
            else:
                change, step = at - before - step, at - before
                _put_change(out, change)
            leading, trailing = _put_value(out, bits ^ raw, leading, trailing)
        before, raw = at, bits
    return struct.pack(">H", len(samples)) + out.done()


def _put_change(out: BitWriter, change: int) -> None:
    if change == 0:
        out.put(0, 1)
        return
    for ones, width in ((2, 14), (3, 17), (4, 20)):
        if -((1 << (width - 1)) - 1) <= change <= 1 << (width - 1):
            out.put((1 << ones) - 2, ones)
            out.put(change, width)
            return
    out.put(0b1111, 4)
    out.put(change, 64)


def _put_value(out: BitWriter, difference: int, leading: int, trailing: int) -> tuple[int, int]:
    if difference == 0:
        out.put(0, 1)
        return leading, trailing
    out.put(1, 1)
    ahead = min(64 - difference.bit_length(), 31)
    behind = (difference & -difference).bit_length() - 1
    if leading != 0xFF and ahead >= leading and behind >= trailing:
        out.put(0, 1)
        out.put(difference >> trailing, 64 - leading - trailing)
        return leading, trailing
    width = 64 - ahead - behind
    out.put(1, 1)
    out.put(ahead, 5)
    out.put(width if width < 64 else 0, 6)
    out.put(difference >> behind, width)
    return ahead, behind


def plain_answer(stored: Stored) -> bytes:
    answer = MESSAGES["ReadResponse"]()
    result = answer.results.add()
    for labels, samples in stored:
        series = result.timeseries.add()
        for name, value in sorted(labels.items()):
            series.labels.add(name=name, value=value)
        for at, value in samples:
            series.samples.add(value=value, timestamp=at)
    return pa.compress(answer.SerializeToString(), codec="snappy", asbytes=True)


def streamed_answer(stored: Stored, *, chunk: int = 120) -> bytes:
    out = b""
    for labels, samples in stored:
        answer = MESSAGES["ChunkedReadResponse"]()
        series = answer.chunked_series.add()
        for name, value in sorted(labels.items()):
            series.labels.add(name=name, value=value)
        for at in range(0, len(samples), chunk):
            part = samples[at : at + chunk]
            series.chunks.add(min_time_ms=part[0][0], max_time_ms=part[-1][0], type=1, data=xor_chunk(part))
        out += frame(answer.SerializeToString())
    return out


def frame(message: bytes) -> bytes:
    length = BitWriter()
    length.uvarint(len(message))
    return length.done() + struct.pack(">I", google_crc32c.value(message)) + message


STREAMED = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse"
PLAIN = "application/x-protobuf"


@contextmanager
def server(answer: Callable[[Any], tuple[int, str, bytes]]) -> Iterator[str]:
    """An HTTP server that answers remote reads; its URL. answer: called with the decoded request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-encoding"] == "snappy"
            assert self.headers["x-prometheus-remote-read-version"] == "0.1.0"
            asked = MESSAGES["ReadRequest"].FromString(_uncompressed(body))
            self._reply(*answer(asked))

        def do_GET(self) -> None:
            self._reply(*answer(None))

        def _reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            if kind == PLAIN:
                self.send_header("content-encoding", "snappy")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/api/v1/read"
        finally:
            running.shutdown()
            thread.join()


def _uncompressed(body: bytes) -> bytes:
    length = shift = 0
    for byte in body:
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return pa.decompress(body, decompressed_size=length, codec="snappy", asbytes=True)


STALE = struct.unpack(">d", b"\x7f\xf0\x00\x00\x00\x00\x00\x02")[0]
assert math.isnan(STALE)
