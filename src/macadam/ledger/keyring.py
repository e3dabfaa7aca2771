"""The keys that one ledger has signed with: which of them sign a checkpoint of which size.

Pure. A key takes over from another by a leaf that announces it, and ends by a leaf that retires it; between the two
leaves both sign. So who trusts the first key finds every later one under a checkpoint that a key they trust has signed.
Making, storing and using private keys is for `keys`.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.ledger.leaf import Leaf
from macadam.ledger.note import ED25519, Checkpoint, Note, VerifierKey, verify

FIRST = "ledger.bootstrap"
ANNOUNCED = "ledger.rotate_key"
RETIRED = "ledger.retire_key"
_KIND = "ledger_key"

_LINE = re.compile(r"(\S+)(?: since (0|[1-9][0-9]{0,18}))?(?: until (0|[1-9][0-9]{0,18}))?")


def reference(key: VerifierKey) -> str:
    """How leaves name a key."""
    return f"{_KIND}:{key.id.hex()}"


class LedgerKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key and the checkpoints that it signs: those of `since` leaves or more and, if it is retired, of at most `until`."""

    verifier: VerifierKey
    since: int = 0
    until: int | None = None

    def __post_init__(self) -> None:
        if self.verifier.kind != ED25519:
            raise InvalidInput(
                f"{self.verifier} is a witness's key: it signs no checkpoint alone.",
                next_step="Give the ledger's own key; print it with: macadam ledger keys.",
            )

    def __str__(self) -> str:
        """The verifier key; what its first and last checkpoints are is left out where it is the whole ledger."""
        since = f" since {self.since}" if self.since else ""
        return f"{self.verifier}{since}" + (f" until {self.until}" if self.until is not None else "")

    @classmethod
    def parse(cls, line: str) -> "LedgerKey":
        """Reads `str()` of a key. Raises InvalidInput."""
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise InvalidInput(
                f"A ledger's key is a line 'name+id+base64 [since SIZE] [until SIZE]', got {line[:160]!r}.",
                next_step="Print it with: macadam ledger keys.",
            )
        until = int(match[3]) if match[3] else None
        return cls(verifier=VerifierKey.parse(match[1]), since=int(match[2] or 0), until=until)

    def signs(self, size: int) -> bool:
        """Whether a checkpoint of this size carries its signature."""
        return self.since <= size and (self.until is None or size <= self.until)


class KeyRing(msgspec.Struct, frozen=True, kw_only=True):
    """All keys of one ledger, oldest first. Their name is the ledger's origin."""

    keys: tuple[LedgerKey, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise InvalidInput("No key of the ledger was given.", next_step="Print them with: macadam ledger keys.")
        if len({key.verifier.name for key in self.keys}) > 1:
            raise InvalidInput(
                "The keys given are of more than one ledger.", next_step="Give the keys of one ledger, one a line."
            )

    def __str__(self) -> str:
        return "\n".join(str(key) for key in self.keys)

    @classmethod
    def parse(cls, text: str) -> "KeyRing":
        """Reads `str()` of a ring; empty lines and lines that begin with # are skipped. Raises InvalidInput."""
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return cls(keys=tuple(LedgerKey.parse(line) for line in lines))

    @classmethod
    def of(cls, key: VerifierKey) -> "KeyRing":
        """The ring of a ledger that never changed its key."""
        return cls(keys=(LedgerKey(verifier=key),))

    @property
    def origin(self) -> str:
        return self.keys[0].verifier.name

    @property
    def verifiers(self) -> tuple[VerifierKey, ...]:
        return tuple(key.verifier for key in self.keys)

    def grew_from(self, earlier: "KeyRing") -> bool:
        """Whether `earlier` is what this ring was before later leaves announced or retired keys."""
        pairs = zip(earlier.keys, self.keys, strict=False)
        return len(earlier.keys) <= len(self.keys) and all(
            then.verifier == now.verifier and then.since == now.since and then.until in (None, now.until)
            for then, now in pairs
        )

    def open(self, note: str | bytes) -> Checkpoint:
        """The checkpoint on a note that every key in force at its size has signed, and no other key of this name.

        Raises InvalidInput if it is malformed, IntegrityError that names the key that should or should not be there.
        """
        parsed = Note.parse(note)
        checkpoint = Checkpoint.parse(parsed.text)
        signed = verify(parsed, self.verifiers)
        if checkpoint.origin != self.origin:
            raise _unfit(f"It is a checkpoint of {checkpoint.origin!r}, not of {self.origin!r}.")
        known = {key.verifier.id for key in self.keys}
        for line in parsed.signatures:
            if line.name == self.origin and line.id not in known:
                raise _unfit(f"It is signed by the key {line.id.hex()}, which the ledger never announced.")
        for key in self.keys:
            if key.signs(checkpoint.size) and key.verifier not in signed:
                raise _unfit(f"It is not signed by the key {key.verifier.id.hex()}, which was in force.")
            if key.verifier in signed and not key.signs(checkpoint.size):
                raise _unfit(
                    f"It is signed by the key {key.verifier.id.hex()}, which {_why_not(key, checkpoint.size)}."
                )
        return checkpoint


def _why_not(key: LedgerKey, size: int) -> str:
    if size < key.since:
        return f"was announced later, in leaf {key.since - 1}"
    return f"was retired before, in leaf {key.until}"


def _unfit(what: str) -> IntegrityError:
    return IntegrityError(what, next_step="Do not rely on it; compare with a copy from another place.")


class KeyHistory:
    """What the leaves say about the ledger's keys. Read all of them in ledger order, then ask."""

    def __init__(self) -> None:
        self._keys: dict[str, LedgerKey] = {}
        self.problems: list[str] = []

    def read(self, index: int, leaf: Leaf) -> None:
        """Takes in one leaf; those that are not about a key change nothing. A key leaf that cannot be is a problem."""
        if leaf.outcome == "done" and leaf.kind in (FIRST, ANNOUNCED, RETIRED):
            try:
                self._take(index, leaf)
            except (InvalidInput, KeyError) as error:
                self.problems.append(f"leaf {index} says nothing valid about a key of the ledger: {error}")

    def _take(self, index: int, leaf: Leaf) -> None:
        if leaf.kind == RETIRED:
            self._keys[leaf.subject] = msgspec.structs.replace(self._keys[leaf.subject], until=index)
            return
        key = VerifierKey.parse(str(leaf.body["key"]))
        if leaf.subject != reference(key) or leaf.subject in self._keys:
            raise InvalidInput(f"it announces {key} as {leaf.subject}")
        # The first key signs before it is announced: the leaf that does so is under its first checkpoint.
        self._keys[leaf.subject] = LedgerKey(verifier=key, since=index + 1 if self._keys else 0)

    def ring(self, first: LedgerKey) -> KeyRing:
        """The keys that were announced. first: what counts in a ledger that has announced none."""
        return KeyRing(keys=tuple(self._keys.values()) or (LedgerKey(verifier=first.verifier),))


def announced_in(leaves: Iterable[tuple[int, Leaf]]) -> Iterator[tuple[int, Leaf]]:
    """Those of the leaves that a reader needs to follow from the first key to the others."""
    return ((index, leaf) for index, leaf in leaves if leaf.kind in (ANNOUNCED, RETIRED) and leaf.outcome == "done")
