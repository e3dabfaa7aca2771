"""The behaviour of every Runner adapter."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from macadam.adapters.subprocess_runner import SubprocessRunner
from macadam.errors import Unavailable, UserCodeFailed
from macadam.ports import Job, Runner


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return SubprocessRunner(tmp_path / "work")


def python(tmp_path: Path, code: str, *, timeout: float = 0, requirements: str = "", **variables: str) -> Job:
    return Job(
        command=("python", "-c", code),
        directory=tmp_path,
        environment=variables,
        timeout=timeout,
        requirements=requirements,
    )


def gone(pid: int, within: float = 10) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_command_runs_in_its_directory_with_its_variables_and_its_lines_are_heard(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACADAM_TOKEN", "secret")
    code = "import os,sys; print(os.getcwd()); print(os.environ['WHO'], file=sys.stderr); print('MACADAM_TOKEN' in os.environ)"
    heard: list[str] = []
    result = runner.run(python(tmp_path, code, WHO="me"), on_line=heard.append)
    assert result.exit_code == 0
    assert heard == [str(tmp_path), "me", "False"]
    assert result.log == f"{tmp_path}\nme\nFalse\n"


def test_an_empty_environment_is_the_platforms_own_interpreter(runner: Runner, tmp_path: Path) -> None:
    result = runner.run(python(tmp_path, "import sys; print(sys.executable); import macadam"))
    assert (result.exit_code, result.log) == (0, sys.executable + "\n")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("python", "-c", "raise SystemExit(3)"), 3, ""),
        (("python", "-c", "raise ValueError('bad rows')"), 1, "ValueError: bad rows"),
        (("python", "-c", "import os; os.kill(os.getpid(), 11)"), 139, ""),
        (("no-such-command", "x"), 127, "no-such-command: No such file"),
    ],
)
def test_a_failing_command_is_a_result(
    runner: Runner, tmp_path: Path, command: tuple[str, ...], code: int, said: str
) -> None:
    result = runner.run(Job(command=command, directory=tmp_path))
    assert result.exit_code == code
    assert said in result.log


def test_cpu_and_memory_are_those_of_the_command_and_its_children(runner: Runner, tmp_path: Path) -> None:
    burn = "import subprocess,sys,time; x=bytearray(90<<20); x[::4096]=b'1'*len(x[::4096]); t=time.process_time()\nwhile time.process_time()-t<0.3: pass\n"
    nested = f"import subprocess,sys; subprocess.run([sys.executable,'-c',{burn!r}],check=True)"
    result = runner.run(python(tmp_path, nested))
    assert result.exit_code == 0
    assert 0.3 <= result.cpu_seconds < 5
    assert 90 << 20 <= result.peak_bytes < 150 << 20
    assert result.seconds >= 0.3
    small = runner.run(python(tmp_path, "pass"))
    assert small.peak_bytes < 40 << 20


def test_the_time_limit_ends_the_whole_process_group(runner: Runner, tmp_path: Path) -> None:
    code = "import subprocess,time; p=subprocess.Popen(['sleep','60']); print(p.pid, flush=True); time.sleep(60)"
    started = time.monotonic()
    result = runner.run(python(tmp_path, code, timeout=0.7))
    assert result.exit_code == 124
    assert "stopped after its time limit of 0.7 s" in result.log
    assert time.monotonic() - started < 10
    assert gone(int(result.log.split()[0]))


def test_what_a_command_leaves_in_the_background_is_ended(runner: Runner, tmp_path: Path) -> None:
    code = "import subprocess; p=subprocess.Popen(['sleep','60']); print(p.pid)"
    result = runner.run(python(tmp_path, code))
    assert result.exit_code == 0
    assert gone(int(result.log))


def test_a_stray_process_that_holds_the_output_does_not_hold_the_caller(runner: Runner, tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep','30'], start_new_session=True).pid)"
    started = time.monotonic()
    result = runner.run(python(tmp_path, code))
    os.kill(int(result.log), signal.SIGKILL)
    assert result.exit_code == 0
    assert time.monotonic() - started < 10


def test_a_long_log_keeps_its_end(runner: Runner, tmp_path: Path) -> None:
    result = runner.run(python(tmp_path, "for i in range(30000): print('line', i)"))
    assert result.log.endswith("line 29999\n")
    assert len(result.log) <= 64 << 10


def test_a_listener_that_raises_ends_the_command(runner: Runner, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(python(tmp_path, "import os,time; print(os.getpid()); time.sleep(60)"), on_line=stop)
    assert gone(seen[0])


def test_closing_ends_what_runs_and_refuses_what_comes(runner: Runner, tmp_path: Path) -> None:
    started: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        code = "import os,time; print(os.getpid(), flush=True); time.sleep(60)"
        waiting = pool.submit(runner.run, python(tmp_path, code), on_line=lambda line: started.append(int(line)))
        while not started:
            time.sleep(0.01)
        runner.close()
        with pytest.raises(Unavailable, match="closing"):
            waiting.result(10)
    assert gone(started[0])
    with pytest.raises(Unavailable, match="closing"):
        runner.run(python(tmp_path, "pass"))


@pytest.mark.parametrize("victim", ["platform", "launcher"])
def test_a_command_dies_with_the_platform_or_its_launcher(tmp_path: Path, victim: str) -> None:
    inner = "import os,time; print(os.getpid(), os.getppid(), flush=True); time.sleep(60)"
    outer = f"""
from pathlib import Path
from macadam.adapters.subprocess_runner import SubprocessRunner
from macadam.ports import Job
job = Job(command=("python", "-c", {inner!r}), directory=Path({str(tmp_path)!r}))
result = SubprocessRunner(Path({str(tmp_path)!r})).run(job, on_line=lambda line: print(line, flush=True))
print(result.exit_code, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as platform:
        assert platform.stdout is not None
        command, launcher = map(int, platform.stdout.readline().split())
        os.kill(platform.pid if victim == "platform" else launcher, signal.SIGKILL)
        assert gone(command)
        assert gone(launcher)
        if victim == "launcher":
            assert "137" in platform.stdout.read()


def wheel(directory: Path) -> Path:
    """A package without an index: pip installs a directory with a pyproject only with network, a wheel without."""
    import zipfile  # noqa: PLC0415 - used here only

    path = directory / "pebble-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pebble.py", "SIZE = 7\n")
        archive.writestr("pebble-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pebble\nVersion: 1.0\n")
        archive.writestr(
            "pebble-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("pebble-1.0.dist-info/RECORD", "")
    return path


def test_requirements_make_an_environment_once_that_sees_the_platforms_packages(runner: Runner, tmp_path: Path) -> None:
    requirements = f"--no-index\n{wheel(tmp_path)}\n"
    code = "import pebble, msgspec, sys; print(pebble.SIZE, sys.prefix != sys.base_prefix, sys.prefix)"
    first = runner.run(python(tmp_path, code, requirements=requirements))
    assert first.exit_code == 0, first.log
    assert first.log.startswith("7 True")
    made = Path(first.log.split()[-1])
    assert made.is_relative_to(tmp_path / "work")
    started = time.monotonic()
    again = runner.run(python(tmp_path, code, requirements=requirements))
    assert again.log == first.log
    assert time.monotonic() - started < 3
    (made / "finished").unlink()  # as if the making had been cut short
    assert runner.run(python(tmp_path, code, requirements=requirements)).log == first.log


def test_what_builds_a_requirement_sees_no_credential_of_the_platform(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACADAM_TOKEN", "mcd_secret")
    package = tmp_path / "nosy"
    package.mkdir()
    (package / "backend.py").write_text(
        "import os\n"
        "def get_requires_for_build_wheel(*_):\n"
        "    raise SystemExit('found ' + os.environ.get('MACADAM_TOKEN', 'nothing'))\n"
    )
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    with pytest.raises(UserCodeFailed) as error:
        runner.run(python(tmp_path, "pass", requirements=f"--no-index\n{package}\n"))
    assert "found nothing" in str(error.value)
    assert "mcd_secret" not in str(error.value)


def test_requirements_that_cannot_be_met_are_the_projects_error_and_leave_no_environment(
    runner: Runner, tmp_path: Path
) -> None:
    with pytest.raises(UserCodeFailed, match=r"(?s)could not be made.*no-such-pebble"):
        runner.run(python(tmp_path, "pass", requirements="--no-index\nno-such-pebble==1\n"))
    assert [p.suffix for p in (tmp_path / "work" / "environments").iterdir()] == [".lock"]
