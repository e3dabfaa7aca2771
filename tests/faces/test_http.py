"""What the HTTP face adds to operations: parsing, limits, problem details, pages about itself."""

import json
import logging
import threading

import pytest

from macadam import operations
from macadam.access.types import CreateProject, ListProjects
from macadam.app.platform import Platform
from macadam.errors import Busy
from macadam.faces import http as face
from macadam.faces import logs
from macadam.testing import Http, open_platform

PROJECTS = "/api/v1/projects"


def test_a_change_and_a_reading_go_through(http: Http, admin: str) -> None:
    made = http.request("POST", PROJECTS, token=admin, json={"project": "through", "risk": "high"})
    assert (made.status, made.json()["name"], made.json()["risk"]) == (200, "through", "high")
    assert http.request("GET", PROJECTS + "/through", token=admin).json() == made.json()


def test_a_wrong_value_is_a_400_that_names_the_field(http: Http, admin: str) -> None:
    reply = http.request("POST", PROJECTS, token=admin, json={"project": "Not A Name"})
    assert reply.status == 400
    assert "$.project" in reply.json()["detail"]


def test_a_missing_and_an_unknown_field_are_400s_that_name_them(http: Http, admin: str) -> None:
    missing = http.request("POST", PROJECTS, token=admin, json={})
    unknown = http.request("POST", PROJECTS, token=admin, json={"project": "a", "colour": "red"})
    assert (missing.status, unknown.status) == (400, 400)
    assert "`project`" in missing.json()["detail"]
    assert "`colour`" in unknown.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"project": "a", "description": "\\ud800"}',
        b"{",
        b"[1, 2]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"project": "a"} trailing',
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(http: Http, admin: str, body: bytes) -> None:
    reply = http.request("POST", PROJECTS, token=admin, body=body)
    assert (reply.status, reply.json()["code"]) == (400, "invalid-input")


def test_text_does_not_stand_for_a_number_in_a_body(http: Http, admin: str) -> None:
    reply = http.request("POST", "/api/v1/tokens", token=admin, json={"principal": "principal:local", "days": "3"})
    assert reply.status == 400
    assert "$.days" in reply.json()["detail"]


def test_text_stands_for_a_number_in_a_query(http: Http, admin: str) -> None:
    assert len(http.request("GET", "/api/v1/projects/*/ledger/log?limit=2", token=admin).json()["entries"]) == 2
    reply = http.request("GET", "/api/v1/projects/*/ledger/log?limit=two", token=admin)
    assert (reply.status, reply.json()["details"]) == (400, {"field": "limit"})


def test_an_unknown_or_doubled_query_field_is_a_400(http: Http, admin: str) -> None:
    assert http.request("GET", "/api/v1/projects/*/ledger/log?colour=red", token=admin).status == 400
    assert http.request("GET", "/api/v1/projects/*/ledger/log?limit=1&limit=2", token=admin).status == 400


def test_a_body_may_not_contradict_the_path(http: Http, admin: str) -> None:
    sent = {"project": "elsewhere", "principal": "principal:local", "role": "viewer"}
    reply = http.request("POST", PROJECTS + "/flights/roles", token=admin, json=sent)
    assert (reply.status, reply.json()["details"]) == (400, {"field": "project"})
    assert (
        http.request("POST", PROJECTS + "/flights/roles", token=admin, json={**sent, "project": "flights"}).status
        == 200
    )


def test_a_reading_takes_no_body(http: Http, admin: str) -> None:
    assert http.request("GET", PROJECTS, token=admin, json={"project": "a"}).status == 400


@pytest.fixture
def small() -> Http:
    with open_platform(environment={"MACADAM_MAX_BODY": "1000"}) as platform, Http(platform) as face_:
        yield face_


def test_an_oversize_body_is_refused_by_its_declared_length_and_while_it_streams(small: Http) -> None:
    platform = small.app._platform
    token = platform.ports.secrets.get("local-token").decode()
    declared = small.request("POST", PROJECTS, token=token, headers={"content-length": "100000"})
    streamed = small.request("POST", PROJECTS, token=token, body=b" " * 5000, chunk=400)
    assert (declared.status, streamed.status) == (413, 413)
    assert streamed.json()["details"] == {"limit": 1000}


def test_an_oversize_body_of_a_stranger_is_not_even_looked_at(small: Http) -> None:
    assert small.request("POST", PROJECTS, body=b" " * 5000).status == 401


def test_a_repeated_idempotency_key_gets_the_first_answer(http: Http, admin: str) -> None:
    def create(key: str, name: str) -> face.Any:
        return http.request("POST", PROJECTS, token=admin, json={"project": name}, headers={"idempotency-key": key})

    first, again = create("key-1", "once"), create("key-1", "once")
    assert (first.status, again.status) == (200, 200)
    assert first.json() == again.json()
    assert create("key-2", "once").status == 409
    assert create("key-1", "other").status == 409


def test_a_credential_is_in_its_answer_and_nowhere_in_the_database(http: Http, admin: str, platform: Platform) -> None:
    sent = {"principal": "principal:local"}
    secret = http.request("POST", "/api/v1/tokens", token=admin, json=sent, headers={"idempotency-key": "s"}).json()[
        "token"
    ]
    assert secret
    for file in platform.settings.home.glob("macadam.sqlite*"):
        assert secret.encode() not in file.read_bytes()


def test_an_unknown_path_is_a_404_and_a_wrong_method_a_405_with_allow(http: Http) -> None:
    assert http.request("GET", "/api/v1/nothing").json()["code"] == "not-found"
    reply = http.request("PATCH", PROJECTS)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, POST")
    assert http.request("POST", "/health").status == 405


def test_paths_and_keys_have_a_length(http: Http, admin: str) -> None:
    assert http.request("POST", f"{PROJECTS}/{'a' * 70_000}/roles").status == 413
    reply = http.request("POST", PROJECTS, token=admin, json={"project": "k"}, headers={"idempotency-key": "k" * 300})
    assert reply.status == 400


def test_a_path_field_is_decoded_once(http: Http, admin: str) -> None:
    reply = http.request("GET", PROJECTS + "/a%2Fb", token=admin)
    assert reply.status in (400, 404)
    assert "a/b" in reply.json()["detail"]


def test_an_unexpected_error_is_told_by_id_and_never_by_trace(
    http: Http, admin: str, platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_(*_: object, **__: object) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(platform.dispatcher, "run", break_)
    with caplog.at_level(logging.ERROR, logger=logs.LOGGER):
        reply = http.request("GET", PROJECTS, token=admin)
    assert (reply.status, reply.json()["code"]) == (500, "unexpected")
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    assert caplog.records[0].facts["id"] == reply.json()["details"]["id"]  # type: ignore[attr-defined]
    assert "the secret inside" in logs.JsonLines().format(caplog.records[0])


def test_health_says_that_the_ledger_cannot_sign(
    http: Http, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.request("GET", "/health").json()["ledger"] == "ok"
    monkeypatch.setattr(platform._sequencer, "failure", "the disk is full")
    answer = http.request("GET", "/health")
    assert (answer.status, answer.json()["ledger"]) == (200, "waiting")
    assert "disk" not in answer.body.decode()


def test_health_and_version_answer_anyone(http: Http) -> None:
    assert http.request("GET", "/health").json()["status"] == "ok"
    assert http.request("GET", "/version").json()["name"] == "macadam"
    head = http.request("HEAD", "/health")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0


def test_a_callers_trace_is_continued_and_a_malformed_one_replaced(http: Http) -> None:
    given = "0af7651916cd43dd8448eb211c80319c"
    reply = http.request("GET", "/version", headers={"traceparent": f"00-{given}-b7ad6b7169203331-01"})
    assert reply.headers["x-trace-id"] == given
    for wrong in ("", "00-xyz-b7ad6b7169203331-01", f"00-{'0' * 32}-b7ad6b7169203331-01"):
        fresh = http.request("GET", "/version", headers={"traceparent": wrong}).headers["x-trace-id"]
        assert len(fresh) == 32
        assert fresh not in (given, "0" * 32)


def test_metrics_count_requests_by_operation_and_status(http: Http, admin: str) -> None:
    def counted() -> int:
        lines = http.request("GET", "/metrics").body.decode().splitlines()
        name = 'macadam_requests_total{operation="access.list_projects",status="200"} '
        return next((int(line.removeprefix(name)) for line in lines if line.startswith(name)), 0)

    before = counted()
    http.request("GET", PROJECTS, token=admin)
    assert counted() == before + 1


def test_every_operation_stands_in_the_openapi_document(http: Http) -> None:
    document = http.request("GET", "/openapi.json").json()
    for operation in operations.table().values():
        row = document["paths"][operation.path][operation.method.lower()]
        assert row["operationId"] == operation.name
        assert row["x-permission"] == operation.permission
        assert {"200", "400", "401", "403", "404", "409", "413", "503"} <= row["responses"].keys()
    text = str(document)
    for reference in {part.partition("'")[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]
    assert "\\Z" not in json.dumps(document).replace("\\\\", "\\")  # which means the letter Z in other languages


def test_more_calls_than_can_wait_are_asked_to_come_back(
    http: Http, platform: Platform, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.app._quick, "_limit", 0)
    reply = http.request("GET", PROJECTS, token=admin)
    assert (reply.status, reply.json()["code"], reply.headers["retry-after"]) == (503, Busy.code, "1")


def test_the_log_line_of_a_request_is_json_with_its_trace(
    http: Http, admin: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=logs.LOGGER):
        http.request("GET", PROJECTS, token=admin)
    facts = caplog.records[-1].facts  # type: ignore[attr-defined]
    assert (facts["operation"], facts["status"]) == ("access.list_projects", 200)
    assert admin not in logs.JsonLines().format(caplog.records[-1])


def test_two_authorization_headers_are_none(http: Http, admin: str) -> None:
    two = {"authorization": "Bearer mcd_other", "Authorization": f"Bearer {admin}"}
    assert http.request("GET", PROJECTS, headers=two).status == 401


def test_a_token_in_a_path_is_not_logged(http: Http, admin: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger=logs.LOGGER):
        assert http.request("POST", f"/api/v1/tokens/{admin}/revoke", token=admin, json={}).status == 404
    (line,) = [logs.JsonLines().format(r) for r in caplog.records if "/revoke" in logs.JsonLines().format(r)]
    assert admin not in line
    assert "/api/v1/tokens/mcd_***/revoke" in json.loads(line)["path"]


def test_calls_from_several_threads_all_get_their_own_answer(platform: Platform, http: Http, admin: str) -> None:
    client_errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            assert platform.call(CreateProject(project=f"thread-{number}"), token=admin).name == f"thread-{number}"
        except BaseException as error:  # noqa: BLE001 - carried to the test's own thread
            client_errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client_errors == []
    assert {f"thread-{n}" for n in range(16)} <= {p.name for p in platform.call(ListProjects())}
