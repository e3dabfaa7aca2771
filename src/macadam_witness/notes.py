"""What a witness reads and writes: verifier keys, checkpoints on signed notes, consistency proofs, cosignatures.

Pure. From https://c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature (Ed25519), tlog-witness, and RFC 9162.
"""

import base64
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE, COSIGNATURE = 1, 4
"""Types of signature: a log's own, and a witness's."""
MOST_PROOF_LINES = 63
MOST_SIGNATURES = 100

_DECIMAL = re.compile("0|[1-9][0-9]{0,18}")
_KEY = re.compile(r"([^ +]+)\+([0-9a-f]{8})\+([^ ]+)(?: since ([0-9]{1,19}))?(?: until ([0-9]{1,19}))?")
_SIGNATURE = re.compile("— ([^ +]+) ([^ ]+)")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Malformed(ValueError):
    """These bytes are not what they should be. The text says what was expected."""


def read_base64(text: str, what: str) -> bytes:
    """Raises Malformed unless this is the one spelling of some bytes."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Malformed(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise Malformed(f"{what} is not in the one spelling of base64")
    return data


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """The 4 bytes that tell a name's keys apart."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


@dataclass(frozen=True)
class LogKey:
    """A key that a log's checkpoints are checked with. since, until: the sizes that it signs; until None: no end."""

    name: str
    id: bytes
    public: bytes
    since: int
    until: int | None

    def signs(self, size: int) -> bool:
        return self.since <= size and (self.until is None or size <= self.until)

    def signed(self, text: str, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


def read_log_keys(text: str) -> tuple[LogKey, ...]:
    """Lines name+id+base64(1, public key), maybe with ` since SIZE` and ` until SIZE` behind. Empty lines and lines that
    begin with # are skipped. Raises Malformed.
    """
    keys: dict[tuple[str, bytes], LogKey] = {}
    for line in [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]:
        match = _KEY.fullmatch(line)
        data = read_base64(match[3], "a log's key") if match else b""
        if match is None or len(data) != 33 or data[0] != SIGNATURE:
            raise Malformed(f"a log's key is a line name+id+base64 of an Ed25519 key, got {line[:160]!r}")
        key = LogKey(
            match[1], bytes.fromhex(match[2]), data[1:], int(match[4] or 0), int(match[5]) if match[5] else None
        )
        if key_id(key.name, SIGNATURE, key.public) != key.id:
            raise Malformed(f"the key of {key.name} does not have the id {key.id.hex()}")
        if keys.setdefault((key.name, key.id), key) != key:
            raise Malformed(f"two different lines are about the key {key.name}+{key.id.hex()}")
    return tuple(keys.values())


@dataclass(frozen=True)
class Checkpoint:
    """text: what is signed, its last newline included. signatures: (name, key id, signature)."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    def with_lines_of(self, ids: Collection[bytes]) -> str:
        """The note with the log's own signatures by these keys, each once, and without what others have put below."""
        lines = [
            f"— {name} {base64.b64encode(key_id + signature).decode()}\n"
            for name, key_id, signature in self.signatures
            if name == self.origin and key_id in ids
        ]
        return self.text + "\n" + "".join(dict.fromkeys(lines))


@dataclass(frozen=True)
class Request:
    """The body of add-checkpoint. old: the size that the proof starts from."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Checkpoint


def read_request(body: bytes) -> Request:
    """Raises Malformed."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Malformed("the request is not UTF-8") from error
    head, blank, note = text.partition("\n\n")
    first, *proof = head.split("\n")
    if not blank or not first.startswith("old ") or not _DECIMAL.fullmatch(first[4:]):
        raise Malformed("a request is a line 'old SIZE', proof lines, an empty line and a checkpoint")
    if len(proof) > MOST_PROOF_LINES:
        raise Malformed(f"a proof has at most {MOST_PROOF_LINES} lines")
    hashes = tuple(read_base64(line, "a proof line") for line in proof)
    if any(len(one) != 32 for one in hashes):
        raise Malformed("a proof line is a hash of 32 bytes")
    return Request(int(first[4:]), hashes, read_checkpoint(note))


def read_checkpoint(note: str) -> Checkpoint:
    """Raises Malformed. Nothing is verified."""
    body, blank, below = note.rpartition("\n\n")
    lines = body.split("\n")
    if not blank or not below.endswith("\n") or _CONTROL.search(note) or len(lines) < 3 or "" in lines:
        raise Malformed("a checkpoint is origin, size, root, an empty line and signature lines")
    if not _DECIMAL.fullmatch(lines[1]):
        raise Malformed("a checkpoint's size is a decimal number")
    root = read_base64(lines[2], "the root")
    if len(root) != 32:
        raise Malformed("a root has 32 bytes")
    signatures = tuple(_read_signature(line) for line in below[:-1].split("\n"))
    if len(signatures) > MOST_SIGNATURES:
        raise Malformed(f"a checkpoint has at most {MOST_SIGNATURES} signatures")
    return Checkpoint(lines[0], int(lines[1]), root, body + "\n", signatures)


def _read_signature(line: str) -> tuple[str, bytes, bytes]:
    match = _SIGNATURE.fullmatch(line)
    data = read_base64(match[2], "a signature") if match else b""
    if match is None or len(data) <= 4:
        raise Malformed("a signature line is '— name base64'")
    return match[1], data[:4], data[4:]


def is_consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: tuple[bytes, ...]) -> bool:
    """Whether the proof shows that the tree of `new` leaves begins with the one of `old` leaves (RFC 9162, 2.1.4.2)."""
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof
    hashes = [old_root, *proof] if old & (old - 1) == 0 else [*proof]
    if not hashes:
        return False
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    of_old = of_new = hashes[0]
    for step in hashes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            of_old, of_new = _node(step, of_old), _node(step, of_new)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            of_new = _node(of_new, step)
        first, last = first >> 1, last >> 1
    return last == 0 and of_old == old_root and of_new == new_root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class WitnessKey:
    """The witness's own key. Its representation never shows the secret; `secret` does, for its file."""

    def __init__(self, name: str, seed: bytes) -> None:
        """name: such as a host's, without spaces and '+'. seed: 32 random bytes. Raises Malformed."""
        if not name or not name.isprintable() or " " in name or "+" in name:
            raise Malformed(f"{name!r} cannot name a key: use printable characters without spaces and '+'")
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()
        self.id = key_id(name, COSIGNATURE, self.public)

    def __repr__(self) -> str:
        return f"WitnessKey({self.verifier})"

    @property
    def verifier(self) -> str:
        """The line to hand out."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([COSIGNATURE]) + self.public).decode()}"

    @property
    def secret(self) -> str:
        encoded = base64.b64encode(bytes([COSIGNATURE]) + self._key.private_bytes_raw()).decode()
        return f"PRIVATE+KEY+{self.name}+{self.id.hex()}+{encoded}"

    @classmethod
    def read(cls, secret: str) -> "WitnessKey":
        """Reads `secret`. Raises Malformed, without repeating it."""
        parts = secret.strip().removeprefix("PRIVATE+KEY+").split("+", 2)
        data = read_base64(parts[2], "the witness's key") if len(parts) == 3 else b""
        if len(data) != 33 or data[0] != COSIGNATURE:
            raise Malformed("the witness's key file holds no key of a witness")
        key = cls(parts[0], data[1:])
        if key.id.hex() != parts[1]:
            raise Malformed("the witness's key does not have the id that its file says")
        return key

    def cosign(self, text: str, at: int) -> str:
        """The signature line below a checkpoint. at: seconds since 1970, when it was seen."""
        signed = self._key.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
        return f"— {self.name} {base64.b64encode(self.id + at.to_bytes(8, 'big') + signed).decode()}\n"
