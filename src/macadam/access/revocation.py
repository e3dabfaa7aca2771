"""The revocation list: which tokens have ended before their time, signed, for gateways that know nothing else yet.

It is one object under a name, a signed note (https://c2sp.org/signed-note), written within milliseconds of a
revocation and without SQL where SQL cannot be reached (break-glass). Gateways read it by themselves (`Watch`); the
serving state, which leaves revoked tokens out as well, may come later or, with the control plane down, never. Writing it
is for `revoking`, which knows SQL; this file does not.
"""

import re
from datetime import datetime, timedelta

import msgspec

from macadam.errors import IntegrityError, InvalidInput, MacadamError
from macadam.ledger import note as notes
from macadam.values import instant, parse_instant

NAME = "access/revoked.note"
VALID = timedelta(hours=1)
"""A gateway that sees an older list says so: its control plane renews it every few minutes."""
RENEW = timedelta(minutes=5)
RECORDED = "-"
"""What stands for who revoked where the ledger says it."""
MOST_ENTRIES = 100_000
"""Revoked tokens that have not expired: some 8 MB of list. Services' tokens last a day, so a real list is short."""
MOST_BYTES = 16 * 1024 * 1024
_TITLE = "macadam revocations v1"
_HEAD = 4
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_BY = re.compile(r"-|[!-~]{1,80}", re.ASCII)


class Entry(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One ended token. by: who ended it without SQL, '-' if the ledger says who."""

    token: str
    at: datetime
    by: str = RECORDED

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.token):
            raise InvalidInput(
                f"{self.token[:80]!r} is not a token's id.", next_step="List them: `macadam tokens list`."
            )
        if not _BY.fullmatch(self.by):
            raise InvalidInput(
                f"{self.by[:80]!r} cannot stand in the list.", next_step="Use printable ASCII, no spaces."
            )

    def __str__(self) -> str:
        return f"{self.token} {instant(self.at)} {self.by}"


class RevocationList(msgspec.Struct, frozen=True, kw_only=True):
    """number: grows with every list of a home, so that an older one is known as such."""

    number: int
    issued: datetime
    expires: datetime
    entries: tuple[Entry, ...] = ()

    def __str__(self) -> str:
        """The text of its note."""
        head = (_TITLE, str(self.number), instant(self.issued), instant(self.expires))
        return "".join(f"{line}\n" for line in (*head, *self.entries))

    @classmethod
    def parse(cls, text: str) -> "RevocationList":
        """Reads `str()` of one. Raises InvalidInput for anything else."""
        lines = text.split("\n")
        if len(lines) <= _HEAD or lines[0] != _TITLE or lines[-1] or not _NUMBER.fullmatch(lines[1]):
            raise _malformed("it does not begin as one")
        if len(lines) - _HEAD - 1 > MOST_ENTRIES:
            raise _malformed(f"it has more than {MOST_ENTRIES} entries")
        try:
            found = cls(
                number=int(lines[1]),
                issued=parse_instant(lines[2]),
                expires=parse_instant(lines[3]),
                entries=tuple(_entry(line) for line in lines[_HEAD:-1]),
            )
        except ValueError as error:
            raise _malformed(f"{error}") from error
        if str(found) != text:
            raise _malformed("it is not in its one spelling")
        return found


def _entry(line: str) -> Entry:
    parts = line.split(" ")
    if len(parts) != len(("token", "at", "by")):
        raise _malformed("an entry is a token, an instant and who")
    return Entry(token=parts[0], at=parse_instant(parts[1]), by=parts[2])


def _malformed(why: str) -> InvalidInput:
    return InvalidInput(
        f"This is no revocation list: {why}.", next_step="Publish it anew: open the home (`macadam up`)."
    )


# --- Reading: for gateways ------------------------------------------------------------------------------------


def open_list(data: bytes, key: notes.VerifierKey) -> RevocationList:
    """Raises InvalidInput if it is malformed, IntegrityError if that key did not sign it."""
    if len(data) > MOST_BYTES:
        raise _malformed(f"it has more than {MOST_BYTES} bytes")
    parsed = notes.Note.parse(data)
    notes.verify(parsed, [key])
    return RevocationList.parse(parsed.text)


class Watch:
    """What one reader knows of revoked tokens: only ever more. For one thread; `revoked` may be read by others."""

    def __init__(self) -> None:
        self.revoked: frozenset[str] = frozenset()
        self.newest: RevocationList | None = None
        self.refused = 0
        self._seen: tuple[bytes, str, int] = (b"", "", 0)

    def offer(self, data: bytes, key: str, floor: int) -> bool:
        """Takes over a list; whether anything changed. key, floor: of the serving state.

        Raises InvalidInput, IntegrityError for one that is malformed, not signed with the key, or older than one seen
        before; what was known goes on. The same bytes are looked at once.
        """
        if (data, key, floor) == self._seen:
            return False
        self._seen = (data, key, floor)
        try:
            found = open_list(data, notes.VerifierKey.parse(key))
            least = max(floor, self.newest.number if self.newest else 0)
            if found.number < least:
                raise IntegrityError(
                    f"The revocation list has the number {found.number}, {least} was seen before: it is an old one.",
                    next_step="Find out who put it back; open the home (`macadam up`) to publish the present one.",
                )
        except MacadamError:
            self.refused += 1
            raise
        before = self.revoked
        self.newest, self.revoked = found, frozenset(entry.token for entry in found.entries)
        return self.revoked != before

    def age(self, now: datetime) -> float:
        """Seconds since the newest list was written; infinite without one."""
        return (now - self.newest.issued).total_seconds() if self.newest else float("inf")
