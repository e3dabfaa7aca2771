"""What operations take: shared by those under way, never more than the machine spent, added up in SQL."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.access.types import CreateProject, ListProjects
from macadam.app.platform import Platform
from macadam.compute.waterfall import metering
from macadam.compute.waterfall.metering import Meter
from macadam.compute.waterfall.requests import ShowStages
from macadam.compute.waterfall.stages import Measured
from macadam.errors import InvalidInput, NotAuthorised, StorageFull
from macadam.settings import Settings
from macadam.testing import open_platform, token_of

AT = datetime(2026, 10, 1, 12, tzinfo=UTC)


class Clocks:
    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def meter(self) -> Meter:
        return Meter(wall=lambda: self.wall, cpu=lambda: self.cpu)

    def spend(self, wall: float, cpu: float) -> None:
        self.wall += wall
        self.cpu += cpu


def test_processor_time_is_shared_by_the_calls_that_are_under_way():
    clocks = Clocks()
    meter = clocks.meter()
    with meter.measuring("p", "models.train", "model:m", AT):
        clocks.spend(10, 4)
        with meter.measuring("p", "data.ingest", "project:p", AT):
            clocks.spend(1, 2)
    clocks.spend(5, 3)  # nobody's
    found = {one.operation: (one.wall, one.cpu) for one in meter.drain()}
    assert found == {"models.train": (11, 5), "data.ingest": (1, 1)}
    assert meter.drain() == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 10)), max_size=40))
def test_the_sum_over_operations_never_exceeds_what_was_spent(events):
    clocks = Clocks()
    meter = clocks.meter()
    under_way = {}
    for name, begins, cpu in events:
        if begins and name not in under_way:
            under_way[name] = meter.measuring("p", name, "s", AT)
            under_way[name].__enter__()
        elif not begins and name in under_way:
            under_way.pop(name).__exit__(None, None, None)
        clocks.spend(cpu, cpu)
    for block in under_way.values():
        block.__exit__(None, None, None)
    assert sum(one.cpu for one in meter.drain()) <= clocks.cpu + 1e-9


def test_a_call_that_fails_is_measured_too():
    clocks = Clocks()
    meter = clocks.meter()

    def work() -> None:
        with meter.measuring("p", "x", "s", AT):
            clocks.spend(1, 1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    assert [one.cpu for one in meter.drain()] == [1]


def test_less_than_is_worth_a_commit_is_let_go_and_what_could_not_be_kept_is_tried_again():
    clocks = Clocks()
    meter = clocks.meter()
    with meter.measuring("p", "x", "s", AT):
        clocks.spend(0.05, 0.05)
    assert meter.drain(least=metering.LEAST) == ()
    with meter.measuring("p", "x", "s", AT):
        clocks.spend(0.1, 0.1)
    taken = meter.drain(least=metering.LEAST)
    meter.put_back(taken)
    assert meter.drain() == taken
    assert (taken[0].calls, taken[0].cpu) == (2, pytest.approx(0.15))


def test_many_threads_lose_nothing():
    meter = Meter()

    def work():
        for _ in range(200):
            with meter.measuring("p", "x", "s", AT):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.calls for one in meter.drain()) == 1600


def test_sums_are_added_up_by_day_over_restarts(tmp_path):
    one = Measured(
        project="p", operation="data.ingest", subject="project:p", day=AT.date(), calls=2, wall=3.5, cpu=1.25
    )
    for _ in range(2):
        with open_platform(tmp_path) as platform:
            platform.ports.sql.write(lambda sql: metering.keep(sql, [one]))
    with open_platform(tmp_path) as platform, platform.ports.sql.read() as sql:
        (found,) = metering.measured(sql, "p")
        assert (found.calls, found.wall, found.cpu) == (4, 7.0, 2.5)
        assert metering.measured(sql, "p", first=AT.date() + timedelta(days=1)) == ()
        assert metering.measured(sql, "q") == ()


def test_a_platform_keeps_what_its_operations_took(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "LEAST", 0.0)
    with open_platform(tmp_path) as platform:
        platform.call(CreateProject(project="p"))
        platform.call(ListProjects())
    with open_platform(tmp_path) as platform, platform.ports.sql.read() as sql:
        found = {one.operation: one for name in ("p", "") for one in metering.measured(sql, name)}
    assert found["access.create_project"].calls == 1
    assert found["access.create_project"].subject == "platform:home"
    assert found["access.list_projects"].calls == 1


def test_the_stages_of_all_projects_and_the_platform_sum_to_everything_that_was_measured(tmp_path):
    with open_platform(tmp_path / "home") as platform:
        for name in ("p", "q"):
            platform.call(CreateProject(project=name))
        work = [("p", "models.train", 8.0), ("q", "data.ingest", 2.0), ("", "compute.seal_telemetry", 1.0)]
        done = [
            Measured(project=p, operation=o, subject="s", day=AT.date(), calls=1, wall=cpu, cpu=cpu)
            for p, o, cpu in work
        ]
        platform.ports.sql.write(lambda sql: metering.keep(sql, done))
        everything = platform.call(ShowStages(project="*", first=AT.date(), last=AT.date()))
        assert [(one.stage, one.cpu) for one in everything.stages] == [
            ("ingest", 2.0),
            ("train", 8.0),
            ("platform", 1.0),
        ]
        parts = [platform.call(ShowStages(project=name, first=AT.date(), last=AT.date())) for name in ("p", "q")]
        own = sum(one.total.value.micros for one in parts) + everything.stages[-1].cost.value.micros
        assert own == everything.total.value.micros
        assert all("platform" not in {one.stage for one in part.stages} for part in parts)
        assert "cost stages --project '*'" in parts[0].left_out
        reader = token_of(platform, "principal:rita", {"p": "viewer"})
        with pytest.raises(NotAuthorised):
            platform.call(ShowStages(project="*"), token=reader)


def test_a_full_disk_costs_the_figure_and_not_the_change(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "LEAST", 0.0)
    with Platform(Settings.load({}, home=tmp_path)) as platform:
        platform.call(CreateProject(project="p"))

        def full(_sql, _measured):
            raise StorageFull("The disk is full.", next_step="Free some.")

        monkeypatch.setattr(metering, "keep", full)
    monkeypatch.undo()
    with open_platform(tmp_path) as platform:
        assert [project.name for project in platform.call(ListProjects())] == ["p"]


def test_what_cannot_have_been_measured_is_refused():
    with pytest.raises(InvalidInput):
        Measured(project="p", operation="x", subject="s", day=AT.date(), calls=1, wall=-1, cpu=0)
