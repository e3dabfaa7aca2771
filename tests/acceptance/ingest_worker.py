"""Takes all files of the orders source, one call a file, in a process that tests may kill.

    python ingest_worker.py HOME [POINT]

Prints each file's name before its call. POINT: where to kill itself, at the second file.
"""

import os
import signal
import sys
from pathlib import Path

from unit.data.orders import PROJECT, ingest

from macadam.adapters import iceberg
from macadam.app.platform import Platform
from macadam.data import files, registry
from macadam.errors import Busy, Conflict
from macadam.testing import open_platform

PATIENCE = 200  # calls that lost a race before the worker gives up
POINTS = ("file read", "rows written", "snapshot staged", "in the transaction", "committed")


def die(*_args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function, then):
    def wrapped(*args, **kwargs):
        value = function(*args, **kwargs)
        then()
        return value

    return wrapped


def arm(platform: Platform, point: str) -> None:
    """Puts a kill at one place of the way from a file to its snapshot."""
    if point == "file read":
        files.read = after(files.read, die)
    elif point == "rows written":
        iceberg._Recorder.make_durable = die
    elif point == "snapshot staged":
        iceberg.IcebergTables.stage = after(iceberg.IcebergTables.stage, die)
    elif point == "in the transaction":
        registry.keep_files = after(registry.keep_files, die)
    elif point == "committed":
        platform.dispatcher._sequence = die


def take(platform: Platform, name: str) -> None:
    for _ in range(PATIENCE):
        try:
            ingest(platform, name)
        except (Conflict, Busy):
            continue
        return
    sys.exit(f"{name} lost {PATIENCE} races")


def main(home: Path, point: str = "") -> None:
    with open_platform(home) as platform:
        with platform.ports.sql.read() as sql:
            source = registry.source(sql, PROJECT, "orders")
            known = registry.taken(sql, source)
        names = files.list_files(Path(source.directory), source.path)
        for number, name in enumerate(n for n in names if n not in known):
            if number == 1:
                arm(platform, point)
            print(name, flush=True)
            take(platform, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
