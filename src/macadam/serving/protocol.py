"""HTTP/1.1 on asyncio: one connection, its limits, and its requests in order.

llhttp (through httptools) parses; this file counts, bounds and times what it finds. Whole requests go to a `Desk`,
which answers them in the order in which they came; requests of one turn of the event loop go there together.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools

from macadam.serving import answers

MOST_HEADER_BYTES = 64 * 1024
MOST_HEADERS = 100
MOST_WAITING = 64
"""Requests of one connection that are parsed and not answered: beyond, it is not read further."""
HEADER_SECONDS = 10.0
"""From a request's first byte to the end of its header: a slow client does not hold a connection for long."""
BODY_SECONDS = 30.0
IDLE_SECONDS = 75.0
"""Longer than the usual 60 of proxies, so that they close first."""
STALLED_SECONDS = 30.0
"""How long a client may leave its answers unread."""

_LINGER_SECONDS = 1.0

_IDLE, _HEADER, _BODY = range(3)


# What a caller says beside who it is: header → the field that keeps it.
_SAID = {b"traceparent": "trace", b"x-macadam-purpose": "purpose", b"x-macadam-location": "location"}
_SAID_LENGTHS = frozenset(map(len, _SAID))


class Incoming:
    """One request, and its answer once there is one. fixed: bytes to send as they are, for what is no request.

    old: the client speaks HTTP/1.0 and must be told that the connection is kept.
    """

    __slots__ = (
        "answer",
        "authorization",
        "body",
        "connection",
        "fixed",
        "keep_alive",
        "location",
        "method",
        "old",
        "purpose",
        "target",
        "trace",
    )

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection
        self.method = b""
        self.target = b""
        self.authorization = b""
        self.trace = b""
        self.purpose = b""
        self.location = b""
        self.body = b""
        self.keep_alive = True
        self.old = False
        self.fixed = False
        self.answer = b""


@dataclass(frozen=True, kw_only=True)
class Strangers:
    """Limits of clients without a certificate, where others have one: they must not use up what is there for those.

    connections: at once; body: bytes.
    """

    connections: int
    body: int


@dataclass(kw_only=True)
class Desk:
    """What connections share. submit: takes a request; its answer goes to `Connection.send`. max_body: bytes.

    most_waiting: requests of one connection, which are in memory as a whole. strangers: None where all are alike.
    """

    submit: Callable[[Incoming], None]
    max_body: int
    most_connections: int = 4096
    most_waiting: int = MOST_WAITING
    strangers: Strangers | None = None
    draining: bool = False
    connections: "set[Connection]" = field(default_factory=set)

    def sweep(self, now: float) -> None:
        """Ends what is too slow. now: the loop's time."""
        for connection in list(self.connections):
            connection.check_time(now)

    def is_full_for(self, connection: "Connection") -> bool:
        if self.strangers is not None and connection.is_stranger:
            return sum(other.is_stranger for other in self.connections) > self.strangers.connections
        return len(self.connections) > self.most_connections

    def drain(self) -> None:
        """No more requests: idle connections end now, the others with their answers."""
        self.draining = True
        for connection in list(self.connections):
            connection.end_if_idle()


class Connection(asyncio.Protocol):
    """One client. Every answer goes through `send`, in the order of the requests."""

    __slots__ = (
        "_body",
        "_closing",
        "_current",
        "_desk",
        "_expects",
        "_header_bytes",
        "_headers",
        "_hosts",
        "_length",
        "_loop",
        "_most_body",
        "_parser",
        "_paused",
        "_peer",
        "_refused",
        "_since",
        "_stalled",
        "_state",
        "_target",
        "_transport",
        "is_stranger",
        "waiting",
    )

    def __init__(self, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        self._desk = desk
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._current = Incoming(self)
        self._body: list[bytes] = []
        self._target = b""
        self._length = self._headers = self._hosts = self._header_bytes = 0
        self._expects = b""
        self._peer = ""
        self._state = _IDLE
        self._since = self._stalled = 0.0
        self._closing = self._paused = self._refused = self.is_stranger = False
        self._most_body = desk.max_body
        self.waiting = 0

    @property
    def peer(self) -> str:
        """The client's address, '' if the socket has none."""
        if not self._peer and self._transport is not None:
            name = self._transport.get_extra_info("peername")
            self._peer = str(name[0]) if isinstance(name, tuple) and name else ""
        return self._peer

    @property
    def peer_certificate(self) -> bytes | None:
        """What the client presented (DER), over TLS and if it did."""
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        found: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
        return found

    # --- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its class
        self._since = self._loop.time()
        if self._desk.strangers is not None and self.peer_certificate is None:
            self.is_stranger = True
            self._most_body = self._desk.strangers.body
        self._desk.connections.add(self)
        if not self._desk.is_full_for(self):
            return
        if self.is_stranger:  # closing would wait for it
            self._closing = True
            self._transport.abort()
        else:
            self._refuse(503, "busy", "Too many connections are open.", "Ask again in a moment.")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._desk.connections.discard(self)
        self._transport = None
        self._closing = True

    def eof_received(self) -> bool:
        """A client may close its side and still read what it asked for."""
        if self._state != _IDLE and not self._closing:
            self._refuse(400, "malformed-request", "The connection ended inside a request.", "")
        self._closing = True
        return self.waiting > 0

    def pause_writing(self) -> None:
        self._stalled = self._loop.time()
        self._set_reading()

    def resume_writing(self) -> None:
        self._stalled = 0.0
        self._set_reading()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._state != _BODY:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request itself is in line. It is answered as it is, without the upgrade, and nothing after it.
            self._closing = True
            self._current.keep_alive = False
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
        except httptools.HttpParserError as error:
            self._refuse(400, "malformed-request", f"The request is not HTTP/1.1: {error}.", "")
        else:
            # Only what the present header can be made of counts: a whole earlier request resets it.
            if self._state == _HEADER and self._header_bytes > MOST_HEADER_BYTES + len(data):
                self._refuse_header()

    # --- the parser's calls

    def on_message_begin(self) -> None:
        self._current = Incoming(self)
        self._body.clear()
        self._target = b""
        self._length = self._headers = self._hosts = 0
        self._expects = b""
        self._state = _HEADER
        self._since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > MOST_HEADER_BYTES:
            self._stop_header()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        self._length += len(name) + len(value)
        if self._headers > MOST_HEADERS or self._length > MOST_HEADER_BYTES:
            self._stop_header()
        if self._state != _HEADER:
            return  # a trailer (RFC 9110, 6.5.1): it comes behind what a proxy has checked, so it says nothing here
        size = len(name)
        if size == 13:  # noqa: PLR2004 - the length spares most headers the comparison
            if name.lower() == b"authorization":
                self._take_authorization(value)
        elif size == 4:  # noqa: PLR2004
            self._hosts += name.lower() == b"host"
        elif size in _SAID_LENGTHS and (said := _SAID.get(name.lower())):
            setattr(self._current, said, value)
        elif size == 6:  # noqa: PLR2004
            if name.lower() == b"expect":
                self._expects = value.lower()
        elif size == 14 and name.lower() == b"content-length" and _is_over(value, self._most_body):  # noqa: PLR2004
            self._stop_body()

    def _take_authorization(self, value: bytes) -> None:
        if self._current.authorization:  # a proxy might have looked at the other one
            self._stop(400, "malformed-request", "The request has several Authorization headers.", "")
        self._current.authorization = value

    def on_headers_complete(self) -> None:
        self._state = _BODY
        self._length = 0
        self._since = self._loop.time()
        if self._hosts != 1 and self._parser.get_http_version() == "1.1":
            self._stop(400, "malformed-request", f"The request has {self._hosts} Host headers, expected one.", "")
        if self._expects == b"100-continue":
            self._fixed(answers.CONTINUE)
        elif self._expects:
            self._stop(417, "expectation-failed", "This server knows only Expect: 100-continue.", "")

    def on_body(self, data: bytes) -> None:
        self._length += len(data)
        if self._length > self._most_body:
            self._stop_body()
        self._body.append(data)

    def on_message_complete(self) -> None:
        request = self._current
        request.method = self._parser.get_method()
        request.target = self._target
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request.keep_alive = self._parser.should_keep_alive()
        if not request.keep_alive:
            self._closing = True
        elif self._parser.get_http_version() == "1.0":
            request.old = True
        self._state = _IDLE
        self._header_bytes = 0
        self._since = self._loop.time()
        self._submit(request)

    # --- answering

    def send(self, data: bytes, *, last: bool) -> bool:
        """Hands answers to the transport; False if the client is gone. last: the connection ends behind them."""
        if self._transport is None:
            return False
        self._transport.write(data)
        if last:
            self._closing = True
            if self._refused and self._transport.can_write_eof():
                # A client that still sends would lose the answer to a reset: what it sends is read and dropped.
                self._transport.write_eof()
                self._loop.call_later(_LINGER_SECONDS, self._transport.close)
            else:
                self._transport.close()
        return True

    def answered(self, count: int) -> None:
        """So many requests are no longer waiting. The last one ends a connection whose client has said all."""
        self.waiting -= count
        if self._closing and not self._refused and not self.waiting and self._transport is not None:
            self._transport.close()
        else:
            self._set_reading()

    def _submit(self, request: Incoming) -> None:
        self.waiting += 1
        if self.waiting >= self._desk.most_waiting:
            self._set_reading()
        self._desk.submit(request)

    def _fixed(self, data: bytes, *, last: bool = False) -> None:
        """Puts bytes in line behind the answers that are still to come."""
        entry = Incoming(self)
        entry.fixed = True
        entry.answer = data
        entry.keep_alive = not last
        self._submit(entry)

    def _set_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        pause = bool(self._stalled) or self.waiting >= self._desk.most_waiting
        if pause != self._paused:
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # --- limits

    def check_time(self, now: float) -> None:
        """Ends the connection if its client is too slow."""
        if self._stalled and now - self._stalled > STALLED_SECONDS:
            if self._transport is not None:
                self._transport.abort()
        elif self._closing or self.waiting:
            return
        elif self._state == _IDLE and now - self._since > IDLE_SECONDS:
            self.end_if_idle()
        elif self._state == _HEADER and now - self._since > HEADER_SECONDS:
            self._refuse(408, "too-slow", f"The header took more than {HEADER_SECONDS:g} s.", "")
        elif self._state == _BODY and now - self._since > BODY_SECONDS:
            self._refuse(408, "too-slow", f"The body took more than {BODY_SECONDS:g} s.", "")

    def end_if_idle(self) -> None:
        """Closes it unless a request is being read or answered."""
        if self._state == _IDLE and not self.waiting and self._transport is not None:
            self._closing = True
            self._transport.close()

    def _stop(self, status: int, code: str, detail: str, next_step: str) -> None:
        """Refuses from inside the parser, which must not go on."""
        self._refuse(status, code, detail, next_step)
        raise _Refused

    def _stop_header(self) -> None:
        self._refuse_header()
        raise _Refused

    def _refuse_header(self) -> None:
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header-too-large",
            f"The header has more than {MOST_HEADERS} fields or {MOST_HEADER_BYTES} bytes.",
            "Send a smaller header.",
        )

    def _stop_body(self) -> None:
        limit = self._most_body
        self._stop(413, "too-large", f"The body has more than {limit} bytes.", "Send less, or raise MACADAM_MAX_BODY.")

    def _refuse(self, status: int, code: str, detail: str, next_step: str) -> None:
        """Answers with a problem, behind the answers before it, and closes."""
        if not self._closing:
            self._closing = self._refused = True
            whole = answers.problem(status, code, detail, next_step=next_step)
            self._fixed(answers.closing(whole), last=True)


def _is_over(length: bytes, limit: int) -> bool:
    """Of any number of digits, zeros in front included; the parser refuses what is no number."""
    digits = length.lstrip(b"0")
    return digits.isdigit() and (len(digits) > len(str(limit)) or int(digits) > limit)


class _Refused(Exception):
    """Stops the parser."""
