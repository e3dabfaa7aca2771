"""The control plane as an ASGI app: every operation at its method and path, plus health, version, OpenAPI, metrics.

Who calls is settled before a body is read. Operations run in threads; slow ones (with a `prepare`) in threads of
their own, so that a training run holds up nobody. Errors are problem details; a stack trace never leaves the log.
"""

import asyncio
import contextvars
import logging
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec

from macadam import __version__, operations
from macadam.access.circumstances import declared
from macadam.access.rates import refusal_headers
from macadam.access.spiffe import Peer
from macadam.app.dispatcher import Credential
from macadam.app.platform import Platform
from macadam.errors import Busy, InvalidInput, MacadamError, NotAuthenticated, NotFound, RateLimited, TooLarge
from macadam.faces import fields, login, logs, metrics, openapi, problem
from macadam.faces.limits import Limits
from macadam.faces.login import SignIn
from macadam.faces.routes import Routes
from macadam.faces.tiled_log import PREFIX as LEDGER
from macadam.faces.tiled_log import TiledLog
from macadam.operations import Declared, Operation
from macadam.values import uuid7

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_log = logging.getLogger(logs.LOGGER)
_QUICK_THREADS = 8
_SLOW_THREADS = 4
_WAITING = {"quick": 256, "slow": 16}  # calls that may wait for a thread: beyond it, "come back later" is honest
_RETRY_AFTER = b"1"  # seconds
_TOKEN_BYTES = 4096
_PATH_BYTES = 4096
_QUERY_BYTES = 16 * 1024
_KEY_CHARACTERS = 200
PEER = "macadam.peer"
"""The ASGI extension under which a server says whom a connection's certificate names."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes back: status, body and headers beside content type and length."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(kw_only=True)
class Inquiry:
    """One HTTP request's head. address: of the peer, '' if there is none; operation: its name once found, for logs."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    receive: Receive
    address: str = ""
    peer: Peer | None = None
    operation: str = ""
    started: float = field(default_factory=time.perf_counter)


class ControlPlane:
    """The ASGI app over one platform. mounts: (path prefix, app) of other faces, tried before the operations."""

    def __init__(self, platform: Platform, *, mounts: Sequence[tuple[str, App]] = ()) -> None:
        self._platform = platform
        self._max_body = platform.settings.server.max_body
        self._mounts = tuple(mounts)
        self._table = operations.table()
        self._routes = Routes(self._table.values())
        self._tiled_log = TiledLog(platform)
        self._openapi = b""
        self.metrics = metrics.Metrics()
        self._limits = Limits(platform.settings.access)
        self._sign_in = SignIn(platform)
        self._quick = _Threads("quick", _QUICK_THREADS)
        self._slow = _Threads("slow", _SLOW_THREADS)
        self._pages: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/health": self._health,
            "/version": self._version,
            "/openapi.json": self._document,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise TypeError(f"the control plane does not speak {scope['type']}")
        for prefix, app in self._mounts:
            if scope["path"] == prefix or scope["path"].startswith(prefix + "/"):
                await app(scope, receive, send)
                return
        inquiry = _inquiry(scope, receive)
        logs.trace.set(logs.trace_of(inquiry.headers.get("traceparent", "")))
        answer = await self._answer(inquiry)
        self._observe(inquiry, answer)
        await _send(send, answer, head_only=inquiry.method == "HEAD")

    def close(self) -> None:
        """Waits for the calls that run. The platform is the opener's to close."""
        self._quick.close()
        self._slow.close()

    async def _answer(self, inquiry: Inquiry) -> Answer:
        """Whatever goes wrong becomes a problem here, and only here."""
        try:
            page = self._pages.get(inquiry.path)
            if page is None and inquiry.path.startswith(LEDGER):
                page = partial(self._ledger, inquiry)
            if inquiry.path == login.PATH or inquiry.path.startswith(login.PATH + "/"):
                return await self._login(inquiry)
            return await (self._operate(inquiry) if page is None else _read_only(inquiry, page))
        except MacadamError as error:
            return _refusal(error)
        except Exception as error:  # noqa: BLE001 - the face's last resort: logged with an id, told without a trace
            number = uuid7()
            _log.error("unexpected error", exc_info=error, extra={"facts": {"id": number, "path": inquiry.path}})
            unexpected = problem.Unexpected(
                "The platform failed in a way that it does not know.",
                next_step=f"Look for the id {number} in the control plane's log.",
                details={"id": number},
            )
            return _refusal(unexpected)

    async def _operate(self, inquiry: Inquiry) -> Answer:
        if len(inquiry.path) > _PATH_BYTES:  # a refusal names what was asked for in a leaf, which has a size too
            raise TooLarge(f"The path is over {_PATH_BYTES} bytes.", next_step="Give large values in the body.")
        if len(inquiry.query) > _QUERY_BYTES:
            raise TooLarge(f"The query is over {_QUERY_BYTES} bytes.", next_step="Give large values in the body.")
        operation, named = self._routes.find(inquiry.method, inquiry.path)
        inquiry.operation = operation.name
        says = declared(inquiry.headers.get("x-macadam-purpose", ""), inquiry.headers.get("x-macadam-location", ""))
        token = inquiry.peer or _bearer(inquiry.headers)
        # 1. Who calls, and may they? Nothing of the body has been read yet.
        caller = await self._admitted(operation, named, token, says, inquiry.address)
        # 2. The request: path, query, body.
        arguments = _arguments(operation, named, inquiry.query)
        arguments.update(await self._body(operation, inquiry, arguments))
        # 3. Through the door. The token is passed as it came: an empty one is nobody, never the local administrator.
        threads = self._slow if operation.prepare else self._quick
        key = _key(inquiry.headers) if operation.changes else ""
        response = await threads.run(
            lambda: self._platform.dispatcher.run(operation, arguments, token=token, idempotency_key=key, declared=says)
        )
        return Answer(status=200, body=msgspec.json.encode(response), headers=self._limits.headers(caller))

    async def _login(self, inquiry: Inquiry) -> Answer:
        """Nobody is known yet, so each step counts against the address."""
        self._limits.charge_stranger(inquiry.address)
        body = await _read_body(inquiry, self._max_body) if inquiry.method == "POST" else b""
        answer = partial(self._sign_in.answer, inquiry.method, inquiry.path, inquiry.query, inquiry.headers, body)
        page = await self._slow.run(answer)  # the provider may take seconds
        if page is None:
            raise NotFound(f"There is nothing at {inquiry.method} {inquiry.path}.", next_step="Begin at GET /login.")
        return Answer(status=page.status, body=page.body, headers=page.headers)

    async def _admitted(
        self, operation: Operation, named: dict[str, str], token: Credential, says: Declared, address: str
    ) -> str:
        """The caller's id. Raises RateLimited for who asks too fast, known or not."""
        admit = partial(self._platform.dispatcher.admit, operation, named, token, says, meter=self._limits.charge)
        try:
            call = await self._quick.run(admit)
        except NotAuthenticated:
            self._limits.charge_stranger(address)
            raise
        return call.actor.id

    async def _body(self, operation: Operation, inquiry: Inquiry, known: dict[str, object]) -> dict[str, object]:
        """The body's fields. Raises TooLarge, InvalidInput."""
        # Over the link a body is whole already, and was held to that server's own limit.
        raw = await _read_body(inquiry, self._max_body if inquiry.peer is None else sys.maxsize)
        if not raw:
            return {}
        if inquiry.method in ("GET", "DELETE"):
            raise InvalidInput(
                f"{inquiry.method} {inquiry.path} takes no body.", next_step="Give the fields in the query."
            )
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(
                f"The body is not JSON: {error}.", next_step="Send one JSON object with the request's fields."
            ) from error
        if not isinstance(body, dict):
            raise InvalidInput(
                f"The body is a JSON {type(body).__name__}, expected an object.",
                next_step="Send one JSON object with the request's fields.",
            )
        for name in body.keys() & known.keys():
            if body[name] != known[name]:
                raise InvalidInput(
                    f"{name} is {known[name]!r} in the path and {body[name]!r} in the body of {operation.name}.",
                    next_step=f"Leave {name} out of the body.",
                    details={"field": name},
                )
        return body

    async def _health(self) -> Answer:
        """Healthy means that the database answers. A ledger that cannot sign is said, and answering goes on."""

        def ask() -> None:
            with self._platform.ports.sql.read() as sql:
                sql.exec_driver_sql("SELECT 1").scalar_one()

        await self._quick.run(ask)
        # The reason may name paths: it is in the log, and not for everyone.
        ledger = "waiting" if self._platform.ledger_failure else "ok"
        ledger = "contradicted" if self._platform.ledger_alarm else ledger
        return _json({"status": "ok", "version": __version__, "ledger": ledger})

    async def _version(self) -> Answer:
        return _json({"name": "macadam", "version": __version__})

    async def _document(self) -> Answer:
        if not self._openapi:
            self._openapi = msgspec.json.encode(openapi.document(self._table.values()))
        return Answer(status=200, body=self._openapi)

    async def _ledger(self, inquiry: Inquiry) -> Answer:
        """The ledger as static resources, for clients that know nothing of operations."""
        inquiry.operation = "ledger.tiles"
        path, token = inquiry.path.removeprefix(LEDGER), _bearer(inquiry.headers)
        try:
            found = await self._quick.run(lambda: self._tiled_log.fetch(path, inquiry.headers, token))
        except NotAuthenticated:
            self._limits.charge_stranger(inquiry.address)
            raise
        return Answer(status=200, body=found.body, media_type=found.media_type, headers=found.headers)

    async def _metrics(self) -> Answer:
        return Answer(status=200, body=self.metrics.text().encode(), media_type=metrics.MEDIA_TYPE)

    def _observe(self, inquiry: Inquiry, answer: Answer) -> None:
        seconds = time.perf_counter() - inquiry.started
        name = inquiry.operation or "none"
        self.metrics.observe(name, answer.status, seconds)
        facts = {
            "method": inquiry.method,
            "path": inquiry.path,
            "operation": name,
            "status": answer.status,
            "seconds": round(seconds, 6),
        }
        _log.info("answered", extra={"facts": facts})


class _Threads:
    """A pool that refuses work rather than let it wait without bound."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._limit = size + _WAITING[name]
        self._inside = 0  # touched by the event loop only
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=f"macadam-{name}")

    async def run(self, work: Callable[[], T]) -> T:
        """Raises Busy if too many calls wait already."""
        if self._inside >= self._limit:
            raise Busy(
                f"The control plane has {self._limit} calls under way.",
                next_step="Run the same call again in a moment.",
            )
        self._inside += 1
        try:
            context = contextvars.copy_context()
            return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: context.run(work))
        finally:
            self._inside -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _inquiry(scope: MutableMapping[str, Any], receive: Receive) -> Inquiry:
    raw_path = scope.get("raw_path")
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if sum(name.lower() == b"authorization" for name, _ in scope["headers"]) > 1:
        headers["authorization"] = ""  # a proxy might have looked at another one than this server would
    return Inquiry(
        method=scope["method"],
        path=raw_path.decode("ascii", "replace") if raw_path else scope["path"],
        query=scope.get("query_string", b"").decode("ascii", "replace"),
        headers=headers,
        receive=receive,
        address=str((scope.get("client") or ("",))[0]),
        peer=scope.get("extensions", {}).get(PEER),
    )


def _bearer(headers: dict[str, str]) -> str:
    """The token of `Authorization: Bearer …`, or '' — which nobody has."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and len(token) <= _TOKEN_BYTES else ""


def _key(headers: dict[str, str]) -> str:
    key = headers.get("idempotency-key", "")
    if len(key) > _KEY_CHARACTERS:
        raise InvalidInput(
            f"The Idempotency-Key has {len(key)} characters, at most {_KEY_CHARACTERS} are kept.",
            next_step="Send a UUID, or a digest of what names the call.",
        )
    return key


def _arguments(operation: Operation, named: dict[str, str], query: str) -> dict[str, object]:
    """Path and query as plain values of their fields' kinds. Raises InvalidInput."""
    known = {field.name: field for field in fields.of_request(operation.request)}
    found = {name: fields.read(known[name], text) for name, text in named.items()}
    for name, texts in parse_qs(query, keep_blank_values=True).items():
        if name not in known or name in named:
            raise InvalidInput(
                f"{operation.name} takes no {name!r} in the query.",
                next_step="Takes: " + (", ".join(n for n in known if n not in named) or "nothing") + ".",
                details={"field": name},
            )
        found[name] = fields.read_all(known[name], texts)
    return found


async def _read_body(inquiry: Inquiry, limit: int) -> bytes:
    """The body, read only as far as it is allowed to be. Raises TooLarge."""
    declared = inquiry.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await inquiry.receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("The caller left before the body was complete.", next_step="Send it again.")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is over {limit} bytes.",
        next_step="Send less at once, or raise MACADAM_MAX_BODY on the server.",
        details={"limit": limit},
    )


async def _read_only(inquiry: Inquiry, page: Callable[[], Awaitable[Answer]]) -> Answer:
    if inquiry.method not in ("GET", "HEAD"):
        raise problem.MethodNotAllowed(
            f"{inquiry.path} takes GET, not {inquiry.method}.", details={"allow": ["GET", "HEAD"]}
        )
    return await page()


def _json(value: object) -> Answer:
    return Answer(status=200, body=msgspec.json.encode(value))


def _refusal(error: MacadamError) -> Answer:
    headers = [(b"cache-control", b"no-store")]  # what is not there, or not for this caller, may be tomorrow
    if error.status == 401:  # noqa: PLR2004 - RFC 9110, 11.6.1: a 401 names the scheme
        headers.append((b"www-authenticate", b'Bearer realm="macadam"'))
    if isinstance(error, RateLimited):
        headers += refusal_headers(error)
    elif problem.is_temporary(error):
        headers.append((b"retry-after", _RETRY_AFTER))
    if isinstance(error, problem.MethodNotAllowed):
        allow = error.details.get("allow")
        headers.append((b"allow", ", ".join(map(str, allow)).encode() if isinstance(allow, list) else b""))
    return Answer(
        status=error.status,
        body=msgspec.json.encode(problem.of_error(error)),
        media_type=problem.MEDIA_TYPE,
        headers=headers,
    )


async def _send(send: Send, answer: Answer, *, head_only: bool) -> None:
    headers = [
        (b"content-type", answer.media_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-trace-id", logs.trace.get().encode()),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else answer.body})
