"""A home of the release before spot and prices by machine: its rows are read, what runs goes on, and what it reserved is settled."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import KINDS, server
from unit.compute.jobs.bench import Told

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing.budget_types import ListBudgets, SetBudget
from macadam.compute.jobs.loop import Queue
from macadam.compute.jobs.types import ExplainJob, Job, Resources, SetQuota, ShowJob, ShowJobCosts, SubmitJob
from macadam.migrations import HEAD
from macadam.testing import Clock, open_platform

BEFORE = "0022_advice"
PRICED = {"MACADAM_PRICE_GPU_HOUR": "3600000", "MACADAM_PRICE_CPU_HOUR": "0"}
LATER = {"market", "rate", "provider", "region", "zone", "machine", "spot", "leaving", "closed", "executor"}
ADDED = {"billing_bills": ("withdrawn", "withdrawn_because", "restored"), "billing_reservations": ("until",)}


def queue_of(platform: Platform, executor: Told, clock: Clock) -> Queue:
    object.__setattr__(platform.ports, "executor", executor)
    return Queue(platform.ports, clock=clock, committed=platform.committed)


def as_before(sql: sa.Connection) -> None:
    """Takes away what the steps since then have added: tables, columns, and fields of documents."""
    sql.exec_driver_sql("DROP TABLE compute_market_spans")
    for table, columns in ADDED.items():
        for column in columns:
            sql.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
    for table, key in (("compute_jobs", "id"), ("compute_attempts", "id"), ("compute_machines", "name")):
        for name, document in sql.exec_driver_sql(f"SELECT {key}, document FROM {table}").all():
            found = document if isinstance(document, dict) else json.loads(document)
            query = sa.text(f"UPDATE {table} SET document = :document WHERE {key} = :name")
            sql.execute(query, {"document": json.dumps(without(found)), "name": name})
    sql.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{BEFORE}'")


def without(found: object) -> object:
    if isinstance(found, dict):
        return {key: without(value) for key, value in found.items() if key not in LATER}
    return [without(one) for one in found] if isinstance(found, list) else found


@pytest.mark.parametrize("database", KINDS)
def test_a_home_with_older_rows_opens_and_its_jobs_go_on_and_are_paid(database: str, tmp_path: Path) -> None:
    settings = PRICED | ({"MACADAM_DATABASE": server().database()} if database == "postgres" else {})
    clock = Clock()
    executor = Told(clock=clock)
    with open_platform(tmp_path / "home", environment=settings, clock=clock) as platform:
        platform.call(CreateProject(project="p"))
        platform.call(SetBudget(project="p", amount="100", hard=True))
        platform.call(SetQuota(tenant="p", gpus=2, borrow=0, gpu_hours=100, money="100"))
        queue = queue_of(platform, executor, clock)
        jobs: list[Job] = [
            platform.call(SubmitJob(project="p", command=("true",), resources=Resources(gpus=1), time_limit=3600))
            for _ in range(4)
        ]
        queue.turn()
        queue.turn()
        executor.end(f"{jobs[0].id}.1")
        clock.pass_time(timedelta(seconds=100))
        queue.turn()
        platform.ports.sql.write(as_before)
    with open_platform(tmp_path / "home", environment=settings, clock=clock) as platform:
        with platform.ports.sql.read() as sql:
            assert sql.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == HEAD
        queue = queue_of(platform, executor, clock)
        said = [platform.call(ExplainJob(project="p", job=job.id)) for job in jobs]
        assert [one.state for one in said] == ["succeeded", "running", "starting", "waiting"]
        for _ in range(4):
            clock.pass_time(timedelta(seconds=100))
            for attempt, seen in list(executor.attempts.items()):
                if seen.state == "running":
                    executor.end(attempt)
            queue.turn()
        ended = [platform.call(ShowJob(project="p", job=job.id)).job for job in jobs]
        assert [job.state for job in ended] == ["succeeded"] * 4
        paid = [job.spent.micros if job.spent else -1 for job in ended]
        assert paid[:2] == [100_000, 200_000]
        (budget,) = platform.call(ListBudgets(project="p"))
        assert (budget.spent.micros, budget.held.micros) == (sum(paid), 0)
        costs = platform.call(ShowJobCosts(project="p"))
        assert sum(one.cost.micros for one in costs if one.cost) == sum(paid)
