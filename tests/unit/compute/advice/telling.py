"""Usage told in a few words: rows of `usage_schema` for tests."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from macadam.compute.advice.held import days
from macadam.compute.telemetry.types import usage_schema

START = datetime(2026, 11, 1, tzinfo=UTC)
GIB = 1 << 30


def told(hours: Iterable[int], owner: str, **facts: Any) -> list[dict[str, object]]:
    """One row for each hour since START; everything else as given."""
    row = {
        "device": "gpu:a", "node": "n1", "model": "h100-sxm-80gb", "seconds": 3600.0, "project": "ads",
        "owner": owner, "share": 1.0, "gpu_active": 0.9, "sm_active": 0.8, "tensor_active": 0.5, "dram_active": 0.4,
        "host_cpu": None, "memory_bytes": 60 * GIB, "energy_joules": None, "suspect": "",
    } | facts  # fmt: skip
    return [row | {"start": START + timedelta(hours=hour)} for hour in hours]


def usage(*parts: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist([row for part in parts for row in part], schema=usage_schema())


def over(count: int) -> range:
    return days(START, START + timedelta(days=count))
