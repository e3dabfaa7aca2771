"""What journaling costs a prediction: CPU of building its record and receipt, and of writing it, in batches of 1 and 64."""

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import _gateway_home as homes
from benchmarks.report import Figure, median_of
from macadam.journal.writer import JournalWriter
from macadam.models.signature import Input, Output, Signature
from macadam.operations import Decision, Granted
from macadam.serving.batch import Ask, Batcher, Stages
from macadam.serving.journals import working
from macadam.serving.runtime import Model, Serving
from macadam.serving.types import Deployment

_ALLOWED = Decision(id="d", allowed=True, policies=("benchmark",), policy_set="")
ROUNDS = 5
RECORDS = 12_800


def run() -> list[Figure]:
    onnx = homes.model()
    costs = {size: median_of([_cost(onnx, size) for _ in range(ROUNDS)]) for size in (1, 64)}
    note = "record, id, write, fsync every 20 ms, receipt; all threads"
    return [
        Figure(name=f"journal, {size} together", value=cost, unit="µs CPU/prediction", at_most=20, note=note)
        for size, cost in costs.items()
    ]


def _cost(onnx: bytes, size: int) -> float:
    """µs of CPU per prediction."""
    with tempfile.TemporaryDirectory() as directory:
        writer = JournalWriter(Path(directory), gateway="bench", worker=0, project=homes.PROJECT)
        with writer:
            journal = working(writer)
            batcher = Batcher(Nothing(), lambda _: journal)
            serving = serving_of(onnx)
            inputs = {name: 0.05 * n - 0.5 for n, name in enumerate(homes.NAMES)}
            began = time.process_time()
            for _ in range(RECORDS // size):
                asks = [ask_of(serving, inputs) for _ in range(size)]
                for receipt in batcher.journal(asks, time.time_ns(), datetime.now(UTC), Stages()):
                    receipt.answered(size)
            return (time.process_time() - began) / RECORDS * 1e6


def ask_of(serving: Serving, inputs: dict[str, float]) -> Ask:
    return Ask(
        serving=serving,
        actor="service:web",
        granted=Granted(_ALLOWED, "predictions:create", serving.asset),
        inputs=inputs,  # type: ignore[arg-type] # invariant, and not changed
        features=inputs,
        score=0.734,
        outcome="ok",
    )


def serving_of(onnx: bytes) -> Serving:
    outputs = (Output(name="score", kind="probability", tensor="probabilities", column=1),)
    signature = Signature(inputs=tuple(Input(name=n, kind="number") for n in homes.NAMES), outputs=outputs)
    deployment = Deployment(
        id="0193e000-0000-7000-8000-000000000000",
        project=homes.PROJECT,
        endpoint=homes.ENDPOINT,
        model="delay",
        number=1,
        version="model:delay@1",
        artifact="sha256:" + "a" * 64,
        signature="sha256:" + "b" * 64,
        service=None,
        threshold=0.5,
        replaced="",
        actor="principal:local",
        at=datetime.now(UTC),
    )
    return Serving(deployment, Model(onnx, signature))


class Nothing:
    """An online store that nobody reads."""

    def get(self, keys: object) -> list[bytes | None]:
        raise NotImplementedError

    def put(self, rows: object) -> None:
        raise NotImplementedError

    def delete(self, keys: object) -> None:
        raise NotImplementedError

    def scan(self, prefix: bytes, *, start: bytes = b"", limit: int = 0) -> list[tuple[bytes, bytes]]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
