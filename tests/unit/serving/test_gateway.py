"""The gateway as a process: it answers, refuses, follows what is published, and loses nothing it has answered."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from unit.serving import homes
from unit.serving.homes import ENDPOINT, INPUTS, MODEL, PATH, PROJECT

from macadam.access.policy_types import ActivatePolicies, ApprovePolicies, ProposePolicies
from macadam.access.types import IssueToken, RevokeToken
from macadam.app.platform import Platform
from macadam.errors import IntegrityError, Unavailable
from macadam.journal.types import SealClosed
from macadam.serving.types import Deploy, ListEndpoints, Prove, Rollback, ShowPrediction
from macadam.testing import token_of


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ready(client: httpx.Client) -> None:
    until(lambda: client.get("/health/ready").status_code == 200)


def predict(client: httpx.Client, **changes: object) -> httpx.Response:
    return client.post(PATH, json={"inputs": INPUTS, **changes})


def version(client: httpx.Client) -> str:
    return str(predict(client).json()["version"])


def test_an_answer_names_its_record_and_its_version(deployed: Platform, home: Path, token: str) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        assert client.get("/health").json() == {"status": "live"}
        ready(client)
        answer = predict(client)
        assert answer.status_code == 200
        said = answer.json()
        assert said["version"] == answer.headers["x-macadam-version"] == "model:delay-risk@1"
        assert said["prediction"] == answer.headers["x-macadam-prediction"]
        assert 0 < said["output"]["score"] < 1
        page = deployed.call(ShowPrediction(project=PROJECT, prediction=said["prediction"]))
        assert page.record["inputs"] == INPUTS
        assert page.record["output"] == said["output"]
        assert page.segment == ""
        with pytest.raises(Unavailable, match="not sealed"):
            deployed.call(Prove(project=PROJECT, prediction=said["prediction"]))


def test_wrong_inputs_are_refused_by_name_and_leave_no_record(deployed: Platform, home: Path, token: str) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        missing = client.post(PATH, json={"inputs": {"distance": 1.0, "noise": 1}})
        assert (missing.status_code, missing.json()["details"]) == (422, {"feature": "carrier"})
        unknown = client.post(PATH, json={"inputs": {**INPUTS, "colour": 1}})
        assert (unknown.status_code, unknown.json()["details"]) == (422, {"input": "colour"})
        assert client.post(PATH, json={"inputs": {**INPUTS, "noise": []}}).status_code == 422
        assert client.post(PATH, json={"input": INPUTS}).status_code == 422
        assert client.post(PATH, content=b"{").status_code == 400
        assert client.post(PATH, content=b'{"inputs":{"carrier":"\xff"}}').status_code == 400
        assert predict(client, inputs={**INPUTS, "distance": None}).status_code == 200
        assert "macadam_gateway_records_total 1\n" in client.get("/metrics").text


def test_who_may_not_call_is_told_which_permission_is_missing(deployed: Platform, home: Path, token: str) -> None:
    viewer = token_of(deployed, "ann", {PROJECT: "viewer"})
    caller = token_of(deployed, "service:web", {PROJECT: "caller"})
    limited = token_of(deployed, "service:limited", {PROJECT: "caller"}, scopes=("online:write",))
    with homes.gateway(home) as gateway, gateway.client(caller) as client:
        ready(client)
        assert predict(client).status_code == 200

        def status(authorization: str, path: str = PATH) -> int:
            headers = {"authorization": authorization}
            return client.post(path, json={"inputs": INPUTS}, headers=headers).status_code

        assert [status(""), status("Basic eA=="), status("Bearer no")] == [401] * 3
        assert status(f"Bearer {limited}") == 403
        refused = client.post(PATH, json={"inputs": INPUTS}, headers={"authorization": f"Bearer {viewer}"})
        assert refused.status_code == 403
        assert refused.json()["details"]["permission"] == "predictions:create"
        assert status(f"Bearer {token}", PATH.replace(ENDPOINT, "other")) == 404
        assert status(f"Bearer {caller}", PATH.replace(PROJECT, "other")) == 403
        assert client.get(PATH).status_code == 405
        assert client.get("/nowhere").status_code == 404


def test_a_token_for_one_endpoint_asks_there_and_nowhere_else(deployed: Platform, home: Path, token: str) -> None:
    deployed.call(Deploy(project=PROJECT, endpoint="other", model=MODEL, version="1"))
    limits = ({"assets": (f"endpoint:{ENDPOINT}",)}, {"projects": (PROJECT,)}, {"projects": ("elsewhere",)})
    here, project, elsewhere = (deployed.call(IssueToken(principal="principal:local", **more)).token for more in limits)
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)

        def statuses(credential: str) -> list[int]:
            headers = {"authorization": f"Bearer {credential}"}
            paths = (PATH, PATH.replace(ENDPOINT, "other"))
            return [client.post(path, json={"inputs": INPUTS}, headers=headers).status_code for path in paths]

        assert statuses(here) == [200, 403]
        assert statuses(project) == [200, 200]
        assert statuses(elsewhere) == [403, 403]


def test_a_revoked_token_ends_within_a_second(deployed: Platform, home: Path, token: str) -> None:
    issued = deployed.call(IssueToken(principal="principal:local", days=1))
    with homes.gateway(home) as gateway, gateway.client(issued.token) as client:
        ready(client)
        until(lambda: predict(client).status_code == 200)  # the state with the new token may still be on its way
        deployed.call(RevokeToken(token_id=issued.id))
        until(lambda: predict(client).status_code == 401, seconds=1)


def test_a_new_deployment_takes_over_and_a_rollback_brings_the_old_one_back(
    deployed: Platform, home: Path, token: str
) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert version(client) == "model:delay-risk@1"
        deployed.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="2"))
        until(lambda: version(client) == "model:delay-risk@2")
        first = deployed.call(ListEndpoints(project=PROJECT))[0].previous
        assert deployed.call(Rollback(project=PROJECT, endpoint=ENDPOINT)).deployment == first
        until(lambda: version(client) == "model:delay-risk@1")


def test_a_tampered_model_is_refused_and_the_version_before_goes_on(deployed: Platform, home: Path, token: str) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        endpoint = deployed.call(Deploy(project=PROJECT, endpoint="other", model=MODEL, version="2"))
        until(lambda: client.get("/health/ready").status_code == 200)
        file = home / "objects" / "sha256" / endpoint.artifact[7:9] / endpoint.artifact[9:]
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
        with pytest.raises(IntegrityError):
            deployed.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="2"))
        assert version(client) == "model:delay-risk@1"
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        until(lambda: predict(client).status_code == 200)
        other = client.post(PATH.replace(ENDPOINT, "other"), json={"inputs": INPUTS})
        assert other.status_code == 503
        assert "no longer has the bytes" in other.json()["detail"]
        data[100] ^= 1
        file.write_bytes(data)
        until(lambda: client.get("/health/ready").status_code == 200)


def test_a_replay_asks_on_its_own_clock_if_it_may(deployed: Platform, home: Path) -> None:
    caller = token_of(deployed, "service:replay", {PROJECT: "caller"})
    only = token_of(deployed, "service:web", {PROJECT: "caller"}, scopes=("predictions:create",))
    with homes.gateway(home) as gateway, gateway.client(caller) as client:
        ready(client)
        said = predict(client, at="2013-07-01T08:00:00Z").json()
        page = deployed.call(ShowPrediction(project=PROJECT, prediction=said["prediction"]))
        assert page.record["clock"] == "2013-07-01T08:00:00.000000Z"
        assert page.record["at"] > "2020"
        assert predict(client, at="2013-07-01T08:00:00").status_code == 422
        refused = client.post(
            PATH,
            json={"inputs": INPUTS, "at": "2013-07-01T08:00:00Z"},
            headers={"authorization": f"Bearer {only}"},
        )
        assert refused.status_code == 403


def test_it_starts_without_a_state_and_picks_it_up(home: Path) -> None:
    (home / "objects" / "names" / "serving" / "state.json").unlink()
    with homes.gateway(home) as gateway, gateway.client("any") as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        assert predict(client).status_code == 503
        with homes.open_home(home) as platform:
            platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))
        until(lambda: predict(client).status_code == 401)


def test_a_taken_port_is_an_error_with_a_next_step(deployed: Platform, home: Path) -> None:
    with homes.gateway(home) as gateway:
        port = gateway.url.rpartition(":")[2]
        done = homes.run_gateway(home, port)
        assert done.returncode == 12
        assert f"Port {port}" in done.stderr
        assert "--port" in done.stderr


def test_sigterm_answers_what_has_come_and_closes_the_segment(deployed: Platform, home: Path, token: str) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        ids = [predict(client).json()["prediction"] for _ in range(5)]
        gateway.process.terminate()
        assert gateway.process.wait(10) == 0
    assert not list((home / "journal" / PROJECT).glob("*.open"))
    sealed = deployed.call(SealClosed(project=PROJECT))
    assert (sealed.records, sealed.segments[0].answers) == (5, 5)
    assert deployed.call(ShowPrediction(project=PROJECT, prediction=ids[2])).segment == sealed.segments[0].id


def test_kill_9_under_load_loses_no_answered_prediction(deployed: Platform, home: Path, token: str) -> None:
    answered: list[str] = []

    def load(url: str) -> None:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}) as client:
            try:
                while True:
                    answered.append(predict(client).json()["prediction"])
            except httpx.TransportError:
                return

    for _ in range(2):
        with homes.gateway(home) as gateway, gateway.client(token) as client:
            ready(client)
            threads = [threading.Thread(target=load, args=(gateway.url,)) for _ in range(4)]
            before = len(answered)
            for thread in threads:
                thread.start()
            until(lambda before=before: len(answered) > before + 100)  # type: ignore[misc]
            gateway.process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
    deployed.call(SealClosed(project=PROJECT))
    location = deployed.ports.settings.home / "journal" / PROJECT
    assert not list(location.glob("*.open"))
    assert not list(location.glob("*.closed"))
    for prediction in [*answered[:3], *answered[-8:]]:
        assert deployed.call(ShowPrediction(project=PROJECT, prediction=prediction)).segment
    assert set(answered) <= homes.sealed_ids(deployed)


def test_a_gateway_loads_no_sql_and_no_model_runtime_before_it_needs_one() -> None:
    code = "import sys, macadam.serving.gateway; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not {"sqlalchemy", "onnxruntime", "numpy", "pyarrow", "pyiceberg"} & set(done.stdout.split())


def test_a_gateway_whose_home_is_gone_ends(home: Path, tmp_path: Path) -> None:
    with homes.gateway(home) as gateway:
        home.rename(tmp_path / "elsewhere")
        assert gateway.process.wait(10) == 0
        (tmp_path / "elsewhere").rename(home)


def test_a_project_s_policies_reach_the_gateway_and_hold_there_for_each_purpose(
    deployed: Platform, home: Path, token: str
) -> None:
    text = (
        '@id("care-only") forbid (principal, action == Action::"predictions:create", resource)\n'
        'unless { context has purpose && context.purpose == "care" };'
    )
    made = deployed.call(ProposePolicies(project=PROJECT, files={"policies/care.cedar": text}))
    ann = token_of(deployed, "ann", {PROJECT: "approver"})
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert predict(client).status_code == 200
        deployed.call(ApprovePolicies(project=PROJECT, version=made.version), token=ann)
        deployed.call(ActivatePolicies(project=PROJECT, version=made.version))
        until(lambda: predict(client).status_code == 403)
        for _ in range(2):  # a route that was allowed for one purpose is none for another
            for purpose, status in (("care", 200), ("ads", 403), ("", 403), ("?!", 400)):
                headers = {"x-macadam-purpose": purpose}
                assert client.post(PATH, json={"inputs": INPUTS}, headers=headers).status_code == status
        refused = predict(client).json()
        assert refused["details"]["policies"] == [f"{PROJECT}/care-only"]
