"""The gateway as a process of its own: started, watched, started again when it dies, and stopped with the server.

A server that is killed leaves its gateway serving; the next server on that home ends it and starts its own.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from macadam.faces import logs
from macadam.settings import Settings, without_credentials

_log = logging.getLogger(logs.LOGGER)
COMMAND = (sys.executable, "-m", "macadam.serving.gateway")
_PID_FILE = "gateway.pid"
_FIRST_WAIT = 0.5  # seconds before a dead gateway is started again; doubles with each death
_LONGEST_WAIT = 30.0
_STEADY = 60.0  # a gateway that lived this long starts over with the first wait
_STOP_SECONDS = 10.0  # to finish the answers under way and close the journal


class GatewayProcess:
    """Runs on the event loop. The child's output goes to `logs/gateway.log` under the home.

    command: another program in tests. restarts: how often it has ended by itself.
    """

    def __init__(self, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self.restarts = 0

    async def watch(self) -> None:
        """Starts the gateway and starts it again whenever it ends, until this task is cancelled."""
        loop = asyncio.get_running_loop()
        wait = _FIRST_WAIT
        while True:
            began = loop.time()
            process = await self._start()
            code = await process.wait()
            lived = loop.time() - began
            wait = _FIRST_WAIT if lived > _STEADY else wait
            self.restarts += 1
            facts = {"exit_code": code, "seconds": round(lived, 3), "restart_in": wait}
            _log.error("the gateway ended", extra={"facts": facts})
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)

    async def stop(self) -> None:
        """Asks it to end, and ends it if it does not."""
        async with self._starting:
            process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            _log.error("the gateway did not stop when asked", extra={"facts": {"pid": process.pid}})
            process.kill()
            await process.wait()

    def last_words(self) -> str:
        """The last line of the gateway's log."""
        lines = _log_file(self._settings.home).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    async def _start(self) -> asyncio.subprocess.Process:
        # Not to be torn by a cancel: a child that runs is always in self._process.
        return await asyncio.shield(self._spawn())

    async def _spawn(self) -> asyncio.subprocess.Process:
        async with self._starting:
            with _log_file(self._settings.home).open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_environment(self._settings),
                    start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which then stops it
                )
            _remember(self._settings.home, self._process.pid)
            return self._process


class _Child(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway that was started. created: seconds since the epoch, so that a reused id is not mistaken for it."""

    pid: int
    created: float


def running(home: Path) -> "psutil.Process | None":
    """The gateway that was started on this home last, if it still runs."""
    try:
        child = msgspec.json.decode((home / _PID_FILE).read_bytes(), type=_Child)
        process = psutil.Process(child.pid)
        return process if process.create_time() == child.created else None
    except (FileNotFoundError, msgspec.DecodeError, psutil.NoSuchProcess):
        return None  # none was started, the note is torn, or it has ended


def end_leftover(home: Path) -> None:
    """Ends the gateway of a server on this home that was killed, if it still runs. Harmless otherwise."""
    process = running(home)
    if process is None:
        return
    try:
        process.terminate()
        if not _has_ended(process):
            process.kill()
            _has_ended(process)
    except psutil.NoSuchProcess:
        return  # it has ended meanwhile: nothing to end


def _has_ended(process: "psutil.Process") -> bool:
    """Waits for it. Whose parent does not collect it stays as a zombie, which holds no port and no file."""
    end = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < end:
        if not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return True
        time.sleep(0.02)
    return False


def _remember(home: Path, pid: int) -> None:
    try:
        child = _Child(pid=pid, created=psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return  # it ended at once: the watcher sees that
    (home / _PID_FILE).write_bytes(msgspec.json.encode(child))


def _log_file(home: Path) -> Path:
    path = home / "logs" / "gateway.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, with what flags changed, and without what opens the database: it uses none."""
    server = settings.server
    own = {name: value for name, value in os.environ.items() if name.startswith("MACADAM_")}
    own.pop("MACADAM_DATABASE", None)
    return {
        **without_credentials(os.environ),
        **own,
        "MACADAM_HOME": str(settings.home),
        "MACADAM_HOST": server.host,
        "MACADAM_PORT": str(server.port),
        "MACADAM_GATEWAY_PORT": str(server.gateway_port),
        "MACADAM_GATEWAY_NAME": server.gateway_name,
        "MACADAM_JOURNAL_SEGMENT_BYTES": str(settings.journal.segment_bytes),
    }
