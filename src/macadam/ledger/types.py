"""Requests and answers about the ledger.

Readers of one project name it: they get that project's leaves and no others. '*', the default, asks for a role in all.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.ledger.verification import Found
from macadam.operations import Request
from macadam.values import Somewhere

MOST_LEAVES = 2**31 - 1
"""The largest whole number that the tables' columns hold on every database."""
Number = Annotated[int, msgspec.Meta(ge=0, le=MOST_LEAVES)]
Moment = Annotated[datetime, msgspec.Meta(tz=True, description="RFC 3339 with its zone, such as 2026-11-21T07:00:00Z")]


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """note: a C2SP signed note. key: the verifier keys, one a line."""

    note: str
    key: str


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf. index: -1 while it waits for its checkpoint."""

    index: int
    id: str
    at: str
    kind: str
    outcome: str
    actor: str
    project: str
    subject: str
    uses: tuple[str, ...]
    body: dict[str, object]


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """entries: newest first. more: pass it as `after` for the next page; 0: there is none."""

    entries: tuple[LogEntry, ...]
    more: int = 0


class LeafProof(msgspec.Struct, frozen=True, kw_only=True):
    """That a leaf is number `index` of the ledger of `size` leaves (RFC 9162, 2.1.3).

    hash, root: hexadecimal SHA-256. path: sibling hashes, bottom first. checkpoint: the signed note that says root.
    """

    leaf: str
    index: int
    hash: str
    size: int
    root: str
    path: tuple[str, ...]
    checkpoint: str
    key: str


class GrowthProof(msgspec.Struct, frozen=True, kw_only=True):
    """That the ledger of `old` leaves is the beginning of that of `new` ones (RFC 9162, 2.1.4).

    checkpoint: the signed note of size `new`, '' if none was signed at that size.
    """

    old: int
    old_root: str
    new: int
    new_root: str
    path: tuple[str, ...]
    checkpoint: str
    key: str


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A reference that a leaf uses, and the leaf that made it what it was then. leaf: '' if there is none."""

    ref: str
    leaf: str = ""
    index: int = -1
    kind: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a leaf.

    text: the canonical bytes that were hashed. proof: None while it waits for its checkpoint. uses: what it was made
    from. used_by: the oldest leaves after it that use its subject; more_users: how many are not among them.
    """

    entry: LogEntry
    text: str
    hash: str
    request: str
    decision: dict[str, object]
    proof: LeafProof | None
    uses: tuple[Named, ...]
    used_by: tuple[LogEntry, ...]
    more_users: int


class Copied(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A leaf in its place. text: its canonical bytes, or '' for a leaf of another project, of which only the hash goes out."""

    index: int
    text: str = ""
    hash: str = ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Leaves in ledger order, and the notes of all checkpoints signed at a size within (first, first + leaves]."""

    size: int
    key: str
    leaves: tuple[Copied, ...]
    checkpoints: tuple[str, ...]


class VerifyLedger(Request[Found], frozen=True, kw_only=True):
    """Rebuild the ledger and compare it with everything stored and signed.

    since: a signed checkpoint that was kept elsewhere. key: verifier keys that were kept elsewhere; each must be one
    of this ledger's. witnesses: how many must have cosigned the newest checkpoint. witness_key: their verifier keys;
    '' takes those that are configured. deep: also read the objects and table files that leaves name.
    """

    since: str = ""
    key: str = ""
    witnesses: Annotated[int, msgspec.Meta(ge=0, le=90)] = 0
    witness_key: str = ""
    deep: bool = True


class ShowCheckpoint(Request[Signed], frozen=True, kw_only=True):
    """Show the newest signed checkpoint and the key that it is checked with."""


class ShowLog(Request[Log], frozen=True, kw_only=True):
    """List leaves, newest first, by any of what they say.

    kind: the operation, such as models.set_alias; ref: leaves about it or made from it, such as model:delay@7;
    outcome: done or denied; since: RFC 3339, at or after; until: before; text: leaves whose canonical text holds it;
    after: the previous page's `more`
    """

    project: Somewhere = "*"
    kind: str = ""
    actor: str = ""
    subject: str = ""
    ref: str = ""
    outcome: Literal["", "done", "denied"] = ""
    since: Moment | None = None
    until: Moment | None = None
    text: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    after: Number = 0


class ShowLeaf(Request[Shown], frozen=True, kw_only=True):
    """Show one leaf: its text, hash, proof, decision, what it uses and what uses it.

    leaf: its id or its index
    """

    project: Somewhere = "*"
    leaf: str


class ProveLeaf(Request[LeafProof], frozen=True, kw_only=True):
    """Prove that a leaf is in the ledger, against the newest checkpoint or that of a size.

    leaf: its id or its index; size: of a signed checkpoint; 0: the newest
    """

    project: Somewhere = "*"
    leaf: str
    size: Number = 0


class ProveGrowth(Request[GrowthProof], frozen=True, kw_only=True):
    """Prove that the ledger of an earlier size is the beginning of a later one.

    old: leaves; to: leaves of the later one; 0: the newest checkpoint
    """

    project: Somewhere = "*"
    old: Number
    to: Number = 0


class ReadLeaves(Request[Page], frozen=True, kw_only=True):
    """Read leaves by their place in the ledger, for a copy of it (`macadam ledger export` writes one).

    first: index; size: read no further than this checkpoint's size; 0: the newest
    """

    project: Somewhere = "*"
    first: Number = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    size: Number = 0


class KeyState(msgspec.Struct, frozen=True, kw_only=True):
    """One key of the ledger. state: announced (no checkpoint covers its leaf yet), in force, or retired. since, until:
    the smallest and the largest checkpoint that it signs, in leaves; -1 if that is not settled. retire_after: when its
    overlap with the next key ends, '' if none is announced.
    """

    id: str
    key: str
    state: str
    since: int
    until: int
    retire_after: str


class LedgerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """keys: oldest first. announcements: for `macadam_verify --announced`, '' if the key never changed."""

    keys: tuple[KeyState, ...]
    announcements: str


class ShowKeys(Request[LedgerKeys], frozen=True, kw_only=True):
    """List the keys that sign the ledger, which checkpoints each signs, and how a reader gets from one to the next."""


class RotateKey(Request[KeyState], frozen=True, kw_only=True):
    """Announce a new key for the ledger. Both sign until the old one is retired.

    overlap_days: how long both sign, in days; 0 takes MACADAM_LEDGER_KEY_OVERLAP.
    """

    overlap_days: Annotated[int, msgspec.Meta(ge=0, le=3650)] = 0


class RetireKey(Request[KeyState], frozen=True, kw_only=True):
    """End a key of the ledger: it signs no later checkpoint, and its private half is destroyed. key: its id."""

    key: str


class WitnessState(msgspec.Struct, frozen=True, kw_only=True):
    """A witness of this ledger. size: of the last checkpoint that it is known to have cosigned. refusal: why it cosigned
    nothing when it was asked last, '' if it did. breach: whether that means that this ledger was rolled back or forked.
    """

    key: str
    url: str
    size: int
    refusal: str
    breach: bool


class ShowWitnesses(Request[tuple[WitnessState, ...]], frozen=True, kw_only=True):
    """List the witnesses that are asked to cosign this ledger, and what each said last."""


class KeyEncryption(msgspec.Struct, frozen=True, kw_only=True):
    """How the home's private keys are kept at rest. state: none, sealing (some are encrypted) or sealed. encrypted: how
    many were encrypted by this call.
    """

    state: str
    keys: int
    encrypted: int = 0


class ShowEncryption(Request[KeyEncryption], frozen=True, kw_only=True):
    """Say whether the home's private keys are encrypted at rest."""


class EncryptKeys(Request[KeyEncryption], frozen=True, kw_only=True):
    """Encrypt the home's private keys at rest, with the passphrase or KMS that is set. Safe to repeat after a kill."""
