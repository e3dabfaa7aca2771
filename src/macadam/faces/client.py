"""The typed client over HTTP: `Client(url, token).call(Request(...))` answers like `Platform.call` in process.

Changes carry an idempotency key, so a call that was cut off is retried without doing its work twice.
"""

import random
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from urllib.parse import quote

import msgspec

from macadam import operations
from macadam.errors import MacadamError, Unavailable
from macadam.faces import fields, problem
from macadam.lazy import lazy
from macadam.operations import UNDECLARED, Declared, Operation, Progress, Request
from macadam.values import uuid7

if TYPE_CHECKING:
    import httpx
else:
    httpx = lazy("httpx")

R = TypeVar("R")
_CONNECT_SECONDS = 5.0
_FIRST_WAIT = 0.1  # seconds; doubles with each retry
_NO_BODY = ("GET", "DELETE")


class Client:
    """A server's operations.

    url: such as http://127.0.0.1:8480. timeout: seconds to wait for an answer; training runs inside a call, so the
    default is an hour. retries: how often a temporary failure is tried again. declared: what the calls are for, and
    from where, for policies that ask. sleep and transport: given in tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 3600.0,
        retries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        transport: "httpx.BaseTransport | None" = None,
        declared: Declared = UNDECLARED,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._declared = declared
        self._retries = retries
        self._sleep = sleep
        self._http = httpx.Client(timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS), transport=transport)

    def call(self, request: Request[R], *, idempotency_key: str = "") -> R:
        """Runs the operation that the request's type belongs to. Raises what `macadam.errors` says."""
        answer = self.dispatch(
            _operation_of(type(request)), msgspec.to_builtins(request), idempotency_key=idempotency_key
        )
        return cast("R", answer)

    def dispatch(
        self,
        operation: Operation,
        arguments: Mapping[str, object],
        *,
        idempotency_key: str = "",
        progress: Progress | None = None,
    ) -> Any:
        """Like `call`, with the request as plain values. progress: not reported over HTTP."""
        del progress
        path, rest = _addressed(operation, arguments)
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        if self._declared.purpose:
            headers["x-macadam-purpose"] = self._declared.purpose
        if self._declared.location:
            headers["x-macadam-location"] = self._declared.location
        if operation.changes:
            headers["idempotency-key"] = idempotency_key or uuid7()
        body: bytes | None = None
        query: dict[str, Any] = {}
        if operation.method in _NO_BODY:
            query = {name: _query_value(value) for name, value in rest.items() if value is not None}
        else:
            body = msgspec.json.encode(rest)
            headers["content-type"] = "application/json"
        answer = self._send(operation.method, path, headers, query, body)
        return msgspec.json.decode(answer, type=operation.request.response_type())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(
        self, method: str, path: str, headers: dict[str, str], query: dict[str, Any], body: bytes | None
    ) -> bytes:
        wait = _FIRST_WAIT
        for left in range(self._retries, -1, -1):
            try:
                return self._once(method, path, headers, query, body)
            except MacadamError as error:
                if not left or not problem.is_temporary(error):
                    raise
            # Full jitter: callers that failed together do not come back together.
            self._sleep(random.uniform(0, wait))  # noqa: S311 - spreads load, guards nothing
            wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, path: str, headers: dict[str, str], query: dict[str, Any], body: bytes | None
    ) -> bytes:
        try:
            answer = self._http.request(method, self.url + path, headers=headers, params=query, content=body)
        except httpx.TransportError as error:
            raise Unavailable(
                f"{self.url} does not answer: {error}.",
                next_step="Start it with `macadam up`, or correct MACADAM_URL (--url).",
            ) from error
        if answer.is_success:
            return answer.content
        raise problem.to_error(_problem(answer), answer.status_code)


def _operation_of(request: type[Request[Any]]) -> Operation:
    try:
        return operations.of_request(request)
    except KeyError:  # the request's type was imported without the room that handles it
        operations.load()
        return operations.of_request(request)


def _problem(answer: "httpx.Response") -> dict[str, object]:
    try:
        said = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _addressed(operation: Operation, arguments: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The path with its fields filled in, and the fields that are not in it."""
    named = fields.in_path(operation)
    filled = operation.path.format(**{name: quote(str(arguments.get(name, "")), safe="") for name in named})
    return filled, {name: value for name, value in arguments.items() if name not in named}


def _query_value(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
        return [_query_value(v) for v in value]
    if isinstance(value, (dict, list, tuple)):
        return msgspec.json.encode(value).decode()
    return str(value)
