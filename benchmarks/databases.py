"""Durable appends on SQLite and on Postgres: with group commit and without, and with another way to keep writers apart.

Each append is one transaction that reads the state of access, as every operation does, and queues one leaf. The figure for
SERIALIZABLE is of Postgres's own way to keep writers apart: a connection for each caller, and the loser of a conflict tries
again. It is a comparison only, since a handler cannot be run twice and leaves would get their numbers before their commits.
The server is the one that tests use, in this machine's temporary folder, with fsync on; tests/ must be importable.
"""

import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.ledger import _leaf
from benchmarks.report import Figure, median_of
from macadam.access import state as access
from macadam.ledger import service as ledger
from macadam.ports import Sql, load
from macadam.settings import Sql as SqlSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
server: Callable[[], Any] = importlib.import_module("databases").server

CALLERS = 64
SECONDS = 2.0
ROUNDS = 3


def run() -> list[Figure]:
    figures = []
    for name, at_least, opened in (
        ("SQLite, group commit", 8_000, lambda folder: _sqlite(folder, 256)),
        ("SQLite, a commit each", None, lambda folder: _sqlite(folder, 1)),
        ("Postgres, group commit", None, lambda _: _postgres(256)),
        ("Postgres, a commit each", None, lambda _: _postgres(1)),
    ):
        rates, waits = zip(*(_through_port(opened) for _ in range(ROUNDS)), strict=True)
        figures += _figures(name, rates, waits, at_least)
    rates, waits = zip(*(_serializable() for _ in range(ROUNDS)), strict=True)
    return figures + _figures("Postgres, SERIALIZABLE and retries", rates, waits, None)


def _figures(name: str, rates: tuple[float, ...], waits: tuple[float, ...], at_least: float | None) -> list[Figure]:
    return [
        Figure(name=name, value=median_of(rates), unit="appends/s", at_least=at_least, note=f"{CALLERS} callers"),
        Figure(name=f"{name}, p99", value=median_of(waits), unit="ms"),
    ]


def _sqlite(folder: Path, limit: int) -> Sql:
    return _migrated(load("sqlite")(folder / "m.sqlite", SqlSettings(group_limit=limit)))


def _postgres(limit: int) -> Sql:
    return _migrated(load("postgres")(server().database(), SqlSettings(group_limit=limit)))


def _migrated(opened: Any) -> Sql:
    sql: Sql = opened
    sql.migrate()
    sql.write(_begin_access)
    return sql


def _begin_access(sql: sa.Connection) -> None:
    sql.execute(sa.text("INSERT INTO access_state (id, generation, policy_set) VALUES (1, 'g', 'p')"))


def _append(sql: sa.Connection) -> None:
    access.generation(sql)
    ledger.queue(sql, _leaf())


def _through_port(opened: Callable[[Path], Sql]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="macadam-bench-") as folder:
        sql = opened(Path(folder))
        try:
            return _measured(lambda: lambda: sql.write(_append))
        finally:
            sql.close()


def _serializable() -> tuple[float, float]:
    url = server().database()
    _migrated(load("postgres")(url, SqlSettings())).close()
    engine = sa.create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="SERIALIZABLE", pool_size=CALLERS
    )

    def once() -> None:
        while True:
            try:
                with engine.begin() as connection:
                    _append(connection)
            except sa.exc.OperationalError as error:
                if getattr(error.orig, "sqlstate", "") != "40001":
                    raise
            else:
                return

    try:
        return _measured(lambda: once)
    finally:
        engine.dispose()


def _measured(caller: Callable[[], Callable[[], object]]) -> tuple[float, float]:
    """Appends a second, and the wait in ms that 99 of 100 stayed under."""
    end = time.perf_counter() + SECONDS

    def call(_: int) -> list[float]:
        act, waits = caller(), []
        while (began := time.perf_counter()) < end:
            act()
            waits.append(time.perf_counter() - began)
        return waits

    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        taken = [wait for each in pool.map(call, range(CALLERS)) for wait in each]
    return len(taken) / (time.perf_counter() - began), statistics.quantiles(taken, n=100)[98] * 1000
