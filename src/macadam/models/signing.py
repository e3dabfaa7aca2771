"""Signatures over model files in the OpenSSF model-signing format, written and checked: bytes in, bytes out.

A signature is a Sigstore bundle (v0.3, JSON) around a DSSE envelope around an in-toto statement that lists every file
with its digest; the public `model_signing` tool reads it. Keys are on the curve P-256, because that tool takes no
Ed25519. Which key signs, and where signatures are kept, is for `supply`; directories are walked by `signed_folder`.

From: https://github.com/sigstore/model-transparency (predicate v1.0), https://github.com/secure-systems-lab/dsse
(PAE), https://github.com/in-toto/attestation (Statement v1).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from macadam.errors import IntegrityError, InvalidInput

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
SIGNATURE = "https://model_signing/signature/v1.0"
MAX_BUNDLE = 64 * 1024 * 1024
"""Bytes. A manifest has about 150 for each file: this is enough for a quarter of a million of them."""
HASHES: "dict[str, Callable[[], hashlib._Hash | hashlib.blake2b]]" = {
    "sha256": hashlib.sha256,
    "blake2b": hashlib.blake2b,
}
"""What of the tool's digests the standard library computes; its third one, BLAKE3, is not among them."""

_CURVES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A part of the bundle that no signature covers: what is not known there is not taken."""


class _PublicKey(_Strict, frozen=True, kw_only=True):
    hint: str
    raw_bytes: str = ""
    key_details: str = ""


class _Material(_Strict, frozen=True, kw_only=True):
    public_key: _PublicKey
    tlog_entries: tuple[msgspec.Raw, ...] = ()


class _Signature(_Strict, frozen=True, kw_only=True):
    sig: str
    keyid: str = ""


class _Envelope(_Strict, frozen=True, kw_only=True):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


class _Bundle(_Strict, frozen=True, kw_only=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a statement is about. digest: algorithm → hex."""

    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """An in-toto statement whose signature has been checked. predicate: as JSON."""

    type: str = msgspec.field(name="_type")
    subject: tuple[Subject, ...]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: msgspec.Raw


class Serialization(msgspec.Struct, frozen=True, kw_only=True):
    """How the signer listed the files. ignore_paths: what it left out, relative to the model."""

    method: str
    hash_type: str
    allow_symlinks: bool = False
    ignore_paths: tuple[str, ...] = ()


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One file. name: its path in the model, '.' for a model that is a single file; digest: hex."""

    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct, frozen=True, kw_only=True):
    serialization: Serialization
    resources: tuple[Resource, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The files that a signature covers. model: the name that the signer gave it, which says nothing about a place."""

    model: str
    serialization: Serialization
    files: dict[str, Resource]


# --- keys


def new_key() -> bytes:
    """A private key on P-256, as PEM (PKCS #8)."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key(private: bytes) -> str:
    """The public key of a private one, as PEM. Raises InvalidInput."""
    return _pem(_private(private).public_key())


def key_id(public: str) -> str:
    """What bundles name a key by: the SHA-256 of its PEM, as hex. Raises InvalidInput."""
    return hashlib.sha256(_pem(_public(public)).encode()).hexdigest()


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key("private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise _no_key("private key")
    return key


def _public(pem: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key("public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise _no_key("public key")
    return key


def _no_key(what: str) -> InvalidInput:
    return InvalidInput(
        f"This is no {what} for model signatures.",
        next_step="Give PEM on the curve P-256, P-384 or P-521; the format takes neither Ed25519 nor RSA.",
    )


# --- writing


def sign(statement: Mapping[str, Any], private: bytes) -> bytes:
    """The bundle of an in-toto statement. Raises InvalidInput if the key is none."""
    key = _private(private)
    payload = msgspec.json.encode(statement, order="sorted")
    signature = key.sign(pae(payload), ec.ECDSA(_CURVES[key.curve.name]()))
    material = {"publicKey": {"hint": key_id(_pem(key.public_key()))}, "tlogEntries": []}
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    return msgspec.json.encode(
        {"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}, order="sorted"
    )


def pae(payload: bytes) -> bytes:
    """What DSSE signs: the pre-authentication encoding, version 1."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def statement_of(model: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The statement that lists a model's files. files: path → digest (`sha256:…`)."""
    listed = [(name, files[name].removeprefix("sha256:")) for name in sorted(files)]
    return {
        "_type": STATEMENT,
        "subject": [{"name": model, "digest": {"sha256": _root(digest for _, digest in listed)}}],
        "predicateType": SIGNATURE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in listed],
        },
    }


def _root(digests: Iterable[str]) -> str:
    """The subject's digest: over the files' digests, one after the other."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


# --- checking


def open_bundle(bundle: bytes, keys: Iterable[str]) -> Statement:
    """The statement of a bundle that one of the keys (PEM) has signed.

    Raises IntegrityError if it is no bundle or none of them has signed it, InvalidInput for a key that is none.
    """
    if len(bundle) > MAX_BUNDLE:
        raise broken(f"has {len(bundle)} bytes, at most {MAX_BUNDLE} are read")
    try:
        read = msgspec.json.decode(bundle, type=_Bundle)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise broken(f"is no bundle with a key's signature: {error}") from error
    envelope = read.dsse_envelope
    if read.media_type != MEDIA_TYPE or envelope.payload_type != PAYLOAD_TYPE:
        raise broken(
            f"is {read.media_type} around {envelope.payload_type}, expected {MEDIA_TYPE} around {PAYLOAD_TYPE}"
        )
    if len(envelope.signatures) != 1:
        raise broken(f"has {len(envelope.signatures)} signatures, expected one")
    payload = _decoded(envelope.payload)
    _require_signed(payload, _decoded(envelope.signatures[0].sig), read.verification_material.public_key.hint, keys)
    return _statement(payload)


def _decoded(text: str) -> bytes:
    """Base64 in its one spelling. Raises IntegrityError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise broken(f"is not base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise broken("is not base64 as it is written")
    return data


def _require_signed(payload: bytes, signature: bytes, hint: str, keys: Iterable[str]) -> None:
    for pem in keys:
        if not hmac.compare_digest(key_id(pem).encode(), hint.encode()):
            continue
        key = _public(pem)
        try:
            key.verify(signature, pae(payload), ec.ECDSA(_CURVES[key.curve.name]()))
        except InvalidSignature as error:
            raise broken("is not the key's signature of what it says") from error
        return
    raise broken(f"was made with the key {hint[:16] or '(none)'}, which is not one that is trusted here")


def _statement(payload: bytes) -> Statement:
    try:
        found = msgspec.json.decode(payload, type=Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise broken(f"signs no in-toto statement: {error}") from error
    if found.type != STATEMENT:
        raise broken(f"signs a {found.type}, expected {STATEMENT}")
    return found


def manifest_of(statement: Statement) -> Manifest:
    """The files that a statement lists. Raises IntegrityError if it lists none, or contradicts itself."""
    if statement.predicate_type != SIGNATURE:
        raise broken(f"signs a {statement.predicate_type}, expected {SIGNATURE}")
    try:
        predicate = msgspec.json.decode(statement.predicate, type=_Predicate)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise broken(f"lists no files: {error}") from error
    how = predicate.serialization
    if how.method != "files" or how.hash_type not in HASHES:
        raise broken(f"lists {how.method} by {how.hash_type}; files by {' or '.join(HASHES)} are read")
    files = {resource.name: resource for resource in predicate.resources}
    if not files or len(files) != len(predicate.resources):
        raise broken("lists no file, or one of them twice")
    for resource in predicate.resources:
        _require_fit(resource, how.hash_type)
    if len(statement.subject) != 1 or statement.subject[0].digest.get("sha256") != _root(
        resource.digest for resource in predicate.resources
    ):
        raise broken("is about something else than the files that it lists")
    return Manifest(model=statement.subject[0].name, serialization=how, files=files)


def _require_fit(resource: Resource, algorithm: str) -> None:
    parts = resource.name.split("/")
    single = resource.name == "."
    if not single and any(part in ("", ".", "..") for part in parts):
        raise broken(f"lists {resource.name!r}, which is no path inside of a model")
    size = HASHES[algorithm]().digest_size
    if resource.algorithm != algorithm or len(resource.digest) != 2 * size or not _is_hex(resource.digest):
        raise broken(f"gives {resource.name!r} no {algorithm} digest")


def _is_hex(text: str) -> bool:
    return not set(text) - set("0123456789abcdef")


def require_files(bundle: bytes, keys: Iterable[str], files: Mapping[str, str]) -> None:
    """Raises IntegrityError unless one of the keys has signed exactly these files.

    files: path → digest (`sha256:…`).
    """
    signed = manifest_of(open_bundle(bundle, keys)).files
    wanted = {name: digest.removeprefix("sha256:") for name, digest in files.items()}
    found = {name: resource.digest for name, resource in signed.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise broken(f"is not of this {name}")


def broken(what: str) -> IntegrityError:
    return IntegrityError(
        f"The model's signature {what}.", next_step="Do not use the model; find out who changed it, and register anew."
    )
