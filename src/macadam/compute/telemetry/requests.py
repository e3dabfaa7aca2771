"""Requests and answers of the telemetry room."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.compute.telemetry.reading import Line
from macadam.compute.telemetry.types import Finding, Sample, Text
from macadam.operations import Request
from macadam.values import Name, Somewhere

Some = Annotated[tuple[Sample, ...], msgspec.Meta(min_length=1, max_length=20_000)]
Minutes = Annotated[int, msgspec.Meta(ge=1, le=120)]


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """What became of delivered samples. refused: by reason, 'ahead' (of our clock by more than an hour), 'early'
    (before the year 2000) or 'late' (its hour's samples have expired).
    """

    samples: int
    hours: tuple[datetime, ...]
    refused: dict[str, int]


class DeliverSamples(Request[Delivered], frozen=True, kw_only=True):
    """Deliver samples that a collector read. The same samples again change nothing."""

    samples: Some


class SealedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One hour, sealed. samples: distinct ones; suspect: rows of its usage that are not charged on."""

    hour: datetime
    samples: int
    duplicates: int
    suspect: int
    raw: str
    minute: str


class SealedSeries(msgspec.Struct, frozen=True, kw_only=True):
    """hours: those that changed. waiting: hours with deliveries that are not over yet. set_aside: deliveries that cannot be
    sealed, and why; they are kept under telemetry/set-aside. stuck: hours that a damaged sealed file holds up.
    """

    hours: tuple[SealedFile, ...]
    waiting: int
    set_aside: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


class SealTelemetry(Request[SealedSeries], frozen=True, kw_only=True):
    """Judge, fold and seal the hours that are over. open: those that are not over too; what comes later is merged."""

    open: bool = False


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were removed, by level."""

    files: dict[str, int]


class ExpireTelemetry(Request[Expired], frozen=True, kw_only=True):
    """Remove series that are older than their retention (MACADAM_TELEMETRY_RAW_HOURS and its neighbours)."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """files: how many were read; problems: those that are not what their leaf says, or are gone."""

    files: int
    problems: tuple[str, ...]


class VerifySeries(Request[Verified], frozen=True, kw_only=True):
    """Read every sealed file of the series and compare it with the digest that was recorded."""


class PodOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a pod is. owner: such as 'job:…' or 'endpoint:…'."""

    namespace: Text
    name: Text
    project: Name
    owner: Annotated[str, msgspec.Meta(max_length=300)]


class DeclaredPods(msgspec.Struct, frozen=True, kw_only=True):
    """How many pods are known by these names now."""

    pods: int


class DeclarePods(Request[DeclaredPods], frozen=True, kw_only=True):
    """Say whose Kubernetes pods are, so that what their GPUs do is charged to somebody."""

    pods: Annotated[tuple[PodOwner, ...], msgspec.Meta(min_length=1, max_length=10_000)]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a device, and which part of it."""

    project: str
    owner: str
    share: float


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it was last seen. Values are of the newest sample, None if not measured; energy_kwh: in the time that was
    looked at. trend: mean sm_active (else gpu_active) by minute, oldest first. suspect: why it is not believed, '' if it is.
    throttle: NVML's bits of clocks-event reasons. profile: of a MIG slice, such as '1g.10gb', '' if not known.
    """

    device: str
    node: str
    model: str
    product: str
    at: datetime
    age: float
    owners: tuple[Holder, ...]
    gpu_active: float | None
    sm_active: float | None
    tensor_active: float | None
    dram_active: float | None
    memory_used: int | None
    memory_total: int | None
    power: float | None
    temperature: float | None
    xid: int | None
    throttle: int | None
    energy_kwh: float | None
    trend: tuple[float | None, ...]
    suspect: str
    error: str
    profile: str = ""


class ListDevices(Request[tuple[Device, ...]], frozen=True, kw_only=True):
    """List devices as they were last seen: what they do, for whom, and whether it can be believed."""

    project: Somewhere
    minutes: Minutes = 10


class ReadUsage(Request[tuple[Line, ...]], frozen=True, kw_only=True):
    """Add up what devices did, by project, owner, device, model or node, in each hour or minute.

    start, end: the last 24 hours if absent. device: only this one.
    """

    project: Somewhere
    start: datetime | None = None
    end: datetime | None = None
    by: Literal["project", "owner", "device", "model", "node"] = "project"
    step: Literal["hour", "minute"] = "hour"
    device: Text = ""


class ListFindings(Request[tuple[Finding, ...]], frozen=True, kw_only=True):
    """List what the trust checks found: which readings are not believed, why, and with which evidence.

    start, end: the last 24 hours if absent. check: only this one.
    """

    project: Somewhere
    start: datetime | None = None
    end: datetime | None = None
    check: Text = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
