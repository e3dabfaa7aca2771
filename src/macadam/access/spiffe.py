"""Workload identities: SPIFFE ids in short-lived X.509 certificates, and the authority that signs them.

Follows the SPIFFE ID and X509-SVID standards (https://github.com/spiffe/spiffe/tree/main/standards). Nothing here knows
SQL or sockets: whom a certificate is given to is for `workloads`, presenting it for `macadam.faces.link`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import msgspec

from macadam.errors import InvalidInput, NotAuthenticated
from macadam.lazy import lazy

if TYPE_CHECKING:
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import oid, verification
else:
    exceptions = lazy("cryptography.exceptions")
    x509 = lazy("cryptography.x509")
    hashes = lazy("cryptography.hazmat.primitives.hashes")
    serialization = lazy("cryptography.hazmat.primitives.serialization")
    ec = lazy("cryptography.hazmat.primitives.asymmetric.ec")
    oid = lazy("cryptography.x509.oid")
    verification = lazy("cryptography.x509.verification")

T = TypeVar("T", bound="x509.ExtensionType")
AUTHORITY_DAYS = 365
SVID_LIFETIME = timedelta(hours=12)
"""Of a certificate that Macadam issues. Renewed half-way, so a control plane may be away for six hours; revoking one does not
wait for its end."""
_BACKDATED = timedelta(minutes=5)
"""Clocks differ: a certificate is valid from a little before it was made."""
_LONGEST_ID = 2048
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class SpiffeId(msgspec.Struct, frozen=True):
    """`spiffe://trust-domain/path` (SPIFFE-ID, sections 2.1 to 2.4). Raises InvalidInput at birth."""

    trust_domain: str
    path: str
    """Starts with '/'; '' names the trust domain itself, which is an authority and no workload."""

    def __post_init__(self) -> None:
        segments = self.path.split("/")[1:]
        whole = (
            bool(_TRUST_DOMAIN.fullmatch(self.trust_domain))
            and (not self.path or self.path.startswith("/"))
            and all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments)
            and len(str(self)) <= _LONGEST_ID
        )
        if not whole:
            raise InvalidInput(
                f"{str(self)[:200]!r} is not a SPIFFE id.",
                next_step="Write it as spiffe://trust-domain/path, the domain in lower case, without '.' segments.",
            )

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """Raises InvalidInput."""
        scheme, _, rest = text.partition("://")
        domain, slash, path = rest.partition("/")
        if scheme != "spiffe":
            raise InvalidInput(
                f"{text[:200]!r} is not a SPIFFE id.", next_step="Write it as spiffe://trust-domain/path."
            )
        return cls(domain, slash + path)


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands at the other end of a connection, proved by its certificate. serial: in hex; expires: UTC."""

    id: SpiffeId
    serial: str
    expires: datetime


@dataclass(frozen=True, kw_only=True)
class Svid:
    """A certificate with its key and the chain up to, not including, the authority. All PEM."""

    certificates: bytes
    key: bytes


class Authority:
    """A key that signs certificates of one trust domain. Its representation shows no secret; `pem` does."""

    __slots__ = ("_key", "certificate", "trust_domain")

    def __init__(self, pem: bytes) -> None:
        """pem: private key and certificate, as `pem` gives them. Raises InvalidInput, without repeating it."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
            self.certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as error:
            raise InvalidInput(
                "The authority's key is not readable.", next_step="Restore it from the secrets store."
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidInput("The authority's key is no EC key.", next_step="Restore it from the secrets store.")
        self._key = key
        self.trust_domain = _only_id(self.certificate).trust_domain

    @classmethod
    def create(cls, trust_domain: str, now: datetime) -> "Authority":
        """A new key under a certificate of its own. now: UTC."""
        identity = SpiffeId(trust_domain, "")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(oid.NameOID.ORGANIZATION_NAME, trust_domain)])
        certificate = (
            _builder(str(identity), key.public_key(), now, timedelta(days=AUTHORITY_DAYS))
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(_private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))

    def __repr__(self) -> str:
        return f"Authority({self.trust_domain!r}, until {self.expires:%Y-%m-%d})"

    @property
    def expires(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def pem(self) -> bytes:
        """Key and certificate, for a secrets store."""
        return _private_pem(self._key) + self.public_pem

    @property
    def public_pem(self) -> bytes:
        """The certificate: what others trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def is_half_spent(self, now: datetime) -> bool:
        """Whether a successor is due, so that everyone hears of it long before this one ends."""
        return now >= self.certificate.not_valid_before_utc + (self.expires - self.certificate.not_valid_before_utc) / 2

    def certify(self, request: str, identity: SpiffeId, now: datetime, lifetime: timedelta = SVID_LIFETIME) -> bytes:
        """The certificate (PEM) for the key of a signing request (PKCS#10, PEM). What else the request asks for is ignored.

        Raises InvalidInput if the request is malformed, not signed by its own key, or its key is no P-256 key.
        """
        if identity.trust_domain != self.trust_domain or not identity.path:
            raise InvalidInput(
                f"{identity} is no workload of {self.trust_domain}.", next_step="Name one under that trust domain."
            )
        public = _requested_key(request)
        builder = (
            _builder(str(identity), public, now, lifetime)
            .subject_name(x509.Name([x509.NameAttribute(oid.NameOID.ORGANIZATIONAL_UNIT_NAME, "workload")]))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.CLIENT_AUTH, oid.ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def new_key() -> bytes:
    """A private key (P-256, PKCS#8 PEM) for a workload."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def signing_request(key: bytes) -> str:
    """A PKCS#10 request (PEM) that proves possession of `key` and asks for nothing: the authority knows the name."""
    private = serialization.load_pem_private_key(key, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InvalidInput("A workload's key is an EC key.", next_step="Make one of curve P-256.")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def read_peer(certificate: bytes) -> Peer:
    """Who a leaf certificate (DER) names. The TLS handshake has checked its chain and its time before.

    Raises NotAuthenticated if it is no X509-SVID (X509-SVID, sections 2 to 5.2).
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        identity = _only_id(parsed)
        constraints = _extension(parsed, x509.BasicConstraints)
        usage = _extension(parsed, x509.KeyUsage)
    except (ValueError, InvalidInput, x509.DuplicateExtension) as error:
        raise _no_svid(str(error)) from error
    if not identity.path:
        raise _no_svid("it names a trust domain and no workload")
    if constraints is not None and constraints.ca:
        raise _no_svid("it is a signing certificate")
    if usage is None or not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise _no_svid("its key usage is not that of a leaf")
    return Peer(id=identity, serial=f"{parsed.serial_number:x}", expires=parsed.not_valid_after_utc)


def check_chain(certificates: bytes, authorities: bytes, now: datetime) -> Peer:
    """Who a chain (PEM, leaf first) names, if one of the authorities (PEM) vouches for it at `now`.

    For certificates that come outside a TLS handshake. Raises NotAuthenticated.
    """
    try:
        leaf, *others = x509.load_pem_x509_certificates(certificates)
        trusted = x509.load_pem_x509_certificates(authorities)
        policy = verification.PolicyBuilder().time(now.replace(tzinfo=None)).store(verification.Store(trusted))
        policy.build_client_verifier().verify(leaf, others)
    except (ValueError, verification.VerificationError) as error:
        raise _no_svid(str(error)) from error
    return read_peer(leaf.public_bytes(serialization.Encoding.DER))


def half_life(certificates: bytes) -> datetime:
    """When a certificate (PEM, leaf first) should be renewed: half-way through its validity."""
    leaf = x509.load_pem_x509_certificate(certificates)
    return leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2


def named(certificates: bytes) -> SpiffeId:
    """Whom a chain (PEM, leaf first) names. Raises InvalidInput if that is no SVID."""
    try:
        leaf = x509.load_pem_x509_certificate(certificates)
    except ValueError as error:
        raise InvalidInput("The certificate is not PEM.", next_step="Enroll the workload anew.") from error
    return _only_id(leaf)


def fingerprint(certificate: bytes) -> str:
    """`sha256:…` of a certificate's (PEM) public key, as SubjectPublicKeyInfo: what the ledger names it by."""
    public = x509.load_pem_x509_certificate(certificate).public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return "sha256:" + digest.finalize().hex()


def _only_id(certificate: "x509.Certificate") -> SpiffeId:
    """The one URI name that an SVID has. Raises InvalidInput."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    uris: Iterable[str] = names.get_values_for_type(x509.UniformResourceIdentifier) if names else ()
    found = list(uris)
    if len(found) != 1:
        raise InvalidInput(
            f"The certificate has {len(found)} URI names, an X509-SVID has one.",
            next_step="Present a certificate that `macadam` or a SPIFFE authority issued.",
        )
    return SpiffeId.parse(found[0])


def _extension(certificate: "x509.Certificate", kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _builder(
    identity: str, public: "ec.EllipticCurvePublicKey", now: datetime, lifetime: timedelta
) -> "x509.CertificateBuilder":
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .public_key(public)
        .not_valid_before(now - min(_BACKDATED, lifetime))
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=False)
    )


def _usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _requested_key(request: str) -> "ec.EllipticCurvePublicKey":
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        genuine = parsed.is_signature_valid
        public = parsed.public_key()
    except (ValueError, UnicodeEncodeError, exceptions.UnsupportedAlgorithm) as error:
        raise InvalidInput(
            "The signing request is not PKCS#10 in PEM.", next_step="Make one of an EC key on curve P-256."
        ) from error
    if not genuine:
        raise InvalidInput(
            "The signing request is not signed by its own key.", next_step="Make it anew: it proves possession."
        )
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidInput("The signing request's key is no P-256 key.", next_step="Make one of curve P-256.")
    return public


def _private_pem(key: "ec.EllipticCurvePrivateKey") -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _no_svid(why: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"The certificate is no workload's: {why}.", next_step="Enroll the workload (`macadam workloads enroll`)."
    )
