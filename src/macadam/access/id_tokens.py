"""What an ID token must show before it is believed (OpenID Connect Core 1.0, 3.1.3.7), and the keys it is checked with.

No input of the token chooses how it is checked: algorithms are a list, keys come from the provider's key set only.
"""

import base64
import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.errors import MacadamError, NotAuthenticated, Unavailable
from macadam.lazy import lazy

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from joserfc import errors as jose_errors
    from joserfc import jwk, jws
else:
    exceptions = lazy("cryptography.exceptions")
    ed25519 = lazy("cryptography.hazmat.primitives.asymmetric.ed25519")
    jwk = lazy("joserfc.jwk")
    jws = lazy("joserfc.jws")
    jose_errors = lazy("joserfc.errors")

_log = logging.getLogger(__name__)
Claims = Mapping[str, Any]

# Signature algorithms that are taken (RFC 7518, RFC 8037), with the key and the hash (for at_hash) of each. Never
# `none`, never HS*: a public key taken for a shared secret would let anybody sign.
ALGORITHMS: dict[str, tuple[str, str, str]] = {
    "RS256": ("RSA", "", "sha256"),
    "RS384": ("RSA", "", "sha384"),
    "RS512": ("RSA", "", "sha512"),
    "PS256": ("RSA", "", "sha256"),
    "PS384": ("RSA", "", "sha384"),
    "PS512": ("RSA", "", "sha512"),
    "ES256": ("EC", "P-256", "sha256"),
    "ES384": ("EC", "P-384", "sha384"),
    "ES512": ("EC", "P-521", "sha512"),
    "EdDSA": ("OKP", "Ed25519", "sha512"),
    "Ed25519": ("OKP", "Ed25519", "sha512"),  # the same by its name of RFC 9864
}
LEEWAY = 60.0
"""Seconds that two clocks may differ."""
_OLDEST = 600.0
"""Seconds since the token was issued: it comes straight from the provider, so an old one is a stored one."""
_LONGEST = 32 * 1024
_MOST_KEYS = 100
_FRESH_SECONDS = 600.0
_HARD_SECONDS = 86_400.0
"""How long keys are used while the provider does not answer: beyond, a key that was withdrawn would live on."""
_REFETCH_SECONDS = 30.0
"""Between two looks for an unknown key: what a forger writes into a header must not hammer the provider."""
_RSA_BYTES = 2048 // 8
_PART = re.compile(rb"[A-Za-z0-9_-]+", re.ASCII)
_PARTS = 3
_LAST_TIME = 1e12
"""Seconds since 1970: beyond any date, and well below what no float holds."""


class KeyCache:
    """A provider's keys. fetch: returns its key set (RFC 7517) as bytes; clock: monotonic seconds."""

    def __init__(self, fetch: Callable[[], bytes], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: list[Mapping[str, Any]] = []
        self._fetched = self._tried = float("-inf")
        self._lock = threading.Lock()

    def find(self, key_id: str, algorithm: str) -> Mapping[str, Any]:
        """The key that fits; an unknown id is looked for at the provider once, and not again for a while.

        Raises NotAuthenticated if there is none, Unavailable if no key set can be had.
        """
        with self._lock:
            if self._clock() - self._fetched > _FRESH_SECONDS:
                self._refresh()
            found = _fitting(self._keys, key_id, algorithm)
            if found is None and self._clock() - self._tried > _REFETCH_SECONDS:
                self._refresh()
                found = _fitting(self._keys, key_id, algorithm)
        if found is None:
            raise refused("it is signed with a key that the provider does not have")
        return found

    def renew(self) -> bool:
        """Looks whether the provider has other keys now, unless it did so a moment ago. Whether it looked."""
        with self._lock:
            if self._clock() - self._tried <= _REFETCH_SECONDS:
                return False
            self._refresh()
            return True

    def _refresh(self) -> None:
        """Keeps the old keys if the provider does not answer, up to their limit."""
        limited = self._clock() - self._tried < _REFETCH_SECONDS
        if not limited:
            self._tried = self._clock()
            try:
                self._keys = _parsed(self._fetch())
                self._fetched = self._clock()
            except MacadamError as error:
                _log.warning("the sign-in provider's keys cannot be renewed: %s", error)
        if self._clock() - self._fetched > _HARD_SECONDS:
            self._keys = []
            raise Unavailable("The sign-in provider's keys cannot be had.", next_step="Try again in a minute.")


def _parsed(raw: bytes) -> list[Mapping[str, Any]]:
    """Raises Unavailable for what is no key set."""
    try:
        said: Any = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable("The sign-in provider's key set is not JSON.") from error
    keys = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(keys, list) or len(keys) > _MOST_KEYS:
        raise Unavailable("The sign-in provider's key set has no list of keys, or too many.")
    return [key for key in keys if isinstance(key, dict)]


def _fitting(keys: list[Mapping[str, Any]], key_id: str, algorithm: str) -> Mapping[str, Any] | None:
    """Without an id, the one key that fits; if several do, none: guessing is not checking."""
    kind, curve, _ = ALGORITHMS[algorithm]
    fitting = [
        key
        for key in keys
        if key.get("kty") == kind
        and (not curve or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and (not key_id or key.get("kid") == key_id)
    ]
    return fitting[0] if len(fitting) == 1 else None


def check(
    token: str,
    keys: KeyCache,
    *,
    issuer: str,
    client: str,
    nonce: str,
    access_token: str,
    now: datetime,
) -> Claims:
    """The claims of a genuine ID token of this login. Raises NotAuthenticated, Unavailable.

    The numbers are the steps of Core 1.0, 3.1.3.7.
    """
    header, claims = _opened(token)
    algorithm = str(header["alg"])
    _verify_with(keys, token, str(header.get("kid", "")), algorithm)  # 6, 7, 8
    if claims.get("iss") != issuer:  # 2
        raise refused("another provider issued it")
    _check_audience(claims, client)  # 3, 4, 5
    _check_times(claims, now.timestamp())  # 9, 10
    told = claims.get("nonce")
    if not isinstance(told, str) or not hmac.compare_digest(
        told.encode("utf-8", "surrogatepass"), nonce.encode()
    ):  # 11
        raise refused("it belongs to another login")
    if "at_hash" in claims:  # 3.1.3.8
        digest = hashlib.new(ALGORITHMS[algorithm][2], access_token.encode()).digest()
        half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
        if not hmac.compare_digest(str(claims["at_hash"]).encode("utf-8", "surrogatepass"), half):
            raise refused("the access token beside it is another one's")
    return claims


def subject(claims: Claims, claim: str) -> str:
    """The value that names the person. Raises NotAuthenticated, also for an e-mail address that nobody has checked."""
    value = claims.get(claim)
    if not isinstance(value, str) or not value or len(value) > 300 or not value.isprintable():  # noqa: PLR2004 - the column's size
        raise refused(f"it has no claim {claim!r} that could name anybody")
    if claim == "email" and claims.get("email_verified") is not True:
        raise refused("its e-mail address is not verified by the provider")
    return value


def _opened(token: str) -> tuple[Mapping[str, Any], Claims]:
    """Header and claims, believed by nobody yet. Raises NotAuthenticated."""
    if len(token) > _LONGEST or not token.isascii():
        raise refused("it is too long or no text")
    parts = token.encode().split(b".")
    if len(parts) != _PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise refused("it does not consist of three parts")
    header, claims = _object(parts[0]), _object(parts[1])
    if not isinstance(header.get("alg"), str) or header["alg"] not in ALGORITHMS:
        raise refused("its algorithm is not one that is taken")
    if "crit" in header or "b64" in header:  # RFC 7515, 4.1.11: what is critical and not understood is refused
        raise refused("its header demands what is not known here")
    if not isinstance(header.get("kid", ""), str):
        raise refused("its key id is no text")
    return header, claims


def _object(part: bytes) -> Mapping[str, Any]:
    try:
        data = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
        if base64.urlsafe_b64encode(data).rstrip(b"=") != part:
            raise refused("it is not in the one spelling of base64")
        said: Any = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:  # binascii's, msgspec's and UTF-8's
        raise refused("it is not JSON") from error
    if not isinstance(said, dict):
        raise refused("it is no JSON object")
    return said


def _verify_with(keys: KeyCache, token: str, key_id: str, algorithm: str) -> None:
    """Raises NotAuthenticated, Unavailable.

    A provider with one key may leave its id out, so that a new key shows only by a signature that does not fit.
    """
    try:
        _verify(token, keys.find(key_id, algorithm), algorithm)
    except NotAuthenticated:
        if key_id or not keys.renew():
            raise
        _verify(token, keys.find(key_id, algorithm), algorithm)


def _verify(token: str, key: Mapping[str, Any], algorithm: str) -> None:
    """Raises NotAuthenticated."""
    # The public half only, whatever else stands in the key set.
    public = {name: key[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in key}
    if public.get("kty") == "RSA" and len(str(public.get("n", ""))) * 3 // 4 < _RSA_BYTES:
        raise refused("its key is too short")
    try:
        if public.get("kty") == "OKP":
            # Below the library: it warns of the name EdDSA, which providers still write.
            _verify_ed25519(token, str(public["x"]))
        else:
            jws.deserialize_compact(token, jwk.import_key(public), algorithms=[algorithm])
    except exceptions.InvalidSignature as error:
        raise refused("its signature is wrong") from error
    except (jose_errors.JoseError, ValueError, TypeError, KeyError) as error:
        raise refused("its signature is wrong") from error


def _verify_ed25519(token: str, public: str) -> None:
    """RFC 8037, 3.1. Raises InvalidSignature, ValueError."""
    body, _, signature = token.rpartition(".")
    key, value = (base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) for text in (public, signature))
    if base64.urlsafe_b64encode(value).rstrip(b"=") != signature.encode():
        raise ValueError("the signature is not in the one spelling of base64")
    ed25519.Ed25519PublicKey.from_public_bytes(key).verify(value, body.encode())


def _check_audience(claims: Claims, client: str) -> None:
    said = claims.get("aud")
    audiences = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    if client not in audiences:
        raise refused("it is meant for another client")
    authorised = claims.get("azp")
    if (len(audiences) > 1 or authorised is not None) and authorised != client:
        raise refused("another client asked for it")


def _check_times(claims: Claims, now: float) -> None:
    """Raises NotAuthenticated. NumericDates may have fractions (RFC 7519, 2); infinities and booleans are no times."""
    expires, issued, begins = (_time(claims, name) for name in ("exp", "iat", "nbf"))
    if expires is None or issued is None:
        raise refused("it does not say when it was issued and when it expires")
    if expires + LEEWAY <= now:
        raise refused("it has expired")
    if issued - LEEWAY > now or (begins is not None and begins - LEEWAY > now):
        raise refused("it comes from the future")
    if now - issued > _OLDEST + LEEWAY:
        raise refused("it was issued too long ago")


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LAST_TIME:
        return None
    return float(value)


def refused(why: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"The ID token is not believed: {why}.", next_step="Begin again: `macadam login`, or /login."
    )
