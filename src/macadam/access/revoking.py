"""Writes the revocation list: for the control plane out of SQL, and for whoever breaks the glass without it.

Reading it is for `revocation`, which gateways import and which knows no SQL.
"""

import fcntl
import logging
import secrets as randomness
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.revocation import NAME, RENEW, VALID, Entry, RevocationList, open_list
from macadam.access.schema import state, tokens
from macadam.errors import Conflict, IntegrityError, InvalidInput, NotFound
from macadam.ledger import note as notes
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf, without_call
from macadam.ports import Objects, Ports, Secrets
from macadam.values import instant

_log = logging.getLogger(__name__)
SECRET = "revocation-key"  # noqa: S105 - the name of a secret, not a secret
_ORIGIN = "macadam-revocations"
_PLACE = Path("serving") / "revoked.lock"


def signer(store: Secrets) -> notes.SignerKey:
    """The list's key; made at its first use. Whoever writes the secret first wins; the others take theirs."""
    try:
        return notes.SignerKey.parse(store.get(SECRET).decode())
    except NotFound:
        made = notes.SignerKey(_ORIGIN, randomness.token_bytes(32))
    try:
        store.put(SECRET, made.secret.encode())
    except Conflict:
        return notes.SignerKey.parse(store.get(SECRET).decode())
    return made


def published_number(objects: Objects, key: notes.VerifierKey) -> int:
    """The number of the list that gateways see, 0 if there is none that is ours."""
    found = _published(objects, key)
    return found.number if found else 0


def publish(ports: Ports, now: datetime) -> bool:
    """Writes the list that SQL and the published list give together, unless it stands there. Whether it wrote.

    Raises StorageFull.
    """
    key = signer(ports.secrets)
    with _only_one(ports.settings.home):
        before = _published(ports.objects, key.verifier)
        with ports.sql.read() as sql:
            entries = _recorded(sql, now) | _unrecorded(sql, before.entries if before else ())
        due = before is None or set(before.entries) != entries or now - before.issued > RENEW
        if due:
            _write(ports.objects, key, before, sorted(entries), now)
    return due


def revoke_offline(
    objects: Objects, store: Secrets, home: Path, token: str, *, by: str, now: datetime
) -> RevocationList:
    """Breaks the glass: ends a token on every gateway without SQL. The next start records it (`reconcile`).

    Raises InvalidInput for what is no token's id, StorageFull.
    """
    entry = Entry(token=token, at=now, by=by)
    key = signer(store)
    with _only_one(home):
        before = _published(objects, key.verifier)
        known = before.entries if before else ()
        entries = known if any(one.token == token for one in known) else (*known, entry)
        return _write(objects, key, before, sorted(entries), now)


def reconcile(ports: Ports, now: datetime) -> list[str]:
    """Ends in SQL what the published list ended and SQL does not know of, each with its leaf. Returns those tokens.

    That is what was revoked without SQL, and what a restored older database would let live again.
    """
    try:
        data = ports.objects.get_name(NAME)
        claimed = RevocationList.parse(notes.Note.parse(data).text)
    except (NotFound, InvalidInput):
        return []  # `publish` says what is wrong with it, and replaces it
    with ports.sql.read() as sql:
        missing = set(_alive(sql, claimed.entries))
    if not missing:
        return []  # nearly always: without a look at the signature
    found = _published(ports.objects, signer(ports.secrets).verifier)
    entries = [entry for entry in (found.entries if found else ()) if entry.token in missing]
    return ports.sql.write(lambda sql: _record(sql, entries, now))


def _record(sql: sa.Connection, entries: Sequence[Entry], now: datetime) -> list[str]:
    alive = _alive(sql, entries)
    for entry in entries:
        if entry.token in alive:
            sql.execute(sa.update(tokens).where(tokens.c.id == entry.token).values(revoked=entry.at))
            ledger.queue(sql, _leaf(sql, entry, alive[entry.token], now))
    if alive:
        access.touch(sql)
    return sorted(alive)


def _leaf(sql: sa.Connection, entry: Entry, holder: str, now: datetime) -> Leaf:
    policy_set = sql.execute(sa.select(state.c.policy_set)).scalar_one()
    return without_call(
        "access.revoke_offline",
        at=now,
        actor="system:revocations",
        subject=f"token:{entry.token}",
        uses=[holder],
        rule="break-glass",
        policy_set=policy_set,
        body={"revoked": "true", "since": instant(entry.at), "by": entry.by},
    )


def _recorded(sql: sa.Connection, now: datetime) -> set[Entry]:
    """What SQL has revoked and has not expired, which would end it anyway."""
    live = sa.or_(tokens.c.expires.is_(None), tokens.c.expires > now)
    rows = sql.execute(sa.select(tokens.c.id, tokens.c.revoked).where(tokens.c.revoked.is_not(None), live))
    return {Entry(token=row.id, at=row.revoked) for row in rows}


def _unrecorded(sql: sa.Connection, entries: Sequence[Entry]) -> set[Entry]:
    """What was listed without SQL and still has to be recorded. An id that SQL never knew is dropped."""
    alive = _alive(sql, entries)
    return {entry for entry in entries if entry.token in alive}


def _alive(sql: sa.Connection, entries: Sequence[Entry]) -> dict[str, str]:
    """The listed tokens that SQL takes for not revoked, with their holders."""
    found: dict[str, str] = {}
    for start in range(0, len(entries), 500):  # databases bound the number of parameters
        some = [entry.token for entry in entries[start : start + 500]]
        query = sa.select(tokens.c.id, tokens.c.principal).where(tokens.c.id.in_(some), tokens.c.revoked.is_(None))
        found.update({row.id: row.principal for row in sql.execute(query)})
    return found


def _published(objects: Objects, key: notes.VerifierKey) -> RevocationList | None:
    """The list that is there. One that is damaged or not ours is said, and counts for nothing."""
    try:
        return open_list(objects.get_name(NAME), key)
    except NotFound:
        return None
    except (InvalidInput, IntegrityError) as error:
        _log.error("the published revocation list is not ours, and is replaced: %s", error)
        return None


def _write(
    objects: Objects, key: notes.SignerKey, before: RevocationList | None, entries: Sequence[Entry], now: datetime
) -> RevocationList:
    """The number goes by the clock (µs), so that it grows even if the list before is lost; never by the clock alone."""
    number = max((before.number if before else 0) + 1, int(now.timestamp() * 1_000_000))
    new = RevocationList(number=number, issued=now, expires=now + VALID, entries=tuple(entries))
    objects.set_name(NAME, str(notes.sign(str(new), key)).encode())
    return new


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Reading, adding and writing is one step among all processes of a home."""
    path = home / _PLACE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
