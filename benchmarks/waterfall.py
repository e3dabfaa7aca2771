"""A month of 1,000 GPUs divided: 744,000 rows of usage, 93,000 hourly charges of 125 machines, to the millionth of a dollar.

The floor is what a plain join takes: DuckDB joins the same rows by machine and hour and sums floats by owner, which neither sums to
the bill nor looks at what can be believed. Prepared in memory, so that only the division is timed.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.report import Figure, median_of
from macadam.compute.billing.types import Charge
from macadam.compute.telemetry.types import usage_schema
from macadam.compute.waterfall import cascade
from macadam.values import Money

GPUS, HOURS, PER_NODE, OWNERS = 1000, 744, 8, 200
START = datetime(2026, 10, 1, tzinfo=UTC)
ROUNDS = 3
SECONDS = 10.0
"""What somebody waits for without doing something else meanwhile (Miller 1968, Nielsen 1993)."""


def run() -> list[Figure]:
    usage, charges = _usage(), _charges()
    began = time.process_time()
    ours = median_of([_timed(lambda: cascade.spread(charges, usage)) for _ in range(ROUNDS)])
    processor = (time.process_time() - began) / ROUNDS
    spread = cascade.spread(charges, usage)
    off = abs(sum(one.bill.micros for one in cascade.waterfalls(spread, "owner")) - spread.bill["USD"])
    reading = median_of([_timed(lambda: cascade.waterfalls(spread, "project")) for _ in range(ROUNDS)])
    bill = pa.table(
        {
            "node": [charge.node for charge in charges],
            "start": pa.array([charge.start for charge in charges], pa.timestamp("us", tz="UTC")),
            "dollars": [charge.effective.micros / 1e6 for charge in charges],
        }
    )
    floor = median_of([_timed(lambda: _joined(bill, usage)) for _ in range(ROUNDS)])
    note = f"{usage.num_rows:,} rows, {len(charges):,} charges"
    return [
        Figure(name="waterfall of a month", value=processor, unit="s of CPU", at_most=SECONDS, note=note),
        Figure(name="waterfall of a month, by the clock", value=ours, unit="s", note="longer where others work too"),
        Figure(name="plain join of the same in DuckDB", value=floor, unit="s", note="floats; no checks, no steps"),
        Figure(name="by project, from the pieces", value=reading * 1e3, unit="ms", at_most=200),
        Figure(name="away from the bill", value=float(off), unit="millionths of a dollar", at_most=0),
    ]


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _usage() -> pa.Table:
    rng = np.random.default_rng(1)
    rows = GPUS * HOURS
    device, hour = np.repeat(np.arange(GPUS), HOURS), np.tile(np.arange(HOURS), GPUS)
    owner = rng.integers(0, OWNERS + 1, rows)
    names = np.array(["", *(f"run:{n}" for n in range(OWNERS))])
    projects = np.array(["", *(f"project-{n % 10}" for n in range(OWNERS))])
    columns: dict[str, Any] = {
        "device": np.char.add("gpu:", device.astype(str)),
        "node": np.char.add("node-", (device // PER_NODE).astype(str)),
        "model": np.full(rows, "h100-sxm-80gb"),
        "start": np.datetime64(START.replace(tzinfo=None), "us") + hour * np.timedelta64(3600, "s"),
        "seconds": np.full(rows, 3600.0),
        "project": projects[owner],
        "owner": names[owner],
        "share": np.ones(rows),
        "gpu_active": rng.random(rows),
        "sm_active": rng.random(rows) * 0.8,
        "tensor_active": rng.random(rows) * 0.4,
        "dram_active": rng.random(rows),
        "suspect": np.where(rng.random(rows) < 0.01, "the same value on every pod", ""),
    }
    schema = usage_schema()
    arrays = [
        pa.array(columns[field.name]).cast(pa.timestamp("us")).cast(field.type)
        if field.name == "start"
        else pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _charges() -> list[Charge]:
    return [
        Charge(
            id=f"{node}-{hour}",
            bill="october",
            start=START + timedelta(hours=hour),
            end=START + timedelta(hours=hour + 1),
            billed=Money(micros=23_456_789 + node),
            effective=Money(micros=23_456_789 + node),
            category="usage",
            node=f"node-{node}",
            gpus=PER_NODE,
        )
        for node in range(GPUS // PER_NODE)
        for hour in range(HOURS)
    ]


def _joined(bill: pa.Table, usage: pa.Table) -> pa.Table:
    connection = duckdb.connect()
    connection.register("bill", bill)
    connection.register("usage", usage)
    query = (
        "SELECT owner, sum(dollars / 8 * share * gpu_active) FROM usage JOIN bill USING (node, start) "
        "WHERE suspect = '' GROUP BY owner"
    )
    found: Any = connection.sql(query).to_arrow_table()
    joined: pa.Table = found
    return joined
