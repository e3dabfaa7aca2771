"""Requests and answers about the ledger."""

import msgspec

from macadam.ledger.verification import Found
from macadam.operations import Request


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """note: a C2SP signed note. key: the verifier key, one line."""

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
    """entries: newest first."""

    entries: tuple[LogEntry, ...]


class VerifyLedger(Request[Found], frozen=True, kw_only=True):
    """Rebuild the ledger and compare it with everything stored and signed.

    since: a signed checkpoint that was kept elsewhere. deep: also read the objects and table files that leaves name.
    """

    since: str = ""
    deep: bool = True


class ShowCheckpoint(Request[Signed], frozen=True, kw_only=True):
    """Show the newest signed checkpoint and the key that it is checked with."""


class ShowLog(Request[Log], frozen=True, kw_only=True):
    """List leaves, newest first, by any of: kind, actor, subject, project."""

    kind: str = ""
    actor: str = ""
    subject: str = ""
    project_name: str = ""
    limit: int = 50
