"""What is signed, and by whom: strict reading, verifier keys, signed checkpoints, paths in a Merkle tree.

The half of the verifier that knows nothing of predictions. Like the other half it needs Python and `cryptography` only.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Unreadable(Exception):
    """The input is not what this program reads: exit code 2."""


class Broken(Exception):
    """A link of the chain does not hold: exit code 1."""

    def __init__(self, link: str, why: str) -> None:
        super().__init__(f"{link}: {why}")
        self.link, self.why = link, why


@dataclass
class Report:
    """What was found: the links that hold, what is not proved, and the story they tell."""

    links: list[tuple[str, str]] = field(default_factory=list)
    not_proved: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    broken: Broken | None = None


# --- reading, strictly ------------------------------------------------------------------------------------


def read_json(text: str, what: str) -> Any:
    """JSON without duplicate keys, NaN, infinities or half surrogate pairs. Raises ValueError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
        canonical(value).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    return value


def decoded(data: bytes, what: str) -> Any:
    """Raises Unreadable if this is no JSON."""
    try:
        return read_json(data.decode(), what)
    except ValueError as error:
        raise Unreadable(str(error)) from None


def canonical(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces. Raises ValueError for what JSON cannot spell."""
    # allow_nan: a number such as 1e999 is read as infinity, and all infinities look alike.
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def expect(value: Any, fields: Mapping[str, type], what: str, *, others: bool = False) -> None:
    """Breaks the link 'form' unless the object has these fields, of these very types, and no others."""
    if type(value) is not dict or not set(fields) <= set(value) or (set(value) != set(fields) and not others):
        raise Broken("form", f"{what} must be an object with the fields {', '.join(sorted(fields))}")
    for name, kind in fields.items():
        if type(value[name]) is not kind:
            raise Broken("form", f"{name} of {what} must be of type {kind.__name__}")


def read_hashes(values: list[Any], what: str) -> list[bytes]:
    if not all(type(value) is str and re.fullmatch("[0-9a-f]{64}", value) for value in values):
        raise Broken("form", f"{what} must be a list of SHA-256 hashes in hex")
    return [bytes.fromhex(value) for value in values]


def read_base64(text: str, what: str) -> bytes:
    """Raises ValueError if this is not the one spelling of some bytes."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError(f"{what} is not in the one spelling of base64")
    return data


# --- keys -------------------------------------------------------------------------------------------------

SIGNATURE, COSIGNATURE = 1, 4
MOST_SIGNATURES = 100
"""Of one checkpoint: more is an attack on the reader."""
LATEST_TIME = 2**63 - 1
KEY_LINE = re.compile(r"([^ +]+)\+([0-9a-f]{8})\+([^ ]+)(?: since ([0-9]{1,19}))?(?: until ([0-9]{1,19}))?")


@dataclass(frozen=True)
class Key:
    """data: the signature's type and the public key. since, until: sizes of the checkpoints that it signs."""

    data: bytes
    since: int = 0
    until: int | None = None


Keys = dict[tuple[str, bytes], Key]


@dataclass
class Trust:
    """Whose word counts. keys: the ledger's, and those of others beside it. quorum: of how many witnesses."""

    keys: Keys
    witnesses: Keys
    quorum: int

    @property
    def origin(self) -> str:
        """The ledger: whoever the first key is of."""
        return next(iter(self.keys))[0]

    def learn(self, index: int, subject: str, key_text: str, *, retired: bool, link: str) -> None:
        """Takes in a leaf that trusted keys have signed, which announces a key of the ledger or retires one.

        What was known of a key's end is only ever made earlier.
        """
        for who, key in read_keys(key_text).items():
            known = self.keys.get(who, Key(key.data, index + 1))
            if who[0] != self.origin or subject != f"ledger_key:{who[1].hex()}" or known.data != key.data:
                raise Broken(link, f"leaf {index} is about another key than it holds")
            ends = [end for end in (known.until, index if retired else None) if end is not None]
            self.keys[who] = Key(known.data, known.since, min(ends, default=None))


def trusted(key_text: str, witness_text: str | None = None, quorum: int = 0) -> Trust:
    """Whom the texts of two key files name. witness_text: None asks for no witness, a file without a key is an error.
    quorum 0: all witnesses. Raises Unreadable.
    """
    witnesses = {} if witness_text is None else read_keys(witness_text, COSIGNATURE)
    trust = Trust(read_keys(key_text), witnesses, quorum)
    there = {key.data[1:] for key in witnesses.values()}
    if not 0 <= quorum <= len(there):
        raise Unreadable(f"{quorum} witnesses must have cosigned, and the keys of {len(there)} were given")
    if there & {key.data[1:] for key in trust.keys.values()}:
        raise Unreadable("a key of the ledger itself was given as a witness's")
    trust.quorum = quorum or len(there)
    return trust


def read_keys(text: str, kind: int = SIGNATURE) -> Keys:
    """Lines name+id+base64(kind, public key). Empty lines and lines that begin with # are skipped."""
    keys: Keys = {}
    for line in [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]:
        match = KEY_LINE.fullmatch(line)
        try:
            data = read_base64(match[3], "the key") if match else b""
        except ValueError:
            data = b""
        if match is None or len(data) != 33 or data[0] != kind or key_id(match[1], data) != match[2]:
            raise Unreadable(f"the key file holds a line that is no Ed25519 verifier key of type {kind}: {line!r}")
        key = Key(data, int(match[4] or 0), int(match[5]) if match[5] else None)
        if keys.setdefault((match[1], bytes.fromhex(match[2])), key).data != data:
            raise Unreadable(f"the key file holds two keys that cannot be told apart: {line!r}")
    if not keys:
        raise Unreadable("the key file holds no verifier key")
    return keys


def key_id(name: str, data: bytes) -> str:
    """In hex (https://c2sp.org/signed-note)."""
    return sha256(name.encode() + b"\n" + data).hex()[:8]


# --- the tree: RFC 9162 -----------------------------------------------------------------------------------


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def root_from_path(data: bytes, index: int, size: int, path: list[bytes], link: str) -> bytes:
    """The root that a leaf's data and its inclusion path lead to (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise Broken(link, f"there is no leaf {index} among {size}")
    node = sha256(b"\x00" + data)
    position, last = index, size - 1
    for sibling in path:
        if last == 0:
            raise Broken(link, "the path is too long")
        if position % 2 == 1 or position == last:
            node = sha256(b"\x01" + sibling + node)
            while position % 2 == 0 and position != 0:
                position, last = position // 2, last // 2
        else:
            node = sha256(b"\x01" + node + sibling)
        position, last = position // 2, last // 2
    if last != 0:
        raise Broken(link, "the path is too short")
    return node


# --- checkpoints ------------------------------------------------------------------------------------------


def checkpoint(note: str, trust: Trust, report: Report) -> tuple[int, bytes]:
    """The signed size and root (https://c2sp.org/signed-note and tlog-checkpoint)."""
    link = "checkpoint signature"
    body, _, below = note.rpartition("\n\n")
    lines, signatures = body.split("\n"), below.split("\n")
    if len(lines) < 3 or signatures.pop() != "" or not re.fullmatch("0|[1-9][0-9]{0,18}", lines[1]):
        raise Broken(link, "the checkpoint is not a signed note with origin, size and root")
    origin, size, root = lines[0], int(lines[1]), read_base64(lines[2], "the root")
    if len(signatures) > MOST_SIGNATURES:
        raise Broken(link, f"a checkpoint has at most {MOST_SIGNATURES} signatures, this one {len(signatures)}")
    signers, others, cosigned = list[str](), list[str](), dict[bytes, str]()
    own = {key.data[1:] for key in trust.keys.values()}  # also those that were announced since
    for line in signatures:
        match = re.fullmatch("— ([^ +]+) ([^ ]+)", line)
        if not match:
            raise Broken(link, f"{line!r} is not a signature line")
        name, data = match[1], read_base64(match[2], f"the signature of {match[1]}")
        key = (trust.keys | trust.witnesses).get((name, data[:4]))
        if key is None:
            others += [data[:4].hex()] if name == origin else []
            report.not_proved.append(f"the signature of {name} on the checkpoint (its key was not given)")
            continue
        signature_fits(key, name, data[4:], body + "\n", size)
        if key.data[0] == COSIGNATURE:
            cosigned |= {} if key.data[1:] in own else {key.data: name}
        else:
            signers.append(name)
    if origin not in signers or origin != trust.origin:
        more = f"; its key {', '.join(others)} has, which may have taken over: see --announced" if others else ""
        raise Broken(link, f"the ledger {origin!r} has not signed it with a key that was given{more}")
    report.links.append((link, f"{' and '.join(signers)} signed a ledger of {size} leaves"))
    if len(cosigned) < trust.quorum:
        raise Broken(
            "witnesses", f"{len(cosigned)} of {len(trust.witnesses)} cosigned the checkpoint, {trust.quorum} must"
        )
    report.links += [("witnesses", f"{', '.join(sorted(cosigned.values()))} cosigned it")] if cosigned else []
    return size, root


def signature_fits(key: Key, name: str, signature: bytes, text: str, size: int) -> None:
    """Breaks the link unless it is the key's own and, if it is a ledger's, one of its time (tlog-cosignature for type 4)."""
    link = "checkpoint signature"
    if key.data[0] == COSIGNATURE:
        at = int.from_bytes(signature[:8], "big")
        if at > LATEST_TIME:
            raise Broken(link, f"the cosignature of {name} has a time that cannot be")
        text, signature = f"cosignature/v1\ntime {at}\n{text}", signature[8:]
    try:
        Ed25519PublicKey.from_public_bytes(key.data[1:]).verify(signature, text.encode())
    except InvalidSignature:
        raise Broken(link, f"the signature of {name} does not fit the checkpoint") from None
    if size < key.since or (key.until is not None and size > key.until):
        raise Broken(link, f"{name} signed {size} leaves with a key that was in force from {key.since} to {key.until}")
