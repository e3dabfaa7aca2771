"""HTTP/1.1 as bytes on a connection, without a socket: what is read, in which order it is answered, what is refused."""

import asyncio
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.serving import answers, protocol
from macadam.serving.protocol import Connection, Desk, Incoming

POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = self.aborted = self.ended = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Loop:
    """A clock to turn."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def call_later(self, _delay: float, act: Any) -> None:
        act()


class Client:
    """One connection whose requests wait until `answer` is called."""

    def __init__(self, **limits: int) -> None:
        self.requests: list[Incoming] = []
        self.loop = Loop()
        self.desk = Desk(submit=self.requests.append, max_body=limits.get("max_body", 1000))
        self.wire = Wire()
        self.connection = Connection(self.desk, cast("asyncio.AbstractEventLoop", self.loop))
        self.connection.connection_made(self.wire)

    def send(self, data: bytes, pieces: int = 0) -> None:
        for at in range(0, len(data), pieces or len(data)):
            self.connection.data_received(data[at : at + (pieces or len(data))])

    def answer(self) -> bytes:
        """Answers what waits, as the desk does, and returns all that was sent so far."""
        for request in self.requests:
            data = request.answer or answers.answer(200, answers.JSON, request.target + b":" + request.body)
            self.connection.send(data, last=not request.keep_alive)
            self.connection.answered(1)
        self.requests.clear()
        return self.wire.sent

    def status(self) -> int:
        return int(self.answer()[9:12])


@given(st.integers(1, 60))
def test_a_request_may_come_in_pieces_of_any_size(size: int) -> None:
    client = Client()
    client.send(POST + POST, size)
    assert [(r.method, r.target, r.body) for r in client.requests] == [(b"POST", b"/x", b"hello")] * 2


def test_pipelined_requests_are_answered_in_order_and_keep_the_connection() -> None:
    client = Client()
    client.send(b"".join(GET % n for n in range(20)))
    sent = client.answer()
    assert [sent.index(b"/%d:" % n) for n in range(20)] == sorted(sent.index(b"/%d:" % n) for n in range(20))
    assert not client.wire.closed


def test_a_chunked_body_is_put_together() -> None:
    client = Client()
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", 7)
    assert client.requests[0].body == b"hello"


def test_a_trailer_does_not_replace_what_the_header_said() -> None:
    client = Client()
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer mine\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"2\r\nok\r\n0\r\nAuthorization: Bearer other\r\nTraceparent: t\r\nHost: b\r\n\r\n")
    assert [(r.authorization, r.trace, r.body) for r in client.requests] == [(b"Bearer mine", b"", b"ok")]


def test_a_length_may_have_any_number_of_zeros_in_front() -> None:
    client = Client()
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\nok")
    assert [r.body for r in client.requests] == [b"ok"]


def test_expect_100_continue_is_answered_before_the_body_and_behind_earlier_answers() -> None:
    client = Client()
    client.send(GET % 1 + b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    sent = client.answer()
    assert sent.index(b"/1:") < sent.index(b"100 Continue")
    client.send(b"ok")
    assert client.answer().endswith(b"/x:ok")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(101)), 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 300_000, 431),
        (b"GET /" + b"x" * 300_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001, 413),
    ],
)
def test_what_is_malformed_or_too_large_is_a_problem_and_ends_the_connection(data: bytes, status: int) -> None:
    client = Client()
    client.send(data, 30_000)
    assert client.status() == status
    head, _, body = client.wire.sent.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["status"] == status
    assert client.wire.closed
    client.send(GET % 1)
    assert client.requests == []


def test_what_came_before_a_malformed_request_is_answered_first() -> None:
    client = Client()
    client.send(GET % 7 + b"nonsense\r\n\r\n")
    sent = client.answer()
    assert sent.index(b"/7:") < sent.index(b" 400 ")


def test_a_slow_header_and_a_slow_body_are_ended_and_an_idle_connection_is_closed() -> None:
    for data, seconds, sent in ((b"GET / HT", 11, b" 408 "), (POST[:-2], 31, b" 408 "), (b"", 76, b"")):
        client = Client()
        if data:
            client.send(data)
        client.loop.now += seconds - 2
        client.desk.sweep(client.loop.now)
        assert not client.answer()
        client.loop.now += 2
        client.desk.sweep(client.loop.now)
        assert sent in client.answer()
        assert client.wire.closed


def test_a_client_with_many_unanswered_requests_or_unread_answers_is_not_read_further() -> None:
    client = Client()
    client.send(b"".join(GET % n for n in range(protocol.MOST_WAITING)))
    assert not client.wire.reading
    client.answer()
    assert client.wire.reading
    client.connection.pause_writing()
    assert not client.wire.reading
    client.loop.now += protocol.STALLED_SECONDS + 1
    client.desk.sweep(client.loop.now)
    assert client.wire.aborted


def test_connection_close_and_http_1_0_end_after_the_answer() -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"):
        client = Client()
        client.send(data + GET % 2)
        assert len(client.requests) == 1
        client.answer()
        assert client.wire.closed


def test_an_upgrade_is_ignored_and_ends_the_connection() -> None:
    client = Client()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" + GET % 2)
    assert client.status() == 200
    assert client.wire.closed


def test_a_client_that_closes_its_side_still_gets_its_answers_and_then_the_end() -> None:
    client = Client()
    client.send(GET % 1 + GET % 2)
    assert client.connection.eof_received()
    assert not client.wire.closed
    assert b"/2:" in client.answer()
    assert client.wire.closed
    torn = Client()
    torn.send(POST[:-1])
    torn.connection.eof_received()
    assert torn.status() == 400


def test_draining_closes_idle_connections_at_once() -> None:
    client = Client()
    client.send(POST[:20])
    client.desk.drain()
    assert not client.wire.closed
    other = Client()
    other.desk.drain()
    assert other.wire.closed
