"""For tests of projects and of the platform itself: a platform in a throw-away home, a clock to turn, callers by role.

Nothing here is a mock: the embedded adapters are the reference, and HTTP runs through the real app, without a socket.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from macadam.access.types import CreatePrincipal, GrantRole, IssueToken, Role
from macadam.app.platform import LOCAL_TOKEN, Platform
from macadam.faces.client import Client
from macadam.faces.http import ControlPlane
from macadam.settings import Settings
from macadam.values import require_aware, utc_now

EVERYWHERE = "*"


class Clock:
    """An instant that moves only when it is told to."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.instant = require_aware(start, "The clock's start")

    def __call__(self) -> datetime:
        return self.instant

    def pass_time(self, by: timedelta) -> None:
        self.instant += by


@contextmanager
def open_platform(
    home: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> Iterator[Platform]:
    """A platform on `home`, or on a temporary home that is removed afterwards. The caller is its administrator.

    environment: settings; the process's own environment is not read.
    """
    with tempfile.TemporaryDirectory(prefix="macadam-") as directory:
        place = home or Path(directory) / "home"
        with Platform(Settings.load(environment or {}, home=place), clock=clock) as platform:
            platform._token = local_token(platform)  # noqa: SLF001 - whatever MACADAM_TOKEN of this process says
            yield platform


def local_token(platform: Platform) -> str:
    """The token of the home's own administrator."""
    return platform.ports.secrets.get(LOCAL_TOKEN).decode()


def token_of(
    platform: Platform, principal: str, roles: Mapping[str, Role] | None = None, *, scopes: tuple[str, ...] = ()
) -> str:
    """Makes a principal with these roles (project → role) and returns a token of theirs."""
    made = platform.call(CreatePrincipal(principal=principal))
    for project, role in (roles or {}).items():
        platform.call(GrantRole(project=project, principal=made.id, role=role))
    return platform.call(IssueToken(principal=made.id, scopes=scopes)).token


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the control plane answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Http:
    """The control plane's HTTP face over a platform, without a socket. Use as a context manager.

    It is also an httpx transport, so that `client(token)` gives the real client. address: where calls seem to come from.
    """

    def __init__(self, platform: Platform, *, address: str = "") -> None:
        self.address = address
        self.app = ControlPlane(platform)
        self._runner = asyncio.Runner()

    def request(
        self,
        method: str,
        target: str,
        *,
        token: str = "",
        json: object = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        chunk: int = 1 << 20,
    ) -> Reply:
        """target: path and query. json or body: what is sent, in pieces of `chunk` bytes."""
        sent = {**({"authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        data = body if body is not None else (b"" if json is None else msgspec.json.encode(json))
        return self._runner.run(self._call(method, target, sent, data, chunk))

    def client(self, token: str) -> Client:
        return Client("http://testing", token, transport=_Transport(self), sleep=lambda _seconds: None)

    async def _call(self, method: str, target: str, headers: Mapping[str, str], data: bytes, chunk: int) -> Reply:
        parts = urlsplit(target)
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "method": method,
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "client": (self.address, 50_000) if self.address else None,
        }
        pieces = [data[i : i + chunk] for i in range(0, len(data), chunk)] or [b""]
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return Reply(
            status=sent[0]["status"],
            headers={k.decode(): v.decode() for k, v in sent[0]["headers"]},
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )

    def close(self) -> None:
        self.app.close()
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Transport(httpx.BaseTransport):
    def __init__(self, face: Http) -> None:
        self._face = face

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        reply = self._face.request(
            request.method,
            request.url.raw_path.decode(),
            body=request.read(),
            headers={k: v for k, v in request.headers.items() if k != "content-length"},
        )
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)
