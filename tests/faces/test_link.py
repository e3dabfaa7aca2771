"""The link as a server, over real sockets: what strangers can take up, whom it trusts, and what the far end does then."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from acceptance.roads import free_port, until

from macadam.access import revocation, spiffe, workloads
from macadam.access.revocation import Watch
from macadam.access.spiffe import Authority, SpiffeId, Svid
from macadam.access.tls import KEY, Identity
from macadam.access.types import (
    CreatePrincipal,
    CreateProject,
    EnrollWorkload,
    GrantRole,
    IssueToken,
    ListWorkloads,
    RevokeWorkload,
)
from macadam.adapters.local_objects import LocalObjects
from macadam.app.platform import Platform
from macadam.errors import Conflict, NotAuthenticated, NotFound, Unavailable
from macadam.faces.http import ControlPlane
from macadam.faces.link import LinkServer
from macadam.journal.layout import ANSWERS, CLOSED, COUNTER, SegmentFooter, SegmentHeader, closing, opening
from macadam.journal.types import ListSegments, SealClosed
from macadam.serving import link_mirror, link_service, state
from macadam.serving.link_mirror import Invitation, Joined, Keeper, Link, Mirror
from macadam.serving.types import Deployment
from macadam.testing import open_platform
from macadam.values import digest_of, instant, utc_now, uuid7

pytestmark = pytest.mark.timeout(60)
CONTROL = "spiffe://macadam.local/control-plane"


@dataclass(kw_only=True)
class Served:
    platform: Platform
    server: LinkServer
    url: str
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def follow(self) -> None:
        """What the server does every five seconds, now."""
        asyncio.run_coroutine_threadsafe(self.server.follow(), self.loop).result(10)

    def invite(self, workload: str = "edge") -> Invitation:
        said = self.platform.call(EnrollWorkload(workload=workload, projects=("flights",)))
        return msgspec.convert(msgspec.to_builtins(said), Invitation)


@contextlib.contextmanager
def serving(home: Path, **environment: str) -> Iterator[Served]:
    port = free_port()
    with open_platform(home, environment={"MACADAM_LINK_PORT": str(port), **environment}) as platform:
        platform.call(CreateProject(project="flights", owner="principal:local"))
        platform.call(CreateProject(project="secret", owner="principal:local"))
        app = ControlPlane(platform)
        server = LinkServer(platform, app)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        task = asyncio.run_coroutine_threadsafe(server.serve(), loop)
        try:
            _await_port(port, task)
            yield Served(platform=platform, server=server, url=f"https://127.0.0.1:{port}", loop=loop)
        finally:
            task.cancel()
            loop.call_soon_threadsafe(loop.call_later, 0.2, loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            app.close()


def _await_port(port: int, task: Any) -> None:
    for _ in range(200):
        if task.done():
            task.result()
        with contextlib.suppress(OSError), contextlib.closing(_tcp(port)):
            return
        time.sleep(0.05)
    raise AssertionError("the link does not listen")


def _tcp(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "near") as one:
        yield one


def joined(served: Served, home: Path, workload: str = "edge") -> Mirror:
    (home / "link").mkdir(parents=True)
    (home / "objects").mkdir()
    link_mirror.join(home, served.url, served.invite(workload))
    return mirror(served.url, home)


def mirror(url: str, home: Path) -> Mirror:
    where = Joined(url=url, server=CONTROL, workload="edge")
    return Mirror(home, where, Identity(home / "link"), LocalObjects(home / "objects"))


# --- strangers


def test_a_stranger_may_send_a_request_for_a_certificate_and_nothing_larger(served: Served) -> None:
    context = ssl.create_default_context(cadata=served.invite().authorities)
    context.check_hostname = False
    body = json.dumps({"request": "x" * 200_000}).encode()
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", served.port, context=context)) as stranger:
        stranger.putrequest("POST", "/api/v1/workloads/certify")
        stranger.putheader("content-length", str(len(body)))
        stranger.endheaders()
        assert stranger.getresponse().status == 413


def test_strangers_do_not_take_the_places_of_workloads(served: Served, tmp_path: Path) -> None:
    context = ssl.create_default_context(cadata=served.invite("other").authorities)
    context.check_hostname = False
    edge = joined(served, tmp_path / "far")
    with contextlib.ExitStack() as stack:
        for _ in range(70):
            stranger = stack.enter_context(contextlib.closing(_tcp(served.port)))
            stack.enter_context(contextlib.closing(context.wrap_socket(stranger)))
        with contextlib.closing(edge.link):
            assert edge.fetch()
        until(lambda: sum(one.is_stranger for one in set(served.server._desk.connections)) <= 64)


def test_only_operations_are_answered_whoever_is_vouched_for(served: Served, tmp_path: Path) -> None:
    edge = joined(served, tmp_path / "far")
    with contextlib.closing(edge.link):
        for path in ("/metrics", "/openapi.json", "/login", "/health"):
            with pytest.raises(NotFound, match="operations only"):
                edge.link.call("GET", path)


# --- whom it trusts


def test_an_authority_that_is_no_longer_among_the_files_is_not_trusted(tmp_path: Path) -> None:
    mine, gone = (Authority.create("corp.example", utc_now()) for _ in range(2))
    issue(tmp_path / "svid", mine, "/control-plane", mine.public_pem + gone.public_pem)
    issue(tmp_path / "thief", gone, "/edge", mine.public_pem)
    thief = Identity(tmp_path / "thief")
    with serving(tmp_path / "near", MACADAM_SVID_DIR=str(tmp_path / "svid")) as served:
        served.platform.call(EnrollWorkload(workload="edge", spiffe_id="spiffe://corp.example/edge"))
        server = SpiffeId("corp.example", "/control-plane")
        with contextlib.closing(Link(served.url, server, lambda: thief.context(server=False))) as link:
            link.call("GET", "/api/v1/link/state")
        issue(tmp_path / "svid", mine, "/control-plane", mine.public_pem)
        served.follow()
        with (
            contextlib.closing(Link(served.url, server, lambda: thief.context(server=False))) as link,
            pytest.raises(Unavailable),
        ):
            link.call("GET", "/api/v1/link/state")


def issue(directory: Path, authority: Authority, path: str, trusted: bytes) -> None:
    key = spiffe.new_key()
    made = authority.certify(spiffe.signing_request(key), SpiffeId(authority.trust_domain, path), utc_now())
    Identity(directory).keep(Svid(certificates=made, key=key), trusted)


def _later() -> datetime:
    """When a certificate of now is due."""
    return utc_now() + timedelta(hours=7)


def test_a_new_authority_signs_once_everybody_has_heard_of_it(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends go on through the whole change without joining anew."""
    edge, ports = joined(served, tmp_path / "far"), served.platform.ports
    first = workloads.signing(ports, utc_now())
    half = utc_now() + timedelta(days=183)
    assert len(workloads.authorities(ports, half)) == 2
    served.server._ask_again = 0.0
    served.follow()
    with contextlib.closing(edge.link):
        assert edge.fetch()
        monkeypatch.setattr(link_mirror, "utc_now", _later)
        assert edge.renew()
        assert not edge.renew()  # by a clock that is hours ahead it is due again at once
        edge.fetch()
    assert Identity(tmp_path / "far" / "link").authorities == workloads.trusted(ports, half)
    assert workloads.signing(ports, half + timedelta(days=1)).public_pem == first.public_pem
    assert workloads.signing(ports, half + timedelta(days=3)).public_pem != first.public_pem


def test_a_certificate_stolen_before_a_revocation_stays_refused_when_the_workload_comes_back(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen = joined(served, tmp_path / "far")
    served.platform.call(RevokeWorkload(workload="edge"))
    again = joined(served, tmp_path / "again")
    with contextlib.closing(stolen.link), contextlib.closing(again.link):
        assert again.fetch()
        with pytest.raises(NotAuthenticated):
            stolen.fetch()
        monkeypatch.setattr(link_mirror, "utc_now", _later)
        with pytest.raises(NotAuthenticated):
            stolen.renew()
    served.platform.call(RevokeWorkload(workload="edge"))
    assert served.invite().spiffe_id.endswith("/workload/edge/3")
    assert [one.name for one in served.platform.call(ListWorkloads())] == ["edge"]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_renewal_that_is_killed_between_any_two_files_leaves_a_pair_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    authority = Authority.create("macadam.local", utc_now())
    issue(tmp_path, authority, "/workload/edge", authority.public_pem)
    key = (tmp_path / KEY).read_bytes()
    done: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(target)
        return original(self, target)

    original = Path.replace
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "replace", replace)
        issue(tmp_path, authority, "/workload/edge", authority.public_pem)
    Identity(tmp_path).context(server=False)
    assert ((tmp_path / KEY).read_bytes() == key) == (steps < 2)


# --- the far end


def test_a_revoked_workload_withdraws_also_when_its_renewal_is_due(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = joined(served, tmp_path / "far")
    with contextlib.closing(edge.link):
        edge.fetch()
        withdrawn: list[bool] = []
        edge._withdraw = lambda: withdrawn.append(True)  # type: ignore[method-assign] # what is looked at
        served.platform.call(RevokeWorkload(workload="edge"))
        monkeypatch.setattr(link_mirror, "utc_now", _later)
        Keeper(edge).run(_rounds(1))
    assert withdrawn


def _rounds(count: int) -> Any:
    left = iter(range(count))
    return lambda _seconds: next(left, None) is None


def test_an_impostor_takes_no_endpoints_away(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = joined(served, tmp_path / "far")
    withdrawn: list[bool] = []
    edge._withdraw = lambda: withdrawn.append(True)  # type: ignore[method-assign] # what is looked at
    monkeypatch.setattr(edge.link, "_server", SpiffeId("macadam.local", "/somebody-else"))
    with contextlib.closing(edge.link), pytest.raises(NotAuthenticated, match="expected"):
        edge.fetch()
    assert not withdrawn


def test_a_full_disk_at_the_far_end_is_said_and_does_not_end_it(served: Served, tmp_path: Path) -> None:
    edge = joined(served, tmp_path / "far")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    edge._objects.set_name = full  # type: ignore[method-assign] # the disk
    keeper = Keeper(edge)
    with contextlib.closing(edge.link):
        keeper.run(_rounds(1))
    assert "No space left" in keeper.failure


def test_a_project_whose_name_is_a_path_is_not_taken_over(served: Served, tmp_path: Path) -> None:
    edge = joined(served, tmp_path / "far")
    with contextlib.closing(edge.link):
        edge.fetch()
    got = state.decode(LocalObjects(tmp_path / "far" / "objects").get_name(state.NAME))
    link_mirror.require_names(got)
    with pytest.raises(Unavailable, match="does not understand"):
        link_mirror.require_names(msgspec.structs.replace(got, endpoints={"../../etc": {}}))


def test_the_far_end_can_check_the_revocation_list(served: Served, tmp_path: Path) -> None:
    edge = joined(served, tmp_path / "far")
    with contextlib.closing(edge.link):
        edge.fetch()
    objects = LocalObjects(tmp_path / "far" / "objects")
    got = state.decode(objects.get_name(state.NAME))
    watch = Watch()
    watch.offer(objects.get_name(revocation.NAME), got.revocation_key, got.revocation_number)
    assert watch.newest is not None
    assert watch.newest.number >= got.revocation_number > 0


def test_the_far_end_gets_nothing_of_other_projects(served: Served, tmp_path: Path) -> None:
    call = served.platform.call
    for name, project in (("alice", "flights"), ("mallory", "secret"), ("boss", "*")):
        call(CreatePrincipal(principal=name))
        call(GrantRole(project=project, principal=f"principal:{name}", role="caller"))
    both = call(IssueToken(principal="principal:boss", projects=("flights", "secret")))
    call(IssueToken(principal="principal:boss", projects=("secret",)))
    call(IssueToken(principal="principal:mallory"))
    edge = joined(served, tmp_path / "far")
    with contextlib.closing(edge.link):
        edge.fetch()
        assert not edge.fetch()  # it has that generation
    text = LocalObjects(tmp_path / "far" / "objects").get_name(state.NAME)
    got = state.decode(text).access
    assert b"secret" not in text
    assert b"mallory" not in text
    boss = [token for token in got.tokens.values() if token.principal == "principal:boss"]
    assert [(token.id, token.projects) for token in boss] == [(both.id, ("flights",))]


# --- deliveries


def closed(home: Path, segment: str = "", *, worker: int = 0, follows: str = "") -> Path:
    """A closed segment without records, as the gateway `edge` writes it."""
    name = segment or uuid7()
    header = SegmentHeader(
        gateway="edge",
        worker=worker,
        segment=name,
        project="flights",
        created=instant(utc_now()),
        follows=follows,
    )
    head = opening(header)
    path = home / "journal" / "flights" / f"{name}{CLOSED}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(ANSWERS).write_bytes(COUNTER.pack(0))
    path.write_bytes(head + closing(SegmentFooter(count=0, digest=digest_of(head))))
    return path


def test_a_segment_that_is_delivered_twice_at_once_is_there_once(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is settled after the first was: what lies there is not replaced."""
    edge = joined(served, tmp_path / "far")
    path = closed(tmp_path / "far")
    data, near = path.read_bytes(), tmp_path / "near" / "journal" / "flights"
    settle, target = link_service._settle, near / path.name

    def after_another(draft: Path, where: Path, answers: int, *, known: bool) -> None:
        near.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"other bytes")
        settle(draft, where, answers, known=known)

    monkeypatch.setattr(link_service, "_settle", after_another)
    with contextlib.closing(edge.link), pytest.raises(Conflict, match="other bytes"):
        edge.deliver()
    assert target.read_bytes() == b"other bytes"
    target.unlink()
    monkeypatch.setattr(link_service, "_settle", settle)
    with contextlib.closing(edge.link):
        assert edge.deliver() == 1
    assert target.read_bytes() == data
    assert target.with_suffix(ANSWERS).exists()
    assert not list((near.parent / ".arriving").glob("*"))


def test_a_sealed_segment_is_known_by_its_bytes(served: Served, tmp_path: Path) -> None:
    edge = joined(served, tmp_path / "far")
    path = closed(tmp_path / "far")
    data = path.read_bytes()
    with contextlib.closing(edge.link):
        assert edge.deliver() == 1
        served.platform.call(SealClosed(project="flights"))
        assert [one.id for one in served.platform.call(ListSegments(project="flights"))] == [path.stem]
        path.write_bytes(data)
        path.with_suffix(ANSWERS).write_bytes(COUNTER.pack(0))
        assert edge.deliver() == 1  # again, as after a lost answer
        closed(tmp_path / "far", path.stem, worker=1)
        with pytest.raises(Conflict, match="other bytes"):
            edge.deliver()
        assert path.exists()


def test_a_segment_may_be_larger_than_other_requests(tmp_path: Path) -> None:
    """Who may call could else make records so long that a whole journal stays where it is."""
    with serving(tmp_path / "near", MACADAM_MAX_BODY="3000") as served:
        edge = joined(served, tmp_path / "far")
        closed(tmp_path / "far", follows="x" * 5000)
        with contextlib.closing(edge.link):
            assert edge.deliver() == 1


def test_a_digest_that_somebody_wrote_into_a_definition_names_no_object() -> None:
    mine, others = (digest_of(text) for text in (b"model", b"of another project"))
    deployment = Deployment(
        id=uuid7(),
        project="flights",
        endpoint="delay",
        model="delay",
        number=1,
        version="model:delay@1",
        artifact=mine,
        signature=mine,
        service={"description": others},
        threshold=0.5,
        replaced="",
        actor="principal:mallory",
        at=utc_now(),
    )
    assert set(link_service._named((deployment,))) == {mine}
