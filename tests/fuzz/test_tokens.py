"""Whatever bytes stand where a credential should: only the declared refusals, and nothing accepted that nobody issued."""

import base64
import json
from datetime import UTC, datetime, timedelta

from fuzz.mutate import fuzz, inputs
from joserfc import jwk, jwt

from macadam.access.authentication import LONGEST_TOKEN, Credentials, KnownToken, token_digest
from macadam.access.bootstrap import new_secret
from macadam.access.engine import KnownPrincipal
from macadam.access.id_tokens import KeyCache, check
from macadam.access.revocation import Entry, RevocationList, open_list
from macadam.errors import IntegrityError, InvalidInput, NotAuthenticated
from macadam.faces.http import _bearer as bearer_of_control_plane
from macadam.ledger import note as notes
from macadam.serving.desk import _bearer as bearer_of_gateway
from macadam.values import uuid7

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECRETS = [new_secret() for _ in range(3)]
KNOWN = {
    token_digest(secret): KnownToken(id=uuid7(), principal="principal:alice", expires=NOW + timedelta(days=1))
    for secret in SECRETS
}
DOOR = Credentials(KNOWN, {"principal:alice": KnownPrincipal(kind="person")})


def authorization(data: bytes) -> str:
    """Both servers' parsers and the look-up, with a header as it comes from the wire."""
    endings = []
    for token in (_at_control_plane(data), _at_gateway(data)):
        try:
            DOOR.authenticate(token, NOW)
        except NotAuthenticated as error:
            endings.append(error.what[:30])
        else:
            # Whoever is let in has sent a secret that was issued, whole, behind the word Bearer.
            assert token in SECRETS
            scheme, _, sent = data.partition(b" ")
            assert scheme.lower() == b"bearer"
            assert sent.decode("latin-1").strip() == token
            endings.append("accepted")
    return ", ".join(endings)


def _at_control_plane(data: bytes) -> str:
    return bearer_of_control_plane({"authorization": data.decode("latin-1")})


def _at_gateway(data: bytes) -> str:
    try:
        return bearer_of_gateway(data)
    except NotAuthenticated:
        return ""


def test_no_authorization_header_lets_anybody_in_who_has_no_secret() -> None:
    corpus = [f"Bearer {secret}".encode() for secret in SECRETS]
    corpus += [
        b"",
        b"Bearer",
        b"bearer  " + SECRETS[0].encode() + b" ",
        b"Basic eDp5",
        b"Bearer " + b"x" * LONGEST_TOKEN,
    ]
    words = [b"Bearer ", b"bearer", b"mcd_", b" ", b"\t", b"\x00", b",", SECRETS[1].encode(), SECRETS[0].encode() * 6]
    ran = fuzz(authorization, corpus, count=inputs(20_000), words=words)
    assert any("accepted" in ending for ending in ran.endings)
    assert any("not valid" in ending for ending in ran.endings)


KEY = jwk.ECKey.generate_key("P-256", {"kid": "k"})
CLAIMS = {
    "iss": "https://op.example", "aud": ["macadam", "other"], "azp": "macadam", "sub": "alice",
    "exp": int(NOW.timestamp()) + 300, "iat": int(NOW.timestamp()), "nonce": "n",
}  # fmt: skip
SIGNED = jwt.encode({"alg": "ES256", "kid": "k"}, CLAIMS, KEY, algorithms=["ES256"])
KEYS = KeyCache(lambda: json.dumps({"keys": [KEY.as_dict(private=False)]}).encode())


def id_token(data: bytes) -> str:
    token = data.decode("latin-1")
    try:
        check(token, KEYS, issuer="https://op.example", client="macadam", nonce="n", access_token="", now=NOW)
    except NotAuthenticated as error:
        return error.what
    assert token == SIGNED
    return "accepted"


def test_no_id_token_is_believed_that_the_provider_did_not_sign() -> None:
    def unsigned(header: object, claims: object = CLAIMS) -> bytes:
        raw = [json.dumps(part).encode() for part in (header, claims)]
        return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (*raw, b"x" * 64))

    corpus = [SIGNED.encode(), unsigned({"alg": "none"}), unsigned({"alg": "ES256", "kid": "k"}), unsigned([]), b""]
    words = [b".", b"eyJ", b"e30", b"=", b"bm9uZQ", b"SFMyNTY"]
    ran = fuzz(id_token, corpus, count=inputs(8_000), words=words)
    assert ran.endings["accepted"] >= 1
    assert len(ran.endings) > 5


SIGNER = notes.SignerKey("macadam-revocations", bytes(32))
LIST = RevocationList(
    number=7,
    issued=NOW,
    expires=NOW + timedelta(hours=1),
    entries=tuple(Entry(token=uuid7(), at=NOW, by=by) for by in ("-", "offline:ann")),
)


def revocations(data: bytes) -> str:
    try:
        found = open_list(data, SIGNER.verifier)
    except (InvalidInput, IntegrityError) as error:
        return error.what[:40]
    assert found == LIST
    return "accepted"


def test_no_revocation_list_is_taken_that_the_home_did_not_sign() -> None:
    whole = str(notes.sign(str(LIST), SIGNER)).encode()
    empty = RevocationList(number=1, issued=NOW, expires=NOW)
    forged = str(notes.sign(str(empty), notes.SignerKey("macadam-revocations", b"x" * 32))).encode()
    ran = fuzz(
        revocations, [whole, forged], count=inputs(8_000), words=["— ".encode(), b"\n\n", b"macadam revocations v1"]
    )
    assert ran.endings["accepted"] >= 1
    assert len(ran.endings) > 5
