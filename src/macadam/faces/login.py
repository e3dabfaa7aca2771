"""Signing in at the control plane: `/login` for browsers, `/login/begin` and `/login/finish` for the command line.

No operation's caller exists yet here, so nothing below goes through the dispatcher: `macadam.access.oidc` proves the
identity, `macadam.access.sign_in` writes the token and its leaf. Every path takes part in the limit by address.
"""

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from macadam.access import sign_in
from macadam.access.oidc import Logins, Provider, is_loopback
from macadam.access.types import IssuedToken
from macadam.app.platform import Platform
from macadam.errors import InvalidInput, NotAuthenticated
from macadam.values import utc_now

T = TypeVar("T")
PATH = "/login"
CALLBACK = "/login/callback"
TICKET_COOKIE = "macadam_login"
SESSION_COOKIE = "macadam_session"
_MOST_FIELDS = 20
_MOST_BODY = 16 * 1024
_PENDING_SECONDS = 600
_NO_STORE = (b"cache-control", b"no-store")

Headers = list[tuple[bytes, bytes]]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What a login path answers with: a redirection if there is a location, else JSON."""

    status: int
    body: bytes = b""
    headers: Headers = []


class Begin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """redirect: http://127.0.0.1:PORT/… of the command line that listens there."""

    redirect: str


class Finish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ticket: from the beginning. answer: the query that the provider sent the person back with."""

    ticket: str
    answer: dict[str, str]


class SignIn:
    """The pages of one control plane. Without a provider set up, each says so. Blocks: call it off the event loop."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._logins: Logins | None = None

    def answer(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Page | None:
        """None: no such path. Raises InvalidInput, NotAuthenticated, SettingInvalid, Unavailable."""
        if (method, path) == ("GET", PATH):
            return self._to_provider(query)
        if (method, path) == ("GET", CALLBACK):
            return self._back(query, headers)
        if (method, path) == ("POST", PATH + "/begin"):
            return self._begin(body)
        if (method, path) == ("POST", PATH + "/finish"):
            return self._finish(body)
        return None

    def _ready(self) -> Logins:
        """Raises SettingInvalid if no provider is set up."""
        if self._logins is None:
            self._logins = Logins(Provider(self._platform.settings.oidc))
        return self._logins

    def _redirect(self) -> str:
        settings = self._platform.settings
        server = settings.server
        host = f"[{server.host}]" if ":" in server.host else server.host
        # Never from the Host header: that is the caller's to write.
        return settings.oidc.redirect or f"http://{host}:{server.port}{CALLBACK}"

    def _to_provider(self, query: str) -> Page:
        begun = self._ready().begin(self._redirect(), goal=_fields(query).get("next", ""))
        cookie = self._cookie(TICKET_COOKIE, begun.ticket, path=PATH, age=_PENDING_SECONDS, site="Lax")
        return Page(status=303, headers=[(b"location", begun.url.encode()), cookie, _NO_STORE])

    def _back(self, query: str, headers: Mapping[str, str]) -> Page:
        """The ticket is in a cookie of the browser that began: an answer that was begun elsewhere ends here."""
        ticket = _cookie_of(headers, TICKET_COOKIE)
        issued, goal = self._finished(ticket, _fields(query))
        ended = self._cookie(TICKET_COOKIE, "", path=PATH, age=0, site="Lax")
        if not goal:
            return Page(status=200, body=_shown(issued), headers=[ended, _NO_STORE])
        age = int((issued.expires - utc_now()).total_seconds())
        # Only pages of the same site send it; the API takes no cookie, so no other site can make it act.
        session = self._cookie(SESSION_COOKIE, issued.token, path="/console", age=age, site="Strict")
        return Page(status=303, headers=[(b"location", goal.encode()), session, ended, _NO_STORE])

    def _begin(self, body: bytes) -> Page:
        asked = _decoded(body, Begin)
        if not is_loopback(asked.redirect):
            raise InvalidInput(
                "A command line's login ends at http://127.0.0.1:PORT/ and nowhere else.",
                next_step="Use `macadam login`, or GET /login in a browser.",
            )
        begun = self._ready().begin(asked.redirect)
        return Page(status=200, body=msgspec.json.encode(begun), headers=[_NO_STORE])

    def _finish(self, body: bytes) -> Page:
        asked = _decoded(body, Finish)
        issued, _ = self._finished(asked.ticket, asked.answer)
        return Page(status=200, body=_shown(issued), headers=[_NO_STORE])

    def _finished(self, ticket: str, answer: Mapping[str, str]) -> tuple[IssuedToken, str]:
        identity, goal = self._ready().finish(ticket, answer)
        issued = sign_in.sign_in(self._platform.ports, identity, utc_now())
        self._platform.committed()
        return issued, goal

    def _cookie(self, name: str, value: str, *, path: str, age: int, site: str) -> tuple[bytes, bytes]:
        secure = "; Secure" if self._redirect().startswith("https://") else ""
        text = f"{name}={value}; Path={path}; Max-Age={age}; HttpOnly; SameSite={site}{secure}"
        return b"set-cookie", text.encode()


def _shown(issued: IssuedToken) -> bytes:
    return msgspec.json.encode({"principal": issued.principal, "token": issued.token, "expires": issued.expires})


def _fields(query: str) -> dict[str, str]:
    """The fields of a query, each once. Raises InvalidInput, NotAuthenticated: two states are an attack on one of them."""
    if len(query) > _MOST_BODY:
        raise InvalidInput("The query is too long.", next_step="Begin again: /login.")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise InvalidInput(
            f"The query has more than {_MOST_FIELDS} fields.", next_step="Begin again: /login."
        ) from error
    if len({name for name, _ in pairs}) != len(pairs):
        raise NotAuthenticated("The answer says something twice.", next_step="Begin again: /login.")
    return dict(pairs)


def _cookie_of(headers: Mapping[str, str], name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _decoded(body: bytes, kind: type[T]) -> T:
    if len(body) > _MOST_BODY:
        raise InvalidInput("The body is too long.", next_step="Use `macadam login`.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"The request does not fit: {error}.", next_step="Use `macadam login`.") from error
