"""SPIFFE ids and the certificates that carry them."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from macadam.access import spiffe
from macadam.access.spiffe import Authority, SpiffeId
from macadam.errors import InvalidInput, NotAuthenticated

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EDGE = SpiffeId("macadam.local", "/workload/edge")


@pytest.fixture(scope="module")
def authority():
    return Authority.create("macadam.local", NOW)


def certified(authority, identity=EDGE, now=NOW):
    return authority.certify(spiffe.signing_request(spiffe.new_key()), identity, now)


def test_a_certificate_names_its_workload_and_ends_within_half_a_day(authority):
    peer = spiffe.check_chain(certified(authority), authority.public_pem, NOW)
    assert peer.id == EDGE
    assert peer.expires == NOW + timedelta(hours=12)


@pytest.mark.parametrize("late", [timedelta(hours=12, seconds=1), timedelta(days=-1)])
def test_a_certificate_is_nothing_before_and_after_its_time(authority, late):
    made = certified(authority)
    assert spiffe.check_chain(made, authority.public_pem, NOW).id == EDGE
    with pytest.raises(NotAuthenticated):
        spiffe.check_chain(made, authority.public_pem, NOW + late)


def test_another_authority_of_the_same_name_vouches_for_nobody(authority):
    stranger = Authority.create("macadam.local", NOW)
    with pytest.raises(NotAuthenticated):
        spiffe.check_chain(certified(stranger), authority.public_pem, NOW)


def test_two_authorities_are_trusted_while_one_takes_over_from_the_other(authority):
    successor = Authority.create("macadam.local", NOW + timedelta(days=183))
    both = authority.public_pem + successor.public_pem
    then = NOW + timedelta(days=184)
    assert not authority.is_half_spent(NOW)
    assert authority.is_half_spent(then)
    for one in (authority, successor):
        assert spiffe.check_chain(certified(one, now=then), both, then).id == EDGE


def test_an_authority_signs_only_under_its_own_domain(authority):
    for other in (SpiffeId("elsewhere", "/workload/edge"), SpiffeId("macadam.local", "")):
        with pytest.raises(InvalidInput, match="no workload of"):
            certified(authority, other)


def test_an_authoritys_own_certificate_is_no_workload(authority):
    der = authority.certificate.public_bytes(serialization.Encoding.DER)
    with pytest.raises(NotAuthenticated, match="no workload's"):
        spiffe.read_peer(der)


def test_what_a_request_asks_for_beside_its_key_is_ignored(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    asks = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://macadam.local/control-plane")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(asks, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = authority.certify(request.public_bytes(serialization.Encoding.PEM).decode(), EDGE, NOW)
    assert spiffe.check_chain(made, authority.public_pem, NOW).id == EDGE


def test_a_request_must_be_signed_by_its_own_key_and_of_curve_p256(authority):
    other = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    keys = (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1()))
    for key in keys:
        text = other.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        with pytest.raises(InvalidInput, match="P-256"):
            authority.certify(text, EDGE, NOW)
    der = bytearray(
        x509.load_pem_x509_csr(spiffe.signing_request(spiffe.new_key()).encode()).public_bytes(
            serialization.Encoding.DER
        )
    )
    der[-1] ^= 1
    with pytest.raises(InvalidInput, match=r"its own key|PKCS"):
        authority.certify(_pem(bytes(der)), EDGE, NOW)
    with pytest.raises(InvalidInput, match="PKCS"):
        authority.certify("nonsense", EDGE, NOW)


def _pem(der: bytes) -> str:

    lines = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n"


def test_two_names_in_one_certificate_name_nobody(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(f"spiffe://macadam.local/workload/{n}") for n in ("a", "b")]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(NotAuthenticated, match="2 URI names"):
        spiffe.read_peer(made.public_bytes(serialization.Encoding.DER))


def test_an_authority_survives_its_secrets_store_and_never_shows_its_key(authority):
    again = Authority(authority.pem)
    assert again.public_pem == authority.public_pem
    assert b"PRIVATE" not in again.public_pem
    assert "PRIVATE" not in repr(again)


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://", "spiffe:///x", "spiffe://Upper/x", "spiffe://d/a//b", "spiffe://d/a/", "spiffe://d/../b", "spiffe://d/./b",
        "spiffe://d:8080/x", "spiffe://u@d/x", "spiffe://d/x?y", "spiffe://d/x#y", "spiffe://d/%41", "https://d/x", "spiffe://d/" + "x" * 2100,
        "spiffe://d/x\n", "spiffe://d\n/x",
    ],
)  # fmt: skip
def test_what_is_no_spiffe_id_is_refused(text):
    with pytest.raises(InvalidInput):
        SpiffeId.parse(text)


_segment = st.text("abcXYZ019.-_", min_size=1, max_size=12).filter(lambda s: s not in (".", ".."))


@given(st.text("abc019.-_", min_size=1, max_size=20), st.lists(_segment, min_size=1, max_size=4))
def test_an_id_reads_back_as_it_was_written(domain, segments):
    made = SpiffeId(domain, "/" + "/".join(segments))
    assert SpiffeId.parse(str(made)) == made
