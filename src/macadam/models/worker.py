"""The run's own process: `python -m macadam.models.worker job.json` loads the rows, calls train.py, writes what came out.

User code runs here and nowhere else. Whatever it does, the answer is a file: `out.json` with the model beside it, or
with the error and the user's own frames of its traceback. No file means that the process was killed.
"""

import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from macadam.errors import InvalidInput, MacadamError
from macadam.lazy import lazy
from macadam.models import artifact, capture, signature
from macadam.models.training import TrainingRun
from macadam.models.types import Equality, Parameter

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

MODEL, SIGNATURE, OUT = artifact.MODEL, artifact.SCHEMA, "out.json"
MAX_TRACEBACK = 8000
MAX_ERROR = 2000


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. source: directory of the unpacked code; files: split → Parquet file; out: where to write."""

    source: str
    entry: str
    files: dict[str, str]
    params: dict[str, Parameter]
    seed: int
    out: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. history: (name, step, value) in the order of logging; lock: the process's packages."""

    state: Literal["finished", "failed"]
    lock: str
    error: str = ""
    traceback: str = ""
    history: tuple[tuple[str, int, float], ...] = ()
    rows: dict[str, int] = msgspec.field(default_factory=dict)
    equality: Equality | None = None


def main(arguments: list[str]) -> int:
    """Returns 0, or 1 if the run failed; out.json is there in both cases."""
    task = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Task)
    outcome = run(task)
    draft = Path(task.out) / f".{OUT}"
    draft.write_bytes(msgspec.json.encode(outcome))
    draft.replace(Path(task.out) / OUT)
    return 0 if outcome.state == "finished" else 1


def run(task: Task) -> Outcome:
    """Carries out the task in this process."""
    source = Path(task.source).resolve()
    lock = capture.lock()
    random.seed(task.seed)
    np.random.seed(task.seed)
    training: TrainingRun | None = None
    try:
        files = {split: Path(path) for split, path in task.files.items()}
        training = TrainingRun(files=files, params=task.params, seed=task.seed)
        os.chdir(source)
        sys.path.insert(0, str(source))
        load(source, task.entry)(training)
        _write(training, Path(task.out))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any error of user code is this run's answer
        return Outcome(
            state="failed",
            lock=lock,
            error=_sentence(error)[:MAX_ERROR],
            traceback=user_traceback(error, source)[-MAX_TRACEBACK:],
            history=tuple(training.history) if training else (),
            rows=training.rows_per_split() if training else {},
        )
    return Outcome(
        state="finished",
        lock=lock,
        history=tuple(training.history),
        rows=training.rows_per_split(),
        equality=training.equality,
    )


def load(source: Path, entry: str) -> Callable[[TrainingRun], object]:
    """The function that `FILE.py:FUNCTION` names. Raises InvalidInput, or what the file raises when it is imported."""
    name, _, function = entry.partition(":")
    path = source / name
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in source.glob("*.py"))) or "none"
        raise InvalidInput(
            f"The project has no file {name!r}; its Python files: {there}.", next_step="Correct `entry`."
        )
    module_name = path.stem
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{name!r} is no Python file.", next_step="Correct `entry`.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    found: Any = getattr(module, function, None)
    if not callable(found):
        raise InvalidInput(
            f"{name} has no function {function!r}.",
            next_step=f"Write `def {function}(run): …` in it, or correct `entry`.",
        )
    chosen: Callable[[TrainingRun], object] = found
    return chosen


def _write(training: TrainingRun, out: Path) -> None:
    if not training.model:
        raise InvalidInput(
            "The function returned without saving a model.",
            next_step="Call run.save_sklearn(estimator) or run.save_onnx(model) before it returns.",
        )
    (out / MODEL).write_bytes(training.model)
    (out / SIGNATURE).write_bytes(signature.to_bytes(training.signature))


def _sentence(error: BaseException) -> str:
    if isinstance(error, MacadamError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return "".join(traceback.format_exception_only(error)).strip()


def user_traceback(error: BaseException, source: Path) -> str:
    """The error with its frames inside `source` only: file names relative to it, library frames left out."""
    shown = [
        f'  File "{Path(frame.filename).relative_to(source)}", line {frame.lineno}, in {frame.name}\n    {frame.line}'
        for frame in _frames(error.__traceback__)
        if Path(frame.filename).is_relative_to(source)
    ]
    return "\n".join([*shown, _sentence(error)])


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(trace))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
