"""The private keys of a ledger: in the secrets store under their names, in SQL by the leaves that announce and retire them.

The sequencer asks here who signs; `settle` makes the published list fit and destroys the keys that are retired.
What rotation does, step by step, is in `key_service`.
"""

import contextlib
import os
import secrets as random
from collections.abc import Collection, Sequence

import msgspec
import sqlalchemy as sa

from macadam.errors import Conflict, IntegrityError, InvalidInput, NotFound
from macadam.ledger.keyring import KeyRing, LedgerKey
from macadam.ledger.note import SignerKey, VerifierKey
from macadam.ledger.schema import keys, leaves
from macadam.ports import Ports

KEY_SECRET = "ledger-key"  # noqa: S105 - the name of a secret, not a secret
"""Of the first key; a later one's has its id behind."""
PUBLISHED = "ledger/key"


class HeldKey(msgspec.Struct, frozen=True, kw_only=True):
    """A row of SQL with the places of its two leaves. secret: its name. *_seq, *_idx: None while there is no such leaf,
    or no checkpoint over it.
    """

    key: VerifierKey
    secret: str
    announced: str
    announced_idx: int | None
    announced_seq: int
    retired: str
    retired_idx: int | None
    retired_seq: int | None
    retire_after: str


def bootstrap(ports: Ports) -> None:
    """Makes the ledger's first key in a fresh home, and publishes it. Two processes may do so at once."""
    try:
        ports.objects.get_name(PUBLISHED)
    except NotFound:
        with ports.sql.read() as sql:
            announced = held(sql)
        if not announced:
            name = f"macadam.local/{random.token_hex(4)}"
            with contextlib.suppress(Conflict):  # another process made it: then its key is the ledger's
                ports.secrets.put(KEY_SECRET, SignerKey(name, os.urandom(32)).secret.encode())
            first = SignerKey.parse(ports.secrets.get(KEY_SECRET).decode())
            ports.objects.set_name(PUBLISHED, f"{first.verifier}\n".encode())
    settle(ports)


def published(ports: Ports) -> KeyRing:
    """The keys that this ledger hands out."""
    return KeyRing.parse(ports.objects.get_name(PUBLISHED).decode())


def held(sql: sa.Connection) -> list[HeldKey]:
    """Every key that was announced, oldest first. Empty in a ledger whose first key is not announced yet."""
    announced, retired = leaves.alias("announced_leaf"), leaves.alias("retired_leaf")
    query = (
        sa.select(
            keys,
            announced.c.idx.label("announced_idx"),
            announced.c.seq.label("announced_seq"),
            retired.c.idx.label("retired_idx"),
            retired.c.seq.label("retired_seq"),
        )
        .join(announced, announced.c.id == keys.c.announced)
        .outerjoin(retired, retired.c.id == keys.c.retired)
        .order_by(announced.c.seq)
    )
    return [
        HeldKey(
            key=VerifierKey.parse(row.key),
            secret=row.secret,
            announced=row.announced,
            announced_idx=row.announced_idx,
            announced_seq=row.announced_seq,
            retired=row.retired,
            retired_idx=row.retired_idx,
            retired_seq=row.retired_seq,
            retire_after=row.retire_after,
        )
        for row in sql.execute(query)
    ]


def signing(known: Sequence[HeldKey], queued: Collection[int] = ()) -> list[str]:
    """Names of the secrets that sign a checkpoint over everything integrated and these queued leaves (their seq)."""
    if not known:
        return [KEY_SECRET]
    return [
        held.secret
        for number, held in enumerate(known)
        if (number == 0 or held.announced_idx is not None or held.announced_seq in queued)
        and held.retired_idx is None
        and held.retired_seq not in queued
    ]


def changed_by(known: Sequence[HeldKey], queued: Collection[int]) -> bool:
    """Whether these leaves (their seq) announce or retire a key."""
    return any(held.announced_seq in queued or held.retired_seq in queued for held in known)


def signers(ports: Ports, names: Sequence[str], known: Sequence[HeldKey] = ()) -> list[SignerKey]:
    """The private keys under these names. known: what the leaves announce under them.

    Raises NotFound for one that was retired and destroyed meanwhile, IntegrityError for one that is another key.
    """
    found = [SignerKey.parse(ports.secrets.get(name).decode()) for name in names]
    announced = {held.secret: held.key for held in known}
    for name, key in zip(names, found, strict=True):
        if announced.get(name, key.verifier) != key.verifier:
            raise IntegrityError(
                f"The secret {name!r} holds another key than the one that the ledger has announced.",
                next_step="Somebody has put it there: restore the home's keys from a backup.",
            )
    return found


def ring_of(known: Sequence[HeldKey]) -> KeyRing:
    """What the integrated leaves say: a key counts from the checkpoint over the leaf that announces it."""
    found = [
        LedgerKey(
            verifier=held.key,
            since=0 if number == 0 or held.announced_idx is None else held.announced_idx + 1,
            until=held.retired_idx,
        )
        for number, held in enumerate(known)
        if number == 0 or held.announced_idx is not None
    ]
    return KeyRing(keys=tuple(found))


def settle(ports: Ports) -> None:
    """Publishes the keys as the leaves have them, and destroys what may sign no more. Safe to repeat at any time.

    A list that was never true is left for `ledger verify` to find.
    """
    # Again after each time: of two that settle at once, the slower one has just put an older list back.
    while _settle_once(ports):
        pass


def _settle_once(ports: Ports) -> bool:
    """Whether there was something to do."""
    with ports.sql.read() as sql:
        known = held(sql)
    if not known:
        return False
    ring = ring_of(known)
    if not _out_of_date(ports, ring):
        return False
    # Destroyed first: after a kill between the two, the list does not fit and both are done again.
    for key in known:
        if key.retired_idx is not None:
            ports.secrets.remove(key.secret)
    ports.objects.set_name(PUBLISHED, f"{ring}\n".encode())
    return True


def _out_of_date(ports: Ports, ring: KeyRing) -> bool:
    try:
        listed = published(ports)
    except NotFound:
        return True
    except InvalidInput:
        return False
    return listed != ring and ring.grew_from(listed)
