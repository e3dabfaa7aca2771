"""The whole road as a new user walks it: commands, processes and HTTP, from files to answers that are proved.

MACADAM_SOAK=1 asks and proves more.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from acceptance.roads import (
    ENDPOINT,
    MODEL,
    PATH,
    PROJECT,
    ROWS,
    SOAK,
    Gateway,
    Road,
    Way,
    chance,
    gateway,
    metric,
    questions,
    require_sound,
    sealed,
    until,
)

from macadam.access.types import IssueToken, RevokeToken
from macadam.app.platform import Platform
from macadam.data.types import PreviewTable
from macadam.serving.types import Prove, ShowPrediction
from macadam_verify import __main__ as verifier

ASKED = 300 if SOAK else 30
"""Predictions of each deployment."""
PROVED = 200 if SOAK else 20
FIRST, SECOND = f"model:{MODEL}@1", f"model:{MODEL}@2"

pytestmark = pytest.mark.slow


@dataclass
class Answers:
    """What came back over HTTP. counted: the gateway's own counters at its end; seal: what sealing said."""

    road: Road
    said: list[dict[str, Any]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    seal: dict[str, Any] = field(default_factory=dict)
    rolled_back: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [one["prediction"] for one in self.said]


def ask(client: httpx.Client, answers: Answers, asked: Iterator[dict[str, Any]]) -> None:
    for _ in range(ASKED):
        answer = client.post(PATH, json=next(asked))
        assert answer.status_code == 200, answer.text
        answers.said.append(answer.json())


def version(client: httpx.Client, answers: Answers, question: dict[str, Any]) -> str:
    said = client.post(PATH, json=question).json()
    answers.said.append(said)
    return str(said["version"])


def second_version(road: Road) -> None:
    """Other files, another apply, another approval."""
    text = (road.place / "macadam.yaml").read_text()
    (road.place / "macadam.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    road.say("apply", code=20)
    maria = road.say("tokens", "issue", "maria")
    road.say("gates", "approve", MODEL, "2", token=maria["token"])
    road.say("apply")


def refuse_some(client: httpx.Client) -> None:
    """Requests that get no prediction, so no record either."""
    assert client.post(PATH, json={"inputs": {"depot": "harbour"}}).status_code == 422
    assert client.post(PATH, json={"inputs": {}}, headers={"authorization": "Bearer no"}).status_code == 401


@pytest.fixture(scope="module")
def served(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Two versions and a rollback under one gateway that never stops, then its end, then sealing."""
    answers = Answers(way.road.copy(tmp_path_factory.mktemp("served")))
    road, asked = answers.road, questions(way.road.place)
    with gateway(road.home) as running, running.client(way.caller["token"]) as client:
        ask(client, answers, asked)
        second_version(road)
        until(lambda: version(client, answers, next(asked)) == SECOND)
        ask(client, answers, asked)
        answers.rolled_back = road.say("endpoints", "rollback", ENDPOINT)
        until(lambda: version(client, answers, next(asked)) == FIRST)
        ask(client, answers, asked)
        refuse_some(client)
        answers.counted = {name: metric(client, f"{name}_total") for name in ("records", "answers")}
    answers.seal = road.say("journal", "seal")
    return answers


@pytest.fixture(scope="module")
def platform(served: Answers) -> Iterator[Platform]:
    with served.road.platform() as opened:
        yield opened


def test_a_new_project_waits_for_anothers_approval_and_then_answers(way: Way) -> None:
    assert way.planned["steps"]
    assert (way.waiting["state"], len(way.waiting["skipped"])) == ("waiting", 2)
    assert "approv" in " ".join(way.waiting["held"][0]["reasons"])
    assert "cannot approve" in way.own["detail"]
    assert way.approved["approver"] == "principal:maria"
    assert way.done["state"] == "done"
    assert [step["key"].partition(":")[0] for step in way.done["steps"]] == ["gate", "alias", "endpoint"]
    assert way.again["steps"] == []


def test_what_was_ingested_is_there_once(platform: Platform) -> None:
    assert platform.call(PreviewTable(project=PROJECT, table="parcels", limit=1)).total == sum(ROWS.values())


def test_answers_records_receipts_and_the_gateways_own_counter_agree(served: Answers, platform: Platform) -> None:
    count = len(served.ids)
    assert count >= 3 * ASKED
    assert len(set(served.ids)) == count
    assert served.counted == {"records": count, "answers": count}
    assert served.seal["records"] == count
    assert sum(segment["count"] for segment in served.seal["segments"]) == count
    assert sum(segment["answers"] for segment in served.seal["segments"]) == count
    assert sealed(platform) == set(served.ids)


def test_each_answer_is_what_its_record_says(served: Answers, platform: Platform) -> None:
    for one in chance().sample(served.said, PROVED):
        page = platform.call(ShowPrediction(project=PROJECT, prediction=one["prediction"]))
        assert (page.record["version"], page.record["output"]) == (one["version"], one["output"])
        assert page.record["actor"] == "service:web"


def test_a_rollback_brings_the_version_before_back(served: Answers) -> None:
    assert served.rolled_back["version"] == FIRST
    assert [one["version"] for one in served.said[:ASKED]] == [FIRST] * ASKED
    assert [one["version"] for one in served.said[-ASKED:]] == [FIRST] * ASKED
    assert sum(one["version"] == SECOND for one in served.said) >= ASKED


def test_each_of_many_random_predictions_is_proved(served: Answers, platform: Platform) -> None:
    key = served.road.say("ledger", "checkpoint")["key"]  # not out of the bundle's own hands
    versions = set()
    for one in chance().sample(served.said, PROVED):
        proof = platform.call(Prove(project=PROJECT, prediction=one["prediction"]))
        assert len(proof.bundle.encode()) == proof.bytes < 64 * 1024
        report = verifier.verify(proof.bundle.encode(), key, [])
        assert (report.broken, report.not_proved) == (None, [])
        story = " ".join(report.story)
        assert one["prediction"] in story
        assert f"came from {one['version']}" in story
        assert "approved by principal:maria" in story
        versions.add(one["version"])
    assert versions == {FIRST, SECOND}


def verify(bundle: Path, key: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "macadam_verify", str(bundle), "--key", str(key), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_proof_is_checked_without_macadam_and_one_changed_byte_is_named(served: Answers, tmp_path: Path) -> None:
    bundle, key = tmp_path / "proof.json", tmp_path / "ledger.key"
    told = served.road.say("prove", served.ids[-1], "--out", str(bundle), "--key-file", str(key))
    assert told["bytes"] == bundle.stat().st_size < 64 * 1024
    good = verify(bundle, key)
    assert (good.returncode, json.loads(good.stdout)["proved"]) == (0, True), good.stdout + good.stderr
    text = bundle.read_text()
    at = text.index("score") + 12  # a digit of the answer
    bundle.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    bad = verify(bundle, key)
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["broken"]["link"] == "record -> segment"


def broken_link(bundle: bytes, key: str) -> str:
    """The link that the verifier names; 'no JSON' where it cannot even read the file."""
    try:
        report = verifier.verify(bundle, key, [])
    except verifier.Unreadable:
        return "no JSON"
    return report.broken.link if report.broken else ""


def test_a_flipped_byte_anywhere_is_refused_by_the_link_that_it_breaks(served: Answers, platform: Platform) -> None:
    proof = platform.call(Prove(project=PROJECT, prediction=served.ids[0]))
    named = []
    for at in chance().sample(range(proof.bytes), 500 if SOAK else 60):
        bad = bytearray(proof.bundle.encode())
        bad[at] ^= 1
        named.append(broken_link(bytes(bad), proof.key))
    assert all(named)
    assert {link.split()[0] for link in named} >= {"inclusion", "form"}


def test_the_ledger_holds_and_a_checkpoint_kept_from_before_still_fits(way: Way, served: Answers) -> None:
    kept = way.road.say("ledger", "checkpoint")["note"]
    found = served.road.say("ledger", "verify", "--since", kept)
    assert found["problems"] == []
    assert found["size"] > 30


def test_a_revoked_token_ends_within_a_second_and_others_go_on(served: Answers, way: Way, platform: Platform) -> None:
    issued = platform.call(IssueToken(principal="service:web", days=1))
    question = next(questions(way.road.place))
    with gateway(served.road.home) as running, running.client(issued.token) as client:
        assert client.post(PATH, json=question).status_code == 200
        platform.call(RevokeToken(token_id=issued.id))
        until(lambda: client.post(PATH, json=question).status_code == 401, seconds=1)
        with running.client(way.caller["token"]) as other:
            assert other.post(PATH, json=question).status_code == 200


def closes(running: Gateway) -> None:
    running.process.terminate()
    assert running.process.wait(20) == 0


def test_a_gateway_starts_answers_and_stops_with_no_control_plane_and_no_database(way: Way, tmp_path: Path) -> None:
    road, asked = way.road.copy(tmp_path), questions(way.road.place)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for file in road.home.glob("*.sqlite*"):
        file.rename(hidden / file.name)
    with gateway(road.home) as running, running.client(way.caller["token"]) as client:
        answered = [client.post(PATH, json=next(asked)).json()["prediction"] for _ in range(5)]
        closes(running)
    for file in hidden.iterdir():
        file.rename(road.home / file.name)
    with road.platform() as opened:
        road.say("journal", "seal")
        assert sealed(opened) == set(answered)
        require_sound(opened)


def test_the_last_seconds_of_a_gateway_are_counted_too(served: Answers, way: Way, platform: Platform) -> None:
    """A stop in the middle of a request: whoever got an answer has a record, and no one waits long."""
    asked = questions(way.road.place)
    answered = []
    with gateway(served.road.home) as running, running.client(way.caller["token"]) as client:
        answered += [client.post(PATH, json=next(asked)).json()["prediction"] for _ in range(3)]
        began = time.monotonic()
        closes(running)
        assert time.monotonic() - began < 10
    served.road.say("journal", "seal")
    assert set(answered) <= sealed(platform)
