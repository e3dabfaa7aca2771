"""How long the import of a large bill takes, end to end: read, checked, stored, charged to projects, recorded.

    python -m benchmarks.bills [ROWS]      (default: 1,000,000 rows of 47 columns, hourly, of 2,000 machines)

The floor is what reading the same CSV with pyarrow and adding up one column as floats takes, with no check at all. There
is no budget in the issue but "reasonable": this one is a minute and 2 GiB for a million rows on two cores.
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

from macadam.access.types import CreateProject
from macadam.compute.billing import focus
from macadam.compute.billing.types import ImportBill, ListBills, ListCharges
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


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as folder, open_platform() as platform:
        path = Path(folder) / "bill.csv"
        with multiprocessing.get_context("spawn").Pool(1) as apart:  # its memory is not the import's
            expected = apart.apply(bill, (rows, path))
        for number in range(PROJECTS):
            platform.call(CreateProject(project=f"team-{number}"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started, worked = time.perf_counter(), time.process_time()
        delivery = platform.call(ImportBill(path=str(path)))
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        exact = Decimal(delivery.bills[0].billed) == expected
        started = time.perf_counter()
        again = platform.call(ImportBill(path=str(path)))
        repeated = time.perf_counter() - started
        started = time.perf_counter()
        page = platform.call(ListCharges(project="team-1"))
        listed = time.perf_counter() - started
        assert len(platform.call(ListBills())) == 1
        assert again.repeated
        plain = floor(path)
        print(f"{rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB of CSV, {len(delivery.bills)} bill")
        print(f"import            {seconds:6.1f} s   {rows / seconds:10,.0f} rows/s   ")
        print(f"of these          {worked:6.1f} s of CPU: what is left of the time, others had")
        print(f"floor             {plain:6.1f} s   {rows / plain:10,.0f} rows/s   ratio {seconds / plain:.1f}")
        print(f"the same again    {repeated:6.1f} s   nothing changed")
        print(f"one project's     {listed:6.1f} s   {page.count:,} charges, {page.effective[0]}")
        print(f"memory            {(peak - before) / 2**20:,.0f} MiB more than before, peak {peak / 2**20:,.0f} MiB")
        print(
            f"sum               {delivery.bills[0].billed}: {'exact' if exact else 'WRONG, expected ' + str(expected)}"
        )
        within = worked <= SECONDS * rows / ROWS and peak <= MEMORY and exact
        print("within the budget" if within else "over the budget")


if __name__ == "__main__":
    main()
