"""How fast a contract is checked, with a reason for each row that fails: rows a second, and peak memory.

    python benchmarks/contract_check.py [ROWS]      (default: 1,000,000 rows of 20 columns, 10 rules, 1% of rows bad)

Budget: 5 M rows/s in memory, 3 M rows/s from a Parquet file. Great Expectations and Pandera, which the budget
compares with, are not dependencies of this project; they are not run here, and the output says so.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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


def say(what: str, rows: int, taken: list[float], budget: float) -> None:
    best, middle = rows / min(taken) / 1e6, rows / statistics.median(taken) / 1e6
    print(f"{what:<28} median {middle:5.2f} M rows/s, best {best:5.2f} (budget {budget:g}) in {RUNS} runs")


def from_parquet(compiled: CompiledTable, folder: Path) -> None:
    batch = files.read(folder, "bench.parquet", [c.name for c in compiled.table.columns])
    compiled.run(batch.rows, text=batch.text)


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    table = data(rows)
    started = time.perf_counter()
    compiled = checks.compile_table(contracts.parse(json.dumps(CONTRACT)), "bench")
    print(
        f"{rows:,} rows x {table.num_columns} columns, {len(compiled.checks)} checks a row and a unique key; ", end=""
    )
    print(f"compiled in {time.perf_counter() - started:.2f} s")
    outcome = compiled.run(table)
    failed = {result.rule: result.failed for result in outcome.report.rules if result.failed}
    print(f"{outcome.report.quarantined:,} rows refused: {failed}")
    say("in memory", rows, seconds_of(lambda: compiled.run(table)), 5)
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / "bench.parquet")
        say("from a Parquet file, whole", rows, seconds_of(lambda: from_parquet(compiled, Path(folder))), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory of this process: {peak / 2**20:,.0f} MiB (the table itself: {table.nbytes / 2**20:,.0f} MiB)")
    print("not run: Great Expectations, Pandera (they are not installed with this project)")


if __name__ == "__main__":
    main()
