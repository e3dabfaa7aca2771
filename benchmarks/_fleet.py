"""A day of a thousand GPUs, as samples: every field filled, hour by hour, so that it need not be in memory at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from macadam.compute.telemetry.types import sample_schema

START = datetime(2026, 11, 20, tzinfo=UTC)
EVERY = 15
PROJECTS = 20
_MICRO = 1_000_000


def hour(counters: Any, number: int, *, seed: int = 0) -> pa.Table:
    """Every GPU of one hour, in the order in which scrapes would come: instant by instant.

    counters: joules of each GPU so far, shape (gpus,); what the hour takes is added to them.
    """
    gpus = len(counters)
    rng = np.random.default_rng(seed * 1000 + number)
    count = 3600 // EVERY
    size = gpus * count
    device = np.tile(np.arange(gpus), count)
    begin = int((START + timedelta(hours=number)).timestamp()) * _MICRO
    at = begin + (np.repeat(np.arange(1, count + 1), gpus) * EVERY * _MICRO) - 3 * _MICRO + (device * 977) % 900_000
    busy = np.repeat(rng.random((1, gpus)) < 0.8, count, axis=0).reshape(-1)
    active = np.where(busy, np.clip(rng.normal(0.8, 0.1, size), 0.01, 0.99), 0.0)
    power = np.where(busy, 90 + 560 * active, 72.0) + rng.normal(0, 4, size)
    joules = (power.reshape(count, gpus) * EVERY).cumsum(axis=0)
    energy = (counters + joules) * 1000
    counters += joules[-1]
    values: dict[str, Any] = {
        "device": _text([f"gpu:GPU-{n:08x}-aaaa-4bbb-8ccc-dddddddddddd" for n in range(gpus)], device),
        "node": _text([f"node-{n // 8:04d}" for n in range(gpus)], device),
        "product": _text(["NVIDIA H100 80GB HBM3"], device * 0),
        "source": _text(["dcgm"], device * 0),
        "part": _text([f"team-{n % PROJECTS}/train-{n // 4}/main" for n in range(gpus)], device),
        "pod": _text([f"train-{n // 4}" for n in range(gpus)], device),
        "namespace": _text([f"team-{n % PROJECTS}" for n in range(gpus)], device),
        "container": _text(["main"], device * 0),
        "error": _text([""], device * 0),
        "at": pa.array(at, pa.int64()),
        "received": pa.array(at + 200_000, pa.int64()),
        "gpu_active": np.round(np.minimum(active * 1.05, 1), 2),
        "gr_active": active,
        "sm_active": active * 0.8,
        "sm_occupancy": active * 0.3,
        "tensor_active": active * 0.4,
        "dram_active": active * 0.3,
        "memory_used": np.where(busy, 60, 1) * 2**30 + rng.integers(0, 2**20, size),
        "memory_total": np.full(size, 80 * 2**30),
        "power": power,
        "power_limit": np.full(size, 700.0),
        "energy": energy.reshape(-1),
        "sm_clock": np.where(busy, 1980.0, 345.0),
        "memory_clock": np.full(size, 2619.0),
        "throttle": np.where(busy, 4, 1),
        "temperature": np.round(30 + 35 * active),
        "xid": np.zeros(size),
        "nvlink": active * 400e9,
        "pcie": active * 20e9,
    }
    return pa.table([_column(values.get(f.name), f.type, size) for f in sample_schema()], schema=sample_schema())


def _text(values: list[str], codes: Any) -> Any:
    return pa.array(values).take(pa.array(codes))


def _column(value: Any, kind: Any, size: int) -> Any:
    if value is None:
        return pa.nulls(size, kind)
    if isinstance(value, np.ndarray):
        value = pa.array(value.astype(np.int64) if pa.types.is_int64(kind) else value)
    return value.cast(kind)
