"""The link: the control plane for workloads on other machines, over mutual TLS.

The same operations as on the plain port, but the caller is who its certificate says. Without a certificate one call is
taken: asking for the first one, with a joining token.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macadam.access import spiffe, workloads
from macadam.access.spiffe import Peer, SpiffeId, Svid
from macadam.access.tls import Identity, peer_of
from macadam.app.platform import Platform
from macadam.errors import Busy, MacadamError, NotAuthenticated, NotFound, SettingInvalid
from macadam.faces import logs
from macadam.faces.http import PEER, ControlPlane
from macadam.serving import answers
from macadam.serving.protocol import Connection, Desk, Incoming, Strangers
from macadam.settings import Settings
from macadam.values import utc_now

if TYPE_CHECKING:
    import ssl

OPERATIONS = b"/api/"
CERTIFY = b"/api/v1/workloads/certify"
MOST_BODY = 72 * 1024 * 1024
"""Bytes: a delivered segment in base64."""
_STRANGERS = Strangers(connections=64, body=64 * 1024)
"""Who has no certificate yet asks for one, in a few kilobytes."""
_HANDSHAKE_SECONDS = 10.0
"""For the first and the last words of TLS."""
_LOOK_SECONDS = 5.0
"""Between two looks at the certificate files."""
_AUTHORITIES_SECONDS = 600.0
"""Between two looks at the authorities themselves, which lie in the secrets store."""
_log = logging.getLogger(logs.LOGGER)


class LinkServer:
    """Serves until `close`. Renews its own certificate, and takes over what an external SPIFFE agent renews."""

    def __init__(self, platform: Platform, app: ControlPlane) -> None:
        settings = platform.settings
        self._platform = platform
        self._app = app
        self._external = bool(settings.link.svid_dir)
        self._identity = Identity(_directory(settings))
        self._desk = Desk(
            submit=self._take, max_body=MOST_BODY, most_connections=256, most_waiting=2, strangers=_STRANGERS
        )
        self._present: ssl.SSLContext
        self._trusted: frozenset[bytes] = frozenset()
        self._ask_again = float("-inf")
        self._lines: dict[Connection, deque[Incoming]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Raises Busy if the port is taken, SettingInvalid if there is no usable certificate."""
        loop = asyncio.get_running_loop()
        place = self._platform.settings.link
        await asyncio.to_thread(self._renew)
        self._identity.changed()
        context = self._present = self._context()

        def present_newest(tls: "ssl.SSLObject | ssl.SSLSocket", _name: str | None, _context: "ssl.SSLContext") -> None:
            tls.context = self._present

        # The server keeps its first context; each handshake goes on with the newest, which trusts no one else.
        context.sni_callback = present_newest
        try:
            server = await loop.create_server(
                lambda: Connection(self._desk, loop),
                place.host,
                place.port,
                ssl=context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_HANDSHAKE_SECONDS,
                reuse_address=True,
            )
        except OSError as error:
            raise Busy(
                f"Port {place.port} at {place.host} cannot be used for the link: {error.strerror}.",
                next_step="Choose another with MACADAM_LINK_PORT.",
            ) from error
        try:
            while True:
                for _ in range(int(_LOOK_SECONDS)):
                    await asyncio.sleep(1.0)
                    self._desk.sweep(loop.time())
                await self.follow()
        finally:
            server.close()
            self._desk.drain()
            for task in self._tasks:
                task.cancel()

    async def follow(self) -> None:
        """New files hold for the connections that come; a pair that does not fit leaves the old one in force."""
        try:
            await asyncio.to_thread(self._renew)
            if self._identity.changed():
                trusted = self._trusted
                self._present = self._context()
                if trusted - self._trusted:  # who was vouched for by an authority that is gone proves itself anew
                    for connection in list(self._desk.connections):
                        connection.end_if_idle()
                _log.info("the link presents a new certificate", extra={"facts": {"id": str(self._identity.id)}})
        except MacadamError as error:
            _log.error("the link's certificate was not renewed", extra={"facts": {"detail": str(error)}})

    def _context(self) -> "ssl.SSLContext":
        made = self._identity.context(server=True, demands_client=False)
        self._trusted = frozenset(self._identity.authorities.split(b"-----END CERTIFICATE-----"))
        return made

    def _renew(self) -> None:
        """The control plane certifies itself; an external agent's files are only read."""
        if self._external:
            return
        now = utc_now()
        try:
            fresh = now < spiffe.half_life(self._identity.certificates)
            if fresh and time.monotonic() < self._ask_again:
                return
            trusted = workloads.trusted(self._platform.ports, now)
            self._ask_again = time.monotonic() + _AUTHORITIES_SECONDS
            # A new authority must be trusted here before it signs for anybody.
            if fresh and self._identity.authorities == trusted:
                return
        except SettingInvalid:
            _log.info("the link gets its first certificate")
            trusted = workloads.trusted(self._platform.ports, now)
        identity = SpiffeId(self._platform.settings.link.trust_domain, workloads.CONTROL_PLANE)
        key = spiffe.new_key()
        authority = workloads.signing(self._platform.ports, now)
        certificate = authority.certify(spiffe.signing_request(key), identity, now, timedelta(days=1))
        self._identity.keep(Svid(certificates=certificate, key=key), trusted)

    # --- requests, one after another on each connection

    def _take(self, request: Incoming) -> None:
        line = self._lines.get(request.connection)
        if line is not None:
            line.append(request)
            return
        self._lines[request.connection] = deque([request])
        task = asyncio.get_running_loop().create_task(self._answer_line(request.connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_line(self, connection: Connection) -> None:
        line = self._lines[connection]
        try:
            while line:
                request = line[0]
                data = request.answer if request.fixed else await self._answer_safely(request)
                if not request.keep_alive and not request.fixed:
                    data = answers.closing(data)
                line.popleft()
                connection.send(data, last=not request.keep_alive)
                connection.answered(1)
        finally:
            del self._lines[connection]

    async def _answer_safely(self, request: Incoming) -> bytes:
        """Whatever happens, there is an answer: without one the connection would wait for ever, and be counted."""
        try:
            return await self._answer(request)
        except Exception as error:  # noqa: BLE001 - the face's last resort: logged, and told without a trace
            _log.error("unexpected error", exc_info=error)
            return answers.problem(500, "unexpected", "The platform failed in a way that it does not know.")

    async def _answer(self, request: Incoming) -> bytes:
        try:
            scope = _scope(request, _caller(request))
        except (NotAuthenticated, NotFound) as error:
            return answers.of_error(error)
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        head, body = sent[0], b"".join(message.get("body", b"") for message in sent[1:])
        given = dict(head["headers"])
        extra = b"".join(b"%b: %b\r\n" % (n, v) for n, v in given.items() if n not in _OWN_HEADERS)
        return answers.answer(head["status"], given[b"content-type"], body, extra)


_OWN_HEADERS = frozenset({b"content-type", b"content-length"})


def _directory(settings: Settings) -> Path:
    return Path(settings.link.svid_dir) if settings.link.svid_dir else settings.home / "link"


def _caller(request: Incoming) -> Peer | None:
    """Raises NotAuthenticated for callers without a certificate, except for the call that asks for one.

    Raises NotFound for what asks nobody who calls: whom an authority vouches for may still be unknown here.
    """
    certificate = request.connection.peer_certificate
    if certificate is None and request.target == CERTIFY and request.method == b"POST":
        return None
    peer = peer_of(certificate)
    if not request.target.startswith(OPERATIONS):
        raise NotFound("The link has operations only.", next_step="Ask the plain port.")
    return peer


def _scope(request: Incoming, peer: Peer | None) -> MutableMapping[str, Any]:
    path, _, query = request.target.partition(b"?")
    headers = [(b"content-length", b"%d" % len(request.body))]
    if request.authorization and peer is None:
        headers.append((b"authorization", request.authorization))
    return {
        "type": "http",
        "method": request.method.decode("ascii", "replace"),
        "path": path.decode("ascii", "replace"),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "client": (request.connection.peer, 0),
        "extensions": {} if peer is None else {PEER: peer},
    }
