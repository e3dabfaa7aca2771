"""The link: the control plane for workloads on other machines, over mutual TLS.

The same operations as on the plain port, but the caller is who its certificate says. Without a certificate one call is
taken: asking for the first one, with a joining token.
"""

import asyncio
import logging
from collections import deque
from collections.abc import MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macadam.access import spiffe, workloads
from macadam.access.spiffe import Peer, SpiffeId, Svid
from macadam.access.tls import Identity, peer_of
from macadam.app.platform import Platform
from macadam.errors import Busy, MacadamError, NotAuthenticated
from macadam.faces import logs
from macadam.faces.http import PEER, ControlPlane
from macadam.serving import answers
from macadam.serving.protocol import Connection, Desk, Incoming
from macadam.settings import Settings
from macadam.values import utc_now

if TYPE_CHECKING:
    import ssl

CERTIFY = b"/api/v1/workloads/certify"
MOST_BODY = 72 * 1024 * 1024
"""Bytes: a delivered segment in base64."""
_LOOK_SECONDS = 5.0
"""Between two looks at the certificate files."""
_log = logging.getLogger(logs.LOGGER)


class LinkServer:
    """Serves until `close`. Renews its own certificate, and takes over what an external SPIFFE agent renews."""

    def __init__(self, platform: Platform, app: ControlPlane) -> None:
        settings = platform.settings
        self._platform = platform
        self._app = app
        self._external = bool(settings.link.svid_dir)
        self._identity = Identity(_directory(settings))
        self._desk = Desk(submit=self._take, max_body=MOST_BODY, most_connections=256)
        self._lines: dict[Connection, deque[Incoming]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Raises Busy if the port is taken, SettingInvalid if there is no usable certificate."""
        loop = asyncio.get_running_loop()
        place = self._platform.settings.link
        await asyncio.to_thread(self._renew)
        self._identity.changed()
        context = self._identity.context(server=True, demands_client=False)
        try:
            server = await loop.create_server(
                lambda: Connection(self._desk, loop), place.host, place.port, ssl=context, reuse_address=True
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
                await self._follow(context)
        finally:
            server.close()
            self._desk.drain()
            for task in self._tasks:
                task.cancel()

    async def _follow(self, context: "ssl.SSLContext") -> None:
        """New files are taken over by the connections that come; a pair that does not fit leaves the old in force."""
        try:
            await asyncio.to_thread(self._renew)
            if self._identity.changed():
                self._identity.context(server=True)  # refuses what does not fit before it is in force
                self._identity.load_into(context)
                _log.info("the link presents a new certificate", extra={"facts": {"id": str(self._identity.id)}})
        except MacadamError as error:
            _log.error("the link's certificate was not renewed", extra={"facts": {"detail": str(error)}})

    def _renew(self) -> None:
        """The control plane certifies itself; an external agent's files are only read."""
        if self._external:
            return
        now = utc_now()
        try:
            if now < spiffe.half_life(self._identity.certificates):
                return
        except MacadamError:
            _log.info("the link gets its first certificate")
        signing = workloads.authorities(self._platform.ports, now)
        identity = SpiffeId(self._platform.settings.link.trust_domain, workloads.CONTROL_PLANE)
        key = spiffe.new_key()
        certificate = signing[-1].certify(spiffe.signing_request(key), identity, now, timedelta(days=1))
        self._identity.keep(Svid(certificates=certificate, key=key), workloads.trusted(self._platform.ports, now))

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
                data = request.answer if request.fixed else await self._answer(request)
                if not request.keep_alive and not request.fixed:
                    data = answers.closing(data)
                line.popleft()
                connection.send(data, last=not request.keep_alive)
                connection.answered(1)
        finally:
            del self._lines[connection]

    async def _answer(self, request: Incoming) -> bytes:
        try:
            scope = _scope(request, _caller(request))
        except NotAuthenticated as error:
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
    """Raises NotAuthenticated for callers without a certificate, except for the call that asks for one."""
    certificate = request.connection.peer_certificate
    if certificate is None and request.target == CERTIFY and request.method == b"POST":
        return None
    return peer_of(certificate)


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
