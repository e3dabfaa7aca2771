"""A new user on the road: a scaffolded project, a home of its own, and the command line as processes."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from macadam import catalog
from macadam.app.platform import Platform
from macadam.ledger import service as ledger
from macadam.ledger.types import VerifyLedger
from macadam.models.types import ShowModel
from macadam.testing import open_platform

SOAK = os.environ.get("MACADAM_SOAK") == "1"
SEED = int(os.environ.get("MACADAM_SEED", "7"))
PROJECT, MODEL, ENDPOINT = "parcels", "late-parcel", "late-parcel"
PATH = f"/v1/projects/{PROJECT}/endpoints/{ENDPOINT}/predict"
ROWS = {"2025-01": 927, "2025-02": 836, "2025-03": 927, "2025-04": 896, "2025-05": 926}
KILLED = -signal.SIGKILL
_MACADAM = (sys.executable, "-m", "macadam.faces.cli")


def chance() -> random.Random:
    """Repeatable: MACADAM_SEED chooses another course."""
    return random.Random(SEED)


@dataclass(frozen=True, kw_only=True)
class Road:
    """place: the project's folder; home: the platform's; database: MACADAM_DATABASE, '' for SQLite in the home."""

    place: Path
    home: Path
    database: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {"MACADAM_DATABASE": self.database} if self.database else {}

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        """A command of the command line, in the project's folder."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
        return subprocess.Popen(
            [*_MACADAM, *words],
            cwd=self.place,
            env={**plain, "MACADAM_HOME": str(self.home), **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, *words: str, code: int = 0, token: str = "") -> Any:
        """What a command answers as JSON. code: the exit code that it must have."""
        with self.start(*words, "--json", **({"MACADAM_TOKEN": token} if token else {})) as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{words} ended with {process.returncode}:\n{out}\n{err}"
        assert "Traceback" not in err
        return json.loads(out)

    def token(self, principal: str, role: str) -> dict[str, Any]:
        """Makes somebody known, with a role in the project, and issues a token."""
        self.say("principals", "create", principal)
        self.say("roles", "grant", principal, "--role", role)
        return self.say("tokens", "issue", principal)

    def platform(self) -> contextlib.AbstractContextManager[Platform]:
        return open_platform(self.home, environment=self.environment)

    def copy(self, folder: Path) -> "Road":
        """The same project and home elsewhere. Tables stay where they were written: for reading only."""
        shutil.copytree(self.home, folder / "home")
        shutil.copytree(self.place, folder / self.place.name)
        return Road(place=folder / self.place.name, home=folder / "home")


@dataclass(frozen=True, kw_only=True)
class Way:
    """What the commands of the road answered, in their order. caller: the token of the service that asks."""

    road: Road
    planned: Any
    waiting: Any
    own: Any
    approved: Any
    done: Any
    again: Any
    caller: Any


def travel(folder: Path, database: str = "") -> Way:
    """init, plan, apply, an approval by somebody else, apply."""
    home = folder / "home"
    Road(place=folder, home=home, database=database).say("init", PROJECT)
    road = Road(place=folder / PROJECT, home=home, database=database)
    gates = road.place / "gates.yaml"
    gates.write_text(gates.read_text().replace("{required: 0}", "{required: 1, not_author: true}"))
    planned = road.say("plan")
    waiting = road.say("apply", code=20)
    own = road.say("gates", "approve", MODEL, "1", code=5)
    maria = road.token("maria", "approver")
    approved = road.say("gates", "approve", MODEL, "1", token=maria["token"])
    done = road.say("apply")
    return Way(
        road=road,
        planned=planned,
        waiting=waiting,
        own=own,
        approved=approved,
        done=done,
        again=road.say("plan"),
        caller=road.token("service:web", "caller"),
    )


def questions(place: Path) -> Iterator[dict[str, Any]]:
    """Parcels of May as they would have been asked about when they were shipped; over and over."""
    with (place / "raw" / "parcels-2025-05.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["weight_kg"] and float(row["weight_kg"]) >= 0]
    while True:
        for row in rows:
            inputs = {
                "depot": row["depot"],
                "carrier": row["carrier"],
                "weight_kg": float(row["weight_kg"]),
                "promised_hours": float(row["promised_hours"]),
            }
            yield {"inputs": inputs, "at": row["shipped_at"]}


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.NetworkError:
        return False


@dataclass(frozen=True, kw_only=True)
class Gateway:
    process: "subprocess.Popen[str]"
    url: str

    def client(self, token: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=20)


@contextlib.contextmanager
def gateway(home: Path, **environment: str) -> Iterator[Gateway]:
    """A gateway on a port of its own, ready; asked to stop at the end, if it still runs."""
    command = [sys.executable, "-m", "macadam.serving.gateway", "--home", str(home), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = Gateway(process=process, url=line.split()[-1])
        with httpx.Client(base_url=found.url) as client:
            until(lambda: is_ready(client))
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def metric(client: httpx.Client, name: str) -> int:
    """One of the gateway's counters."""
    lines = client.get("/metrics").text.splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"macadam_gateway_{name} ")))


def sealed(platform: Platform) -> set[str]:
    """Ids in the published table of predictions: each is there once."""
    with platform.ports.sql.read() as sql:
        location = catalog.location(sql, PROJECT, "predictions")
    if not location:
        return set()
    found = platform.ports.tables.scan(location, columns=("id",)).column("id").to_pylist()
    assert len(set(found)) == len(found)
    return set(found)


def require_sound(platform: Platform) -> None:
    """Everything that the ledger says is as it says, down to the bytes of objects and tables."""
    problems = platform.call(VerifyLedger(deep=True)).problems
    assert not problems, "\n".join(problems)


def state(platform: Platform) -> dict[str, object]:
    """What people would call the state: evidence of what was done included, of denials not."""
    with platform.ports.sql.read() as sql:
        locations = {name: catalog.location(sql, PROJECT, name) for name in catalog.tables(sql, PROJECT)}
        done = [entry.leaf.id for entry in ledger.find(sql) if entry.leaf.outcome == "done"]
    page = platform.call(ShowModel(project=PROJECT, model=MODEL))
    return {"tables": locations, "leaves": done, "model": page}
