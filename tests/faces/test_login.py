"""Signing in through a real OpenID provider, with httpx as the browser."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from macadam.access.types import (
    CreatePrincipal,
    DisablePrincipal,
    LinkIdentity,
    ListLinks,
    ListRoles,
    MapGroup,
    UnlinkIdentity,
    UnmapGroup,
    WhoAmI,
)
from macadam.app.platform import Platform
from macadam.errors import Conflict, InvalidInput
from macadam.ledger.types import ShowLog
from macadam.lineage.types import StateAt
from macadam.testing import Http, Reply, open_platform
from macadam.values import utc_now

PROVIDER = Path(__file__).parents[1] / "unit" / "access" / "oidc_provider.py"
BASE = "http://127.0.0.1:8480"


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    environment = {**os.environ, "AUTHLIB_INSECURE_TRANSPORT": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, str(PROVIDER)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def environment(provider: str, **more: str) -> dict[str, str]:
    return {"MACADAM_OIDC_ISSUER": provider, "MACADAM_OIDC_CLIENT_ID": "macadam", "MACADAM_ANONYMOUS_RATE": "0", **more}


@pytest.fixture(scope="module")
def platform(provider: str) -> Iterator[Platform]:
    with open_platform(environment=environment(provider)) as opened:
        opened.call(CreatePrincipal(principal="alice"))
        opened.call(LinkIdentity(principal="alice", identity="sub-alice"))
        yield opened


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[Http]:
    with Http(platform) as face:
        yield face


def begin(http: Http, goal: str = "") -> tuple[str, str]:
    """(the provider's page, the browser's cookie)."""
    reply = http.request("GET", "/login" + (f"?{urlencode({'next': goal})}" if goal else ""))
    assert reply.status == 303, reply.body
    assert "HttpOnly" in reply.headers["set-cookie"]
    return reply.headers["location"], reply.headers["set-cookie"].partition(";")[0]


def sign_in_at(url: str, who: str) -> str:
    """The person signs in at the provider. Returns the query that it sends the browser back with."""
    answer = httpx.post(url, data={"sub": who}, follow_redirects=False)
    assert answer.status_code == 302, answer.text
    return urlsplit(answer.headers["location"]).query


def back(http: Http, query: str, cookie: str) -> Reply:
    return http.request("GET", f"/login/callback?{query}", headers={"cookie": cookie})


def whole(http: Http, who: str = "sub-alice") -> Reply:
    url, cookie = begin(http)
    return back(http, sign_in_at(url, who), cookie)


def test_a_person_signs_in_and_gets_a_token_for_eight_hours(http: Http, platform: Platform) -> None:
    url, cookie = begin(http)
    asked = parse_qs(urlsplit(url).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == [f"{BASE}/login/callback"]
    assert len(asked["state"][0]) == len(asked["nonce"][0]) == 43
    reply = back(http, sign_in_at(url, "sub-alice"), cookie)
    assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
    said = reply.json()
    assert said["principal"] == "principal:alice"
    who = platform.call(WhoAmI(), token=said["token"])
    assert who.id == "principal:alice"
    assert who.expires is not None
    hours = (who.expires.timestamp() - time.time()) / 3600
    assert 7.9 < hours <= 8
    leaf = until_leaf(platform, "done")
    assert (leaf.actor, leaf.subject) == ("principal:alice", f"token:{who.token}")
    assert "sub-alice" not in str(leaf)


def until_leaf(platform: Platform, outcome: str) -> object:
    end = time.monotonic() + 10
    while True:
        found = platform.call(ShowLog(kind="access.sign_in", outcome=outcome)).entries
        if found or time.monotonic() > end:
            return found[0]
        time.sleep(0.05)


def test_who_is_linked_to_nobody_gets_no_token_and_leaves_a_leaf(http: Http, platform: Platform) -> None:
    reply = whole(http, "sub-mallory")
    assert reply.status == 401
    assert "is nobody here" in reply.json()["detail"]
    leaf = until_leaf(platform, "denied")
    assert leaf.actor == "anonymous"
    assert "mallory" not in str(leaf)


def test_the_answer_to_another_login_is_refused(http: Http) -> None:
    url, cookie = begin(http)
    other_url, other_cookie = begin(http)
    stolen = sign_in_at(url, "sub-alice")
    refused = back(http, stolen, other_cookie)
    assert (refused.status, "another login" in refused.json()["detail"]) == (401, True)
    # The ticket that was tried is used up, also for the right answer.
    assert back(http, sign_in_at(other_url, "sub-alice"), other_cookie).status == 401
    assert back(http, stolen, cookie).status == 200


@pytest.mark.parametrize("cookie", ["", "macadam_login=", "macadam_login=guessed", "macadam_login", "\x00=;;"])
def test_a_callback_without_a_login_begun_here_is_refused(http: Http, cookie: str) -> None:
    url, _ = begin(http)
    refused = back(http, sign_in_at(url, "sub-alice"), cookie)
    assert (refused.status, "No login was begun" in refused.json()["detail"]) == (401, True)


def test_a_replayed_answer_is_refused(http: Http) -> None:
    url, cookie = begin(http)
    query = sign_in_at(url, "sub-alice")
    assert back(http, query, cookie).status == 200
    assert back(http, query, cookie).status == 401
    # Even in another login, the code itself is spent.
    url, cookie = begin(http)
    state = parse_qs(urlsplit(url).query)["state"][0]
    code = parse_qs(query)["code"][0]
    refused = back(http, urlencode({"code": code, "state": state}), cookie)
    assert (refused.status, "does not take the code" in refused.json()["detail"]) == (401, True)


def test_a_code_that_was_got_with_another_challenge_or_none_is_refused(http: Http) -> None:
    """PKCE: an attacker who brings their own code into somebody's login, or strips the challenge."""
    for change in ({"code_challenge": "A" * 43}, {"code_challenge_method": "plain"}):
        url, cookie = begin(http)
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()} | change
        answer = sign_in_at(parts._replace(query=urlencode(query)).geturl(), "sub-alice")
        refused = back(http, answer, cookie)
        assert (refused.status, "does not take the code" in refused.json()["detail"]) == (401, True), change


def test_a_token_for_another_nonce_is_refused(http: Http) -> None:
    url, cookie = begin(http)
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()} | {"nonce": "mine"}
    answer = sign_in_at(parts._replace(query=urlencode(query)).geturl(), "sub-alice")
    refused = back(http, answer, cookie)
    assert (refused.status, "belongs to another login" in refused.json()["detail"]) == (401, True)


def test_an_answer_from_another_issuer_or_with_two_states_is_refused(http: Http) -> None:
    url, cookie = begin(http)
    query = sign_in_at(url, "sub-alice")
    assert back(http, f"{query}&iss=https%3A%2F%2Fevil.example", cookie).status == 401
    url, cookie = begin(http)
    query = sign_in_at(url, "sub-alice")
    assert back(http, f"state=mine&{query}", cookie).status == 401


def test_a_refusal_by_the_provider_is_said(http: Http) -> None:
    url, cookie = begin(http)
    state = parse_qs(urlsplit(url).query)["state"][0]
    refused = back(http, urlencode({"error": "access_denied", "state": state}), cookie)
    assert (refused.status, "access_denied" in refused.json()["detail"]) == (401, True)


@pytest.mark.parametrize(
    "goal",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "http:evil", "/\t/evil.example",
     "evil", "/%0d%0aset-cookie:x=y\r\nx: y", "\\\\evil", "/x\u2028y"],
)  # fmt: skip
def test_a_login_leads_to_no_other_site(http: Http, goal: str) -> None:
    url, cookie = begin(http, goal)
    reply = back(http, sign_in_at(url, "sub-alice"), cookie)
    assert reply.status == 200
    assert "location" not in reply.headers


def test_a_login_leads_on_to_a_page_of_this_server_with_a_cookie_that_no_script_reads(http: Http) -> None:
    url, cookie = begin(http, "/console/models?x=1")
    reply = back(http, sign_in_at(url, "sub-alice"), cookie)
    assert (reply.status, reply.headers["location"]) == (303, "/console/models?x=1")
    assert reply.body == b""
    # The API takes no cookie: another site cannot make the browser act.
    assert http.request("GET", "/api/v1/principals/self", headers={"cookie": "macadam_session=x"}).status == 401


def test_a_rotated_key_is_found_at_once(http: Http, provider: str) -> None:
    assert whole(http).status == 200
    assert httpx.post(f"{provider}/rotate").status_code == 204
    http.app._sign_in._logins.provider.keys._tried = float("-inf")  # half a minute later
    assert whole(http).status == 200


def test_only_a_loopback_address_gets_a_command_line_s_login(http: Http) -> None:
    for redirect in ("https://evil.example/", "http://127.0.0.1.evil.example:1/", "http://localhost:99/x", "http://[::2]:1/",
                     "http://127.0.0.1/", "http://127.0.0.1:x/", "http://u@evil:1/", ""):  # fmt: skip
        assert http.request("POST", "/login/begin", json={"redirect": redirect}).status == 400, redirect
    for body in (b"", b"[]", b"{", b'{"redirect":1}', b"[" * 100_000, b'{"ticket":"x","answer":{"state":1}}'):
        for path in ("begin", "finish"):
            assert http.request("POST", f"/login/{path}", body=body).status == 400
    assert http.request("POST", "/login/finish", json={"ticket": "x", "answer": {}}).status == 401
    assert http.request("GET", "/login/nowhere").status == 404


def test_without_a_provider_the_pages_say_how_to_set_one_up() -> None:
    with open_platform(environment={}) as opened, Http(opened) as face:
        reply = face.request("GET", "/login")
        assert (reply.status, reply.json()["code"]) == (400, "setting-invalid")
        assert "MACADAM_OIDC_ISSUER" in reply.json()["next"]


def test_groups_give_and_take_roles_at_each_sign_in(http: Http, platform: Platform, provider: str) -> None:
    platform.call(MapGroup(project="*", group="staff", role="viewer"))
    platform.call(MapGroup(project="*", group="ops", role="operator"))
    with pytest.raises(InvalidInput, match="No group makes administrators"):
        platform.call(MapGroup(project="*", group="ops", role="admin"))

    def roles(*groups: str) -> set[str]:
        httpx.put(f"{provider}/users/sub-alice", json={"groups": [*groups, 7]})
        assert whole(http).status == 200
        found = platform.call(ListRoles(project="*"))
        return {grant.role for grant in found if grant.principal == "principal:alice"}

    assert roles("staff", "ops") == {"viewer", "operator"}
    assert roles("ops", "unmapped") == {"operator"}
    platform.call(UnmapGroup(project="*", group="ops", role="operator"))
    assert {g.principal for g in platform.call(ListRoles(project="*"))} == {"principal:local"}
    assert roles() == set()


def test_roles_from_groups_end_with_the_link_and_with_the_last_group_that_gave_them(
    http: Http, platform: Platform, provider: str
) -> None:
    for group in ("first", "second"):
        platform.call(MapGroup(project="*", group=group, role="operator"))
        httpx.put(f"{provider}/users/sub-alice", json={"groups": [group]})
        assert whole(http).status == 200

    def holders() -> set[str]:
        return {grant.principal for grant in platform.call(ListRoles(project="*"))}

    platform.call(UnmapGroup(project="*", group="second", role="operator"))
    assert holders() == {"principal:local"}
    assert whole(http).status == 200
    platform.call(MapGroup(project="*", group="second", role="viewer"))
    assert whole(http).status == 200
    assert holders() == {"principal:alice", "principal:local"}
    platform.call(UnlinkIdentity(identity="sub-alice"))
    assert holders() == {"principal:local"}
    past = platform.call(StateAt(project="*", at=utc_now() + timedelta(seconds=1)))
    assert {role.principal for role in past.roles} == {"principal:local"}
    platform.call(LinkIdentity(principal="alice", identity="sub-alice"))  # as the other tests find it
    for group, role in (("first", "operator"), ("second", "viewer")):
        platform.call(UnmapGroup(project="*", group=group, role=role))


def test_an_identity_is_linked_to_one_person_and_unlinking_ends_its_logins(http: Http, platform: Platform) -> None:
    platform.call(CreatePrincipal(principal="carl"))
    platform.call(CreatePrincipal(principal="service:web"))
    platform.call(LinkIdentity(principal="carl", identity="sub-carl"))
    with pytest.raises(Conflict, match="That identity is principal:carl"):
        platform.call(LinkIdentity(principal="alice", identity="sub-carl"))
    with pytest.raises(InvalidInput, match="services do not sign in"):
        platform.call(LinkIdentity(principal="service:web", identity="sub-web"))
    assert whole(http, "sub-carl").json()["principal"] == "principal:carl"
    platform.call(UnlinkIdentity(identity="sub-carl"))
    assert whole(http, "sub-carl").status == 401
    platform.call(LinkIdentity(principal="carl", identity="sub-carl"))
    platform.call(DisablePrincipal(principal="carl"))
    assert whole(http, "sub-carl").status == 401
    assert {link.identity for link in platform.call(ListLinks())} == {"sub-alice", "sub-carl"}


def test_a_verified_address_makes_a_person_where_that_is_set_and_never_an_existing_one(provider: str) -> None:
    more = environment(provider, MACADAM_OIDC_CREATE="1", MACADAM_OIDC_CLAIM="email")
    with open_platform(environment=more) as opened, Http(opened) as face:
        httpx.put(f"{provider}/users/1", json={"email": "Dora@Example.com", "email_verified": True})
        httpx.put(f"{provider}/users/2", json={"email": "local", "email_verified": True})
        httpx.put(f"{provider}/users/3", json={"email": "dora@example.com", "email_verified": False})
        assert whole(face, "1").json()["principal"] == "principal:dora-at-example.com"
        assert whole(face, "1").json()["principal"] == "principal:dora-at-example.com"
        taken = whole(face, "2")
        assert (taken.status, "exists and is not linked" in taken.json()["detail"]) == (401, True)
        unverified = whole(face, "3")
        assert (unverified.status, "not verified" in unverified.json()["detail"]) == (401, True)


def test_the_command_line_signs_in_through_a_port_of_this_machine(provider: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_platform(home, environment=environment(provider)) as opened:
        opened.call(CreatePrincipal(principal="alice"))
        opened.call(LinkIdentity(principal="alice", identity="sub-alice"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
    command = [sys.executable, "-m", "macadam.faces.cli", "login", "--no-browser", "--json", "--home", str(home)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**kept, **environment(provider)}
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "Sign in at:\n"
    answer = httpx.post(process.stderr.readline().strip(), data={"sub": "sub-alice"}, follow_redirects=False)
    landing = answer.headers["location"]
    assert urlsplit(landing).hostname == "127.0.0.1"
    assert httpx.get(landing.partition("?")[0]).status_code == 404
    assert "close this page" in httpx.get(landing).text
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert '"principal": "principal:alice"' in out
    assert "mcd_" in out


def test_a_command_line_signs_in_at_a_server_that_keeps_the_verifier_and_the_secret(
    provider: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s3cret with space&=\n")
    more = environment(provider, MACADAM_OIDC_CLIENT_SECRET_FILE=str(tmp_path / "secret"))
    with open_platform(environment=more) as opened, Http(opened) as face:
        opened.call(CreatePrincipal(principal="alice"))
        opened.call(LinkIdentity(principal="alice", identity="sub-alice"))
        begun = face.request("POST", "/login/begin", json={"redirect": "http://127.0.0.1:49999/callback"}).json()
        assert "s3cret" not in str(begun)
        assert set(begun) == {"url", "ticket"}
        answer = {k: v[0] for k, v in parse_qs(sign_in_at(begun["url"], "sub-alice")).items()}
        stolen = face.request("POST", "/login/finish", json={"ticket": "guessed", "answer": answer})
        assert stolen.status == 401
        done = face.request("POST", "/login/finish", json={"ticket": begun["ticket"], "answer": answer})
        assert done.json()["principal"] == "principal:alice"
        (tmp_path / "secret").unlink()
        url, cookie = begin(face)
        assert back(face, sign_in_at(url, "sub-alice"), cookie).json()["code"] == "setting-invalid"


def test_a_provider_that_is_down_or_calls_itself_otherwise_is_said(provider: str) -> None:
    with open_platform(environment=environment("http://127.0.0.1:1")) as opened, Http(opened) as face:
        reply = face.request("GET", "/login")
        assert (reply.status, reply.json()["code"]) == (503, "unavailable")
    with open_platform(environment=environment(provider + "/")) as opened, Http(opened) as face:
        assert "calls itself" in face.request("GET", "/login").json()["detail"]
    with open_platform(environment=environment("http://op.example")) as opened, Http(opened) as face:
        assert "no address that a sign-in can trust" in face.request("GET", "/login").json()["detail"]


def test_a_login_that_was_begun_long_ago_is_over(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    url, cookie = begin(http)
    query = sign_in_at(url, "sub-alice")
    logins = http.app._sign_in._logins
    now = logins._clock()
    monkeypatch.setattr(logins, "_clock", lambda: now + 601)
    assert back(http, query, cookie).status == 401
    assert logins._pending == {}
