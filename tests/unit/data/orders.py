"""A small table with a key, a range and a least number of rows, and files of it whose outcome is known."""

from pathlib import Path

import macadam.data.service
import macadam.ledger.service
from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.data.types import ContractVersion, Ingest, RegisterContract, RegisterSource
from macadam.ledger.types import VerifyLedger

CONTRACT = """
apiVersion: v3.2.0
kind: DataContract
id: orders
version: {version}
status: active
description:
  purpose: {purpose}
schema:
  - name: orders
    properties:
      - {{name: id, logicalType: integer, physicalType: bigint, required: true, primaryKey: true, primaryKeyPosition: 1}}
      - {{name: amount, logicalType: number, physicalType: double, required: true, logicalTypeOptions: {{minimum: 0}}}}
      - {{name: city, logicalType: string, physicalType: varchar}}
      - {{name: at, logicalType: timestamp, physicalType: timestamptz}}
    quality:
      - {{name: some_rows, metric: rowCount, mustBeGreaterOrEqualTo: 1, severity: error}}
slaDefaultElement: orders.at
slaProperties:
  - {{property: latency, value: 2, unit: d, element: orders.at}}
"""
HEADER = "id,amount,city,at\n"
PROJECT = "shop"


def contract(version: str = "1.0.0", purpose: str = "Tests.") -> str:
    return CONTRACT.format(version=version, purpose=purpose)


def write(folder: Path, name: str, ids: range, *, bad: int = 0) -> None:
    """A file with one good row an id, and after them `bad` rows with a negative amount."""
    folder.mkdir(parents=True, exist_ok=True)
    good = [f"{n},{n}.5,Uppsala,2026-11-20T10:00:00Z\n" for n in ids]
    refused = [f"{ids.start + n},-1,Uppsala,2026-11-20T10:00:00Z\n" for n in range(bad)]
    part = folder / f"{name}.part"
    part.write_text(HEADER + "".join(good + refused))
    part.rename(folder / name)


def register(platform: Platform, folder: Path) -> ContractVersion:
    platform.call(CreateProject(project=PROJECT, owner="principal:local"))
    made = platform.call(RegisterContract(project=PROJECT, text=contract()))
    source = RegisterSource(
        project=PROJECT, source="orders", directory=str(folder), path="{n}.csv", contract="orders", table="orders"
    )
    platform.call(source)
    return made


def ingest(platform: Platform, file: str = ""):
    return platform.call(Ingest(project=PROJECT, source="orders", file=file))


def published(platform: Platform, table: str = "orders"):
    """All rows of the published snapshot."""
    with platform.ports.sql.read() as sql:
        location = macadam.data.service.snapshot(sql, PROJECT, table).metadata_location
    return platform.ports.tables.scan(location)


def problems(platform: Platform) -> tuple[str, ...]:
    return platform.call(VerifyLedger(deep=True)).problems
