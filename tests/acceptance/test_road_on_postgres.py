"""The road with its state in Postgres: the same commands, the same answers, the same proofs."""

import signal
import sqlite3
from pathlib import Path

import httpx
import pytest
from acceptance.roads import (
    KILLED,
    PATH,
    PROJECT,
    ROWS,
    Road,
    Way,
    free_port,
    is_ready,
    questions,
    require_sound,
    sealed,
    state,
    travel,
    until,
)
from databases import Server, server

from macadam.data.types import PreviewTable
from macadam.serving.types import Prove
from macadam_verify import __main__ as verifier

ASKED = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return travel(tmp_path_factory.mktemp("postgres"), server().database())


def test_a_new_project_waits_for_anothers_approval_and_then_answers(there: Way) -> None:
    assert (there.waiting["state"], len(there.waiting["skipped"])) == ("waiting", 2)
    assert "cannot approve" in there.own["detail"]
    assert there.approved["approver"] == "principal:maria"
    assert there.done["state"] == "done"
    assert there.again["steps"] == []
    assert not list(there.road.home.glob("*.sqlite*"))
    with there.road.platform() as platform:
        assert platform.call(PreviewTable(project=PROJECT, table="parcels", limit=1)).total == sum(ROWS.values())


def test_up_serves_predictions_that_are_sealed_and_proved(there: Way) -> None:
    road, asked = there.road, questions(there.road.place)
    control, gateway = free_port(), free_port()
    with road.start("up", "--json", "--port", str(control), "--gateway-port", str(gateway)) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{gateway}") as client:
                until(lambda: is_ready(client))
            assert httpx.get(f"http://127.0.0.1:{control}/health", timeout=20).json()["ledger"] == "ok"
            caller = {"authorization": f"Bearer {there.caller['token']}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{gateway}", headers=caller, timeout=20) as client:
                answers = [client.post(PATH, json=next(asked)).json() for _ in range(ASKED)]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, process.stderr.read() if process.stderr else ""
    road.say("journal", "seal")
    with road.platform() as platform:
        assert {answer["prediction"] for answer in answers} <= sealed(platform)
        proof = platform.call(Prove(project=PROJECT, prediction=answers[-1]["prediction"]))
        key = road.say("ledger", "checkpoint")["key"]
        report = verifier.verify(proof.bundle.encode(), key, [])
        assert (report.broken, report.not_proved) == (None, [])
        assert "approved by principal:maria" in " ".join(report.story)
        require_sound(platform)


def test_an_apply_that_is_killed_goes_on_where_it_was(there: Way) -> None:
    road = there.road
    text = (road.place / "macadam.yaml").read_text()
    (road.place / "macadam.yaml").write_text(text.replace("seed: 7", "seed: 9"))
    with road.platform() as platform:
        before = state(platform)
    with road.start("apply") as process:
        until(lambda: any(road.home.glob("work/*/*")) or process.poll() is not None)
        process.kill()
        assert process.wait() == KILLED
    resumed = road.say("apply", code=20)
    assert resumed["state"] == "waiting"
    with road.platform() as platform:
        after = state(platform)
        assert after["leaves"] != before["leaves"]
        require_sound(platform)


@pytest.fixture
def plain(tmp_path: Path) -> Road:
    """A home on SQLite with one project."""
    road = Road(place=tmp_path, home=tmp_path / "home")
    road.say("projects", "create", "a")
    return road


def test_a_home_and_its_database_are_not_taken_apart(there: Way, plain: Road, tmp_path: Path) -> None:
    home, database = there.road.home, there.road.database
    on_postgres = Road(place=tmp_path, home=home)
    assert "is in Postgres" in on_postgres.say("ledger", "verify", code=2)["detail"]
    assert not list(home.glob("*.sqlite*"))
    on_sqlite = Road(place=tmp_path, home=plain.home, database=database)
    assert "is in SQLite" in on_sqlite.say("ledger", "verify", code=2)["detail"]
    stranger = Road(place=tmp_path, home=tmp_path / "fresh", database=database)
    assert "lacks its keys" in stranger.say("ledger", "verify", code=10)["detail"]
    emptied = Road(place=tmp_path, home=home, database=server().database())
    assert "database is empty" in emptied.say("ledger", "verify", code=10)["detail"]
    assert there.road.say("ledger", "verify")["problems"] == []


def test_a_home_whose_database_file_is_gone_is_no_fresh_home(plain: Road) -> None:
    for file in plain.home.glob("macadam.sqlite*"):
        file.unlink()
    assert "database is empty" in plain.say("ledger", "verify", code=10)["detail"]


def test_a_home_from_before_databases_were_named_opens_as_before(plain: Road) -> None:
    (plain.home / "database").unlink()
    with sqlite3.connect(plain.home / "macadam.sqlite") as connection:
        connection.execute("DELETE FROM platform_home")
    assert plain.say("ledger", "verify")["problems"] == []
    assert (plain.home / "database").exists()


def test_a_server_that_is_away_is_said_and_found_again(tmp_path: Path) -> None:
    own = Server()
    try:
        road = Road(place=tmp_path, home=tmp_path / "home", database=own.database())
        road.say("projects", "create", "a")
        own.kill()
        said = road.say("projects", "list", code=12)
        assert "Postgres does not answer" in said["detail"]
        own.start()
        assert [one["name"] for one in road.say("projects", "list")] == ["a"]
    finally:
        own.remove()
