"""Works the queue of jobs beside a running server. Until there is a job it costs one look into SQL at a time."""

import importlib
import logging
import threading

import sqlalchemy as sa

from macadam.app.platform import Platform
from macadam.errors import Busy, MacadamError
from macadam.faces import logs
from macadam.values import utc_now

_log = logging.getLogger(logs.LOGGER)
_ANY_OPEN = sa.text("SELECT id FROM compute_jobs WHERE state IN ('waiting', 'starting', 'running', 'stopping') LIMIT 1")


class JobsWorker:
    """Begins with its making. `close()` waits for the turn under way; what runs goes on."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._every = platform.settings.jobs.every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="macadam-queue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(self._every):
            try:
                if self._is_wanted():
                    self._work_queue()
            except Busy:
                continue  # `macadam jobs run` has the queue
            except MacadamError as error:
                _log.warning("the queue stumbled", extra={"facts": {"code": error.code, "detail": str(error)}})
            except Exception as error:  # noqa: BLE001 - logged with its trace; the next turn tries again
                _log.error("the queue stumbled", exc_info=error)

    def _is_wanted(self) -> bool:
        with self._platform.ports.sql.read() as sql:
            return sql.execute(_ANY_OPEN).first() is not None

    def _work_queue(self) -> None:
        # By name, as rooms are: deciding brings numpy, which a server without jobs must not hold in memory.
        loop = importlib.import_module("macadam.compute.jobs.loop")
        platform = self._platform
        with loop.claimed(platform.settings.home):
            queue = loop.Queue(platform.ports, clock=utc_now, committed=platform.committed)
            loop.run(queue, self._every, self._stop, until_idle=True)
