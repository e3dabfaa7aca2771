"""Inspections through the dispatcher: recorded, kept, shown."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from unit.access.homes import Door, ports_of

from macadam.access import service as access
from macadam.access.types import CreateProject
from macadam.errors import NotAuthorised, NotFound
from macadam.governance.checks import CHECKS, UNCHECKED, data_checks
from macadam.governance.service import code_digest
from macadam.governance.types import Inspect, Inspection, ListInspections, ShowInspection
from macadam.ledger import service as ledger
from macadam.values import digest_of


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    ports = ports_of(tmp_path / "home")
    ports.sql.migrate()
    ledger.bootstrap(ports)
    access.bootstrap(ports)
    made = Door(ports)
    made.call(CreateProject(project="flights", description="Will it be late?"))
    yield made
    ports.sql.close()


def test_an_empty_project_is_inspected_honestly(door: Door) -> None:
    found: Inspection = door.call(Inspect(project="flights"))
    by_id = {point.id: point for point in found.points}
    assert list(by_id) == [f"{n:02}" for n in range(1, 43)]
    assert {p for p, r in by_id.items() if r.status == "pass"} == {"04", "40"}
    assert not [r for r in found.points if r.status == "fail"]
    for point in UNCHECKED:
        assert (by_id[point].status, by_id[point].code) == ("did_not_run", "")
    assert sum(found.counts.values()) == 42


def test_a_result_says_who_checked_it_when_and_with_what_code(door: Door) -> None:
    found: Inspection = door.call(Inspect(project="flights"))
    point = next(p for p in found.points if p.id == "07")
    assert point.executor.startswith("principal:local with macadam ")
    assert point.collected_at == found.at == door.now
    assert point.code == digest_of(Path(str(data_checks.__file__)).read_bytes()) == code_digest(CHECKS["07"])
    assert point.controls["eu_ai_act"] == ("10.2.b",)
    access_point = next(p for p in found.points if p.id == "40")
    assert access_point.start
    assert access_point.end
    assert access_point.start <= access_point.end <= found.at


def test_an_inspection_is_evidence_itself(door: Door) -> None:
    found: Inspection = door.call(Inspect(project="flights"))
    leaf = door.leaves()[-1]
    assert (leaf.kind, leaf.subject, leaf.project) == ("governance.inspect_project", found.ref, "flights")
    assert leaf.body["counts"] == found.counts
    assert leaf.body["digest"] == found.digest
    kept = msgspec.json.decode(door.ports.objects.get(found.digest), type=Inspection)
    assert kept == msgspec.structs.replace(found, digest="")


def test_inspections_are_kept_and_shown(door: Door) -> None:
    with pytest.raises(NotFound, match="has no inspection"):
        door.call(ShowInspection(project="flights"))
    first: Inspection = door.call(Inspect(project="flights"))
    second: Inspection = door.call(Inspect(project="flights"))
    assert door.call(ShowInspection(project="flights")) == second
    assert door.call(ShowInspection(project="flights", inspection=first.ref)) == first
    listed = door.call(ListInspections(project="flights"))
    assert [i.ref for i in listed] == [second.ref, first.ref]


def test_an_auditor_reads_inspections_but_runs_none(door: Door) -> None:
    ann = door.known("ann", "auditor", project="flights")
    door.call(Inspect(project="flights"))
    assert door.call(ShowInspection(project="flights"), ann).points
    with pytest.raises(NotAuthorised, match="inspection:run"):
        door.call(Inspect(project="flights"), ann)


def test_a_rewritten_ledger_fails_its_point(door: Door) -> None:
    door.call(Inspect(project="flights"))
    door.ports.sql.write(lambda sql: sql.exec_driver_sql("UPDATE ledger_leaves SET hash = zeroblob(32) WHERE idx = 1"))
    found: Inspection = door.call(Inspect(project="flights"))
    point = next(p for p in found.points if p.id == "42")
    assert point.status == "fail"
    assert "Leaf 1" in point.detail
