"""Journaled predictions per second through the gateway, against the same model behind bare servers in the same run.

The floors check nothing and record nothing: Granian (RSGI, its own loop) and uvicorn (uvloop, httptools), one worker
each. Rounds go in turn, so that a busy machine slows all of them; medians are compared.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _gateway_home as homes
from benchmarks import _load
from benchmarks.report import Figure, median_of

ROUNDS = 3
SECONDS = 3.0
CONNECTIONS = (1, 64)


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        onnx = homes.model()
        (folder / "model.onnx").write_bytes(onnx)
        token = homes.furnish(folder / "home", onnx)
        ports = {name: _free_port() for name in ("macadam", "granian", "uvicorn")}
        processes = [_start(command, folder) for command in _commands(folder, ports)]
        try:
            for name, port in ports.items():
                _wait(port, homes.request(token), name)
            return _measure(ports, token)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)


def _commands(folder: Path, ports: dict[str, int]) -> list[list[str]]:
    granian = "granian --interface rsgi --workers 1 --no-ws --log-level critical --host 127.0.0.1"
    uvicorn = "uvicorn --loop uvloop --http httptools --no-access-log --log-level critical --host 127.0.0.1"
    return [
        ["macadam.serving.gateway", "--home", str(folder / "home"), "--port", str(ports["macadam"])],
        [*granian.split(), "--port", str(ports["granian"]), "benchmarks._floor:rsgi"],
        [*uvicorn.split(), "--port", str(ports["uvicorn"]), "benchmarks._floor:asgi"],
    ]


def _start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    # One caller asks for all: the limit of each is above what one core answers, and not above what two do.
    environment = {**os.environ, "MODEL": str(folder / "model.onnx"), "MACADAM_GATEWAY_RATE": "0"}
    output = (folder / f"{command[0]}.log").open("wb")
    with output:
        return subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=output, stderr=output)


def _measure(ports: dict[str, int], token: str) -> list[Figure]:
    found: dict[tuple[str, int], list[_load.Load]] = {}
    request = homes.request(token)
    for _ in range(ROUNDS):
        for connections in CONNECTIONS:
            for name, port in ports.items():
                load = _load.run("127.0.0.1", port, request, connections, SECONDS)
                if load.errors:
                    raise RuntimeError(f"{name} answered {load.errors} requests with errors")
                found.setdefault((name, connections), []).append(load)
    return [figure for connections in CONNECTIONS for figure in _figures(found, connections)]


def _figures(found: dict[tuple[str, int], list[_load.Load]], connections: int) -> list[Figure]:
    rates = {name: median_of([load.rate for load in loads]) for (name, c), loads in found.items() if c == connections}
    p99 = {name: median_of([load.p99 for load in loads]) for (name, c), loads in found.items() if c == connections}
    figures = [
        Figure(name=f"{name}, c={connections}", value=rate, unit="requests/s", note=f"p99 {p99[name]:.2f} ms")
        for name, rate in rates.items()
    ]
    floor = max(rate for name, rate in rates.items() if name != "macadam")
    share = rates["macadam"] / floor
    figures.append(Figure(name=f"macadam / better floor, c={connections}", value=share, unit="of it", at_least=0.6))
    return figures


def _wait(port: int, request: bytes, name: str) -> None:
    """Until it answers 200."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(request)
                if b" 200 " in client.recv(100)[:16]:
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{name} did not answer on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
