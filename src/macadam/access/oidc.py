"""Signs people in through an OpenID Connect provider: the code flow with PKCE, and what an ID token must show.

OpenID Connect Core 1.0, Discovery 1.0, RFC 7636 (PKCE), RFC 8252 (native apps), RFC 9207 (issuer in the answer), RFC
9700 (best practice). This file proves an identity; who that is here, and their token, are for `sign_in`.
"""

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import msgspec

from macadam.access.id_tokens import Claims, KeyCache, check, subject
from macadam.errors import NotAuthenticated, SettingInvalid, Unavailable
from macadam.lazy import lazy
from macadam.settings import Oidc
from macadam.values import utc_now

if TYPE_CHECKING:
    import httpx
else:
    httpx = lazy("httpx")

_SECONDS = 5.0
"""For one answer of the provider: somebody waits in front of it."""
_MOST_BYTES = 256 * 1024
"""Of a provider's answer: documents and key sets have some kilobytes."""
_METADATA_SECONDS = 3600.0
_PENDING_SECONDS = 600.0
"""From the beginning of a login to its end: a person may have to look for a second factor."""
_MOST_PENDING = 10_000
"""Logins that were begun and not ended: some 5 MB. Beyond, the oldest is forgotten."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LONGEST = 4096


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider says about itself (Discovery 1.0, section 3), as far as it is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    code_challenge_methods_supported: tuple[str, ...] = ("S256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """An identity that the provider vouches for. identity: the value of the configured claim."""

    issuer: str
    identity: str
    groups: tuple[str, ...] = ()


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """A login to be ended. url: where the person signs in; ticket: proves to `finish` who began it, and is secret."""

    url: str
    ticket: str


class _Pending(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    nonce: str
    verifier: str
    redirect: str
    goal: str
    began: float


class _TokenAnswer(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str = ""


class Provider:
    """One provider over HTTP: its metadata and keys, kept as long as they are good.

    transport, clock: given in tests. clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Oidc,
        *,
        transport: "httpx.BaseTransport | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SettingInvalid if the issuer is missing or may not be trusted with a password."""
        _require_sound(settings)
        self.settings = settings
        self._clock = clock
        self._transport = transport
        self._lock = threading.Lock()
        self._metadata: Metadata | None = None
        self._metadata_until = 0.0
        self.keys = KeyCache(lambda: self.fetch(self.metadata().jwks_uri), clock=clock)

    def metadata(self) -> Metadata:
        """Raises Unavailable if it cannot be had and none was seen before."""
        with self._lock:
            if self._metadata is not None and self._clock() < self._metadata_until:
                return self._metadata
            try:
                self._metadata = self._discover()
            except Unavailable:
                if self._metadata is None:
                    raise  # else what was known goes on: endpoints rarely move, and a wrong one answers nothing
            self._metadata_until = self._clock() + _METADATA_SECONDS
            return self._metadata

    def _discover(self) -> Metadata:
        issuer = self.settings.issuer
        raw = self.fetch(issuer.rstrip("/") + "/.well-known/openid-configuration")
        try:
            found = msgspec.json.decode(raw, type=Metadata)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable(f"{issuer} does not describe itself as a provider: {error}.") from error
        if found.issuer != issuer:  # Discovery 1.0, 4.3: another one would vouch with this one's name
            raise SettingInvalid(
                f"The provider calls itself {found.issuer[:200]!r}, the setting says {issuer!r}.",
                next_step="Set MACADAM_OIDC_ISSUER to exactly what the provider says, if it is the one that you mean.",
            )
        if "S256" not in found.code_challenge_methods_supported:
            raise SettingInvalid(
                f"{issuer} offers no PKCE with S256.",
                next_step="Switch it on at the provider; plain codes can be stolen.",
            )
        for url in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
            _require_safe(url)
        return found

    def fetch(self, url: str) -> bytes:
        """GET. Raises Unavailable."""
        return self._request("GET", url)

    def redeem(self, code: str, verifier: str, redirect: str) -> _TokenAnswer:
        """Exchanges a code for tokens. Raises NotAuthenticated if the provider refuses it, Unavailable."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": verifier,
            "client_id": self.settings.client_id,
        }
        found = self.metadata()
        raw = self._request("POST", found.token_endpoint, form=form, secret=self._secret(), metadata=found)
        try:
            return msgspec.json.decode(raw, type=_TokenAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _refused("The provider's answer holds no ID token.") from error

    def _secret(self) -> str:
        path = self.settings.client_secret_file
        if not path:
            return ""
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingInvalid(
                f"The client secret's file {path} cannot be read.", next_step="Correct MACADAM_OIDC_CLIENT_SECRET_FILE."
            ) from error

    def _request(
        self,
        method: str,
        url: str,
        *,
        form: Mapping[str, str] | None = None,
        secret: str = "",
        metadata: Metadata | None = None,
    ) -> bytes:
        _require_safe(url)
        data = dict(form or {})
        headers = {"accept": "application/json"}
        if secret and metadata is not None:
            if "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
                headers["authorization"] = _basic(self.settings.client_id, secret)
                del data["client_id"]
            else:
                data["client_secret"] = secret
        try:
            # Redirects are not followed: a provider's documents are where it says, and a secret goes nowhere else.
            with (
                httpx.Client(timeout=_SECONDS, transport=self._transport, follow_redirects=False) as http,
                http.stream(method, url, data=data or None, headers=headers) as answer,
            ):
                body = b""
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise Unavailable(f"{url} answers with more than {_MOST_BYTES} bytes.")
                status = answer.status_code
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The sign-in provider does not answer at {url}: {error}.", next_step="Try again in a moment."
            ) from error
        if method == "POST" and status in (400, 401):
            raise _refused(f"The provider does not take the code ({_provider_says(body)}).")
        if status != 200:  # noqa: PLR2004 - HTTP's OK
            raise Unavailable(f"The sign-in provider answers {status} at {url}.", next_step="Try again in a moment.")
        return body


class Logins:
    """Logins that were begun here and not ended yet. In memory: after a restart, they are begun again."""

    def __init__(
        self,
        provider: Provider,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.provider = provider
        self._clock = clock
        self._now = now
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()

    def begin(self, redirect: str, *, goal: str = "") -> Begun:
        """redirect: where the provider sends the person back to. goal: a path of ours to go on to. Raises Unavailable."""
        provider = self.provider
        verifier = secrets.token_urlsafe(48)
        pending = _Pending(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=verifier,
            redirect=redirect,
            goal=local_path(goal),
            began=self._clock(),
        )
        query = {
            "response_type": "code",
            "client_id": provider.settings.client_id,
            "redirect_uri": redirect,
            "scope": provider.settings.scope,
            "state": pending.state,
            "nonce": pending.nonce,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
        at = provider.metadata().authorization_endpoint
        ticket = secrets.token_urlsafe(32)
        with self._lock:
            self._forget_old()
            self._pending[_key(ticket)] = pending
        return Begun(url=f"{at}{'&' if urlsplit(at).query else '?'}{urlencode(query)}", ticket=ticket)

    def finish(self, ticket: str, answer: Mapping[str, str]) -> tuple[Verified, str]:
        """The identity, and the path to go on to. answer: the query that the provider sent the person back with.

        A ticket works once, whatever comes of it. Raises NotAuthenticated, Unavailable.
        """
        with self._lock:
            self._forget_old()
            pending = self._pending.pop(_key(ticket), None) if ticket else None
        if pending is None:
            raise _refused("No login was begun here, or it took too long.")
        _check_answer(answer, pending, self.provider)
        tokens = self.provider.redeem(answer["code"], pending.verifier, pending.redirect)
        settings = self.provider.settings
        claims = check(
            tokens.id_token,
            self.provider.keys,
            issuer=settings.issuer,
            client=settings.client_id,
            nonce=pending.nonce,
            access_token=tokens.access_token,
            now=self._now(),
        )
        return verified(claims, settings), pending.goal

    def _forget_old(self) -> None:
        """Entries are in the order of their beginnings."""
        limit = self._clock() - _PENDING_SECONDS
        while self._pending:
            oldest = next(iter(self._pending))
            if self._pending[oldest].began > limit and len(self._pending) < _MOST_PENDING:
                return
            del self._pending[oldest]


def verified(claims: Claims, settings: Oidc) -> Verified:
    """Whom the claims name. Raises NotAuthenticated."""
    groups = claims.get(settings.groups)
    names = groups if isinstance(groups, list) else []
    return Verified(
        issuer=settings.issuer,
        identity=subject(claims, settings.claim),
        groups=tuple(sorted({g for g in names if isinstance(g, str)})),
    )


def challenge_of(verifier: str) -> str:
    """RFC 7636, 4.2, method S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def local_path(goal: str) -> str:
    """The goal if it is a path of this server, else '': a login page must not send people to strangers."""
    sound = goal.isascii() and goal.isprintable() and "\\" not in goal and len(goal) <= _LONGEST
    parts = urlsplit(goal) if sound and goal.startswith("/") and not goal.startswith("//") else None
    return goal if parts is not None and not parts.scheme and not parts.netloc else ""


def is_loopback(url: str) -> bool:
    """Whether it leads to the caller's own machine, as a command line's does (RFC 8252, 7.3)."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1") and bool(parts.port)
    except ValueError:
        return False


def _check_answer(answer: Mapping[str, str], pending: _Pending, provider: Provider) -> None:
    """The state first: without it, nothing else of the answer is worth looking at. Raises NotAuthenticated."""
    if not hmac.compare_digest(answer.get("state", "").encode(), pending.state.encode()):
        raise _refused("The answer belongs to another login.")
    told = answer.get("iss", "")
    expects = provider.metadata().authorization_response_iss_parameter_supported
    if (told or expects) and told != provider.settings.issuer:  # RFC 9207: another provider's code is not for this one
        raise _refused("The answer comes from another provider.")
    if "error" in answer:
        raise _refused(f"The provider refused the login ({answer['error'][:100]!r}).")
    if not 0 < len(answer.get("code", "")) <= _LONGEST:
        raise _refused("The answer holds no code.")


def _key(ticket: str) -> str:
    """Kept by its hash, so that looking one up says nothing about those that exist."""
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).hexdigest()


def _require_sound(settings: Oidc) -> None:
    if not settings.issuer or not settings.client_id:
        raise SettingInvalid(
            "No sign-in provider is set up.",
            next_step="Set MACADAM_OIDC_ISSUER and MACADAM_OIDC_CLIENT_ID, or use a token (`macadam tokens issue`).",
        )
    _require_safe(settings.issuer)


def _require_safe(url: str) -> None:
    """Raises SettingInvalid if it is neither HTTPS nor this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname and not parts.fragment:
        return
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise SettingInvalid(
        f"{url[:200]!r} is no address that a sign-in can trust.",
        next_step="Use https://; plain HTTP is taken only on this machine.",
    )


def _basic(client: str, secret: str) -> str:
    """RFC 6749, 2.3.1: both are form-encoded first."""
    pair = f"{urlencode({'': client})[1:]}:{urlencode({'': secret})[1:]}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _provider_says(body: bytes) -> str:
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "without saying why"
    return repr(said.get("error", ""))[:100] if isinstance(said, dict) else "without saying why"


def _refused(what: str) -> NotAuthenticated:
    return NotAuthenticated(what, next_step="Begin again: `macadam login`, or /login.")
