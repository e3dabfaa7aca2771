"""Who vouches for the ledger: its keys, which take over from one another and may be encrypted at rest, and its witnesses.

Rotating the key: a leaf announces the new one, both sign for a while, a leaf retires the old one.

The steps are ordered so that a kill between any two leaves a valid ledger, and the same call can be made again:
the private key is durable before its leaf is (a key without a leaf signs nothing; the next rotation takes it up), the
leaf and the row commit together, and the sequencer signs with whatever the leaves under a checkpoint say.
"""

import json
import os
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from macadam.errors import Conflict, NotFound
from macadam.ledger import keys, sequencer
from macadam.ledger.keyring import ANNOUNCED, FIRST, RETIRED, reference
from macadam.ledger.keys import HeldKey
from macadam.ledger.leaf import without_call
from macadam.ledger.note import SignerKey
from macadam.ledger.schema import checkpoints
from macadam.ledger.schema import keys as key_table
from macadam.ledger.schema import witnesses as witness_table
from macadam.ledger.service import Prover, by_id, queue
from macadam.ledger.types import (
    EncryptKeys,
    KeyEncryption,
    KeyState,
    LedgerKeys,
    RetireKey,
    RotateKey,
    ShowEncryption,
    ShowKeys,
    ShowWitnesses,
    WitnessState,
)
from macadam.ledger.witnesses import configured
from macadam.operations import Context, Transaction, operation
from macadam.ports import Ports
from macadam.values import instant, utc_now

ANNOUNCEMENT_FORMAT = "macadam-key/1"


def announce_first(ports: Ports, policy_set: Callable[[], str]) -> None:
    """Says in a leaf which key the ledger began with, once. policy_set: the digest of the policies in force."""
    with ports.sql.read() as sql:
        if keys.held(sql):
            return
    first = keys.published(ports).keys[0].verifier
    at_rest = ports.secrets.encryption()
    leaf = without_call(
        FIRST,
        at=utc_now(),
        actor="system:bootstrap",
        subject=reference(first),
        rule="bootstrap",
        policy_set=policy_set(),
        body={"key": str(first), **({} if at_rest == "none" else {"state": at_rest})},
    )
    row = _row(first.id.hex(), str(first), keys.KEY_SECRET, leaf.id)

    def write(sql: sa.Connection) -> None:
        if not keys.held(sql):  # else another process was first
            queue(sql, leaf)
            sql.execute(sa.insert(key_table).values(row))

    ports.sql.write(write)


def _row(key_id: str, key: str, secret: str, leaf: str) -> dict[str, str]:
    return {"id": key_id, "key": key, "secret": secret, "announced": leaf, "retired": "", "retire_after": ""}


def _in_force(known: list[HeldKey]) -> list[HeldKey]:
    return [key for key in known if not key.retired]


# --- rotate


def _prepare_rotation(context: Context, _request: RotateKey) -> SignerKey:
    """Makes the new private key durable, or takes up one that a killed rotation has left."""
    with context.read() as sql:
        known = keys.held(sql)
    _refuse_second(known)
    taken = {key.secret for key in known}
    for name in context.ports.secrets.names(f"{keys.KEY_SECRET}."):
        left = SignerKey.parse(context.ports.secrets.get(name).decode())
        if name not in taken and left.name == known[0].key.name:
            return left
    ids = {key.key.id for key in known}
    new = SignerKey(known[0].key.name, os.urandom(32))
    while new.verifier.id in ids:  # 4 bytes: readers could not tell the two apart
        new = SignerKey(known[0].key.name, os.urandom(32))
    context.ports.secrets.put(_secret_of(new), new.secret.encode())
    return new


def _secret_of(key: SignerKey) -> str:
    return f"{keys.KEY_SECRET}.{key.verifier.id.hex()}"


def _refuse_second(known: list[HeldKey]) -> None:
    in_force = _in_force(known)
    if len(in_force) != 1:
        oldest = in_force[0].key.id.hex()
        raise Conflict(
            f"The ledger has {len(in_force)} keys in force already: one takes over from the other.",
            next_step=f"macadam ledger retire {oldest}, then rotate again.",
        )


@operation(
    RotateKey,
    permission="ledger:rotate",
    http="POST /api/v1/ledger/keys",
    cli="ledger rotate",
    resource="platform:home",
    prepare=_prepare_rotation,
)
def rotate_key(tx: Transaction, request: RotateKey, new: SignerKey) -> KeyState:
    known = keys.held(tx.sql)
    _refuse_second(known)
    (old,) = _in_force(known)
    days = request.overlap_days or tx.ports.settings.ledger.key_overlap
    retire_after = instant(tx.now + timedelta(days=days))
    leaf = tx.record(
        reference(new.verifier), uses=[reference(old.key)], key=str(new.verifier), old_key_until=retire_after
    )
    tx.sql.execute(sa.insert(key_table).values(_row(new.verifier.id.hex(), str(new.verifier), _secret_of(new), leaf)))
    tx.sql.execute(sa.update(key_table).where(key_table.c.id == old.key.id.hex()).values(retire_after=retire_after))
    return _state(next(key for key in keys.held(tx.sql) if key.key == new.verifier), first=False)


# --- retire


def _prepare_retirement(context: Context, _request: RetireKey) -> None:
    """So that the key that takes over has its checkpoint, signed by the one that ends."""
    sequencer.integrate_all(context.ports)


@operation(
    RetireKey,
    permission="ledger:rotate",
    http="POST /api/v1/ledger/keys/{key}/retire",
    cli="ledger retire",
    resource="platform:home",
    prepare=_prepare_retirement,
)
def retire_key(tx: Transaction, request: RetireKey, _integrated: None) -> KeyState:
    known = keys.held(tx.sql)
    found = next((key for key in known if key.key.id.hex() == request.key), None)
    if found is None:
        raise NotFound(f"The ledger has no key {request.key!r}.", next_step="List them with: macadam ledger keys.")
    if found.retired:
        raise Conflict(f"The key {request.key} is retired already.", next_step="See macadam ledger keys.")
    others = [key for key in _in_force(known) if key is not found]
    if not others:
        raise Conflict(
            f"The key {request.key} is the only one in force.",
            next_step="Announce another first: macadam ledger rotate.",
        )
    if all(key.announced_idx is None for key in others):
        # Under one checkpoint with the retirement, only the new key would sign that it takes over: who trusts the old
        # one could never follow.
        raise Conflict(
            f"No checkpoint signed by the key {request.key} covers the key that takes over from it yet.",
            next_step="Try again in a second.",
        )
    leaf = tx.record(reference(found.key), uses=[reference(key.key) for key in others], key=str(found.key))
    tx.sql.execute(sa.update(key_table).where(key_table.c.id == request.key).values(retired=leaf))
    tx.sql.execute(sa.update(key_table).where(key_table.c.retired == "").values(retire_after=""))
    after = keys.held(tx.sql)
    return _state(next(key for key in after if key.key == found.key), first=found is known[0])


def overdue(sql: sa.Connection, now: str) -> list[str]:
    """Ids of the keys whose overlap has ended. now: an instant, as text."""
    return [key.key.id.hex() for key in _in_force(keys.held(sql)) if key.retire_after and key.retire_after <= now]


# --- show


def _integrate(context: Context, _request: ShowKeys) -> None:
    """So that an announcement of a moment ago has its checkpoint."""
    sequencer.integrate_all(context.ports)
    keys.settle(context.ports)


@operation(
    ShowKeys,
    permission="ledger:read",
    http="GET /api/v1/ledger/keys",
    cli="ledger keys",
    resource="platform:home",
    prepare=_integrate,
)
def show_keys(tx: Transaction, _request: ShowKeys, _integrated: None) -> LedgerKeys:
    known = keys.held(tx.sql)
    return LedgerKeys(
        keys=tuple(_state(key, first=number == 0) for number, key in enumerate(known)),
        announcements=announcements(tx.ports, tx.sql),
    )


def _state(key: HeldKey, *, first: bool) -> KeyState:
    covered = first or key.announced_idx is not None
    return KeyState(
        id=key.key.id.hex(),
        key=str(key.key),
        state="retired" if key.retired else "in force" if covered else "announced",
        since=0 if first else -1 if key.announced_idx is None else key.announced_idx + 1,
        until=-1 if key.retired_idx is None else key.retired_idx,
        retire_after=key.retire_after,
    )


def announcements(ports: Ports, sql: sa.Connection) -> str:
    """What leads a reader from the first key to all others: a line a leaf that announces or retires one, with its
    proof under the first checkpoint that covers it, which the keys in force there have signed.
    """
    known = keys.held(sql)
    wanted = [key.announced for key in known[1:]] + [key.retired for key in known if key.retired]
    lines = []
    for entry in by_id(sql, wanted):
        if entry.index >= 0 and entry.leaf.kind in (ANNOUNCED, RETIRED):
            query = sa.select(checkpoints.c.size, checkpoints.c.note).where(checkpoints.c.size > entry.index)
            size, note = sql.execute(query.order_by(checkpoints.c.size).limit(1)).one()
            lines.append(_announcement(entry.index, entry.text, Prover(ports, size).path(entry.index), note))
    return "".join(lines)


def _announcement(index: int, leaf: bytes, path: list[bytes], note: str) -> str:
    document = {
        "format": ANNOUNCEMENT_FORMAT,
        "index": index,
        "leaf": leaf.decode(),
        "path": [digest.hex() for digest in path],
        "checkpoint": note,
    }
    return json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"


@operation(
    ShowWitnesses,
    permission="ledger:read",
    http="GET /api/v1/ledger/witnesses",
    cli="ledger witnesses",
    resource="platform:home",
)
def show_witnesses(tx: Transaction, _request: ShowWitnesses) -> tuple[WitnessState, ...]:
    said = {row.key: row for row in tx.sql.execute(sa.select(witness_table))}
    shown = []
    for witness in configured(tx.ports):
        row = said.get(str(witness.key))
        shown.append(
            WitnessState(
                key=str(witness.key),
                url=witness.url,
                size=row.size if row else 0,
                refusal=row.refusal if row else "",
                breach=row.breach if row else False,
            )
        )
    return tuple(shown)


# --- at rest


def _encrypt(context: Context, _request: EncryptKeys) -> int:
    return context.ports.secrets.encrypt()


@operation(
    EncryptKeys,
    permission="keys:encrypt",
    http="POST /api/v1/keys/encrypt",
    cli="keys encrypt",
    resource="platform:home",
    prepare=_encrypt,
)
def encrypt_keys(tx: Transaction, _request: EncryptKeys, encrypted: int) -> KeyEncryption:
    names = tx.ports.secrets.names()
    state = tx.ports.secrets.encryption()
    tx.record("home:keys", state=state, keys=len(names), encrypted=encrypted)
    return KeyEncryption(state=state, keys=len(names), encrypted=encrypted)


@operation(
    ShowEncryption,
    permission="keys:read",
    http="GET /api/v1/keys",
    cli="keys status",
    resource="platform:home",
)
def show_encryption(tx: Transaction, _request: ShowEncryption) -> KeyEncryption:
    return KeyEncryption(state=tx.ports.secrets.encryption(), keys=len(tx.ports.secrets.names()))
