"""What the processes do that tests of many processes start: append, integrate, hold the writers' lock."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from unit.ledger.worlds import leaf, open_ports

from macadam.errors import Temporary
from macadam.ledger import service as ledger
from macadam.ledger.sequencer import integrate_all

THREADS = 4


def append(home: Path, database: str, name: str) -> None:
    """Each thread appends its own numbered leaves, and writes down each one once it was acknowledged."""
    ports = open_ports(home, database)
    said = os.open(home / f"{name}.said", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def call(thread: int) -> None:
        for number in range(1_000_000):
            one = leaf(f"thing:{name}.{thread}.{number}")
            ports.sql.write(lambda sql, one=one: ledger.queue(sql, one))
            os.write(said, f"{name}.{thread} {number}\n".encode())

    for thread in range(THREADS):
        threading.Thread(target=call, args=(thread,)).start()


def integrate(home: Path, database: str, _name: str) -> None:
    ports = open_ports(home, database)
    while True:
        integrate_all(ports)
        time.sleep(0.005)


def hold(home: Path, database: str) -> None:
    """Queues a leaf and then stays in its transaction."""
    ports = open_ports(home, database)

    def stay(sql: Any) -> None:
        ledger.queue(sql, leaf("thing:never.0.0"))
        (home / "held").touch()
        time.sleep(60)

    with contextlib.suppress(Temporary):
        ports.sql.write(stay)
