"""What an inspection finds, and the requests for one."""

from datetime import datetime
from typing import Literal

import msgspec

from macadam.operations import Request
from macadam.values import Name

Status = Literal["pass", "fail", "not_applicable", "did_not_run"]
STATUSES: tuple[Status, ...] = ("pass", "fail", "not_applicable", "did_not_run")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. population: how many things there are to look at; sample: how many were looked at.

    evidence: ids of the ledger leaves that it rests on; table: what was compared, a row each, counterexamples first.
    """

    status: Status
    detail: str
    population: int = 0
    sample: int = 0
    evidence: tuple[str, ...] = ()
    table: tuple[dict[str, str], ...] = ()


class PointResult(msgspec.Struct, frozen=True, kw_only=True):
    """One of the 42 points. start and end: the time that its evidence spans (None without evidence).

    code: digest of the source that checked it, '' if nothing did; executor: who had it run, and with which release.
    """

    id: str
    check: str
    status: Status
    detail: str
    population: int
    sample: int
    collected_at: datetime
    start: datetime | None
    end: datetime | None
    executor: str
    code: str
    evidence: tuple[str, ...]
    controls: dict[str, tuple[str, ...]]
    table: tuple[dict[str, str], ...] = ()


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """All 42 points of a project at one time. counts: by status; catalogue: digest of the file that lists the points;
    digest: of this document as stored, without its own digest; '' while it is computed.
    """

    ref: str
    id: str
    project: str
    at: datetime
    executor: str
    edition: str
    catalogue: str
    counts: dict[str, int]
    points: tuple[PointResult, ...]
    digest: str = ""


class Inspect(Request[Inspection], frozen=True, kw_only=True):
    """Inspect a project: 42 points, each with an honest status; what nothing checks says so."""

    project: Name


class ShowInspection(Request[Inspection], frozen=True, kw_only=True):
    """Show an inspection. inspection: its id or reference; empty: the latest."""

    project: Name
    inspection: str = ""


class ListInspections(Request[tuple[Inspection, ...]], frozen=True, kw_only=True):
    """List a project's inspections, newest first, without their points."""

    project: Name
    limit: int = 20
