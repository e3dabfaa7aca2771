"""What personal fields cost: CPU of a prediction whose values are encrypted, a new person, and an erasure among many.

The same batches as `journal`, so that the two compare; three of the inputs are personal, and stand in the record twice, as
inputs and as features.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks import _gateway_home as homes
from benchmarks.journal import Nothing, ask_of, serving_of
from benchmarks.report import Figure, median_of
from macadam.adapters.local_secrets import LocalSecrets
from macadam.journal.writer import JournalWriter
from macadam.personal import vault
from macadam.personal.cloak import Cloaks
from macadam.personal.types import PersonalFields
from macadam.personal.vault import Vault
from macadam.serving.batch import Ask, Batcher, Stages
from macadam.serving.journals import working
from macadam.serving.runtime import Serving
from macadam.values import uuid7

ROUNDS = 5
RECORDS = 6_400
BATCH = 64
PEOPLE = 500
KEYS = 20_000


def run() -> list[Figure]:
    onnx = homes.model()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "keys").mkdir()
        secrets = LocalSecrets(home / "keys")
        vault.prepare(home, secrets, homes.PROJECT)
        plain = median_of([_cost(home, secrets, serving_of(onnx)) for _ in range(ROUNDS)])
        personal = median_of([_cost(home, secrets, _personal(serving_of(onnx))) for _ in range(ROUNDS)])
        made, destroyed, wrapped = _keys(home, secrets)
    return [
        Figure(name="without personal fields, 64 together", value=plain, unit="µs CPU/prediction", at_most=20),
        Figure(name="six personal values, 64 together", value=personal, unit="µs CPU/prediction"),
        Figure(
            name="a person met for the first time", value=made, unit="µs/person", note="64 a transaction, with fsync"
        ),
        Figure(name="a key destroyed", value=destroyed, unit="ms", note="gateways wait this long at most"),
        Figure(name=f"{KEYS} keys wrapped anew", value=wrapped, unit="s"),
    ]


def _personal(serving: Serving) -> Serving:
    names = homes.NAMES[:3]
    fields = PersonalFields(subject=names[0], inputs=tuple(names), features=tuple(names))
    serving.deployment = msgspec.structs.replace(serving.deployment, personal=fields)
    serving.personal = fields
    return serving


def _cost(home: Path, secrets: LocalSecrets, serving: Serving) -> float:
    """µs of CPU per prediction, of people who are known already."""
    with _batcher(home, secrets) as batcher:
        inputs = {name: 0.05 * n - 0.5 for n, name in enumerate(homes.NAMES)}
        _round(batcher, serving, inputs, PEOPLE)
        began = time.process_time()
        _round(batcher, serving, inputs, RECORDS)
        return (time.process_time() - began) / RECORDS * 1e6


def _round(batcher: Batcher, serving: Serving, inputs: dict[str, float], records: int) -> None:
    for start in range(0, records, BATCH):
        asks = [_about(ask_of(serving, inputs), f"person {(start + n) % PEOPLE}") for n in range(BATCH)]
        for receipt in batcher.journal(asks, time.time_ns(), datetime.now(UTC), Stages()):
            receipt.answered(BATCH)


def _about(one: Ask, person: str) -> Ask:
    if one.serving.personal is not None:
        one.subject = person
    return one


@contextmanager
def _batcher(home: Path, secrets: LocalSecrets) -> Iterator[Batcher]:
    folder = home / "journal" / homes.PROJECT
    cloaks = Cloaks(home, secrets)
    with JournalWriter(folder, gateway="bench", worker=0, project=homes.PROJECT) as writer:
        journal = working(writer)
        yield Batcher(Nothing(), lambda _: journal, cloaks.of)
    cloaks.close()


def _keys(home: Path, secrets: LocalSecrets) -> tuple[float, float, float]:
    """µs for a new person, ms to destroy one's key, seconds to wrap all others anew."""
    keys = Vault(home, secrets, homes.PROJECT)
    people = [f"somebody {n}" for n in range(KEYS)]
    began = time.perf_counter()
    for start in range(0, KEYS, BATCH):
        with keys.using():
            keys.require(people[start : start + BATCH])
    made = time.perf_counter()
    pending = keys.destroy(people[7], uuid7())
    destroyed = time.perf_counter()
    keys.begin_wrapping_key()
    keys.rewrap()
    wrapped = time.perf_counter()
    keys.finish(pending)
    keys.close()
    return (made - began) / KEYS * 1e6, (destroyed - made) * 1e3, wrapped - destroyed
