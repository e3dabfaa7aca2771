"""What the tests of the series deliver and look at."""

import json
from datetime import timedelta
from typing import Any

import pyarrow as pa
from unit.compute.telemetry.fleets import START, changed, fleet

from macadam.app.platform import Platform
from macadam.compute.telemetry import reading, service
from macadam.operations import Decision, Granted
from macadam.testing import Clock

DAY = timedelta(days=1)
ALLOWED = Granted(Decision(id="d", allowed=True, policies=("test",), policy_set=""), reading.PERMISSION, "project:*")


def usage(platform: Platform, step: reading.Step = "minute") -> pa.Table:
    rows = reading.usage(platform.ports, ALLOWED, START - DAY, START + DAY, project="*", step=step)
    return rows.sort_by([(n, "ascending") for n in ("device", "start", "project", "owner", "suspect")]).combine_chunks()


def files(platform: Platform) -> dict[str, int]:
    root = platform.settings.home / "telemetry"
    return {f.name: len(list(f.rglob("*.parquet"))) for f in sorted(root.iterdir())}


def leaves(platform: Platform, kind: str) -> list[dict[str, Any]]:
    with platform.ports.sql.read() as sql:
        rows = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves").scalars()
        found = [json.loads(row) for row in rows]
    return [leaf for leaf in found if leaf["kind"] == kind and leaf["outcome"] == "done"]


def deliver(platform: Platform, table: pa.Table, clock: Clock) -> None:
    service.deliver(platform.ports, table, clock())


def whole(seed: int = 3, devices: int = 6) -> pa.Table:
    """Three hours, with a lie in the second one."""
    table = fleet(devices, 3 * 3600 - 60, seed=seed, every=60)
    return changed(table, range(100, 110), sm_active=3.0)
