"""The watcher of the gateway, with small programs in its place."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from macadam.faces import gateway_process
from macadam.faces.gateway_process import GatewayProcess, end_leftover
from macadam.settings import Settings

STEADY = "import os, sys, time; print(os.environ['MACADAM_GATEWAY_PORT'], flush=True); time.sleep(60)"
DYING = "import sys; sys.exit('I cannot go on')"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_process, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(gateway_process, "_LONGEST_WAIT", 0.04)
    monkeypatch.setattr(gateway_process, "_STOP_SECONDS", 0.5)


def gateway(home: Path, code: str) -> GatewayProcess:
    return GatewayProcess(Settings.load({"MACADAM_GATEWAY_PORT": "4711"}, home=home), (sys.executable, "-c", code))


async def said(home: Path, text: str) -> None:
    log = home / "logs" / "gateway.log"
    for _ in range(500):
        if log.exists() and text in log.read_text():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{text!r} never came")


def restarted(process: GatewayProcess, times: int) -> None:
    while process.restarts < times:
        time.sleep(0.01)


async def ended(watching: "asyncio.Task[None]") -> None:
    watching.cancel()
    await asyncio.wait({watching})


def test_a_gateway_gets_the_settings_and_stops_when_asked(tmp_path: Path) -> None:
    async def run() -> None:
        process = gateway(tmp_path, STEADY)
        watching = asyncio.create_task(process.watch())
        await said(tmp_path, "4711")
        await ended(watching)
        await process.stop()
        assert process._process is not None
        assert process._process.returncode == -signal.SIGTERM
        await process.stop()

    asyncio.run(run())


def test_a_gateway_that_is_killed_is_started_again(tmp_path: Path) -> None:
    async def run() -> None:
        process = gateway(tmp_path, STEADY)
        watching = asyncio.create_task(process.watch())
        await said(tmp_path, "4711")
        assert process._process is not None
        first = process._process.pid
        os.kill(first, signal.SIGKILL)
        await said(tmp_path, "4711\n4711")
        assert process._process.pid != first
        assert process.restarts == 1
        await ended(watching)
        await process.stop()

    asyncio.run(run())


def test_a_gateway_left_by_a_killed_server_is_ended_and_nothing_else_is(tmp_path: Path) -> None:
    # Not this process's own child, as the gateway of a killed server is nobody's here.
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    gateway_process._remember(tmp_path, pid)
    note = tmp_path / "gateway.pid"
    kept = note.read_bytes()
    note.write_bytes(kept.replace(b'"created":1', b'"created":2'))
    end_leftover(tmp_path)
    assert psutil.pid_exists(pid)
    note.write_bytes(kept)
    end_leftover(tmp_path)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    end_leftover(tmp_path)


def test_a_gateway_that_keeps_dying_is_waited_for_and_its_last_words_are_known(tmp_path: Path) -> None:
    async def run() -> None:
        process = gateway(tmp_path, DYING)
        watching = asyncio.create_task(process.watch())
        await asyncio.wait_for(asyncio.to_thread(restarted, process, 3), 20)
        await ended(watching)
        await process.stop()
        assert process.last_words() == "I cannot go on"

    asyncio.run(run())


def test_a_gateway_that_does_not_listen_is_ended(tmp_path: Path) -> None:
    async def run() -> None:
        process = gateway(tmp_path, DEAF)
        watching = asyncio.create_task(process.watch())
        await said(tmp_path, "deaf")
        await ended(watching)
        await process.stop()
        assert process._process is not None
        assert process._process.returncode == -signal.SIGKILL

    asyncio.run(run())
