"""The ledger: leaves in batches, durable appends by many callers at once, proofs and their checking.

The floor is SQLite itself, through `sqlite3`, with the same bytes, the same synchronous=FULL and nothing else: one
executemany for the batch; for the callers, one caller who commits each row.
"""

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import Figure, median_of
from macadam.app.platform import Platform
from macadam.ledger import sequencer
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf, encode
from macadam.ledger.tree import leaf_hash, root_at, verify_inclusion
from macadam.ports import Ports
from macadam.settings import Settings
from macadam.values import digest_of, instant, utc_now, uuid7

ROUNDS = 3
BATCH = 20_000
CALLERS = 64
APPENDS = 200
"""By each caller."""
SINGLE = 500
PROOFS = 2_000
DIGEST = digest_of(b"")


def run() -> list[Figure]:
    return [*_batched(), *_concurrent(), *_proofs()]


def main() -> None:
    for figure in run():
        print(f"{figure.name}: {figure.value:,.4g} {figure.unit} {figure.budget} {figure.note}")


def _leaf() -> Leaf:
    return Leaf(
        id=uuid7(),
        at=instant(utc_now()),
        kind="models.register_version",
        outcome="done",
        actor="principal:alice",
        project="flights",
        subject="model:delay-risk@7",
        uses=[],
        request=DIGEST,
        decision={"id": uuid7(), "effect": "allow", "policies": ["developers-build"], "policy_set": DIGEST},
        body={"artifact": DIGEST, "signature": DIGEST, "rows": 1000},
    )


@contextmanager
def _home() -> Iterator[Ports]:
    with tempfile.TemporaryDirectory(prefix="macadam-bench-") as directory:
        platform = Platform(Settings.load({}, home=Path(directory) / "home"))
        sequencer.integrate_all(platform.ports)
        try:
            yield platform.ports
        finally:
            platform.close()


@contextmanager
def _plain() -> Iterator[sqlite3.Connection]:
    with tempfile.TemporaryDirectory(prefix="macadam-bench-") as directory:
        sql = sqlite3.connect(Path(directory) / "floor.sqlite", isolation_level=None)
        sql.execute("PRAGMA journal_mode=WAL")
        sql.execute("PRAGMA synchronous=FULL")
        sql.execute("CREATE TABLE leaves (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, leaf BLOB)")
        try:
            yield sql
        finally:
            sql.close()


_INSERT = "INSERT INTO leaves (id, leaf) VALUES (?, ?)"


def _rate(count: int, act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return count / (time.perf_counter() - began)


def _batched() -> list[Figure]:
    rates: dict[str, list[float]] = {"queued": [], "integrated": [], "both": [], "floor": []}
    for _ in range(ROUNDS):
        made = [_leaf() for _ in range(BATCH)]
        with _home() as ports:
            queued = _rate(BATCH, lambda: ports.sql.write(lambda sql: ledger.queue(sql, *made)))  # noqa: B023
            integrated = _rate(BATCH, lambda: sequencer.integrate_all(ports))
        rows = [(leaf.id, encode(leaf)) for leaf in made]
        with _plain() as plain:
            rates["floor"].append(_rate(BATCH, lambda: _insert_all(plain, rows)))  # noqa: B023
        rates["queued"].append(queued)
        rates["integrated"].append(integrated)
        rates["both"].append(1 / (1 / queued + 1 / integrated))
    middle = {name: median_of(values) for name, values in rates.items()}
    share = middle["queued"] / middle["floor"]
    return [
        Figure(
            name="leaves queued, one transaction",
            value=middle["queued"],
            unit="leaves/s",
            at_least=50_000,
            note=f"{share:.0%} of the floor: encoded, hashed, seven indexes",
        ),
        Figure(name="leaves integrated and signed", value=middle["integrated"], unit="leaves/s", at_least=50_000),
        Figure(name="queued, then integrated", value=middle["both"], unit="leaves/s"),
        Figure(name="floor: sqlite3 executemany", value=middle["floor"], unit="rows/s", note="id and bytes only"),
    ]


def _insert_all(sql: sqlite3.Connection, rows: list[tuple[str, bytes]]) -> None:
    sql.execute("BEGIN IMMEDIATE")
    sql.executemany(_INSERT, rows)
    sql.execute("COMMIT")


def _insert_each(sql: sqlite3.Connection, rows: list[tuple[str, bytes]]) -> None:
    for row in rows:
        _insert_all(sql, [row])


def _concurrent() -> list[Figure]:
    rates, waits, floors = [], [], []
    for _ in range(ROUNDS):
        with _home() as ports, ThreadPoolExecutor(CALLERS) as pool:
            began = time.perf_counter()
            taken = [wait for each in pool.map(lambda _: _append(ports), range(CALLERS)) for wait in each]
            rates.append(len(taken) / (time.perf_counter() - began))
            waits.append(statistics.quantiles(taken, n=100)[98] * 1000)
        rows = [(leaf.id, encode(leaf)) for leaf in (_leaf() for _ in range(SINGLE))]
        with _plain() as plain:
            floors.append(_rate(SINGLE, lambda: _insert_each(plain, rows)))  # noqa: B023
    rate, floor = median_of(rates), median_of(floors)
    return [
        Figure(
            name=f"durable appends, {CALLERS} callers",
            value=rate,
            unit="leaves/s",
            at_least=8_000,
            note=f"{rate / floor:.1f} times the floor",
        ),
        Figure(name=f"one append, p99 of {CALLERS} callers", value=median_of(waits), unit="ms"),
        Figure(name="floor: sqlite3, a commit for each row", value=floor, unit="rows/s", note="one caller"),
    ]


def _append(ports: Ports) -> list[float]:
    waits = []
    for _ in range(APPENDS):
        began = time.perf_counter()
        leaf = _leaf()
        ports.sql.write(lambda sql: ledger.queue(sql, leaf))  # noqa: B023
        waits.append(time.perf_counter() - began)
    return waits


def _proofs() -> list[Figure]:
    with _home() as ports:
        for _ in range(5):
            made = [_leaf() for _ in range(BATCH)]
            ports.sql.write(lambda sql: ledger.queue(sql, *made))  # noqa: B023
        sequencer.integrate_all(ports)
        with ports.sql.read() as sql:
            size, _ = ledger.newest_checkpoint(sql)
            hashes = [leaf_hash(entry.text) for entry in reversed(ledger.find(sql, limit=PROOFS))]
        prover = ledger.Prover(ports, size)
        first = size - len(hashes)
        root = root_at(size, prover._hashes)  # noqa: SLF001 - the root of the same tiles
        began = time.perf_counter()
        paths = [prover.path(index) for index in range(first, size)]
        proving = (time.perf_counter() - began) / len(paths) * 1e6
        began = time.perf_counter()
        for index, (leaf, path) in enumerate(zip(hashes, paths, strict=True), first):
            verify_inclusion(leaf, index, size, path, root)
        checking = (time.perf_counter() - began) / len(paths) * 1e6
    note = f"of {size:,} leaves"
    return [
        Figure(name="a proof", value=proving, unit="µs", at_most=300, note=note),
        Figure(name="checking a proof", value=checking, unit="µs", at_most=50, note=note),
    ]


if __name__ == "__main__":
    main()
