"""What is asked about where the money went: allocations of a month, their breakdown, and what operations cost here."""

from datetime import date, datetime
from typing import Annotated

import msgspec

from macadam.compute.waterfall.energy import Energy, Grid, Span
from macadam.compute.waterfall.profiles import Profile
from macadam.compute.waterfall.stages import CostSpan, Price, StageCost
from macadam.compute.waterfall.types import By, DayCost, Doubt, Flag, Uncharged, Waterfall
from macadam.operations import Request
from macadam.values import Money, Name, Somewhere

MonthText = Annotated[
    str, msgspec.Meta(pattern=r"^((19|20)[0-9]{2}-(0[1-9]|1[0-2]))?\Z", description="YYYY-MM; empty: this month, UTC")
]
Text = Annotated[str, msgspec.Meta(max_length=300, pattern=r"^[^\x00-\x1f]*\Z")]
Counted = Annotated[float, msgspec.Meta(gt=0, le=1e30)]


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """A month's bills divided over what was seen. rows: digest of the Parquet object with the pieces; bills: their ids;
    bill: the sum that the pieces add up to, by currency; start, end: of what was divided, UTC, end excluded. mapping: the
    version of the rules by which charges were projects'.
    """

    id: str
    month: str
    start: datetime
    end: datetime
    rows: str
    bills: tuple[str, ...]
    charges: int
    usage_rows: int
    bill: tuple[Money, ...]
    flags: tuple[Flag, ...]
    at: datetime
    by: str
    mapping: int = 0


class AllocateCosts(Request[Allocation], frozen=True, kw_only=True):
    """Divide a month's bills over what was seen of machines, so that every project can see its part.

    flops: model FLOPs that an owner is known to have done in the month, such as {"run:…": 4.2e19}: its MFU then says
    what was effective. number_format: of those FLOPs
    """

    month: MonthText = ""
    flops: Annotated[dict[Text, Counted], msgspec.Meta(max_length=10_000)] = msgspec.field(default_factory=dict)
    number_format: str = "bf16"


class ListAllocations(Request[tuple[Allocation, ...]], frozen=True, kw_only=True):
    """List what was divided, newest month first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Where a month's money went. whole: one waterfall for each currency; parts: by what was asked for, the dearest first.

    doubts, flags: only for who reads all projects, as they are of machines that projects share. outdated: what was changed
    since the month was divided, '' if nothing was.
    """

    project: str
    month: str
    allocation: str
    by: str
    whole: tuple[Waterfall, ...]
    parts: tuple[Waterfall, ...]
    days: tuple[DayCost, ...]
    uncharged: tuple[Uncharged, ...]
    doubts: tuple[Doubt, ...]
    flags: tuple[Flag, ...]
    outdated: str = ""


class BreakDown(Request[Breakdown], frozen=True, kw_only=True):
    """Show where a month's money went, step by step, for a project or (*) for all.

    by: what the parts are of; model, run, endpoint and job are of owners of that kind, and the rest is the part without a
    name
    limit: parts and other lists; what is dearer comes first, and the rest of the parts is summed up
    """

    project: Somewhere
    month: MonthText = ""
    by: By = "project"
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class OwnerCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner (a run, a job, an endpoint, a model's version) cost in a month, used and achieved. grid: what its CO₂ was
    computed with, None where the month was divided before that was kept.
    """

    owner: str
    project: str
    month: str
    waterfalls: tuple[Waterfall, ...]
    energy: Energy | None
    profiles: tuple[Profile, ...]
    grid: Grid | None = None


class ShowOwnerCost(Request[OwnerCost], frozen=True, kw_only=True):
    """Show what a run, a job, an endpoint or a model's version cost, with its energy, CO₂ and likely bottleneck.

    owner: such as run:0193…
    """

    project: Name
    owner: Text
    month: MonthText = ""


class OwnerEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner's GPUs took, whoever billed them. pue: energy of the building / of its machines. basis: how it is known."""

    owner: str
    project: str
    start: datetime
    end: datetime
    energy: Energy
    grid: Grid
    pue: Span
    profiles: tuple[Profile, ...]
    basis: str


class ShowOwnerEnergy(Request[OwnerEnergy], frozen=True, kw_only=True):
    """Show the energy and CO₂ of a run, a job, an endpoint or a model's version, with its likely bottleneck, without a bill.

    owner: such as run:0193…
    start, end: the last 31 days if absent
    """

    project: Name
    owner: Text
    start: datetime | None = None
    end: datetime | None = None


class WorkRecorded(msgspec.Struct, frozen=True, kw_only=True):
    """What was added."""

    project: str
    subject: str
    calls: int
    wall: float
    cpu: float
    cost: CostSpan


class RecordWork(Request[WorkRecorded], frozen=True, kw_only=True):
    """Add what a process of the platform took, that answers by no operation: a gateway, by who runs it.

    subject: what it worked for, such as endpoint:delays
    calls: how many answers it gave
    wall: seconds that it ran
    cpu: seconds of processor time
    """

    project: Name
    subject: Text
    calls: Annotated[int, msgspec.Meta(ge=0, le=10**15)]
    wall: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    cpu: Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """What a project's operations on this machine cost; of all projects ('*'), with the stage `platform`: what the platform did
    for none of them. price: what they are priced with.
    """

    project: str
    first: date | None
    last: date | None
    stages: tuple[StageCost, ...]
    total: CostSpan
    price: Price
    left_out: str


class ShowStages(Request[Stages], frozen=True, kw_only=True):
    """Show what the platform's own operations for a project, or (*) for all and itself, cost on this machine, by stage of the road.

    first, last: days (UTC), both included; empty: all
    """

    project: Somewhere
    first: date | None = None
    last: date | None = None
