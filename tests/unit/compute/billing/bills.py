"""Bills to import: rows in FOCUS's columns, and files of them."""

import csv
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from macadam.compute.billing import focus

Row = Mapping[str, str]

USAGE: dict[str, str] = {
    "BilledCost": "10.00",
    "EffectiveCost": "10.00",
    "ListCost": "12.00",
    "ContractedCost": "10.00",
    "BillingAccountId": "1234",
    "BillingAccountName": "Example",
    "BillingCurrency": "USD",
    "BillingPeriodStart": "2026-10-01T00:00:00Z",
    "BillingPeriodEnd": "2026-11-01T00:00:00Z",
    "ChargePeriodStart": "2026-10-03T05:00:00Z",
    "ChargePeriodEnd": "2026-10-03T06:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeClass": "",
    "ChargeDescription": "an hour of a machine",
    "ChargeFrequency": "Usage-Based",
    "InvoiceIssuerName": "AWS",
    "ProviderName": "AWS",
    "PublisherName": "AWS",
    "PricingCategory": "Standard",
    "PricingQuantity": "1",
    "PricingUnit": "Hours",
    "ConsumedQuantity": "1",
    "ConsumedUnit": "Hours",
    "ServiceCategory": "Compute",
    "ServiceName": "Compute",
    "RegionId": "us-east-1",
    "ResourceId": "i-1",
    "SubAccountId": "5678",
    "SkuId": "SKU",
    "SkuPriceDetails": "",
    "Tags": "",
    "CommitmentDiscountId": "",
    "CommitmentDiscountStatus": "",
    "CapacityReservationId": "",
    "CapacityReservationStatus": "",
}


def usage(number: int = 1, /, **changed: str) -> dict[str, str]:
    """One charge; `number` makes its machine another one."""
    return USAGE | {"ResourceId": f"i-{number}"} | changed


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str] = tuple(USAGE)) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, rows: Sequence[Row], columns: Sequence[str] = tuple(USAGE)) -> Path:
    """As providers type it: decimals, timestamps without a zone, tags as a map."""
    typed: dict[str, pa.Array] = {}
    for name in columns:
        text = pa.array([row.get(name) or None for row in rows], pa.string())
        kind = focus.COLUMNS[name].kind if name in focus.COLUMNS else "text"
        if kind == "decimal":
            text = text.cast(pa.decimal128(38, 10))
        elif kind == "instant":
            text = text.cast(pa.timestamp("ms", tz="UTC")).cast(pa.timestamp("ms"))
        typed[name] = text
    pq.write_table(pa.table(typed), path)
    return path
