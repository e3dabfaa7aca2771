"""Signed notes and the checkpoints written on them: who vouches for the ledger having this size and this root.

Follows https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint with Ed25519 keys (signature type 1),
and https://c2sp.org/tlog-cosignature for what witnesses add (type 4, which only they make: see `macadam_witness`).
Signatures of keys that nobody asked about are carried along and left alone.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.lazy import lazy
from macadam.ledger.tree import HASH_SIZE

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives.asymmetric import ed25519
else:
    exceptions = lazy("cryptography.exceptions")
    ed25519 = lazy("cryptography.hazmat.primitives.asymmetric.ed25519")

ED25519 = 1
"""The signature type of a plain Ed25519 signature over the note's text."""
COSIGNATURE = 4
"""A witness's: a time, and an Ed25519 signature over `cosignature/v1`, that time and the note's text."""
MAX_SIGNATURES = 100
"""More is an attack on the reader (the same limit as golang.org/x/mod/sumdb/note)."""

_KEY_BYTES = 32
_ID_BYTES = 4
_TIME_BYTES = 8
_LATEST_TIME = 2**63 - 1
_TYPES = (ED25519, COSIGNATURE)
_HEX_ID = re.compile(r"[0-9a-f]{8}")
_SIGNATURE = re.compile(r"— ([^ ]+) ([A-Za-z0-9+/]+=*)")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_PRIVATE = "PRIVATE+KEY+"


def _malformed(what: str, next_step: str = "Fetch it again; a note must arrive byte for byte.") -> InvalidInput:
    return InvalidInput(what, next_step=next_step)


def decode_base64(text: str, what: str) -> bytes:
    """Reads standard base64 in its one spelling. Raises InvalidInput."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(f"{what} is not base64: {text[:80]!r}.") from error
    if base64.b64encode(data).decode() != text:
        raise _malformed(f"{what} is not in the one spelling of base64: {text[:80]!r}.")
    return data


def _check_name(name: str) -> None:
    if not name or "+" in name or any(c.isspace() for c in name) or not name.isprintable():
        raise _malformed(
            f"{name!r} cannot name a key.", "Use printable characters without spaces and '+', such as a host name."
        )


def key_id(name: str, public: bytes, kind: int = ED25519) -> bytes:
    """The 4 bytes that tell a name's keys apart: the start of SHA-256(name, newline, signature type, public key)."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:_ID_BYTES]


class VerifierKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that signatures are checked with. public: the 32 bytes of an Ed25519 public key. kind: which type of
    signature it makes, ED25519 or COSIGNATURE.
    """

    name: str
    public: bytes
    kind: int = ED25519

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public) != _KEY_BYTES:
            raise _malformed(f"An Ed25519 public key has {_KEY_BYTES} bytes, got {len(self.public)}.")

    def __str__(self) -> str:
        """The line to hand out: name+id+base64."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @property
    def id(self) -> bytes:
        return key_id(self.name, self.public, self.kind)

    @classmethod
    def parse(cls, line: str) -> "VerifierKey":
        """Reads `str()` of a key. Raises InvalidInput, also for a key id that does not fit the key."""
        name, _, rest = line.strip().partition("+")
        hex_id, _, encoded = rest.partition("+")
        what = "A verifier key is a line 'name+id+base64'"
        if not (_HEX_ID.fullmatch(hex_id) and encoded):
            raise _malformed(f"{what}, got {line[:120]!r}.", "Print it with: macadam ledger key.")
        data = decode_base64(encoded, "The verifier key")
        if data[0] not in _TYPES:
            raise _malformed(
                f"The key of {name!r} is of type {data[:1].hex()}; Ed25519 (01) and cosignatures (04) are known."
            )
        key = cls(name=name, public=data[1:], kind=data[0])
        if key.id.hex() != hex_id:
            raise _malformed(f"The key of {name!r} has the id {key.id.hex()}, the line says {hex_id}.")
        return key

    def signed(self, text: str, signature: bytes) -> bool:
        """Does this signature (64 bytes, behind the 8 of its time if it is a witness's) belong to the text?"""
        signed = text
        if self.kind == COSIGNATURE:
            at = int.from_bytes(signature[:_TIME_BYTES], "big")
            if at > _LATEST_TIME:
                return False
            signed, signature = f"cosignature/v1\ntime {at}\n{text}", signature[_TIME_BYTES:]
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.public).verify(signature, signed.encode())
        except exceptions.InvalidSignature:
            return False
        return True


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """One line below a note. id: 4 bytes. value: the signature; 64 bytes if it is Ed25519."""

    name: str
    id: bytes
    value: bytes

    def __str__(self) -> str:
        return f"— {self.name} {base64.b64encode(self.id + self.value).decode()}"


class SignerKey:
    """A private key and its name. Its representation never shows the secret; `secret` does, for a secrets store."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, seed: bytes) -> None:
        """seed: the 32 random bytes of an Ed25519 private key. Raises InvalidInput."""
        if len(seed) != _KEY_BYTES:
            raise _malformed(f"An Ed25519 seed has {_KEY_BYTES} bytes, got {len(seed)}.")
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = VerifierKey(name=name, public=self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SignerKey({self.verifier})"

    @property
    def name(self) -> str:
        return self.verifier.name

    @property
    def secret(self) -> str:
        """The key as one line, PRIVATE+KEY+name+id+base64, in the form of golang.org/x/mod/sumdb/note."""
        encoded = base64.b64encode(bytes([ED25519]) + self._key.private_bytes_raw()).decode()
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{encoded}"

    @classmethod
    def parse(cls, line: str) -> "SignerKey":
        """Reads `secret`. Raises InvalidInput, without repeating the line."""
        parts = line.strip().removeprefix(_PRIVATE).split("+", 2)
        if not line.startswith(_PRIVATE) or len(parts) != len(("name", "id", "key")):
            raise _malformed(
                f"A signer key is a line '{_PRIVATE}name+id+base64'.", "Restore it from the secrets store."
            )
        name, hex_id, encoded = parts
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _malformed("The signer key is not base64.", "Restore it from the secrets store.") from error
        if data[:1] != bytes([ED25519]):
            raise _malformed("The signer key is not of type Ed25519 (01).", "Restore it from the secrets store.")
        key = cls(name, data[1:])
        if key.verifier.id.hex() != hex_id:
            raise _malformed("The signer key does not fit its id.", "Restore it from the secrets store.")
        return key

    def sign(self, text: str) -> Signature:
        """Signs a note's text, its last newline included."""
        return Signature(name=self.name, id=self.verifier.id, value=self._key.sign(text.encode()))


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A text that ends in a newline, and the signatures below it."""

    text: str
    signatures: tuple[Signature, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.endswith("\n") or _CONTROL.search(self.text):
            raise _malformed("A note's text ends in a newline and holds no other control characters.")
        if len(self.signatures) > MAX_SIGNATURES:
            raise _malformed(f"A note has at most {MAX_SIGNATURES} signatures, got {len(self.signatures)}.")

    def __str__(self) -> str:
        """The note as it is stored and sent."""
        return self.text + "\n" + "".join(f"{signature}\n" for signature in self.signatures)

    @classmethod
    def parse(cls, note: str | bytes) -> "Note":
        """Reads `str()` of a note. Raises InvalidInput for anything else."""
        whole = _text(note)
        body, blank, below = whole.rpartition("\n\n")
        if not blank or not below.endswith("\n"):
            raise _malformed("A signed note is a text, an empty line, and signature lines.")
        lines = below[:-1].split("\n")
        parsed = cls(text=body + "\n", signatures=tuple(_signature(line) for line in lines))
        if str(parsed) != whole:
            raise _malformed("A signed note is not in its one spelling.")
        return parsed

    def with_signatures(self, *signatures: Signature) -> "Note":
        """The same note with more signatures below, for a second signer or a witness."""
        return Note(text=self.text, signatures=self.signatures + signatures)


def _text(note: str | bytes) -> str:
    try:
        return (note.encode() if isinstance(note, str) else note).decode()
    except UnicodeError as error:
        raise _malformed(f"A note is UTF-8 text: {error}.") from error


def _signature(line: str) -> Signature:
    match = _SIGNATURE.fullmatch(line)
    if not match:
        raise _malformed(f"A signature line is '— name base64', got {line[:120]!r}.")
    _check_name(match[1])
    data = decode_base64(match[2], f"The signature of {match[1]}")
    if len(data) <= _ID_BYTES:
        raise _malformed(f"The signature of {match[1]} is too short: {len(data)} bytes.")
    return Signature(name=match[1], id=data[:_ID_BYTES], value=data[_ID_BYTES:])


def sign(text: str, *signers: SignerKey) -> Note:
    """A note with the signatures of all signers, in order."""
    return Note(text=text, signatures=tuple(signer.sign(text) for signer in signers))


def verify(note: Note, keys: Iterable[VerifierKey]) -> list[VerifierKey]:
    """Which of these keys signed the note, in the note's order.

    Raises IntegrityError if none did, or if one is named by a signature that is not its own; InvalidInput if two of
    the keys cannot be told apart. Signatures of other keys are ignored.
    """
    known: dict[tuple[str, bytes], VerifierKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.id), key) != key:
            raise _malformed(
                f"Two different keys are both called {key.name}+{key.id.hex()}.", "Keep the one that you trust."
            )
    signed: list[VerifierKey] = []
    for signature in note.signatures:
        found = known.get((signature.name, signature.id))
        if found is None:
            continue
        if not found.signed(note.text, signature.value):
            raise IntegrityError(
                f"The signature of {found.name} does not belong to this note.",
                next_step="Do not rely on it; compare with a copy from another place.",
            )
        if found not in signed:
            signed.append(found)
    if not signed:
        given = ", ".join(sorted(f"{name}+{key.hex()}" for name, key in known)) or "none"
        raise IntegrityError(
            f"The note is not signed by any of the keys given ({given}).",
            next_step="Give the ledger's verifier key; print it with: macadam ledger key.",
        )
    return signed


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger's size and root at one moment. origin: the ledger's name. extensions: further lines, opaque here."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lines = (self.origin, *self.extensions)
        if any(not line or "\n" in line or _CONTROL.search(line) for line in lines):
            raise _malformed("A checkpoint's origin and extension lines are not empty, and one line each.")
        if not _DECIMAL.fullmatch(str(self.size)):
            raise _malformed(f"A checkpoint's size is a whole number of leaves, got {self.size}.")
        if len(self.root) != HASH_SIZE:
            raise _malformed(f"A checkpoint's root has {HASH_SIZE} bytes, got {len(self.root)}.")

    def __str__(self) -> str:
        """The text of its note."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Reads the text of a checkpoint's note. Raises InvalidInput."""
        lines = text.split("\n")
        shortest = len(("origin", "size", "root", ""))
        if len(lines) < shortest or lines[-1] or not _DECIMAL.fullmatch(lines[1]):
            raise _malformed("A checkpoint is a line of origin, of size and of root, each ending in a newline.")
        root = decode_base64(lines[2], "The checkpoint's root")
        return cls(origin=lines[0], size=int(lines[1]), root=root, extensions=tuple(lines[3:-1]))


def sign_checkpoint(checkpoint: Checkpoint, signer: SignerKey, *others: SignerKey) -> str:
    """The checkpoint as a signed note. The signer's name must be the origin, so that readers know whose word counts.

    others: further keys of the ledger, while one takes over from another.
    """
    if signer.name != checkpoint.origin:
        raise _malformed(
            f"The key {signer.name!r} cannot sign a checkpoint of {checkpoint.origin!r}.",
            "Sign with the key named like the ledger's origin.",
        )
    return str(sign(str(checkpoint), signer, *others))


def open_checkpoint(note: str | bytes, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint on a note, signed by a key named like its origin.

    Raises InvalidInput if it is malformed, IntegrityError if the signature is missing or wrong.
    """
    parsed = Note.parse(note)
    signed = verify(parsed, keys)
    checkpoint = Checkpoint.parse(parsed.text)
    if checkpoint.origin not in [key.name for key in signed if key.kind == ED25519]:
        raise IntegrityError(
            f"The checkpoint of {checkpoint.origin!r} is signed by {signed[0].name!r} only.",
            next_step="Give the verifier key of the ledger itself.",
        )
    return checkpoint
