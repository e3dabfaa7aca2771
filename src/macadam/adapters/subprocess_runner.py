"""Runs a project's code as a child process with its own environment, time limit and bill.

Every command runs under `launcher.py`, which measures it and ends its whole process group when the time is up or
the platform dies. Requirements become a virtual environment once, kept under their digest; it sees the platform's
packages too, so that a project names only what it adds.
"""

import errno
import fcntl
import hashlib
import importlib.util
import os
import select
import shutil
import subprocess
import sys
import sysconfig
import threading
import venv
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import msgspec

from macadam.errors import StorageFull, Unavailable, UserCodeFailed
from macadam.ports import Job, JobResult
from macadam.settings import without_credentials

TIMED_OUT = 124  # exit code of a command that met its time limit, as `timeout` of coreutils gives
_KILLED = 137
_LOG_BYTES = 64 << 10  # kept of the end of a log: enough for a traceback
_LAUNCHER = Path(__file__).with_name("launcher.py")
_POLL = 0.2  # s; how late the end of a command is seen that has left its output to a stray process


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher tells; the defaults stand for a launcher that was killed."""

    exit_code: int = -9
    stopped: str = "its launcher was killed"
    seconds: float = 0
    cpu_seconds: float = 0
    peak_bytes: int = 0


class SubprocessRunner:
    """directory: where environments are kept; made if missing.

    A command that starts with `python` runs the environment's interpreter. The child inherits this process's
    variables except MACADAM_*, which may hold credentials. Exit codes: 124 after the time limit, 128 + N for a
    command that died of signal N. peak_bytes is that of the largest process of the command.
    """

    def __init__(self, directory: Path) -> None:
        self._environments = directory / "environments"
        self._closed = threading.Event()

    def run(self, job: Job, *, on_line: Callable[[str], None] | None = None) -> JobResult:
        log = _Log(on_line, self._closed)
        python = self.python(job.requirements, on_line)
        command = (str(python), *job.command[1:]) if job.command[0] in {"python", "python3"} else job.command
        variables = _variables()
        variables["PATH"] = f"{python.parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
        variables["PYTHONUNBUFFERED"] = "1"
        return _supervise(command, job.directory, variables | job.environment, job.timeout, log)

    def close(self) -> None:
        self._closed.set()

    def python(self, requirements: str, on_line: Callable[[str], None] | None = None) -> Path:
        """The interpreter of the environment with these requirements, made if it is not there yet."""
        if not requirements.strip():
            return Path(sys.executable)
        key = hashlib.sha256(f"{sys.version}\n{sys.prefix}\n{requirements}".encode()).hexdigest()[:20]
        place = self._environments / key
        python, finished = place / "bin" / "python", place / "finished"
        with _no_space_said(), _locked(self._environments, key):
            if not finished.exists():
                shutil.rmtree(place, ignore_errors=True)  # an attempt that was cut short
                _make(place, python, requirements, _Log(on_line, self._closed))
                finished.touch()
        return python


def _variables() -> dict[str, str]:
    """What the project's code may see of this process's variables, that which builds its requirements included."""
    return without_credentials(os.environ)


def _make(place: Path, python: Path, requirements: str, log: "_Log") -> None:
    """Raises UserCodeFailed with the end of pip's output."""
    own_pip = importlib.util.find_spec("pip") is not None
    venv.create(place, with_pip=not own_pip, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # addsitedir also reads the .pth files there, and puts the directory behind the environment's own.
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in paths)
    (place / "lib" / version / "site-packages" / "platform.pth").write_text(lines)
    listed = place / "requirements.txt"
    listed.write_text(requirements)
    pip = (sys.executable, "-m", "pip", "--python", str(python)) if own_pip else (str(python), "-m", "pip")
    command = (*pip, "install", "--disable-pip-version-check", "--no-input", "--quiet", "-r", str(listed))
    result = _supervise(command, place, _variables(), 0, log)
    if result.exit_code != 0:
        shutil.rmtree(place, ignore_errors=True)
        if "No space left" in result.log:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise UserCodeFailed(
            f"The project's environment could not be made: {result.log.strip()[-2000:]}",
            next_step="Correct its requirements.txt, or check that the package index can be reached.",
        )


def _supervise(
    command: tuple[str, ...],
    directory: Path,
    variables: dict[str, str],
    timeout: float,
    log: "_Log",
) -> JobResult:
    """Runs a command under the launcher until it ends, handing on its lines."""
    report_read, report_write = os.pipe()
    line_read, line_write = os.pipe()  # its write end is held by this process alone: that is the life line
    try:
        # -I -S: the launcher starts in milliseconds and nothing in the project's directory can shadow its imports.
        with subprocess.Popen(  # noqa: S603 - the project's own command is what is to run
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(report_write), str(timeout), *command],
            cwd=directory,
            env=variables,
            stdin=line_read,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(report_write,),
        ) as launcher:
            os.close(report_write)
            report_write = -1
            try:
                log.follow(launcher, cast("IO[bytes]", launcher.stdout).fileno())
            finally:
                os.close(line_write)  # after the command's end, or because of an error: then it ends the command
                line_write = -1
        report = _read_report(report_read)
    finally:
        for descriptor in (report_read, report_write, line_read, line_write):
            if descriptor >= 0:
                os.close(descriptor)
    return _result(report, log, timeout)


def _read_report(descriptor: int) -> _Report:
    data = os.read(descriptor, 1 << 16)
    return msgspec.json.decode(data, type=_Report) if data else _Report()


def _result(report: _Report, log: "_Log", timeout: float) -> JobResult:
    code = report.exit_code if report.exit_code >= 0 else 128 - report.exit_code
    if report.stopped == "time limit":
        code = TIMED_OUT
        log.add(f"macadam: stopped after its time limit of {timeout:g} s\n".encode())
    elif report.stopped:
        code = _KILLED
        log.add(f"macadam: stopped because {report.stopped}\n".encode())
    return JobResult(
        exit_code=code,
        seconds=report.seconds,
        cpu_seconds=report.cpu_seconds,
        peak_bytes=report.peak_bytes,
        log=log.text(),
    )


class _Log:
    """The end of a command's output, line by line to whoever listens."""

    def __init__(self, on_line: Callable[[str], None] | None, closed: threading.Event) -> None:
        self._on_line = on_line
        self._closed = closed
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._open_line = b""

    def follow(self, launcher: "subprocess.Popen[bytes]", source: int) -> None:
        """Reads until the output ends, or the command has ended and only a stray process holds its output.

        Raises Unavailable when the runner is closed.
        """
        while True:
            if self._closed.is_set():
                raise Unavailable(
                    "The platform is closing: the command was ended.", next_step="Run the same call again."
                )
            ready, _, _ = select.select([source], [], [], _POLL)
            if ready:
                chunk = os.read(source, 1 << 16)
                if not chunk:
                    break
                self.add(chunk)
            elif launcher.poll() is not None:
                break
        if self._open_line:
            self.add(b"\n")

    def add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= _LOG_BYTES:
            self._size -= len(self._chunks.popleft())
        if self._on_line is None:
            return
        *lines, self._open_line = (self._open_line + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line:
                self._on_line(line.decode(errors="replace"))

    def text(self) -> str:
        return b"".join(self._chunks)[-_LOG_BYTES:].decode(errors="replace")


@contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    """One process at a time makes an environment; the others wait and then find it. The lock dies with its holder."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _no_space_said() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StorageFull(
            "The disk is full: the project's environment was not made.",
            next_step="Free space on the disk of the home directory and run the same call again.",
        ) from error
