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
