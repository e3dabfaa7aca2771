"""Which models an endpoint served on each day: by the leaves of its deployments and rollbacks, weighed by when its machines were seen.

One version answers at an instant, so an endpoint's time is divided between versions exactly where its usage was seen. Time before
the first deployment is of no model.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from macadam.compute.telemetry.types import brought_up, usage_schema
from macadam.compute.waterfall.seen import LONGEST, WHOLE
from macadam.lazy import lazy
from macadam.ledger import service as ledger

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")

_KINDS = ("serving.deploy", "serving.rollback")
_DAY = 86_400.0
_FOREVER = float("inf")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """That an owner worked for a model on a day (UTC). weight: millionths of its time there; model: '' where none answered."""

    project: str
    owner: str
    day: date
    model: str
    weight: int


class Answering(msgspec.Struct, frozen=True, kw_only=True):
    """From when on a model answered, in s since 1970, until the next one does."""

    since: float
    model: str


def timeline(sql: sa.Connection, project: str, endpoint: str) -> list[Answering]:
    """endpoint: its reference. Oldest first; one for each change of the model, not of its version."""
    entries = [
        entry
        for kind in _KINDS
        for entry in ledger.find(sql, kind=kind, project=project, subject=endpoint, outcome="done")
    ]
    found: list[Answering] = []
    for leaf in sorted((entry.leaf for entry in entries), key=lambda leaf: (leaf.at, leaf.id)):
        model = next((ref.partition("@")[0] for ref in leaf.uses if ref.startswith("model:")), "")
        if not found or found[-1].model != model:
            found.append(Answering(since=datetime.fromisoformat(leaf.at).timestamp(), model=model))
    return found


def of_endpoints(sql: sa.Connection, rows: "pa.Table", usage: "pa.Table") -> tuple[Served, ...]:
    """rows: of a spread, whose owners are asked about; usage: rows of telemetry's schema that it was made from."""
    pairs = rows.select(["project", "owner"]).group_by(["project", "owner"]).aggregate([]).to_pylist()
    wanted = sorted((row["project"], row["owner"]) for row in pairs if row["owner"].startswith("endpoint:"))
    if not wanted:
        return ()
    seen = brought_up(usage, usage_schema())
    seen = seen.filter(pc.is_in(seen.column("owner"), value_set=pa.array([owner for _, owner in wanted])))
    found: list[Served] = []
    for project, owner in wanted:
        # A row that names no project is of the one that the bill names.
        whose = pc.and_(
            pc.equal(seen.column("owner"), owner), pc.is_in(seen.column("project"), pa.array([project, "", None]))
        )
        found += divided(project, owner, timeline(sql, project, owner), seen.filter(whose))
    return tuple(found)


def divided(project: str, owner: str, answering: Sequence[Answering], usage: "pa.Table") -> list[Served]:
    """By day, how much of the owner's device time each model had. Pure."""
    begin = np.asarray(usage.column("start").cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.float64) / 1e6
    seconds, share, doubted = _time(usage)
    good = np.isfinite(begin) & (seconds > 0) & (seconds <= LONGEST) & (share > 0) & ~doubted
    begin, seconds, share = begin[good], seconds[good], share[good]
    sums: dict[tuple[date, str], float] = {}
    since = [Answering(since=-_FOREVER, model=""), *answering]
    for one, following in zip(since, [*(later.since for later in answering), _FOREVER], strict=True):
        low, high = np.maximum(begin, one.since), np.minimum(begin + seconds, following)
        for day, time in _by_day(low, high, share):
            sums[day, one.model] = sums.get((day, one.model), 0.0) + time
    days: dict[date, dict[str, float]] = {}
    for (day, model), time in sums.items():
        days.setdefault(day, {})[model] = time
    return [
        Served(
            project=project, owner=owner, day=day, model=model, weight=max(1, round(time / sum(parts.values()) * WHOLE))
        )
        for day, parts in sorted(days.items())
        for model, time in sorted(parts.items())
    ]


def _time(usage: "pa.Table") -> "tuple[Floats, Floats, npt.NDArray[np.bool_]]":
    seconds = np.array(usage.column("seconds").to_numpy(), dtype=np.float64)
    share = np.array(usage.column("share").to_numpy(), dtype=np.float64)
    part = np.array(usage.column("slice").to_numpy(), dtype=np.float64)
    doubted = np.array([bool(reason) for reason in usage.column("suspect").to_pylist()], dtype=np.bool_)
    share = np.where(np.isnan(share), 1.0, share.clip(0, 1)) * np.where((part > 0) & (part <= 1), part, 1.0)
    return seconds, share, doubted


def _by_day(low: "Floats", high: "Floats", share: "Floats") -> "Iterable[tuple[date, float]]":
    """(day, device seconds) of spans; those that end before they begin are none."""
    sums: dict[int, float] = {}
    for begin, end, part in zip(low.tolist(), high.tolist(), share.tolist(), strict=True):
        if end > begin:
            for day in range(int(begin // _DAY), int(-(-end // _DAY))):
                time = min(end, (day + 1) * _DAY) - max(begin, day * _DAY)
                sums[day] = sums.get(day, 0.0) + time * part
    return [((_EPOCH + timedelta(days=day)).date(), time) for day, time in sums.items()]


def by_day(served: Iterable[Served]) -> dict[tuple[str, str, date], list[tuple[str, int]]]:
    """(project, owner, day) → its models with their weights."""
    found: dict[tuple[str, str, date], list[tuple[str, int]]] = {}
    for one in served:
        found.setdefault((one.project, one.owner, one.day), []).append((one.model, one.weight))
    return found
