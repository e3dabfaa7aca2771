"""A gateway on a machine of its own: real processes, mutual TLS between them, and no secret but its own certificate."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from acceptance.roads import free_port, is_ready, until
from unit.serving import homes

from macadam.access import spiffe
from macadam.access.spiffe import Authority, SpiffeId, Svid
from macadam.access.tls import Identity
from macadam.access.types import (
    CreatePrincipal,
    EnrollWorkload,
    GrantRole,
    IssueToken,
    ListWorkloads,
    RevokeToken,
    RevokeWorkload,
)
from macadam.app.platform import LOCAL_TOKEN
from macadam.errors import Conflict, NotAuthenticated, NotAuthorised, Temporary, Unavailable
from macadam.faces.client import Client
from macadam.journal.types import ListSegments, SealClosed
from macadam.journal.writer import JournalWriter
from macadam.ledger.types import ShowLog
from macadam.serving.link_mirror import Joined, Link, Mirror
from macadam.serving.types import Deploy, Prove
from macadam.values import utc_now
from macadam_verify import __main__ as verifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
WITHOUT = ["evaluation", "gate", "approval", "thresholds"]  # which the small home has not
MACADAM = (sys.executable, "-m", "macadam.faces.cli")


def environment(**more: str) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
    return {**plain, "MACADAM_JOURNAL_SEGMENT_AGE": "0.5", **more}


@dataclass(kw_only=True)
class Near:
    """The control plane's machine."""

    home: Path
    client: Client
    link: str
    process: "subprocess.Popen[str]"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=20)


@contextlib.contextmanager
def up(home: Path, link_port: int, **more: str) -> Iterator[Near]:
    port = free_port()
    words = ["up", "--json", "--home", str(home), "--port", str(port), "--gateway-port", str(free_port())]
    process = subprocess.Popen(
        [*MACADAM, *words],
        env=environment(MACADAM_LINK_PORT=str(link_port), **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    token = (home / "keys" / LOCAL_TOKEN).read_text()
    client = Client(f"http://127.0.0.1:{port}", token)
    near = Near(home=home, client=client, link=f"https://127.0.0.1:{link_port}", process=process)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip() == "}":
                break
        else:
            raise AssertionError(process.communicate()[1])
        yield near
    finally:
        client.close()
        near.stop()


@dataclass(kw_only=True)
class Far:
    """The gateway's machine."""

    home: Path
    url: str
    process: "subprocess.Popen[str]"

    def ask(self, token: str) -> httpx.Response:
        body = {"inputs": homes.INPUTS}
        headers = {"authorization": f"Bearer {token}"}
        return httpx.post(self.url + homes.PATH, json=body, headers=headers, timeout=10)

    @property
    def ready(self) -> bool:
        with httpx.Client(base_url=self.url) as client:
            with contextlib.suppress(httpx.TransportError):
                return is_ready(client)
            return False


@contextlib.contextmanager
def far_gateway(home: Path, *words: str, **more: str) -> Iterator[Far]:
    port = free_port()
    process = subprocess.Popen(
        [*MACADAM, "gateway", "--home", str(home), "--gateway-port", str(port), *words],
        env=environment(**more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    far = Far(home=home, url=f"http://127.0.0.1:{port}", process=process)
    try:
        until(lambda: far.ready or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]
        yield far
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("near") / "home"
    homes.furnish(home)
    with homes.open_home(home) as platform:
        platform.call(Deploy(project=homes.PROJECT, endpoint=homes.ENDPOINT, model=homes.MODEL, version="1"))
    return home


@pytest.fixture
def near(prepared: Path, tmp_path: Path) -> Iterator[Near]:
    home = tmp_path / "near"
    shutil.copytree(prepared, home)
    with up(home, free_port()) as started:
        yield started


def invited(near: Near, workload: str = "edge", **more: object) -> str:
    """The invitation's file."""
    said = near.client.call(EnrollWorkload(workload=workload, projects=(homes.PROJECT,), **more))
    file = near.home.parent / f"{workload}.json"
    file.write_text(
        json.dumps({f: getattr(said, f) for f in ("workload", "spiffe_id", "join", "authorities", "principal")})
    )
    return str(file)


def caller(near: Near) -> tuple[str, str]:
    """A token that may ask, and its id."""
    near.client.call(CreatePrincipal(principal="service:web"))
    near.client.call(GrantRole(project=homes.PROJECT, principal="service:web", role="caller"))
    made = near.client.call(IssueToken(principal="service:web"))
    return made.token, made.id


def test_a_far_gateway_answers_and_its_answers_are_proved_at_home(near: Near, tmp_path: Path) -> None:
    token, token_id = caller(near)
    with far_gateway(tmp_path / "far", "--link", near.link, "--join", invited(near)) as far:
        answer = far.ask(token)
        assert answer.status_code == 200, answer.text
        prediction = answer.headers["x-macadam-prediction"]

        # Its journal goes home, is sealed there, and proves the answer.
        until(lambda: bool(_sealed_by(near)))
        assert [s.gateway for s in _segments(near)] == ["edge"]
        assert [(s.count, s.answers) for s in _segments(near)] == [(1, 1)]
        proof = near.client.call(Prove(project=homes.PROJECT, prediction=prediction))
        assert verifier.verify(proof.bundle.encode(), proof.key, WITHOUT).broken is None
        assert not list((far.home / "journal").glob("*/*.closed"))

        # A token that is revoked at home ends there within a second.
        near.client.call(RevokeToken(token_id=token_id))
        began = time.monotonic()
        until(lambda: far.ask(token).status_code == 401)
        assert time.monotonic() - began < 1.5
    # What it refused is in the ledger at home, under its own name.
    found = near.client.call(ShowLog(kind="serving.report_denials"))
    assert [entry.subject for entry in found.entries] == ["workload:edge"]
    assert found.entries[0].body["denials"][0]["status"] == 401
    assert not list((far.home / "denials").glob("*"))
    assert not (far.home / "keys").exists()
    assert not list(far.home.glob("*.sqlite"))
    secret = (near.home / "keys" / LOCAL_TOKEN).read_bytes()
    assert not [path for path in far.home.rglob("*") if path.is_file() and secret in path.read_bytes()]


def _segments(near: Near):
    return near.client.call(ListSegments(project=homes.PROJECT))


def test_it_answers_on_while_the_control_plane_is_down_and_delivers_when_it_is_back(near: Near, tmp_path: Path) -> None:
    token, _ = caller(near)
    with far_gateway(tmp_path / "far", "--link", near.link, "--join", invited(near)) as far:
        assert far.ask(token).status_code == 200
        near.stop()
        for _ in range(3):
            assert far.ask(token).status_code == 200
        with up(near.home, int(near.link.rpartition(":")[2])) as again:
            wanted = lambda: sum(s.count for s in _sealed_by(again)) == 4  # noqa: E731
            until(wanted, seconds=60)
            assert sum(s.answers for s in _sealed_by(again)) == 4


def _sealed_by(near: Near):
    with contextlib.suppress(Conflict, Temporary):  # the server seals too
        near.client.call(SealClosed(project=homes.PROJECT))
    return _segments(near)


def test_a_revoked_workload_gets_nothing_more_and_stops_serving(near: Near, tmp_path: Path) -> None:
    token, _ = caller(near)
    with far_gateway(tmp_path / "far", "--link", near.link, "--join", invited(near)) as far:
        assert far.ask(token).status_code == 200
        near.client.call(RevokeWorkload(workload="edge"))
        until(lambda: far.ask(token).status_code == 404, seconds=5)
        with pytest.raises(NotAuthenticated):
            asked(far.home, near)
        assert near.client.call(ListWorkloads())[0].revoked is not None


def link_of(home: Path, near: Near) -> contextlib.closing[Link]:
    identity = Identity(home / "link")
    server = SpiffeId("macadam.local", "/control-plane")
    return contextlib.closing(Link(near.link, server, lambda: identity.context(server=False)))


def asked(home: Path, near: Near) -> bytes:
    with link_of(home, near) as link:
        return link.call("GET", "/api/v1/link/state")


def test_a_join_token_works_once(near: Near, tmp_path: Path) -> None:
    invitation = invited(near)
    with far_gateway(tmp_path / "far", "--link", near.link, "--join", invitation):
        pass
    refused = subprocess.run(
        [*MACADAM, "gateway", "--home", str(tmp_path / "thief"), "--link", near.link, "--join", invitation],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert refused.returncode == NotAuthenticated.exit_code
    assert "not valid" in refused.stderr
    with far_gateway(tmp_path / "far") as again:  # who joined needs no invitation any more
        assert again.ready


def test_without_a_certificate_one_call_is_taken_and_a_token_is_worth_nothing(near: Near, tmp_path: Path) -> None:
    invitation = json.loads(Path(invited(near)).read_text())
    context = ssl.create_default_context(cadata=invitation["authorities"])
    context.check_hostname = False
    local = (near.home / "keys" / LOCAL_TOKEN).read_text()
    host, _, port = near.link.removeprefix("https://").rpartition(":")
    for method, path in (("GET", "/api/v1/projects"), ("GET", "/api/v1/link/state"), ("GET", "/metrics")):
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
        connection.request(method, path, headers={"authorization": f"Bearer {local}"})
        assert connection.getresponse().status == 401
        connection.close()


def test_a_certificate_is_renewed_half_way_and_the_old_connection_is_dropped(near: Near, tmp_path: Path) -> None:
    with far_gateway(tmp_path / "far", "--link", near.link, "--join", invited(near)):
        pass
    identity = Identity(tmp_path / "far" / "link")
    joined = Joined(url=near.link, server="spiffe://macadam.local/control-plane", workload="edge")
    mirror = Mirror(tmp_path / "far", joined, identity, None)  # type: ignore[arg-type] # nothing is fetched
    with contextlib.closing(mirror.link):
        assert not mirror.renew()
        authority = Authority((near.home / "keys" / "workload-authority-1").read_bytes())
        key = spiffe.new_key()
        old = authority.certify(spiffe.signing_request(key), identity.id, utc_now(), timedelta(minutes=1))
        identity.keep(Svid(certificates=old, key=key), authority.public_pem)
        assert mirror.renew()
        peer = spiffe.check_chain(identity.certificates, authority.public_pem, utc_now())
        assert peer.expires > utc_now() + timedelta(hours=11)
        assert not mirror.renew()


def test_a_workload_that_poses_as_the_control_plane_is_sent_nothing(near: Near, tmp_path: Path) -> None:
    authority_file = near.home / "keys" / "workload-authority-1"
    invited(near)
    authority = Authority(authority_file.read_bytes())
    identity = Identity(tmp_path / "far" / "link")
    key = spiffe.new_key()
    made = authority.certify(spiffe.signing_request(key), SpiffeId("macadam.local", "/workload/edge"), utc_now())
    identity.keep(Svid(certificates=made, key=key), authority.public_pem)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_pose, args=(listener, identity, received))
        thread.start()
        posing = Near(home=near.home, client=near.client, link=f"https://127.0.0.1:{listener.getsockname()[1]}",
                      process=near.process)  # fmt: skip
        with pytest.raises(NotAuthenticated, match=r"workload/edge, expected spiffe://macadam\.local/control-plane"):
            asked(tmp_path / "far", posing)
        thread.join(10)
    assert received == [b""]


def _pose(listener: socket.socket, identity: Identity, received: list[bytes]) -> None:
    accepted, _ = listener.accept()
    with identity.context(server=True).wrap_socket(accepted, server_side=True) as tls:
        received.append(tls.recv(1000))


def test_certificates_of_another_authority_end_in_the_handshake(near: Near, tmp_path: Path) -> None:
    authorities = json.loads(Path(invited(near)).read_text())["authorities"].encode()
    stranger = Authority.create("macadam.local", utc_now())
    key = spiffe.new_key()
    made = stranger.certify(spiffe.signing_request(key), SpiffeId("macadam.local", "/workload/edge"), utc_now())
    Identity(tmp_path / "thief" / "link").keep(Svid(certificates=made, key=key), authorities)
    with pytest.raises(Unavailable, match=r"(?i)certificate|alert|closed|reset"):
        asked(tmp_path / "thief", near)


def test_a_workload_reaches_its_own_projects_and_its_own_journal_only(near: Near, tmp_path: Path) -> None:
    token, _ = caller(near)
    with far_gateway(tmp_path / "far", "--link", near.link, "--join", invited(near)) as far:
        assert far.ask(token).status_code == 200
        with link_of(far.home, near) as edge:
            with pytest.raises(NotAuthorised, match="principals:create"):
                edge.call("POST", "/api/v1/principals", {"principal": "mallory"})
            with pytest.raises(NotAuthorised, match="without a token"):
                edge.call("POST", "/api/v1/tokens", {"principal": "service:edge"})
    with far_gateway(tmp_path / "other", "--link", near.link, "--join", invited(near, "other")) as other:
        assert other.ready
        stolen = Mirror(
            tmp_path / "far",
            Joined(url=near.link, server="spiffe://macadam.local/control-plane", workload="other"),
            Identity(other.home / "link"),
            None,  # type: ignore[arg-type] # nothing is fetched
        )
        near_segment = tmp_path / "far" / "journal" / homes.PROJECT
        assert not list(near_segment.glob("*.closed"))  # it had been delivered when the gateway stopped
        _forge(near_segment)
        with pytest.raises(NotAuthorised, match=r"its own journal|of the gateway"):
            stolen.deliver()
        stolen.link.close()


def _forge(folder: Path) -> None:
    """A closed segment of the gateway `edge`."""
    with JournalWriter(folder, gateway="edge", worker=0, project=homes.PROJECT) as writer:
        writer.append(b"{}").answered()


def test_an_external_authority_may_issue_the_certificates_and_replace_them(prepared: Path, tmp_path: Path) -> None:
    """As with SPIRE: an agent on each machine writes files, and changes them, its authority too."""
    home = tmp_path / "near"
    shutil.copytree(prepared, home)
    first, second = (Authority.create("corp.example", utc_now()) for _ in range(2))
    server, gateway = tmp_path / "svid-server", tmp_path / "svid-gateway"
    _issue(server, first, "/ns/ml/sa/control-plane", first.public_pem)
    _issue(gateway, first, "/ns/ml/sa/gateway", first.public_pem)
    ids = {"control": "spiffe://corp.example/ns/ml/sa/control-plane", "edge": "spiffe://corp.example/ns/ml/sa/gateway"}
    with up(home, free_port(), MACADAM_SVID_DIR=str(server)) as near:
        near.client.call(EnrollWorkload(workload="edge", projects=(homes.PROJECT,), spiffe_id=ids["edge"]))
        token, token_id = caller(near)
        words = ("--link", near.link, "--server-id", ids["control"], "--name", "edge")
        with far_gateway(tmp_path / "far", *words, MACADAM_SVID_DIR=str(gateway)) as far:
            assert far.ask(token).status_code == 200
            both = first.public_pem + second.public_pem
            _issue(server, second, "/ns/ml/sa/control-plane", both)
            _issue(gateway, second, "/ns/ml/sa/gateway", both)
            time.sleep(6)  # the link looks every five seconds
            near.client.call(RevokeToken(token_id=token_id))
            until(lambda: far.ask(token).status_code == 401, seconds=10)


def _issue(directory: Path, authority: Authority, path: str, trusted: bytes) -> None:
    key = spiffe.new_key()
    made = authority.certify(spiffe.signing_request(key), SpiffeId("corp.example", path), utc_now())
    Identity(directory).keep(Svid(certificates=made, key=key), trusted)
