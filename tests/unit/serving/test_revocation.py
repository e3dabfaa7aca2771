"""A revoked token ends on every gateway within a second, also while the control plane and its database are gone."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from unit.serving import homes
from unit.serving.homes import ENDPOINT, INPUTS, MODEL, PATH, PROJECT

from macadam.access import revocation, revoking
from macadam.access.types import CreateProject, IssuedToken, IssueToken, RevokeToken
from macadam.faces import cli
from macadam.faces.gateway_process import end_leftover
from macadam.faces.replay import free_port
from macadam.ledger.types import ShowLog
from macadam.serving.types import Deploy
from macadam.values import utc_now


def until(condition: object, seconds: float = 15) -> float:
    began = time.monotonic()
    assert callable(condition)
    while not condition():
        assert time.monotonic() - began < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - began


def status(client: httpx.Client, token: str) -> int:
    return client.post(PATH, json={"inputs": INPUTS}, headers={"authorization": f"Bearer {token}"}).status_code


@contextmanager
def control_plane(home: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`macadam up`, killed in the test; ends what it leaves. Yields it and its gateway's address."""
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "macadam.faces.cli", "up", "--home", str(home)]
    flags = ["--port", str(ports[0]), "--gateway-port", str(ports[1])]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        yield process, f"http://127.0.0.1:{ports[1]}"
    finally:
        process.kill()
        process.wait(10)
        end_leftover(home)


def test_a_revocation_ends_a_token_on_two_gateways_while_the_control_plane_is_dead(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MACADAM_URL", raising=False)
    tokens: list[IssuedToken] = []
    with homes.open_home(home) as platform:
        platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))
        tokens += [platform.call(IssueToken(principal="local", hours=1)) for _ in range(3)]
    kept, first, second = tokens
    with (
        control_plane(home) as (up, url),
        homes.gateway(home) as gateway,
        httpx.Client(base_url=url, timeout=10) as one,
        httpx.Client(base_url=gateway.url, timeout=10) as two,
    ):
        until(lambda: _answers(one) and _answers(two))
        up.send_signal(signal.SIGKILL)
        up.wait(10)
        assert {status(client, token.token) for client in (one, two) for token in tokens} == {200}

        with homes.open_home(home) as platform:
            platform.call(RevokeToken(token_id=first.id))
            until(lambda: status(one, first.token) == status(two, first.token) == 401, seconds=1)

        for file in home.glob("macadam.sqlite*"):  # the database is out of reach
            file.rename(home / f"away-{file.name}")
        assert cli.main(["tokens", "revoke", second.id, "--offline", "--home", str(home)]) == 0
        until(lambda: status(one, second.token) == status(two, second.token) == 401, seconds=1)
        assert status(one, kept.token) == status(two, kept.token) == 200
        assert "macadam_gateway_revoked_tokens 2" in one.get("/metrics").text
    for file in home.glob("away-*"):
        file.rename(home / file.name.removeprefix("away-"))
    with homes.open_home(home) as platform:
        shown = platform.call(ShowLog(kind="access.revoke_offline"))
        assert [entry.subject for entry in shown.entries] == [f"token:{second.id}"]
    assert "Revoked on every gateway" in capfd.readouterr().out


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_a_gateway_refuses_a_list_that_is_old_or_forged_and_says_so(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with homes.open_home(home) as platform:
        platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))
        issued = platform.call(IssueToken(principal="local", hours=1))
        objects = platform.ports.objects
        old = objects.get_name(revocation.NAME)
        with homes.gateway(home) as gateway, gateway.client(issued.token) as client:
            until(lambda: status(client, issued.token) == 200)
            platform.call(RevokeToken(token_id=issued.id))
            until(lambda: status(client, issued.token) == 401, seconds=1)
            for bad in (old, b"nothing", old.replace(b"v1", b"v2")):
                objects.set_name(revocation.NAME, bad)
                refused = _metric(client, "revocation_lists_refused")
                until(lambda before=refused: _metric(client, "revocation_lists_refused") > before)
                assert status(client, issued.token) == 401
    assert "it is an old one" in capfd.readouterr().err


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"macadam_gateway_{name} ")))


def test_a_gateway_without_news_shows_the_age_and_stops_only_where_that_is_set(home: Path) -> None:
    with homes.open_home(home) as platform:
        platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))
        token = platform.call(IssueToken(principal="local", hours=1)).token
        with (
            homes.gateway(home) as tolerant,
            homes.gateway(home, MACADAM_REVOCATION_AGE="1.5") as strict,
            tolerant.client(token) as one,
            strict.client(token) as two,
        ):
            until(lambda: status(one, token) == 200)
            until(lambda: "revocation list" in two.post(PATH, json={"inputs": INPUTS}).text)
            assert status(two, token) == 503
            assert two.get("/health/live").status_code == 200
            assert status(one, token) == 200
            assert _metric(one, "revocation_list_age_seconds") > 1.5
            platform.call(CreateProject(project="another"))
            revoking.publish(platform.ports, utc_now() + revocation.RENEW * 2)
            until(lambda: status(two, token) == 200)
