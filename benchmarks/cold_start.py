"""How long the start takes and what it holds: import, help, and `macadam up` on a fresh home until both answer."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.report import Figure, median_of

REPEATS = 5
MIB = 1024 * 1024


def run() -> list[Figure]:
    python = median_of([_seconds("-c", "pass") for _ in range(REPEATS)])
    imported = median_of([_seconds("-c", "import macadam") for _ in range(REPEATS)])
    helped = median_of([_seconds("-m", "macadam.faces.cli", "--help") for _ in range(REPEATS)])
    starts = [_up() for _ in range(3)]
    return [
        Figure(name="python -c pass", value=python * 1000, unit="ms", note="the floor"),
        Figure(name="import macadam", value=(imported - python) * 1000, unit="ms", at_most=100, note="above the floor"),
        Figure(name="macadam --help", value=helped * 1000, unit="ms", at_most=300, note="the whole process"),
        Figure(name="macadam up, healthy", value=median_of([s for s, _ in starts]), unit="s", at_most=3),
        Figure(name="macadam up, resident", value=median_of([m for _, m in starts]), unit="MiB", at_most=300,
               note="all its processes; shared pages count for each"),
    ]  # fmt: skip


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _up() -> tuple[float, float]:
    """Seconds from the command to both being healthy, and MiB of all its processes then."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
    with tempfile.TemporaryDirectory() as directory:
        words = ["up", "--home", str(Path(directory) / "home"), "--json"]
        words += ["--port", str(_free_port()), "--gateway-port", str(_free_port())]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "macadam.faces.cli", *words], stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            _wait_until_healthy(process)
            return time.perf_counter() - began, _resident(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()


def _wait_until_healthy(process: "subprocess.Popen[str]") -> None:
    if process.stdout is None:
        raise RuntimeError("started without a pipe")
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            break
    if "control_plane" not in json.loads(text or "{}"):
        raise RuntimeError(f"macadam up did not get healthy: {text}")


def _resident(pid: int) -> float:
    """MiB over a process and its children; pages that they share count for each."""
    top = psutil.Process(pid)
    family = [top, *top.children(recursive=True)]
    return float(sum(process.memory_info().rss for process in family)) / MIB


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
