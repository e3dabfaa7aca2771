"""`macadam up` as a person runs it: real processes, real sockets."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from macadam.access.types import ListProjects
from macadam.faces.client import Client
from macadam.faces.up import Running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Up:
    """One `macadam up --json` on a home."""

    def __init__(self, home: Path, *, port: int = 0, gateway_port: int = 0, **settings: str) -> None:
        self.home = home
        self.port = port or free_port()
        self.gateway_port = gateway_port or free_port()
        flags = ["--port", str(self.port), "--gateway-port", str(self.gateway_port), "--home", str(home), "--json"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "macadam.faces.cli", "up", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | settings,
        )

    def healthy(self) -> dict[str, object]:
        """Waits for the announcement, which is one JSON document over several lines."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if line.rstrip() == "}":
                said: dict[str, object] = json.loads("".join(lines))
                return said
        raise AssertionError(self.process.communicate()[1])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


@contextlib.contextmanager
def running(home: Path, **settings: str) -> Iterator[Up]:
    up = Up(home, **settings)
    try:
        yield up
    finally:
        # Asked, not killed: a server that is killed leaves its gateway to serve on.
        up.process.terminate()
        try:
            up.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            up.process.kill()
            up.process.communicate()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def alive(pid: int) -> bool:
    """A zombie that nobody collects is dead."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gateway_pid(up: Up) -> int:
    children = Path(f"/proc/{up.process.pid}/task/{up.process.pid}/children").read_text().split()
    return int(children[0])


def test_it_gets_healthy_answers_and_stops_on_sigterm(tmp_path: Path) -> None:
    with running(tmp_path / "home") as up:
        said = up.healthy()
        assert said["control_plane"] == f"http://127.0.0.1:{up.port}"
        assert get(up.port, "/health")[0] == 200
        assert get(up.gateway_port, "/health")[0] == 200
        assert get(up.port, "/api/v1/projects")[0] == 401
        token = (up.home / "keys" / "local-token").read_text()
        with Client(str(said["control_plane"]), token) as client:
            assert client.call(ListProjects()) == ()
        gateway = gateway_pid(up)
        assert up.stop() == (0, "")
        assert not alive(gateway)
        assert (up.home / "up.lock").read_bytes() == b""


def test_ctrl_c_stops_it_cleanly_and_the_home_opens_again(tmp_path: Path) -> None:
    for _ in range(2):
        with running(tmp_path / "home") as up:
            up.healthy()
            assert up.stop(signal.SIGINT) == (0, "")


def test_a_second_up_on_the_same_home_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path / "home") as first:
        first.healthy()
        second = Up(tmp_path / "home")
        out, _ = second.process.communicate(timeout=20)
        assert second.process.returncode == 12
        said = json.loads(out)
        assert said["code"] == "busy"
        assert said["details"]["pid"] == first.process.pid
        assert Running(**said["details"]).control_plane in said["detail"]
        assert get(first.port, "/health")[0] == 200


@pytest.mark.parametrize("flag", ["port", "gateway_port"])
def test_a_taken_port_is_refused_before_anything_is_made(tmp_path: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        up = Up(tmp_path / "home", **{flag: port})
        out, _ = up.process.communicate(timeout=20)
    assert up.process.returncode == 12
    said = json.loads(out)
    assert f"Port {port}" in said["detail"]
    assert "--" + flag.replace("_", "-") in said["next"]
    assert not (tmp_path / "home").exists()


def test_a_gateway_that_is_killed_comes_back(tmp_path: Path) -> None:
    with running(tmp_path / "home") as up:
        up.healthy()
        first = gateway_pid(up)
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if get(up.gateway_port, "/health")[0] == 200:
                    break
            time.sleep(0.05)
        assert gateway_pid(up) != first
        assert up.stop()[0] == 0


def test_after_a_kill_the_next_up_takes_over_home_ports_and_gateway(tmp_path: Path) -> None:
    with running(tmp_path / "home") as first:
        first.healthy()
        orphan = gateway_pid(first)
        first.process.kill()
        first.process.communicate()
        assert get(first.gateway_port, "/health")[0] == 200
        second = Up(tmp_path / "home", port=first.port, gateway_port=first.gateway_port)
        assert second.healthy()["home"] == str(tmp_path / "home")
        assert not alive(orphan)
        assert second.stop()[0] == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["a long field", "many fields", "a long path"],
)
def test_the_control_plane_takes_no_header_of_any_size(oversized: Up, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", oversized.port), timeout=10) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request_bytes)  # the server may have answered and closed before it has come whole
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(100)
    assert not answer or answer.startswith(b"HTTP/1.1 431")
    assert get(oversized.port, "/health")[0] == 200


@pytest.fixture(scope="module")
def oversized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("oversized") / "home") as up:
        up.healthy()
        yield up


def test_with_a_passphrase_it_serves_an_encrypted_home_and_no_command_line_shows_it(tmp_path: Path) -> None:
    passphrase = "seven words that nobody else knows"
    with running(tmp_path / "home", MACADAM_KEY_PASSPHRASE=passphrase) as up:
        up.healthy()
        parent = psutil.Process(up.process.pid)
        for process in (parent, *parent.children(recursive=True), psutil.Process(gateway_pid(up))):
            assert passphrase not in " ".join(process.cmdline())
        kept = [path.read_bytes() for path in (tmp_path / "home" / "keys").iterdir() if not path.name.startswith(".")]
        assert kept
        assert all(data.startswith(b"macadam-sealed/1") for data in kept)
        assert up.stop()[0] == 0
    refused = Up(tmp_path / "home", MACADAM_KEY_PASSPHRASE=passphrase[:-1])
    said = "".join(refused.process.communicate(timeout=30))
    assert refused.process.returncode != 0
    assert "not the one that this home's keys were encrypted with" in said
    assert passphrase[:-1] not in said
