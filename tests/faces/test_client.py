"""The typed client answers as the platform does in process, and tries again what may work later."""

import httpx
import msgspec
import pytest

from macadam.access.types import CreateProject, IssueToken, ListProjects, ShowProject
from macadam.app.platform import Platform
from macadam.errors import Conflict, InvalidInput, NotAuthenticated, NotAuthorised, NotFound, StorageFull, Unavailable
from macadam.faces import problem
from macadam.faces.client import Client
from macadam.ledger.sequencer import integrate_all
from macadam.ledger.types import ShowLog
from macadam.testing import Http


def test_a_call_over_http_answers_what_the_same_call_answers_in_process(
    http: Http, platform: Platform, admin: str
) -> None:
    with http.client(admin) as client:
        made = client.call(CreateProject(project="typed", description="ä / ?"))
        assert client.call(ShowProject(project="typed")) == made == platform.call(ShowProject(project="typed"))
        integrate_all(platform.ports)  # places in the tree are given beside the calls
        assert client.call(ShowLog(limit=3)) == platform.call(ShowLog(limit=3))
        assert isinstance(client.call(ListProjects()), tuple)


def test_errors_come_back_as_the_classes_they_were_raised_as(http: Http, admin: str, nobody: str) -> None:
    with http.client(admin) as client:
        with pytest.raises(NotFound) as missing:
            client.call(ShowProject(project="missing"))
        assert missing.value.next_step
        with pytest.raises(Conflict):
            client.call(CreateProject(project="flights"))
        with pytest.raises(InvalidInput):
            client.call(IssueToken(principal="principal:local", days=1000))
    with http.client("") as stranger, pytest.raises(NotAuthenticated):
        stranger.call(ListProjects())
    with http.client(nobody) as client, pytest.raises(NotAuthorised) as refused:
        client.call(ShowProject(project="flights"))
    assert refused.value.details["permission"] == "projects:read"


def answering(*statuses: int | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers in turn."""
    left, seen = list(statuses), []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        if said == 200:
            return httpx.Response(200, content=b"[]")
        code = {503: "busy", 507: "storage-full", 409: "conflict"}.get(said)
        return httpx.Response(said, content=msgspec.json.encode({"code": code, "detail": "d"}) if code else b"<html>")

    client = Client("http://x", "t", transport=httpx.MockTransport(answer), sleep=lambda _s: None)
    return client, seen


def test_what_may_work_later_is_tried_again_with_the_same_key() -> None:
    client, seen = answering(503, httpx.ConnectError("refused"), 502, 409)
    with pytest.raises(Conflict):
        client.call(CreateProject(project="a"))
    keys = {request.headers["idempotency-key"] for request in seen}
    assert (len(seen), len(keys)) == (4, 1)


def test_it_gives_up_after_its_retries_and_says_where_nothing_answers() -> None:
    client, seen = answering(*[httpx.ConnectError("refused")] * 5)
    with pytest.raises(Unavailable, match="http://x does not answer"):
        client.call(ListProjects())
    assert len(seen) == 5


def test_a_full_disk_and_a_refusal_are_not_tried_again() -> None:
    for status, kind in ((507, StorageFull), (409, Conflict)):
        client, seen = answering(status)
        with pytest.raises(kind):
            client.call(CreateProject(project="a"))
        assert len(seen) == 1


def test_a_reading_carries_no_key_and_a_stray_page_is_not_mistaken_for_an_answer() -> None:
    client, seen = answering(200)
    assert client.call(ListProjects()) == ()
    assert "idempotency-key" not in seen[0].headers
    client, _ = answering(418)
    with pytest.raises(problem.Unexpected, match="418"):
        client.call(ListProjects())
