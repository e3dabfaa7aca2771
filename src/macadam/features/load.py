"""Loads a project's `features.py` in a process of its own and gives its definitions as JSON.

    python -m macadam.features.load features.py

The project's code runs only here. Its output goes to stderr; stdout has the JSON, or nothing if the file failed.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

import msgspec

from macadam.errors import MacadamError, NotFound, UserCodeFailed
from macadam.features import define
from macadam.settings import without_credentials

_TIMEOUT = 60.0  # s; definitions are values, and nothing in them should take long
_FAILED = 70  # EX_SOFTWARE: the file raised


def definitions_of(file: Path, *, timeout: float = _TIMEOUT) -> dict[str, object]:
    """The definitions in a file, as `RegisterViews` takes them.

    Raises NotFound, or UserCodeFailed with the traceback if the file raises, says something invalid or takes longer
    than `timeout` seconds.
    """
    if not file.is_file():
        raise NotFound(f"There is no file {file}.", next_step="Write feature definitions into features.py.")
    command = [sys.executable, "-P", "-m", "macadam.features.load", str(file.resolve())]
    # Credentials are not the project's business.
    variables = without_credentials(os.environ)
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, on a file that the caller named
            command, cwd=file.resolve().parent, env=variables, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserCodeFailed(
            f"{file.name} did not finish within {timeout:g} s.",
            next_step="Let it only define features: no data is read there.",
        ) from error
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip()
        raise UserCodeFailed(
            f"{file.name} failed: {told.rpartition(chr(10))[2] or f'exit code {done.returncode}'}",
            next_step="Repair it; its own traceback is in the details.",
            details={"traceback": told, "exit_code": done.returncode},
        )
    found: dict[str, object] = msgspec.json.decode(done.stdout)
    return found


def collect(module: ModuleType) -> define.Definitions:
    """The services of a module, by name. Raises InvalidInput if two things share a name."""
    services = {id(v): v for v in vars(module).values() if isinstance(v, define.FeatureService)}
    return define.Definitions(services=tuple(sorted(services.values(), key=lambda s: s.name)))


def execute(path: Path) -> ModuleType:
    """Runs the file in this process. Raises NotFound, and what the file raises."""
    spec = importlib.util.spec_from_file_location("features", path)
    if spec is None or spec.loader is None:
        raise NotFound(f"{path} is not a Python file.", next_step="Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))  # its neighbours can be imported, and hide nothing that is installed
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    """Prints the definitions of the one file that is named."""
    if len(arguments) != 1:
        print("usage: python -m macadam.features.load FILE", file=sys.stderr)  # noqa: T201
        return 2
    with contextlib.redirect_stdout(sys.stderr):
        try:
            definitions = collect(execute(Path(arguments[0])))
        except MacadamError as error:
            traceback.print_exc(limit=-1)
            print(error, file=sys.stderr)  # noqa: T201
            return _FAILED
        except BaseException as error:  # noqa: BLE001 - whatever the project's code raises is its traceback
            traceback.print_exception(error)
            return _FAILED
    sys.stdout.buffer.write(define.encode(definitions) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
