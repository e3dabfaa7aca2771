"""Proving one prediction among many: time of the whole operation, and size of the bundle.

A scaffolded project is taken down the whole road, then records are written by the journal's own writer, by two gateways at
once so that their segments overlap, and sealed by the operation. Ids are drawn at random; each proof is of one that was not
asked for before. `python -m benchmarks.prove --predictions 10000000` is the size that the budget is about: it needs some
12 GB under --directory and half an hour.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.report import Figure, machine, median_of, show
from macadam.app.platform import Platform
from macadam.delivery import scaffold
from macadam.journal.record import Prediction, encode
from macadam.journal.sealing import folder_of
from macadam.journal.types import SealClosed
from macadam.journal.writer import JournalWriter
from macadam.serving.batch import Ids
from macadam.serving.types import Endpoint, ListEndpoints, Prove
from macadam.settings import Settings
from macadam.values import instant

PREDICTIONS = 200_000
PROOFS = 200
PROJECT = "parcels"
GATEWAYS = 2
TOGETHER = 64
SPACING_NS = 100_000
"""Between two predictions: 10 000 a second, so that ten million are a quarter of an hour."""
SEGMENT_BYTES = 64 * 1024 * 1024
KEPT = 20_000
"""Ids that proofs are drawn from."""


def run(predictions: int = PREDICTIONS, directory: str = "") -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="macadam-prove-", dir=directory or None))
    try:
        home = _apply(folder)
        with Platform(Settings.load({}, home=home)) as platform:
            endpoint = platform.call(ListEndpoints(project=PROJECT))[0]
            ids = _fill(platform, endpoint, predictions)
            return _measure(platform, ids, predictions)
    finally:
        shutil.rmtree(folder)


def _apply(folder: Path) -> Path:
    """A project with everything that stands behind a prediction. Returns its home."""
    place, home = scaffold.init(folder / PROJECT, PROJECT), folder / "home"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
    command = [sys.executable, "-m", "macadam.faces.cli", "apply"]
    subprocess.run(
        command, cwd=place, env={**environment, "MACADAM_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL
    )
    return home


def _fill(platform: Platform, endpoint: Endpoint, predictions: int) -> list[str]:
    """Writes and seals all. Returns a sample of the ids, drawn evenly."""
    folder = folder_of(platform.settings.home, PROJECT)
    began, kept, chance = time.perf_counter(), list[str](), random.Random(0)  # noqa: S311 - a sample
    writers = [_writer(folder, number) for number in range(GATEWAYS)]
    try:
        for number, (ids, payloads) in enumerate(_records(endpoint, predictions)):
            receipt = writers[number % GATEWAYS].append_many(payloads)
            receipt.answered(len(payloads))
            if chance.random() < KEPT / predictions * TOGETHER:
                kept.append(chance.choice(ids))
            if number % 4096 == 0:
                _seal(platform)
                done = number * TOGETHER
                print(f"  {done:,} of {predictions:,} sealed, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    finally:
        for writer in writers:
            writer.close()
    _seal(platform)
    return kept


def _writer(folder: Path, number: int) -> JournalWriter:
    return JournalWriter(
        folder, gateway=f"bench:{number}", worker=number, project=PROJECT, segment_bytes=SEGMENT_BYTES, segment_age=3600
    )


def _seal(platform: Platform) -> None:
    while platform.call(SealClosed(project=PROJECT)).remaining:
        pass


def _records(endpoint: Endpoint, predictions: int) -> Iterator[tuple[list[str], list[bytes]]]:
    """Batches as a gateway makes them, with records of the usual size (some 0.7 KB)."""
    ids, now_ns = Ids(), time.time_ns()
    names = [f"feature_{n}" for n in range(12)]
    for start in range(0, predictions, TOGETHER):
        count = min(TOGETHER, predictions - start)
        at_ns = now_ns + start * SPACING_NS
        one = Prediction(
            id="",
            at=instant(datetime.fromtimestamp(at_ns // 1000 / 1e6, UTC)),
            project=PROJECT,
            endpoint=endpoint.name,
            variant="live",
            version=endpoint.version,
            model_digest=endpoint.artifact,
            deployment=endpoint.deployment,
            actor="service:web",
            inputs={"parcel": f"p-{start}", "weight": start % 997 / 7},
            features={name: (start + n) % 1009 / 3 for n, name in enumerate(names)},
            output={"score": start % 1013 / 1013, "label": start % 2},
            outcome="ok",
            stages_us={"features": 41, "predict": 118},
        )
        head, _, tail = encode(one).partition(b'"id":""')
        names_ = ids.take(count, at_ns)
        yield names_, [b'%b"id":"%b"%b' % (head, name.encode(), tail) for name in names_]


def _measure(platform: Platform, ids: list[str], predictions: int) -> list[Figure]:
    asked = random.Random(1).sample(ids, min(PROOFS, len(ids)))  # noqa: S311
    seconds, sizes = [], []
    for prediction in asked:
        began = time.perf_counter()
        proof = platform.call(Prove(project=PROJECT, prediction=prediction))
        seconds.append(time.perf_counter() - began)
        sizes.append(proof.bytes)
        assert msgspec.json.decode(msgspec.json.decode(proof.bundle)["record"])["id"] == prediction
    seconds.sort()
    note = f"among {predictions:,}, {len(asked)} random ids, in process"
    p99 = seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)]
    return [
        Figure(name="prove, median", value=median_of(seconds) * 1e3, unit="ms", at_most=200, note=note),
        Figure(name="prove, p99", value=p99 * 1e3, unit="ms", at_most=200, note=note),
        Figure(name="largest bundle", value=max(sizes), unit="bytes", at_most=64 * 1024, note=note),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prove", description=__doc__)
    parser.add_argument("--predictions", type=int, default=PREDICTIONS)
    parser.add_argument("--directory", default="", help="where the home is made and removed again")
    chosen = parser.parse_args()
    sys.stdout.write(machine() + "\n")
    began = time.perf_counter()
    figures = run(chosen.predictions, chosen.directory)
    show("prove", figures, time.perf_counter() - began)


if __name__ == "__main__":
    main()
