"""How fast a contract is checked, with a reason for each row that fails: rows a second, and peak memory.

    python -m benchmarks.contract_check [ROWS]      (default: 1,000,000 rows of 20 columns, 10 rules, 1% of rows bad)

Budget: 5 M rows/s in memory, 3 M rows/s from a Parquet file. Great Expectations and Pandera, which the budget
compares with, are not dependencies of this project and are not run here.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.report import Figure
from macadam.data import checks, contracts, files
from macadam.data.checks import CompiledTable

ROWS = 1_000_000
RUNS = 5
BAD_SHARE = 0.01
NUMBERS = [f"n{i}" for i in range(10)]
INTEGERS = [f"i{i}" for i in range(6)]
CONTRACT = {
    "apiVersion": "v3.2.0",
    "kind": "DataContract",
    "id": "bench",
    "version": "1.0.0",
    "status": "active",
    "schema": [
        {
            "name": "bench",
            "properties": [
                {"name": "id", "logicalType": "integer", "physicalType": "bigint", "primaryKey": True,
                 "primaryKeyPosition": 1},
                {"name": "city", "logicalType": "string", "enum": [{"value": c} for c in ("a", "b", "c")]},
                {"name": "code", "logicalType": "string", "logicalTypeOptions": {"pattern": "^[A-Z]{2}[0-9]{3}$"}},
                {"name": "at", "logicalType": "timestamp", "required": True},
                {"name": "n0", "logicalType": "number", "required": True,
                 "logicalTypeOptions": {"minimum": 0, "maximum": 100}},
                *({"name": n, "logicalType": "number"} for n in NUMBERS[1:]),
                {"name": "i0", "logicalType": "integer", "physicalType": "bigint", "required": True,
                 "logicalTypeOptions": {"minimum": 0}},
                *({"name": n, "logicalType": "integer", "physicalType": "bigint"} for n in INTEGERS[1:]),
            ],
            "quality": [
                {"name": "ordered", "type": "sql", "query": "n1 <= n2 + 10", "mustBe": True, "severity": "error"},
            ],
        }
    ],
}  # fmt: skip


def data(rows: int) -> pa.Table:
    """Rows of which a share of `BAD_SHARE` breaks one rule."""
    random = np.random.default_rng(7)
    columns: dict[str, Any] = {"id": np.arange(rows)}
    columns["city"] = pa.array(np.array(["a", "b", "c"])[random.integers(0, 3, rows)])
    columns["code"] = pa.array(np.char.add("AB", random.integers(100, 999, rows).astype(str)))
    seconds = 1_700_000_000 + random.integers(0, 10_000_000, rows)
    columns["at"] = pa.array(seconds * 1_000_000, pa.timestamp("us", tz="UTC"))
    for name in NUMBERS:
        columns[name] = random.uniform(0, 10, rows)
    bad = random.random(rows) < BAD_SHARE
    columns["n0"] = np.where(bad, 200.0, columns["n0"])
    for name in INTEGERS:
        columns[name] = random.integers(0, 1000, rows)
    return pa.table(columns)


def seconds_of(work: Callable[[], object]) -> list[float]:
    work()  # warm: imports, file cache
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken


def figure(what: str, rows: int, taken: list[float], budget: float) -> Figure:
    best = rows / min(taken) / 1e6
    rate = rows / report.median_of(taken) / 1e6
    return Figure(name=what, value=rate, unit="M rows/s", at_least=budget, note=f"median of {RUNS}, best {best:.2f}")


def from_parquet(compiled: CompiledTable, folder: Path) -> None:
    batch = files.read(folder, "bench.parquet", [c.name for c in compiled.table.columns])
    compiled.run(batch.rows, text=batch.text)


def run(rows: int = ROWS) -> list[Figure]:
    table = data(rows)
    started = time.perf_counter()
    compiled = checks.compile_table(contracts.parse(json.dumps(CONTRACT)), "bench")
    compiling = time.perf_counter() - started
    outcome = compiled.run(table)
    failed = ", ".join(f"{result.rule} {result.failed}" for result in outcome.report.rules if result.failed)
    in_memory = seconds_of(lambda: compiled.run(table))
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / "bench.parquet")
        from_file = seconds_of(lambda: from_parquet(compiled, Path(folder)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = f"{rows:,} rows x {table.num_columns} columns, {table.nbytes / 2**20:,.0f} MiB"
    return [
        Figure(
            name="compiled", value=compiling, unit="s", note=f"{len(compiled.checks)} checks a row and a unique key"
        ),
        Figure(name="rows refused", value=outcome.report.quarantined, unit="", note=failed),
        figure("in memory", rows, in_memory, 5),
        figure("from a Parquet file, whole", rows, from_file, 3),
        Figure(name="memory, peak", value=peak / 2**20, unit="MiB", note=f"of the process; the table: {size}"),
    ]


if __name__ == "__main__":
    report.show("contract_check", run(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS), 0)
