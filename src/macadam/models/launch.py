"""The heavy part of `Train`: archive the code, hand the rows to a process of its own, keep what comes out.

Everything written here is content-addressed and invisible until the transaction of `service.train` names it. Errors
of the request are raised; errors of the project's code become a failed run, which is evidence as well.
"""

import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from macadam.errors import InvalidInput, StorageFull
from macadam.lazy import lazy
from macadam.ledger import leaf
from macadam.models import artifact, capture, registry, safety, training_sets, worker
from macadam.models.capture import Meter
from macadam.models.training_sets import TrainingSet
from macadam.models.types import Code, Run, Train
from macadam.models.worker import Outcome, Task
from macadam.operations import Context, plain
from macadam.ports import Job, JobResult, Objects
from macadam.values import Money, uuid7

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")

_LOG_LINES = 20
_TIMED_OUT, _SIGNALLED = 124, 128  # exit codes that every runner gives, as a shell does
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that has ended, well or not, and is not visible yet."""

    run: Run


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """What the process left: its outcome, its cost, and the energy that the machine used meanwhile."""

    outcome: Outcome
    result: JobResult
    joules: float | None
    energy_note: str
    artifact: str = ""
    artifact_bytes: int = 0
    signature: str = ""
    history: str = ""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose the processes of a training are, for whoever watches what they use."""

    project: str
    run: str


OWNER, TASK = "owner.json", "job.json"


def under_way(home: Path) -> dict[str, Owner]:
    """The trainings that run on this home now, by the last word of their processes' commands."""
    found = {}
    for path in (home / "work").glob(f"run-*/{OWNER}"):
        with suppress(OSError, msgspec.DecodeError):  # it has just ended, or is just being written
            found[str(path.with_name(TASK))] = msgspec.json.decode(path.read_bytes(), type=Owner)
    return found


def train(context: Context, request: Train) -> Finished:
    """Runs the training to its end. Raises InvalidInput, NotFound, TooLarge, StorageFull."""
    _check(request)
    with context.read() as sql:
        if request.source.startswith("sha256:"):
            registry.require_code(sql, request.project, request.source)
        sets = {split: training_sets.find(sql, request.project, ref) for split, ref in request.training_sets.items()}
    run_id = uuid7()
    with _workplace(context.ports.settings.home / "work") as place:
        code = _bring_code(context.ports.objects, request.source, place / "source")
        task = _bring_rows(context, request, sets, place)
        (place / OWNER).write_bytes(msgspec.json.encode(Owner(project=request.project, run=f"run:{run_id}")))
        context.progress(f"training {request.model}", 0, 0)
        ended = _execute(context, request, task, place)
        ended = _keep(context.ports.objects, ended, place / "out")
    return Finished(run=_run(context, request, run_id, sets, code, ended))


def _check(request: Train) -> None:
    if "train" not in request.training_sets:
        raise InvalidInput(
            f"The training sets are {sorted(request.training_sets) or 'none'}; the split 'train' is missing.",
            next_step="Give at least training_sets={'train': 'training_set:…'}.",
        )
    # Now rather than after an hour of training: the ledger must be able to hold the parameters.
    leaf.canonical({"params": plain(request.params)})


@contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A directory for one run that is gone when the run has ended, however it ends. Raises StorageFull."""
    _sweep(parent)
    place = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=parent))
    try:
        for part in ("source", "data", "out"):
            (place / part).mkdir()
        yield place
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StorageFull(
            "The disk is full: the run was not recorded.",
            next_step="Free space on the disk of the home directory and run the same call again.",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Removes what runs left behind whose platform process was killed."""
    for place in parent.glob("run-*-*"):
        owner = place.name.split("-")[1]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(place, ignore_errors=True)


def _bring_code(objects: Objects, source: str, to: Path) -> Code:
    if source.startswith("sha256:"):
        return Code(archive=source, files=capture.unpack(objects.get(source), to))
    directory = Path(source)
    if not directory.is_absolute():
        raise InvalidInput(
            f"The source {source!r} is not an absolute path.", next_step="Give the project's directory in full."
        )
    data, files = capture.archive(directory)
    state = capture.git(directory)
    capture.unpack(data, to)
    return Code(archive=objects.put(data), files=files, commit=state.commit, diff=state.diff)


def _bring_rows(context: Context, request: Train, sets: dict[str, TrainingSet], place: Path) -> Task:
    files = {split: place / "data" / f"{split}.parquet" for split in sets}
    for split, path in files.items():
        training_sets.fetch(context, sets[split], path)
    task = Task(
        source=str(place / "source"),
        entry=request.entry,
        files={split: str(path) for split, path in files.items()},
        params=dict(request.params),
        seed=request.seed,
        out=str(place / "out"),
    )
    (place / TASK).write_bytes(msgspec.json.encode(task))
    return task


def _execute(context: Context, request: Train, task: Task, place: Path) -> _Ended:
    job = Job(
        command=("python", "-m", worker.__name__, str(place / TASK)),
        directory=place,
        environment={
            "PYTHONHASHSEED": str(request.seed),
            "PYTHONDONTWRITEBYTECODE": "1",
            # OpenMP's threads spin while they wait for each other: on a machine that does anything else besides,
            # training scikit-learn's trees took four times as long.
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        requirements=_requirements(Path(task.source)),
        timeout=request.timeout,
    )
    before = Meter.read()
    result = context.ports.runner.run(job, on_line=lambda line: context.progress(line, 0, 0))
    after = Meter.read()
    return _Ended(
        outcome=_outcome(Path(task.out), request, result),
        result=result,
        joules=before.joules_until(after),
        energy_note=after.note,
    )


def _requirements(source: Path) -> str:
    """What the project adds to the platform's packages; '' if it adds nothing."""
    path = source / "requirements.txt"
    return path.read_text() if path.is_file() else ""


def _outcome(out: Path, request: Train, result: JobResult) -> Outcome:
    path = out / worker.OUT
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Outcome)
        except msgspec.DecodeError as error:
            return Outcome(state="failed", lock="", error=f"its answer is damaged: {error}")
    return Outcome(state="failed", lock="", error=_how_it_ended(request, result), traceback=_tail(result.log))


def _how_it_ended(request: Train, result: JobResult) -> str:
    if result.exit_code == _TIMED_OUT and request.timeout:
        return f"it took longer than its timeout of {request.timeout:g} s"
    if result.exit_code > _SIGNALLED:
        return f"its process was killed by signal {result.exit_code - _SIGNALLED} (9 is often a lack of memory)"
    return f"its process ended with exit code {result.exit_code} and left no answer"


def _tail(log: str) -> str:
    return "\n".join(log.splitlines()[-_LOG_LINES:])


def _keep(objects: Objects, ended: _Ended, out: Path) -> _Ended:
    outcome = _safe(ended.outcome, out)
    ended = dataclasses.replace(ended, outcome=outcome)
    history = objects.put(msgspec.json.encode(outcome.history))
    if outcome.lock:
        objects.put(outcome.lock.encode())
    if outcome.state == "failed":
        return dataclasses.replace(ended, history=history)
    model = out / worker.MODEL
    return dataclasses.replace(
        ended,
        history=history,
        artifact=objects.put_file(model),
        artifact_bytes=model.stat().st_size,
        signature=objects.put((out / worker.SIGNATURE).read_bytes()),
    )


def _safe(outcome: Outcome, out: Path) -> Outcome:
    """What the run's process left is looked at from outside of it: that process can write what it likes."""
    if outcome.state == "failed":
        return outcome
    for name in (worker.MODEL, worker.SIGNATURE):
        path = out / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size > artifact.MAX_BYTES:
            error = f"{name} is no file of at most {artifact.MAX_BYTES} bytes"
        elif found := safety.scan(path.read_bytes(), name):
            error = str(found)
        else:
            continue
        return msgspec.structs.replace(outcome, state="failed", error=f"its model is refused: {error}")
    return outcome


def _run(context: Context, request: Train, run_id: str, sets: dict[str, TrainingSet], code: Code, ended: _Ended) -> Run:
    outcome, result, prices = ended.outcome, ended.result, context.ports.settings.prices
    return Run(
        ref=f"run:{run_id}",
        id=run_id,
        project=request.project,
        model=request.model,
        state=outcome.state,
        entry=request.entry,
        training_sets=dict(request.training_sets),
        snapshots=tuple(sorted({snapshot for found in sets.values() for snapshot in found.snapshots})),
        rows=outcome.rows,
        params=request.params,
        seed=request.seed,
        code=code,
        environment=capture.environment(outcome.lock) if outcome.lock else None,
        hardware=capture.hardware(),
        metrics={name: value for name, _, value in outcome.history},
        history=ended.history,
        artifact=ended.artifact,
        artifact_bytes=ended.artifact_bytes,
        signature=ended.signature,
        equality=outcome.equality,
        seconds=round(result.seconds, 3),
        cpu_seconds=round(result.cpu_seconds, 3),
        peak_bytes=result.peak_bytes,
        energy_joules=ended.joules,
        energy_note=ended.energy_note,
        cost=cost(result.cpu_seconds, prices.cpu_hour_micros, prices.currency),
        author=context.call.actor.id,
        at=context.call.now,
        error=outcome.error,
        traceback=outcome.traceback,
    )


def cost(cpu_seconds: float, cpu_hour_micros: int, currency: str = "USD") -> Money:
    """CPU time at the price of a core-hour."""
    return Money(micros=round(cpu_seconds * cpu_hour_micros / _SECONDS_PER_HOUR), currency=currency)
