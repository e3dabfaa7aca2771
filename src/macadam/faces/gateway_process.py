"""The gateway as a process of its own: started, watched, started again when it dies, and stopped with the server.

It outlives nothing and nobody here: it keeps serving while the control plane restarts only when it is run by itself
(`python -m macadam.serving.gateway`).
"""

import asyncio
import logging
import os
import sys
from pathlib import Path

from macadam.faces import logs
from macadam.settings import Settings

_log = logging.getLogger(logs.LOGGER)
_MODULE = "macadam.serving.gateway"
_FIRST_WAIT = 0.5  # seconds before a dead gateway is started again; doubles with each death
_LONGEST_WAIT = 30.0
_STEADY = 60.0  # a gateway that lived this long starts over with the first wait
_STOP_SECONDS = 10.0  # to finish the answers under way and close the journal


class GatewayProcess:
    """Runs on the event loop. The child's output goes to `logs/gateway.log` under the home."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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

    async def _start(self) -> asyncio.subprocess.Process:
        # Not to be torn by a cancel: a child that runs is always in self._process.
        return await asyncio.shield(self._spawn())

    async def _spawn(self) -> asyncio.subprocess.Process:
        async with self._starting:
            with _log_file(self._settings.home).open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    _MODULE,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_environment(self._settings),
                    start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which then stops it
                )
            return self._process


def _log_file(home: Path) -> Path:
    path = home / "logs" / "gateway.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, with what flags changed."""
    server = settings.server
    return {
        **os.environ,
        "MACADAM_HOME": str(settings.home),
        "MACADAM_HOST": server.host,
        "MACADAM_PORT": str(server.port),
        "MACADAM_GATEWAY_PORT": str(server.gateway_port),
    }
