"""Requests and values of the journal: sealed segments."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.operations import Request
from macadam.values import Name

TABLE = "predictions"
"""The table of each project that holds its sealed records."""


Durability = Literal["group", "answer-after-fsync"]
OnFailure = Literal["stop", "answer-unrecorded"]


class JournalPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a project asks of its journal. durability: whether an answer waits until its record is on the disk, or for the
    group fsync at most; on_journal_failure: what happens to answers that the journal cannot take.
    """

    durability: Durability = "group"
    on_journal_failure: OnFailure = "stop"


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed segment. first_id, last_id: the ids of its records lie between them; empty without records.

    answers: what the gateway counted by itself; more than `count` means that records are missing. torn: bytes of an
    unfinished, never answered record that recovery dropped. archive: digest of the file as the gateway wrote it;
    places: digest of the index into it; snapshot: of the table; leaf: id of the ledger leaf.
    """

    id: str
    project: str
    gateway: str
    worker: int
    first_id: str
    last_id: str
    first_at: str
    last_at: str
    count: int
    answers: int
    torn: int
    root: str
    archive: str
    places: str
    snapshot: str
    leaf: str
    sealed: datetime


class GapFact(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that left without a record, as a sealed segment tells them. causes: how many, by why there was none."""

    id: str
    segment: str
    gateway: str
    first_at: str
    last_at: str
    answers: int
    causes: dict[str, int]


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What a sealing did. known: segments that were sealed before; remaining: closed ones that the next call seals."""

    project: str
    segments: tuple[Segment, ...]
    records: int
    known: int
    remaining: int


class SealClosed(Request[Sealed], frozen=True, kw_only=True):
    """Seal the closed journal segments of a project: into the table of predictions, and into the ledger.

    segment: only this one. Segments whose gateway is gone are recovered first. Sealing twice changes nothing.
    """

    project: Name
    segment: str = ""


class ListSegments(Request[tuple[Segment, ...]], frozen=True, kw_only=True):
    """List sealed journal segments, newest first."""

    project: Name
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a project asks of its journal. effective: what gateways do; a high-risk project always stops."""

    project: str
    durability: Durability
    on_journal_failure: OnFailure
    effective: JournalPolicy


class DeclareJournal(Request[Declared], frozen=True, kw_only=True):
    """Declare when an answer may leave, and what happens to answers that the journal cannot take.

    durability: `group` (a power cut loses at most the last group fsync) or `answer-after-fsync` (none that was answered);
    on_journal_failure: `stop` or `answer-unrecorded`, which a high-risk project may not declare.
    """

    project: Name
    durability: Durability = "group"
    on_journal_failure: OnFailure = "stop"


class GatewayJournal(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says of its journal. alive: False for the last words of one that was killed; condition: why it takes
    no records, '' if it does; unsynced: bytes; untold: answers without a record that no segment tells yet; refused:
    answers that were not given, since it started.
    """

    gateway: str
    alive: bool
    at: str
    condition: str
    records: int
    unsynced: int
    last_fsync: str
    unrecorded: int
    untold: int
    refused: int


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """A project's journal. open, closed, sealed: segments; records, answers: of closed and sealed ones, and what the
    gateways counted by themselves; unsynced: bytes; gaps: answers without a record, newest first; unrecorded: how many, those
    that no segment tells yet included; missing: segments that others name and that are gone; damaged: in sentences.
    """

    project: str
    durability: Durability
    on_journal_failure: OnFailure
    open: int
    closed: int
    sealed: int
    records: int
    answers: int
    torn: int
    unsynced: int
    last_fsync: str
    unrecorded: int
    gaps: tuple[GapFact, ...]
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    gateways: tuple[GatewayJournal, ...]


class JournalStatus(Request[JournalState], frozen=True, kw_only=True):
    """Show a project's journal: segments, records against answers, what waits for the disk, and what is missing."""

    project: Name
