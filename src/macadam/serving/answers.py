"""HTTP/1.1 answers as bytes: heads, problem details (RFC 9457), and the few fixed ones.

Pure. Reading requests is for `protocol`, what to answer for `gateway`.
"""

import http

import msgspec

from macadam.access.rates import refusal_headers
from macadam.errors import MacadamError, RateLimited

JSON = b"application/json"
PROBLEM = b"application/problem+json"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TYPE = "urn:macadam:problem:"
_encode = msgspec.json.Encoder().encode
_STATUS = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_RETRY = b"retry-after: 1\r\n"
_CHALLENGE = b"www-authenticate: Bearer\r\n"


def answer(status: int, media_type: bytes, body: bytes, extra: bytes = b"") -> bytes:
    """A whole answer. extra: header lines, each with its CRLF."""
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        _STATUS[http.HTTPStatus(status)],
        media_type,
        len(body),
        extra,
        body,
    )


def problem(
    status: int, code: str, detail: str, *, next_step: str = "", details: object = None, extra: bytes = b""
) -> bytes:
    """An answer that says what was wrong. extra: header lines, each with its CRLF."""
    said: dict[str, object] = {
        "type": _TYPE + code,
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
    }
    if next_step:
        said["next"] = next_step
    if details:
        said["details"] = details
    if status == http.HTTPStatus.UNAUTHORIZED:
        extra += _CHALLENGE
    elif status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        extra += _RETRY
    return answer(status, PROBLEM, _encode(said), extra)


def of_error(error: MacadamError, status: int = 0) -> bytes:
    """status: 0 = the error's own."""
    extra = b""
    if isinstance(error, RateLimited):
        extra = b"".join(b"%b: %b\r\n" % header for header in refusal_headers(error))
    return problem(
        status or error.status,
        error.code,
        error.what,
        next_step=error.next_step,
        details=error.details or None,
        extra=extra,
    )


def with_header(whole: bytes, line: bytes) -> bytes:
    """The same answer with one more header line, given without its CRLF."""
    head, _, rest = whole.partition(b"\r\n")
    return b"%b\r\n%b\r\n%b" % (head, line, rest)


def closing(whole: bytes) -> bytes:
    """The same answer, saying that the connection ends with it."""
    return with_header(whole, b"connection: close")


def kept(whole: bytes) -> bytes:
    """The same answer for an HTTP/1.0 client that asked to keep the connection."""
    return with_header(whole, b"connection: keep-alive")


def without_body(whole: bytes) -> bytes:
    """The answer to HEAD."""
    return whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
