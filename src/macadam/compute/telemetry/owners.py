"""Who had which device when, as the rooms above know it: they register where they keep it, and nobody imports upwards."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa

from macadam.compute.telemetry.schema import pods
from macadam.compute.telemetry.types import Holding, Pod

HoldingsBetween = Callable[[sa.Connection, datetime, datetime], Iterable[Holding]]
"""Called with a connection and an interval (UTC, end excluded); gives what was held in any part of it."""

_sources: dict[str, HoldingsBetween] = {}


def register(name: str, source: HoldingsBetween) -> None:
    """name: of the room; registering it again replaces what it gave before."""
    _sources[name] = source


def holdings(sql: sa.Connection, start: datetime, end: datetime) -> list[Holding]:
    """What all rooms know that are loaded."""
    return [holding for source in _sources.values() for holding in source(sql, start, end)]


def around(sql: sa.Connection, hour: datetime) -> list[Holding]:
    """What was held in an hour and the hours beside it, with which it is judged."""
    return holdings(sql, hour - timedelta(hours=1), hour + timedelta(hours=2))


def known_pods(sql: sa.Connection) -> dict[tuple[str, str], Pod]:
    """By namespace and name."""
    rows = sql.execute(sa.select(pods.c.namespace, pods.c.name, pods.c.project, pods.c.owner))
    return {(row.namespace, row.name): Pod(**row._asdict()) for row in rows}
