"""What must hold of the orders table at any instant, whatever happened to the processes that wrote it."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from unit.data import orders

from macadam import catalog
from macadam.app.platform import Platform
from macadam.data import registry
from macadam.ledger import service as ledger

TESTS = Path(__file__).parents[1]
ROWS, BAD = 40, 3


def write_files(folder: Path, count: int) -> None:
    for n in range(count):
        orders.write(folder, f"{n:03}.csv", ids_of(f"{n:03}.csv"), bad=BAD)


def ids_of(name: str) -> range:
    first = int(name.removesuffix(".csv")) * ROWS
    return range(first, first + ROWS)


def start(home: Path, point: str = "") -> "subprocess.Popen[str]":
    """A worker that opens the home. Use as a context manager."""
    command = [sys.executable, str(TESTS / "acceptance" / "ingest_worker.py"), str(home), *filter(None, [point])]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def take_all(platform: Platform) -> None:
    """Ingests until nothing is left: what does not fit one leaf waits for another call."""
    while orders.ingest(platform).remaining:
        pass


def require_whole(platform: Platform) -> set[str]:
    """Each taken file is in the table once and whole, with its refused rows and one leaf; returns their names."""
    with platform.ports.sql.read() as sql:
        taken = set(registry.taken(sql, registry.source(sql, orders.PROJECT, "orders")))
        said = Counter(
            offset["path"]
            for entry in ledger.find(sql, kind="data.ingest", project=orders.PROJECT)
            for offset in entry.leaf.body.get("offsets", [])
        )
        exists = bool(catalog.location(sql, orders.PROJECT, "orders"))
    assert exists == bool(taken)
    if exists:
        expected = sorted(n for name in taken for n in ids_of(name))
        assert sorted(orders.published(platform).column("id").to_pylist()) == expected
        refused = Counter(orders.published(platform, "orders__quarantine").column("_file").to_pylist())
        assert refused == dict.fromkeys(taken, BAD)
    assert said == dict.fromkeys(taken, 1)
    assert orders.problems(platform) == ()
    return taken
