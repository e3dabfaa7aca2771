"""What an ID token must show: forged, borrowed, stale and malformed ones are refused, whatever they claim."""

import base64
import hashlib
import hmac
import json
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwk, jwt

from macadam.access.id_tokens import KeyCache, check, subject
from macadam.errors import MacadamError, NotAuthenticated, Unavailable

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
T = int(NOW.timestamp())
RSA = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})
OTHER = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})
EC = jwk.ECKey.generate_key("P-256", {"kid": "ec"})
OKP = jwk.OKPKey.generate_key("Ed25519", {"kid": "okp"})
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SHORT = jwk.RSAKey.generate_key(1024, {"kid": "short"})
PUBLIC = [key.as_dict(private=False) for key in (RSA, EC, OKP, SHORT)]
GOOD: dict[str, Any] = {
    "iss": "https://op.example", "aud": "macadam", "sub": "alice", "exp": T + 300, "iat": T, "nonce": "the-nonce",
}  # fmt: skip


def keys_of(keys: list[dict[str, Any]] = PUBLIC) -> KeyCache:
    return KeyCache(lambda: json.dumps({"keys": keys}).encode())


KEYS = keys_of()


def signed(claims: dict[str, Any], key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    head = {"alg": alg, "kid": key.kid or "x", **header}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EdDSA by its old name
        return jwt.encode({k: v for k, v in head.items() if v is not None}, claims, key, algorithms=[alg])


def checked(token: str, keys: KeyCache | None = None, beside: str = "at") -> Any:
    return check(
        token,
        keys or KEYS,
        issuer="https://op.example",
        client="macadam",
        nonce="the-nonce",
        access_token=beside,
        now=NOW,
    )


def parts(header: object, claims: object, signature: bytes = b"x") -> str:
    raw = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in raw)


@pytest.mark.parametrize(
    ("key", "alg"), [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (OKP, "Ed25519"), (OKP, "EdDSA")]
)
def test_a_genuine_token_is_believed_with_each_algorithm(key: Any, alg: str) -> None:
    assert checked(signed(GOOD, key, alg))["sub"] == "alice"


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://evil.example"}, {"iss": None}, {"iss": ["https://op.example"]},
        {"aud": "other"}, {"aud": None}, {"aud": []}, {"aud": ["other"]}, {"aud": {"macadam": 1}},
        {"aud": ["macadam", "other"]}, {"aud": ["macadam", "other"], "azp": "other"}, {"azp": "other"},
        {"exp": T - 61}, {"exp": None}, {"exp": "9999999999"}, {"exp": True}, {"exp": 10**400}, {"exp": 1e300},
        {"iat": T + 61}, {"iat": None}, {"iat": T - 3600}, {"nbf": T + 120}, {"iat": -(10**30)},
        {"nonce": "another"}, {"nonce": None}, {"nonce": ["the-nonce"]}, {"nonce": ""}, {"nonce": "the-nonce\u0000"},
        {"at_hash": "wrong"}, {"at_hash": 1}, {"at_hash": ""},
    ],
    ids=str,
)  # fmt: skip
def test_a_token_that_says_something_wrong_is_refused(change: dict[str, Any]) -> None:
    claims = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(NotAuthenticated, match="is not believed"):
        checked(signed(claims))


def test_clocks_may_differ_by_a_minute_and_several_audiences_name_who_asked() -> None:
    for change in ({"exp": T - 59}, {"iat": T + 59}, {"nbf": T + 59}, {"exp": T + 0.5}, {"azp": "macadam"},
                   {"aud": ["macadam", "other"], "azp": "macadam"}):  # fmt: skip
        assert checked(signed({**GOOD, **change}))


def test_the_hash_of_the_access_token_must_be_that_of_the_one_beside_it() -> None:
    half = base64.urlsafe_b64encode(hashlib.sha256(b"at").digest()[:16]).rstrip(b"=").decode()
    assert checked(signed({**GOOD, "at_hash": half}))
    with pytest.raises(NotAuthenticated, match="access token"):
        checked(signed({**GOOD, "at_hash": half}), beside="another")


def test_a_token_without_a_signature_is_refused_however_it_spells_none() -> None:
    for alg in ("none", "None", "NONE", "nOnE", "", None, 0, ["RS256"], {"alg": "RS256"}):
        for signature in (b"", b"x"):
            with pytest.raises(NotAuthenticated):
                checked(parts({"alg": alg}, GOOD, signature))
    with pytest.raises(NotAuthenticated):
        checked(parts({}, GOOD))


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_the_public_key_is_no_shared_secret(alg: str) -> None:
    """The attack on libraries that take the algorithm from the token: signing with the public key as an HMAC secret."""
    for secret in (RSA.as_pem(private=False), json.dumps(PUBLIC[0]).encode(), PUBLIC[0]["n"].encode()):
        body = parts({"alg": alg, "kid": "rsa"}, GOOD).rpartition(".")[0]
        signature = hmac.digest(secret, body.encode(), f"sha{alg[2:]}")
        forged = f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
        with pytest.raises(NotAuthenticated, match="algorithm"):
            checked(forged)


def test_a_key_that_the_token_brings_itself_is_not_used() -> None:
    mine = OTHER.as_dict(private=False)
    for header in ({"jwk": mine}, {"jku": "https://evil.example/jwks"}, {"x5u": "https://evil.example"}):
        forged = parts({"alg": "RS256", "kid": "rsa", **header}, GOOD)
        with pytest.raises(NotAuthenticated):
            checked(forged)
    with pytest.raises(NotAuthenticated, match="signature"):
        checked(signed(GOOD, OTHER))


def test_a_header_that_demands_what_is_not_known_is_refused() -> None:
    token = parts({"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": False}, GOOD)
    with pytest.raises(NotAuthenticated, match="demands"):
        checked(token)


def test_a_key_for_another_algorithm_curve_or_use_is_not_taken() -> None:
    public = PUBLIC[0]
    for change in ({"alg": "RS512"}, {"use": "enc"}, {"kty": "EC"}, {"kid": "other"}):
        with pytest.raises(NotAuthenticated, match="does not have"):
            checked(signed(GOOD), keys_of([{**public, **change}]))
    with pytest.raises(NotAuthenticated):  # two keys fit, and the token does not say which
        checked(signed(GOOD, kid=None), keys_of([public, OTHER.as_dict(private=False)]))
    with pytest.raises(NotAuthenticated, match="too short"):
        checked(parts({"alg": "RS256", "kid": "short"}, GOOD))


def test_a_changed_byte_of_any_part_is_refused() -> None:
    whole = signed(GOOD, EC, "ES256")
    for position in range(0, len(whole), 7):
        other = "A" if whole[position] != "A" else "B"
        with pytest.raises(NotAuthenticated):
            checked(whole[:position] + other + whole[position + 1 :])


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "a.b.c.d", "é.b.c", "x" * 40_000, "=.=.=", "e30.e30.", "W10.W10.W10", "eyJ9.e30.e30"],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(NotAuthenticated):
        checked(token)


def test_the_claim_that_names_the_person_must_do_so() -> None:
    assert subject(GOOD, "sub") == "alice"
    assert subject({"email": "a@b", "email_verified": True}, "email") == "a@b"
    for claims, claim in (({}, "sub"), ({"sub": 1}, "sub"), ({"sub": ""}, "sub"), ({"sub": "x" * 301}, "sub"),
                          ({"sub": "a\nb"}, "sub"), ({"email": "a@b"}, "email"),
                          ({"email": "a@b", "email_verified": "true"}, "email")):  # fmt: skip
        with pytest.raises(NotAuthenticated):
            subject(claims, claim)


# --- The provider's keys --------------------------------------------------------------------------------------


class Source:
    """A key set that can be rotated, and be down; counts how often it is asked."""

    def __init__(self, *keys: Any) -> None:
        self.keys, self.asked, self.down, self.now = list(keys), 0, False, 1000.0
        self.cache = KeyCache(self.fetch, clock=lambda: self.now)

    def fetch(self) -> bytes:
        self.asked += 1
        if self.down:
            raise Unavailable("Down.")
        return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()


def test_keys_are_asked_for_once_and_again_when_they_are_old() -> None:
    source = Source(RSA)
    for _ in range(50):
        source.cache.find("rsa", "RS256")
    assert source.asked == 1
    source.now += 601
    source.cache.find("rsa", "RS256")
    assert source.asked == 2


def test_an_unknown_key_is_looked_for_once_and_forged_ids_do_not_hammer_the_provider() -> None:
    source = Source(RSA)
    source.cache.find("rsa", "RS256")
    source.now += 31
    source.keys = [EC]
    assert source.cache.find("ec", "ES256")["kid"] == "ec"
    assert source.asked == 2
    for number in range(100):
        source.now += 0.1
        with pytest.raises(NotAuthenticated):
            source.cache.find(f"forged-{number}", "RS256")
    assert source.asked == 2


def test_a_provider_that_is_down_does_not_end_sign_ins_before_the_keys_limit() -> None:
    source = Source(RSA)
    source.cache.find("rsa", "RS256")
    source.down = True
    source.now += 3600 * 23
    assert source.cache.find("rsa", "RS256")["kid"] == "rsa"
    asked = source.asked
    assert source.cache.find("rsa", "RS256")
    assert source.asked == asked  # nor is it asked at each sign-in
    source.now += 3600 * 2
    with pytest.raises(Unavailable):
        source.cache.find("rsa", "RS256")
    source.down = False
    source.now += 31
    assert source.cache.find("rsa", "RS256")


def test_a_withdrawn_key_ends_with_the_next_look() -> None:
    source = Source(RSA, EC)
    source.cache.find("rsa", "RS256")
    source.keys = [EC]
    source.now += 601
    with pytest.raises(NotAuthenticated):
        source.cache.find("rsa", "RS256")


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":' + b"[" * 5000, b"\xff", b'{"keys":[1,null]}']
)
def test_what_is_no_key_set_gives_no_key(raw: bytes) -> None:
    with pytest.raises((Unavailable, NotAuthenticated)):
        KeyCache(lambda: raw).find("rsa", "RS256")


# --- Fuzzing --------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
headers = st.fixed_dictionaries(
    {"alg": st.sampled_from(["RS256", "ES256", "EdDSA", "none", "HS256"]) | values},
    optional={"kid": st.sampled_from(["rsa", "ec", "okp"]) | values, "jwk": values, "crit": values, "typ": values},
)
claim_sets = st.fixed_dictionaries({}, optional={name: st.just(value) | values for name, value in GOOD.items()})


def refused(token: str) -> None:
    with pytest.raises(MacadamError):
        checked(token)


@settings(max_examples=200)
@given(headers, claim_sets, st.binary(max_size=80))
def test_no_token_that_nobody_signed_is_believed(
    header: dict[str, Any], claims: dict[str, Any], signature: bytes
) -> None:
    refused(parts(header, claims, signature))


@settings(max_examples=200)
@given(st.data())
def test_no_change_of_a_genuine_token_is_believed(data: st.DataObject) -> None:
    whole = GENUINE[data.draw(st.integers(0, len(GENUINE) - 1))]
    change: Callable[[], str] = data.draw(st.sampled_from(_changes(whole, data)))
    changed = change()
    if changed != whole:
        refused(changed)


GENUINE = [signed(GOOD), signed(GOOD, EC, "ES256"), signed(GOOD, OKP, "EdDSA")]


def _changes(whole: str, data: st.DataObject) -> list[Callable[[], str]]:
    at = data.draw(st.integers(0, len(whole) - 1))
    text = data.draw(st.text(alphabet="AZaz09-_.=", max_size=6))
    pieces = whole.split(".")
    return [
        lambda: whole[:at] + text + whole[at:],
        lambda: whole[:at] + text + whole[at + 1 :],
        lambda: whole[:at],
        lambda: ".".join(pieces[data.draw(st.integers(0, 2))] for _ in range(3)),
        lambda: whole + "=" * (at % 3) + text,
    ]
