"""Applying: durable, once only, resumed where it was killed."""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from macadam.access.types import CreatePrincipal, GrantRole, IssueToken
from macadam.app.platform import Platform
from macadam.data.types import ListSnapshots, PreviewTable
from macadam.delivery import flows, scaffold
from macadam.delivery.flows import Event
from macadam.errors import Busy, SourceInvalid
from macadam.ledger import service as ledger
from macadam.models.types import Approve, ShowModel
from macadam.serving.types import ListEndpoints
from macadam.settings import Settings

ROWS = 4530 - 4530 // 401 - sum(1 for n in range(1, 4531) if n % 577 == 0)  # made up less those with faults


def platform(home: Path) -> Platform:
    return Platform(Settings.load({}, home=home))


def data_only(tmp_path: Path) -> Path:
    """The template without features and models: quick to apply."""
    place = scaffold.init(tmp_path, "parcels")
    text = (place / "macadam.yaml").read_text()
    (place / "macadam.yaml").write_text(text.partition("features:")[0])
    return place


def kinds(events: list[Event], kind: str) -> list[str]:
    return [event.key for event in events if event.kind == kind]


CHILD = """
import os, signal, sys
from pathlib import Path
from macadam.app.platform import Platform
from macadam.delivery import flows, steps
from macadam.settings import Settings
home, project, number, moment = sys.argv[1:]
carry_out = steps.carry_out
def dying(platform, request, arguments, idempotency_key, progress):
    if moment == "before" and idempotency_key.endswith("/" + number):
        os.kill(os.getpid(), signal.SIGKILL)
    answer = carry_out(platform, request, arguments, idempotency_key, progress)
    if moment == "after" and idempotency_key.endswith("/" + number):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
steps.carry_out = dying
with Platform(Settings.load({}, home=Path(home))) as platform:
    flows.apply(platform, Path(project))
"""


def killed(tmp_path: Path, project: Path, number: int, moment: str) -> None:
    """Applies in a process that dies by SIGKILL before or after the operation of a step has returned."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "home"), str(project), str(number), moment]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "key", "moment"),
    [(6, "ingest:parcels:raw/parcels-2025-03.csv", "after"), (3, "source:parcels", "before")],
)
def test_a_killed_apply_goes_on_at_the_step_it_was_in_and_doubles_nothing(
    tmp_path: Path, number: int, key: str, moment: str
) -> None:
    project = data_only(tmp_path)
    killed(tmp_path, project, number, moment)
    events: list[Event] = []
    with platform(tmp_path / "home") as opened:
        applied = flows.apply(opened, project, events.append)
        assert (applied.state, applied.resumed) == ("done", True)
        assert len(kinds(events, "before")) == number - 1
        assert kinds(events, "started")[0] == key  # the step that was cut off, and no other, is done again
        assert len(applied.steps) == 8
        assert opened.call(PreviewTable(project="parcels", table="parcels", limit=1)).total == ROWS
        assert len(opened.call(ListSnapshots(project="parcels", table="parcels"))) == 5
        with opened.ports.sql.read() as sql:
            leaves = ledger.find(sql, kind="data.ingest", project="parcels")
            assert len([e for e in leaves if e.leaf.subject.startswith("table:parcels@")]) == 5
            assert len(ledger.find(sql, kind="access.create_project", project="parcels")) == 1
        assert flows.plan(opened, project).nothing_to_do
        assert flows.apply(opened, project).state == "nothing"


def test_a_killed_apply_is_given_up_when_the_files_have_changed(tmp_path: Path) -> None:
    project = data_only(tmp_path)
    killed(tmp_path, project, 5, "before")
    (project / "raw" / "parcels-2025-05.csv").unlink()
    events: list[Event] = []
    with platform(tmp_path / "home") as opened:
        applied = flows.apply(opened, project, events.append)
        assert (applied.state, applied.resumed) == ("done", False)
        assert events[0].kind == "abandoned"
        assert [k.partition(":")[0] for k in kinds(events, "started")] == ["ingest"] * 3
        assert flows.plan(opened, project).nothing_to_do


def test_a_step_that_fails_leaves_what_was_done_and_the_next_apply_starts_behind_it(tmp_path: Path) -> None:
    project = data_only(tmp_path)
    broken = project / "raw" / "parcels-2025-02.csv"
    whole = broken.read_text()
    broken.write_text(whole.replace("depot", "depo", 1))
    events: list[Event] = []
    with platform(tmp_path / "home") as opened:
        with pytest.raises(SourceInvalid, match="parcels-2025-02"):
            flows.apply(opened, project, events.append)
        assert kinds(events, "done")[-1] == "ingest:parcels:raw/parcels-2025-01.csv"
        broken.write_text(whole)
        again = flows.apply(opened, project)
        assert [step.key for step in again.steps] == [f"ingest:parcels:raw/parcels-2025-0{m}.csv" for m in (2, 3, 4, 5)]
        assert opened.call(PreviewTable(project="parcels", table="parcels", limit=1)).total == ROWS


def test_two_applies_at_once_are_refused(tmp_path: Path) -> None:
    project = data_only(tmp_path)
    with platform(tmp_path / "home") as opened, (tmp_path / "home" / "apply.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="Another apply"):
            flows.apply(opened, project)


def test_planning_changes_nothing(tmp_path: Path) -> None:
    project = scaffold.init(tmp_path, "parcels")
    with platform(tmp_path / "home") as opened:
        with opened.ports.sql.read() as sql:
            before = len(ledger.find(sql))
        first = flows.plan(opened, project)
        assert flows.plan(opened, project) == first
        with opened.ports.sql.read() as sql:
            assert len(ledger.find(sql)) == before


@pytest.mark.slow
def test_the_new_project_goes_the_whole_road_waits_for_approval_and_goes_on(tmp_path: Path) -> None:
    project = scaffold.init(tmp_path, "parcels")
    gates = project / "gates.yaml"
    gates.write_text(gates.read_text().replace("{required: 0}", "{required: 1, not_author: true}"))
    with platform(tmp_path / "home") as opened:
        first = flows.apply(opened, project)
        assert first.state == "waiting"
        assert flows.EXIT_CODES[first.state] == 20
        assert [held.model for held in first.held] == ["late-parcel"]
        assert "approv" in " ".join(first.held[0].reasons)
        assert len(first.skipped) == 2  # the alias and the endpoint
        assert opened.call(ListEndpoints(project="parcels")) == ()
        assert flows.apply(opened, project).state == "waiting"

        opened.call(CreatePrincipal(principal="maria"))
        opened.call(GrantRole(project="parcels", principal="maria", role="approver"))
        token = opened.call(IssueToken(principal="maria")).token
        opened.call(Approve(project="parcels", model="late-parcel", version="1", note="seen"), token=token)
        second = flows.apply(opened, project)
        assert second.state == "done", second
        assert [step.key.partition(":")[0] for step in second.steps] == ["gate", "alias", "endpoint"]
        assert opened.call(ShowModel(project="parcels", model="late-parcel")).model.aliases == {"champion": 1}
        assert [e.version for e in opened.call(ListEndpoints(project="parcels"))] == ["model:late-parcel@1"]
        assert flows.plan(opened, project).nothing_to_do

        # Other parameters: trained again on the same sets; gates alone: only measured again.
        text = (project / "macadam.yaml").read_text()
        (project / "macadam.yaml").write_text(text.replace("seed: 7", "seed: 8"))
        assert [s.key.partition(":")[0] for s in flows.plan(opened, project).steps] == [
            "run", "version", "evaluation", "gate", "alias", "endpoint",
        ]  # fmt: skip
        (project / "macadam.yaml").write_text(text)
        gates.write_text(gates.read_text().replace("0.6", "0.61"))
        assert [s.key for s in flows.plan(opened, project).steps] == [
            "thresholds:late-parcel",
            "evaluation:late-parcel",
        ]
