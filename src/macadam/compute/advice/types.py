"""Advice: what would cost less, what that is likely to save, what it risks, how to undo it, and what it saved once taken."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.errors import InvalidInput
from macadam.operations import Request
from macadam.values import Money, Name

Kind = Literal[
    "idle", "consolidate", "fewer-gpus", "smaller-gpu", "commit", "spot", "scale-to-zero", "precision", "batch"
]
Risk = Literal["low", "medium", "high"]
Status = Literal["open", "taken", "dismissed", "past"]
"""past: it was open, and was not found again."""
Verdict = Literal["saved", "nothing shown", "cost more", "too early"]
AdviceId = Annotated[str, msgspec.Meta(pattern=r"^(advice:)?[0-9a-f-]{36}\Z", description="advice:ID, or the ID alone")]


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """Of 30 days at the pace of the window. low, high: the bounds of a 90% interval where days were enough to tell, else
    what cannot be undercut or exceeded. money: None where no price of the device is known: hours are still counted.
    """

    hours: float
    low_hours: float
    high_hours: float
    expected: Money | None = None
    low: Money | None = None
    high: Money | None = None

    def __post_init__(self) -> None:
        if not self.low_hours <= self.hours <= self.high_hours:
            raise InvalidInput(
                f"A saving of {self.hours} hours lies outside of {self.low_hours} to {self.high_hours}.",
                next_step="Report it: advice was computed wrongly.",
            )


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule found. subjects: the owners that it is about, as references; devices: what they held.

    what: what to do, a sentence; because: the figures that it rests on; undo: how to go back; assumes: what was taken for
    granted in the saving, '' if nothing was.
    """

    kind: Kind
    project: str
    subjects: tuple[str, ...]
    devices: tuple[str, ...]
    what: str
    because: str
    saving: Saving
    risk: Risk
    risks: str
    undo: str
    assumes: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What taken advice did, against the days before it: the price of the same work, then and since.

    before, after: money for 1,000 petaFLOP-hours that the devices could have done while their multiprocessors were at
    work, or for 1,000 active hours where the GPU is not in the catalogue. saving: of 30 days at the pace since; low,
    high: a 90% interval. days: before, and since. scope: whether its subjects were looked at, who worked before and since, or
    all of their project.
    """

    verdict: Verdict
    scope: Literal["subjects", "project"] = "project"
    days: tuple[int, int]
    before: float = 0
    after: float = 0
    saving: Money | None = None
    low: Money | None = None
    high: Money | None = None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """Kept advice. ref: advice:ID. start, end: the window that it rests on, UTC. believed: part of the window's hours on
    which no trust check cast doubt. at, by: when it was found; decided: when it was taken or dismissed.
    """

    ref: str
    project: str
    status: Status
    proposal: Proposal
    start: datetime
    end: datetime
    believed: float
    at: datetime
    by: str
    decided: datetime | None = None
    decided_by: str = ""
    note: str = ""
    measured: Measured | None = None


class FindAdvice(Request[tuple[Advice, ...]], frozen=True, kw_only=True):
    """Look for what would cost less, over the last days of what was seen and billed.

    Advice that was dismissed is not given again for as long as its figures stay within a half of what they were.
    """

    project: Name
    days: Annotated[int, msgspec.Meta(ge=1, le=366)] = 14


class ListAdvice(Request[tuple[Advice, ...]], frozen=True, kw_only=True):
    """List advice, the largest expected saving first."""

    project: Name
    status: Status | Literal[""] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class ShowAdvice(Request[Advice], frozen=True, kw_only=True):
    """Show what advice rests on, what it risks, how to undo it, and what it saved if it was measured."""

    project: Name
    advice: AdviceId


class TakeAdvice(Request[Advice], frozen=True, kw_only=True):
    """Say that advice was followed, from now on: it is measured against the days before."""

    project: Name
    advice: AdviceId
    note: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class DismissAdvice(Request[Advice], frozen=True, kw_only=True):
    """Say that advice will not be followed, and why."""

    project: Name
    advice: AdviceId
    note: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class MeasureAdvice(Request[Advice], frozen=True, kw_only=True):
    """Measure what taken advice saved, against the days before it."""

    project: Name
    advice: AdviceId
