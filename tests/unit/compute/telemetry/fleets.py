"""Honest GPUs, as a table of samples: physics first, then the noise that real sensors have.

Each device has phases of work: idle, steady, bursts. Activity makes power, power makes energy, counters start anywhere, instants
jitter. Nothing here is a lie, so no trust check may hit any of it.
"""

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from macadam.compute.telemetry.types import sample_schema

START = datetime(2026, 11, 20, tzinfo=UTC)
SECOND = 1_000_000
PRODUCT, WATTS, IDLE_WATTS, MEMORY = "NVIDIA H100 80GB HBM3", 700.0, 72.0, 85_520_809_984

Floats = npt.NDArray[np.float64]


def names(devices: int) -> list[str]:
    return [f"gpu:GPU-{n:08x}-0000-4000-8000-000000000000" for n in range(devices)]


def fleet(
    devices: int,
    seconds: float,
    *,
    seed: int = 0,
    every: float = 15.0,
    start: datetime = START,
    pods: bool = True,
    source: str = "dcgm",
) -> pa.Table:
    """A reading of each device every so many seconds. pods: the exporter names pods; every fifth device is in none, idle."""
    rng = np.random.default_rng(seed)
    count = int(seconds // every)
    shape = (devices, count)
    free = np.arange(devices) % 5 == 4
    activity = _activity(rng, shape) * ~free[:, None]
    truth = np.clip(activity, 0, 0.97)
    jitter = rng.normal(0, 0.05, shape).clip(-0.4, 0.4)
    at = (np.arange(1, count + 1) * every + jitter) * SECOND + int(start.timestamp() * SECOND)
    steps = np.diff(at, axis=1, prepend=at[:, :1] - every * SECOND) / SECOND
    mean_power = IDLE_WATTS + (WATTS - IDLE_WATTS) * truth**0.8
    energy = rng.integers(10**6, 10**13, (devices, 1)) + np.cumsum(mean_power * steps * 1000, axis=1)
    gr = np.clip(truth * 1.02 + rng.normal(0, 0.002, shape) * (truth > 0), 0, 1)
    sm = np.clip(gr * rng.uniform(0.55, 0.95, (devices, 1)), 0, gr)
    used = np.where(free[:, None], 2**20 * 500, MEMORY * 0.6 + rng.normal(0, 2**20, shape))
    return _table(
        {
            "device": names(devices),
            "node": [f"node-{n // 8:04d}" for n in range(devices)],
            "pod": ["" if free[n] else f"job-{n // 4}" for n in range(devices)] if pods else None,
            "namespace": ["" if free[n] else f"team-{n % 7}" for n in range(devices)] if pods else None,
            "product": PRODUCT,
            "source": source,
            "at": at.astype(np.int64),
            # Utilisation looks at another window, and counts whole percents of "any kernel at all".
            "gpu_active": np.round(np.clip(gr * 1.05 + rng.normal(0, 0.02, shape) * (truth > 0), 0, 1) * 100) / 100,
            "gr_active": gr,
            "sm_active": sm,
            "sm_occupancy": sm * 0.4,
            "tensor_active": sm * rng.uniform(0.1, 0.7, (devices, 1)),
            "dram_active": gr * 0.35,
            "memory_used": used,
            "memory_total": np.full(shape, MEMORY),
            "power": np.clip(
                mean_power + rng.normal(0, 12, shape) * (truth > 0) + rng.normal(0, 0.3, shape), 20, WATTS * 1.1
            ),
            "energy": energy,
            "sm_clock": np.where(truth > 0, 1755.0, 345.0),
            "memory_clock": np.full(shape, 2619.0),
            "temperature": np.round(30 + 40 * truth + rng.normal(0, 1, shape)),
            "throttle": np.where(truth > 0.9, 4, 1),
            "xid": np.zeros(shape),
        },
        shape,
    )


def _activity(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Phases of some minutes: idle, steady near 0.9, or bursts that change at each reading."""
    devices, count = shape
    out = np.zeros(shape)
    for device in range(devices):
        at = 0
        while at < count:
            length = int(rng.integers(4, 80))
            kind = rng.integers(0, 3)
            piece = min(length, count - at)
            if kind == 1:
                out[device, at : at + piece] = 0.9 + rng.normal(0, 0.02, piece)
            elif kind == 2:
                out[device, at : at + piece] = rng.uniform(0.05, 0.95, piece)
            at += piece
    return out


def _table(given: dict[str, object], shape: tuple[int, int]) -> pa.Table:
    devices, count = shape
    size = devices * count
    columns = []
    for field in sample_schema():
        value = given.get(field.name)
        if field.name in ("at", "received"):
            columns.append(pa.array(np.asarray(given["at"]).reshape(-1), pa.int64()).cast(field.type))
        elif isinstance(value, list):
            codes = np.repeat(np.arange(devices), count)
            columns.append(pa.array(value, pa.string()).take(pa.array(codes)))
        elif isinstance(value, str):
            columns.append(pa.repeat(pa.scalar(value), size))
        elif value is not None:
            flat = np.asarray(value, dtype=np.float64).reshape(-1)
            columns.append(pa.array(flat.astype(np.int64) if pa.types.is_int64(field.type) else flat).cast(field.type))
        elif field.name in ("part", "error"):
            columns.append(pa.repeat(pa.scalar(""), size))
        else:
            columns.append(pa.nulls(size, field.type))
    return pa.table(columns, schema=sample_schema())


def changed(table: pa.Table, rows: npt.ArrayLike, **values: object) -> pa.Table:
    """The same samples with other values in some rows."""
    hit = np.zeros(len(table), dtype=bool)
    hit[np.asarray(rows)] = True
    for name, value in values.items():
        place = table.schema.get_field_index(name)
        column = table.column(place).to_pylist()
        given = iter(value) if isinstance(value, (list, np.ndarray)) else None
        new = [(next(given) if given else value) if h else old for old, h in zip(column, hit, strict=True)]
        table = table.set_column(place, table.schema.field(place), pa.array(new, table.schema.field(place).type))
    return table
