"""`macadam login`, and `macadam tokens revoke --offline`: credentials where no operation's caller is there yet."""

import argparse
import getpass
import html
import http.server
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec

from macadam.access import revoking, sign_in
from macadam.access.oidc import Begun, Logins, Provider
from macadam.app.platform import open_stores
from macadam.errors import InvalidInput, NotAuthenticated, Unavailable
from macadam.faces import problem
from macadam.faces.session import Session, Verb
from macadam.lazy import lazy
from macadam.settings import Settings
from macadam.values import utc_now

if TYPE_CHECKING:
    import httpx
else:
    httpx = lazy("httpx")

_WAIT_SECONDS = 300.0
_CALL_SECONDS = 30.0
_MOST_FIELDS = 20


class Offline(msgspec.Struct, frozen=True, kw_only=True):
    """What was revoked without the database. list: the revocation list's number."""

    token: str
    by: str
    list: int


def _configure_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("token_id", metavar="TOKEN_ID", help="the credential's id, as `macadam tokens list` says it")


def _revoke_offline(options: argparse.Namespace, session: Session) -> int:
    """Whoever may write the home's files and read its key may do this: the file system is what authorises it."""
    if session.url:
        raise InvalidInput(
            f"--offline works on this machine's home, but {session.url} was named.",
            next_step="Unset MACADAM_URL (--url), or run it on that machine.",
        )
    settings = Settings.load(home=session.home)
    if not (settings.home / "objects").is_dir():
        raise InvalidInput(f"There is no home at {settings.home}.", next_step="Name it with --home or MACADAM_HOME.")
    objects, store = open_stores(settings)
    who = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{getpass.getuser()}-at-{socket.gethostname()}")
    made = revoking.revoke_offline(
        objects, store, settings.home, options.token_id, by=f"offline:{who[:70]}", now=utc_now()
    )
    session.say(f"Revoked on every gateway, by list {made.number}. The next start of the control plane records it.")
    if session.json:
        session.show(Offline(token=options.token_id, by=who, list=made.number))
    return 0


REVOKE_OFFLINE = Verb(configure=_configure_offline, run=_revoke_offline)


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed in. token: is printed this once; put it into MACADAM_TOKEN."""

    principal: str
    token: str
    expires: datetime


Start = Callable[[str], Begun]
End = Callable[[str, Mapping[str, str]], SignedIn]


def _configure_login(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")
    parser.add_argument("--port", type=int, help="where the provider sends the browser back to; default: any free one")


def _login(options: argparse.Namespace, session: Session) -> int:
    """RFC 8252: the provider sends the browser back to a port of this machine, on which nobody else listens."""
    start, end = _at_server(session.url) if session.url else _at_home(session)
    with _Listener(getattr(options, "port", 0)) as listener:
        begun = start(listener.address)
        _show(begun.url, browser=not getattr(options, "no_browser", False))
        done = end(begun.ticket, listener.wait())
    if session.json:
        session.show(done)
        return 0
    session.say(f"Signed in as {done.principal} until {done.expires:%Y-%m-%d %H:%M} UTC.")
    session.say(f"export MACADAM_TOKEN={done.token}")
    return 0


def _show(url: str, *, browser: bool) -> None:
    """On stderr: stdout is for the token, which a script may take."""
    sys.stderr.write(f"Sign in at:\n  {url}\n")
    sys.stderr.flush()
    if browser:
        webbrowser.open(url)


def _at_home(session: Session) -> tuple[Start, End]:
    """In process, on the home of this machine."""
    platform = session.platform()
    logins = Logins(Provider(platform.settings.oidc))

    def end(ticket: str, answer: Mapping[str, str]) -> SignedIn:
        identity, _ = logins.finish(ticket, answer)
        issued = sign_in.sign_in(platform.ports, identity, utc_now())
        platform.committed()
        return SignedIn(principal=issued.principal, token=issued.token, expires=issued.expires)

    return logins.begin, end


def _at_server(url: str) -> tuple[Start, End]:
    """A control plane over HTTP: it holds the verifier and the client's secret, this command only the ticket."""
    base = url.rstrip("/")

    def start(redirect: str) -> Begun:
        return msgspec.convert(_post(f"{base}/login/begin", {"redirect": redirect}), Begun)

    def end(ticket: str, answer: Mapping[str, str]) -> SignedIn:
        return msgspec.convert(_post(f"{base}/login/finish", {"ticket": ticket, "answer": answer}), SignedIn)

    return start, end


def _post(url: str, said: Mapping[str, object]) -> Any:
    try:
        answer = httpx.post(url, content=msgspec.json.encode(said), timeout=_CALL_SECONDS)
    except httpx.TransportError as error:
        raise Unavailable(
            f"{url} does not answer: {error}.", next_step="Start it with `macadam up`, or correct MACADAM_URL (--url)."
        ) from error
    try:
        told = msgspec.json.decode(answer.content)
    except msgspec.MsgspecError:
        told = {}
    if not answer.is_success:
        raise problem.to_error(told if isinstance(told, dict) else {}, answer.status_code)
    return told


class _Listener:
    """One HTTP server on 127.0.0.1 for one answer. Use as a context manager."""

    def __init__(self, port: int) -> None:
        answers: list[dict[str, str]] = []
        self._answers = answers

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 5.0  # seconds for one request: whoever connects and says nothing must not hold up the browser

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                found = dict(parse_qsl(parts.query, max_num_fields=_MOST_FIELDS)) if len(self.path) < 16_384 else {}  # noqa: PLR2004
                mine = parts.path == "/callback" and "state" in found
                if mine:
                    answers.append(found)
                text = "You can close this page and go back to the terminal." if mine else "Nothing is here."
                body = f"<!doctype html><title>Macadam</title><p>{html.escape(text)}".encode()
                self.send_response(200 if mine else 404)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
                """Says nothing: the query holds the code."""

        self._server = http.server.HTTPServer(("127.0.0.1", port), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/callback"

    def wait(self) -> dict[str, str]:
        """The provider's answer. Raises NotAuthenticated if none comes in time."""
        end = utc_now().timestamp() + _WAIT_SECONDS
        while not self._answers:
            left = end - utc_now().timestamp()
            if left <= 0:
                raise NotAuthenticated(
                    f"Nobody signed in within {_WAIT_SECONDS:g} s.", next_step="Run `macadam login` again."
                )
            self._server.timeout = left
            self._server.handle_request()
        return self._answers[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.server_close()


LOGIN = Verb(configure=_configure_login, run=_login)
