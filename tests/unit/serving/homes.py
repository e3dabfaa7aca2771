"""A home with a trained, registered model and the evidence behind it, and a gateway process on it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import sqlalchemy as sa
from unit.models import worlds

from macadam import catalog
from macadam.access import state as access
from macadam.access.types import CreateProject
from macadam.adapters.local_objects import LocalObjects
from macadam.app.platform import Platform
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.models.types import RegisterVersion, Train
from macadam.serving import publishing, state
from macadam.settings import Settings
from macadam.values import instant, utc_now, uuid7

PROJECT, ENDPOINT, MODEL = "flights", "delay", "delay-risk"
PATH = f"/v1/projects/{PROJECT}/endpoints/{ENDPOINT}/predict"
INPUTS = {"distance": 0.5, "carrier": "AA", "noise": 3}


def plant(platform: Platform) -> str:
    """A training set of this project's own snapshot."""
    digest = platform.ports.objects.put(worlds.parquet(worlds.rows(400, seed=1)))
    ref = f"training_set:jan@{digest[7:19]}"
    uses = ["table:flights@42", "views:flights@0123456789ab"]
    evidence(platform, "features.build_training_set", ref, uses, digest)
    return ref


def evidence(platform: Platform, kind: str, subject: str, uses: list[str], digest: str = worlds.DIGEST) -> None:
    """A leaf that other rooms would write, under the policies that are in force."""
    with platform.ports.sql.read() as sql:
        policies = access.engine(sql).snapshot.policy_set
    leaf = Leaf(
        id=uuid7(),
        at=instant(utc_now()),
        kind=kind,
        outcome="done",
        actor="principal:local",
        project=PROJECT,
        subject=subject,
        uses=uses,
        request=worlds.DIGEST,
        decision={"id": uuid7(), "effect": "allow", "policies": ["p"], "policy_set": policies},
        body={"digest": digest},
    )
    platform.ports.sql.write(lambda sql: ledger.queue(sql, leaf))


def furnish(home: Path) -> None:
    """Trains and registers two versions."""
    with open_home(home) as platform:
        platform.call(CreateProject(project=PROJECT))
        evidence(platform, "data.register_contract", "contract:flights@1", [])
        evidence(platform, "data.ingest", "table:flights@42", ["contract:flights@1"])
        evidence(platform, "features.register_views", "views:flights@0123456789ab", [])
        ref = plant(platform)
        source = home.parent / "source"
        source.mkdir()
        (source / "train.py").write_text(worlds.TRAIN)
        for trees in (5, 9):
            run = platform.call(
                Train(
                    project=PROJECT,
                    model=MODEL,
                    source=str(source),
                    training_sets={"train": ref},
                    params={"trees": trees},
                )
            )
            platform.call(RegisterVersion(project=PROJECT, model=MODEL, run=run.ref))


def open_home(home: Path) -> Platform:
    return Platform(Settings.load({}, home=home))


class Process:
    """A gateway process."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url

    def client(self, token: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=10)


def let_publish(home: Path) -> None:
    """On a busy machine a gateway could start before the last change is published; a home that nobody has open stays as it is."""
    if not (home / "macadam.sqlite").exists():
        return
    engine = sa.create_engine(f"sqlite:///{home / 'macadam.sqlite'}")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        with engine.connect() as sql:
            wanted = publishing.generation(sql)
        if state.published(LocalObjects(home / "objects")) == wanted:
            break
        time.sleep(0.01)
    engine.dispose()


@contextlib.contextmanager
def gateway(home: Path, **environment: str) -> Iterator[Process]:
    """A gateway on a free port; asked to stop at the end."""
    let_publish(home)
    command = [sys.executable, "-m", "macadam.serving.gateway", "--home", str(home), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Process(process, line.split()[-1])
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(15)
        assert process.stdout is not None
        process.stdout.close()


def run_gateway(home: Path, port: str) -> "subprocess.CompletedProcess[str]":
    """A gateway that is expected to end by itself."""
    command = [sys.executable, "-m", "macadam.serving.gateway", "--home", str(home), "--port", port]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def sealed_ids(platform: Platform) -> set[str]:
    """Ids in the published table of predictions."""
    with platform.ports.sql.read() as sql:
        location = catalog.require(sql, PROJECT, "predictions")
    found = platform.ports.tables.scan(location, columns=("id",)).column("id").to_pylist()
    assert len(set(found)) == len(found)
    return set(found)
