"""What each owner got out of each device in a window, from rows of usage: what all rules look at.

Rows that a trust check doubts count as held hours, and nothing else is read from them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.lazy import lazy

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
else:
    duckdb = lazy("duckdb")

IDLE = 0.05
"""Below this part of the time with any kernel running a device does nothing but bookkeeping."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One owner on one device. Ratios are 0 to 1, None if they were not measured; p95: over rows, by time covered.

    hours: seconds covered times share, in hours. when: the hours since 1970 in which it was held, each with the hours held in
    it. idle: likewise, of intervals in which the device was idle. stretches: hours of each unbroken time of idling, in
    order; last_idle: whether the last of them lasts to the end. work: the mean of sm_active (or of gpu_active, where
    that alone is measured) times hours. believed: part of the hours on which no trust check cast doubt.
    """

    project: str
    owner: str
    device: str
    node: str
    model: str
    hours: float
    share: float
    believed: float
    when: dict[int, float]
    idle: dict[int, float]
    stretches: tuple[float, ...] = ()
    last_idle: bool = False
    active: float | None = None
    active_p95: float | None = None
    sm: float | None = None
    sm_p95: float | None = None
    tensor_p95: float | None = None
    dram_p95: float | None = None
    memory_peak: int | None = None
    work: dict[int, float] = {}

    @property
    def idle_hours(self) -> float:
        return sum(self.idle.values())

    @property
    def load(self) -> float | None:
        """How much of the device is in use when it is busy: sm_active, or for want of it gpu_active, which is higher."""
        return self.sm_p95 if self.sm_p95 is not None else self.active_p95


def summarise(usage: "pa.Table") -> tuple[Held, ...]:
    """usage: rows of `telemetry.types.usage_schema`. Rows that nobody owns are left out. Sorted by project, owner, device."""
    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        connection.register("usage", usage)
        connection.execute(_OWNED, [IDLE])
        hourly = _by_key(connection.sql(_HOURLY).fetchall())
        stretches = _by_key(connection.sql(_STRETCHES).fetchall())
        found = connection.sql(_SUMMARY)
        names = found.columns
        return tuple(_held(dict(zip(names, row, strict=True)), hourly, stretches) for row in found.fetchall())


def days(start: datetime, end: datetime) -> range:
    """The whole UTC days of a window, as days since 1970: a day that is cut off would look cheap."""
    first = -(-int(start.timestamp()) // _DAY)
    return range(first, max(first, int(end.timestamp()) // _DAY))


def by_day(hours: Mapping[int, float], over: range) -> list[float]:
    """Sums hours by day; a day of the window without any is a zero."""
    sums = dict.fromkeys(over, 0.0)
    for hour, value in hours.items():
        if hour // 24 in sums:
            sums[hour // 24] += value
    return list(sums.values())


def hour_of(at: datetime) -> int:
    """Hours since 1970."""
    return int(at.astimezone(UTC).timestamp()) // 3600


_DAY = 86_400
_Key = tuple[str, str, str]


def _by_key(rows: Sequence[tuple[Any, ...]]) -> dict[_Key, list[tuple[Any, ...]]]:
    found: dict[_Key, list[tuple[Any, ...]]] = {}
    for project, owner, device, *rest in rows:
        found.setdefault((project, owner, device), []).append(tuple(rest))
    return found


def _held(
    row: dict[str, Any], hourly: Mapping[_Key, list[tuple[Any, ...]]], stretches: Mapping[_Key, list[tuple[Any, ...]]]
) -> Held:
    key = (row["project"], row["owner"], row["device"])
    spells = stretches.get(key, [])
    return Held(
        **row,
        when={hour: held for hour, held, _, _ in hourly[key]},
        idle={hour: idle for hour, _, idle, _ in hourly[key] if idle},
        work={hour: work for hour, _, _, work in hourly[key] if work},
        stretches=tuple(hours for hours, _ in spells),
        last_idle=any(last for _, last in spells),
    )


# A row of a lie keeps its time and loses its readings. `doing` is what counts as work.
_OWNED = """
CREATE TABLE owned AS
SELECT project, owner, device, node, model, start, seconds, share, seconds * share / 3600 AS hours,
       suspect = '' AS believed,
       CASE WHEN suspect = '' THEN gpu_active END AS gpu_active,
       CASE WHEN suspect = '' THEN sm_active END AS sm_active,
       CASE WHEN suspect = '' THEN tensor_active END AS tensor_active,
       CASE WHEN suspect = '' THEN dram_active END AS dram_active,
       CASE WHEN suspect = '' THEN memory_bytes END AS memory_bytes,
       suspect = '' AND gpu_active < ? AS idle
FROM usage WHERE owner <> '' AND seconds > 0 AND starts_with(device, 'gpu:')
"""
_HOURLY = """
SELECT project, owner, device, CAST(floor(epoch(start) / 3600) AS BIGINT) AS hour, sum(hours),
       coalesce(sum(hours) FILTER (idle), 0), coalesce(sum(hours * coalesce(sm_active, gpu_active)), 0)
FROM owned GROUP BY ALL ORDER BY ALL
"""
# Gaps and islands: rows of one owner on one device between two that are not idle. A row that is not believed ends one.
_STRETCHES = """
WITH numbered AS (
    SELECT *, sum(CAST(NOT coalesce(idle, false) AS INTEGER))
              OVER (PARTITION BY project, owner, device ORDER BY start) AS island,
           start = max(start) OVER (PARTITION BY project, owner, device) AS last
    FROM owned
)
SELECT project, owner, device, sum(seconds) / 3600 AS hours, bool_or(last)
FROM numbered WHERE idle GROUP BY project, owner, device, island ORDER BY project, owner, device, min(start)
"""
_SUMMARY = """
SELECT project, owner, device, any_value(node) AS node, any_value(model) AS model, sum(hours) AS hours,
       max(share) AS share, coalesce(sum(hours) FILTER (believed), 0) / sum(hours) AS believed,
       sum(hours * gpu_active) / sum(hours) FILTER (gpu_active IS NOT NULL) AS active,
       quantile_cont(gpu_active, 0.95) AS active_p95,
       sum(hours * sm_active) / sum(hours) FILTER (sm_active IS NOT NULL) AS sm,
       quantile_cont(sm_active, 0.95) AS sm_p95,
       quantile_cont(tensor_active, 0.95) AS tensor_p95,
       quantile_cont(dram_active, 0.95) AS dram_p95,
       max(memory_bytes) AS memory_peak
FROM owned GROUP BY project, owner, device HAVING sum(hours) > 0 ORDER BY project, owner, device
"""
