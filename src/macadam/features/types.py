"""Requests and values of the features room: registered definitions, training sets, the online store."""

from datetime import datetime
from typing import Annotated

import msgspec

from macadam.operations import Request
from macadam.values import Digest, Name

Rows = Annotated[list[dict[str, object]], msgspec.Meta(min_length=1, max_length=10_000)]
ViewsVersion = Annotated[
    str,
    msgspec.Meta(pattern=r"^([0-9a-f]{12})?\Z", description="version of the definitions; empty: the newest"),
]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Views(msgspec.Struct, frozen=True, kw_only=True):
    """Registered feature definitions. ref: views:PROJECT@VERSION; services: feature names by service."""

    ref: str
    project: str
    version: str
    digest: Digest
    services: dict[str, tuple[str, ...]]
    at: datetime
    by: str


class RegisterViews(Request[Views], frozen=True, kw_only=True):
    """Register the feature definitions of a project.

    definitions: as `python -m macadam.features.load` prints them. The same definitions again change nothing.
    """

    project: Name
    definitions: dict[str, object]


class ListViews(Request[list[Views]], frozen=True, kw_only=True):
    """List registered feature definitions, newest first."""

    project: Name
    limit: Limit = 100


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """kind: 'number' or 'category'."""

    name: str
    kind: str


class TrainingSet(msgspec.Struct, frozen=True, kw_only=True):
    """A training set: one Parquet object (digest). ref: training_set:NAME@VERSION.

    start, end: events with start <= event time < end. unlabelled: events left out as their label is null.
    snapshots: what it was built from. seconds: how long that took.
    """

    ref: str
    project: str
    name: str
    service: str
    views: str
    digest: Digest
    rows: int
    unlabelled: int
    start: datetime
    end: datetime
    snapshots: tuple[str, ...]
    columns: tuple[Feature, ...]
    seconds: float
    at: datetime
    by: str


class BuildTrainingSet(Request[TrainingSet], frozen=True, kw_only=True):
    """Build a training set from published snapshots, each feature as it was known at its event's time.

    service: a feature service of the registered definitions. views: their version, '' is the newest.
    """

    project: Name
    name: Name
    service: str
    start: datetime
    end: datetime
    views: ViewsVersion = ""


class ListTrainingSets(Request[list[TrainingSet]], frozen=True, kw_only=True):
    """List training sets, newest first."""

    project: Name
    limit: Limit = 100


class Materialisation(msgspec.Struct, frozen=True, kw_only=True):
    """The online store holds a service's features as of `until`. keys: values written; rows: that they came from."""

    ref: str
    project: str
    service: str
    views: str
    until: datetime
    keys: int
    rows: int
    snapshots: tuple[str, ...]
    seconds: float
    at: datetime
    by: str


class MaterialiseOnline(Request[Materialisation], frozen=True, kw_only=True):
    """Load the online store with a service's features as they were known at an instant.

    until: rows known at or before it are loaded from the published snapshots. What was pushed and is known later is
    taken back: push it again.
    """

    project: Name
    service: str
    until: datetime
    views: ViewsVersion = ""


class ListOnline(Request[list[Materialisation]], frozen=True, kw_only=True):
    """List what the online store holds."""

    project: Name


class PushReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a push did, counted per row and view: applied; duplicates (seen before); waiting (not known yet: known_at
    is null, push the row again when it is); late (older than every window). digest: of the request, keyed: rows may be
    about people.
    """

    table: str
    rows: int
    applied: int
    duplicates: int
    waiting: int
    late: int
    digest: Digest


class PushRows(Request[PushReport], frozen=True, kw_only=True):
    """Apply rows of a table to the online store, each exactly once, as they become known.

    rows: a table's rows as JSON objects; instants as RFC 3339. A column that is not known yet is null. Pushing a row
    again does not count it again.
    """

    project: Name
    table: Name
    rows: Rows
