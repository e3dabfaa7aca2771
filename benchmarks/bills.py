"""How long the import of a large bill takes, end to end: read, checked, stored, charged to projects, recorded.

    python -m benchmarks.bills [ROWS]      (default: 1,000,000 rows of 47 columns, hourly, of 2,000 machines)

The floor is what reading the same CSV with pyarrow and adding up one column as floats takes, with no check at all. The
budget: a minute of processor time and 2 GiB for a million rows.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from benchmarks.report import Figure, show
from macadam.access.types import CreateProject
from macadam.compute.billing import focus
from macadam.compute.billing.types import ImportBill, ListCharges
from macadam.testing import open_platform

ROWS = 1_000_000
MACHINES = 2000
PROJECTS = 20
START = datetime(2026, 10, 1, tzinfo=UTC)
SECONDS, MEMORY = 60, 2 * 2**30


def bill(rows: int, path: Path) -> Decimal:
    """Writes a FOCUS 1.2 bill and returns what it bills, exactly."""
    random = np.random.default_rng(4)
    hours = np.arange(rows) // MACHINES % 744
    machine = np.arange(rows) % MACHINES
    starts = [(START + timedelta(hours=n)).strftime("%Y-%m-%dT%H:%M:%SZ") for n in range(745)]
    units = random.integers(1, 10**12, rows)  # 10^-10 of the currency: up to 100
    cost = [f"{n // 10**10}.{n % 10**10:010d}" for n in units.tolist()]
    tags = [json.dumps({"project": f"team-{n % PROJECTS}", "env": "prod"}) if n % 7 else "" for n in range(MACHINES)]
    details = json.dumps({"InstanceType": "p5.48xlarge", "GpuCount": 8})
    of_row = {
        "BilledCost": cost, "EffectiveCost": cost, "ListCost": cost, "ContractedCost": cost,
        "ChargePeriodStart": np.array(starts)[hours], "ChargePeriodEnd": np.array(starts)[hours + 1],
        "ResourceId": [f"arn:aws:ec2:us-east-1:1234567890:instance/i-{n:017x}" for n in machine.tolist()],
        "Tags": np.array(tags)[machine],
    }  # fmt: skip
    same = {
        "BillingPeriodStart": "2026-10-01T00:00:00Z", "BillingPeriodEnd": "2026-11-01T00:00:00Z", "BillingCurrency": "USD",
        "BillingAccountId": "1234567890", "ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based",
        "InvoiceIssuerName": "AWS", "ProviderName": "AWS", "PublisherName": "AWS", "PricingCategory": "Standard",
        "PricingQuantity": "1", "PricingUnit": "Hours", "ConsumedQuantity": "1.0", "ConsumedUnit": "Hours",
        "ServiceCategory": "Compute", "ServiceName": "Amazon Elastic Compute Cloud", "SkuPriceDetails": details,
        "RegionId": "us-east-1", "SubAccountId": "210987654321", "SkuId": "ABCD1234", "ListUnitPrice": "55.04",
    }  # fmt: skip
    columns = {}
    for name, column in focus.COLUMNS.items():
        if column.since <= "1.2" and not name.startswith("PricingCurrency"):
            values: Any = of_row[name] if name in of_row else [same.get(name, "")] * rows
            columns[name] = pa.array(values, pa.string())
    pa_csv.write_csv(pa.table(columns), path)
    return Decimal(int(units.sum())).scaleb(-10)


def floor(path: Path) -> float:
    """Seconds to read the file and add up one column, unchecked."""
    started = time.perf_counter()
    pc.sum(pa_csv.read_csv(path).column("BilledCost"))
    return time.perf_counter() - started


def run(rows: int = ROWS) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, open_platform() as platform:
        path = Path(folder) / "bill.csv"
        with multiprocessing.get_context("spawn").Pool(1) as apart:  # its memory is not the import's
            expected = apart.apply(bill, (rows, path))
        for number in range(PROJECTS):
            platform.call(CreateProject(project=f"team-{number}"))
        before = _peak()
        started, worked = time.perf_counter(), time.process_time()
        delivery = platform.call(ImportBill(path=str(path)))
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        peak = _peak()
        started = time.perf_counter()
        if not platform.call(ImportBill(path=str(path))).repeated:
            raise AssertionError("the same file was taken twice")
        repeated = time.perf_counter() - started
        started = time.perf_counter()
        page = platform.call(ListCharges(project="team-1"))
        listed = time.perf_counter() - started
        plain = floor(path)
        away = abs(Decimal(delivery.bills[0].billed) - expected)
        size = f"{rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB of CSV"
    least = f"{(peak - before) / 2**20:,.0f} MiB more than before"
    return [
        Figure(name="import, processor time", value=worked, unit="s", at_most=SECONDS * rows / ROWS, note=size),
        Figure(name="import, by the clock", value=seconds, unit="s", note=f"{rows / seconds:,.0f} rows/s"),
        Figure(name="times pyarrow's reading alone", value=seconds / plain, unit="x", note=f"floor {plain:.1f} s"),
        Figure(name="memory, peak", value=peak / 2**20, unit="MiB", at_most=MEMORY / 2**20, note=least),
        Figure(name="away from the sum", value=float(away), unit="USD", at_most=0, note=f"billed {expected}"),
        Figure(name="the same again", value=repeated, unit="s", note="nothing changes"),
        Figure(name="one project's charges", value=listed, unit="s", note=f"{page.count:,} charges"),
    ]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    chosen = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    show("bills", run(chosen), 0.0)
