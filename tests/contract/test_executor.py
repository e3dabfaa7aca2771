"""The behaviour of every Executor adapter."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from contract import clusters
from contract.test_runner import wheel

from macadam.adapters import supervisor
from macadam.adapters.local_executor import LocalExecutor
from macadam.adapters.local_objects import LocalObjects
from macadam.errors import InvalidInput, NotFound
from macadam.ports import Allotment, Attempt, Device, Executor, Sighting

GPUS = tuple(Device(id=f"gpu:virtual-{n}", index=n, virtual=True) for n in range(4))


def local(tmp_path: Path) -> Executor:
    return LocalExecutor(tmp_path / "jobs", LocalObjects(tmp_path / "objects"), lambda: GPUS)


MAKERS: dict[str, Callable[[Path], Executor]] = {
    "local": local,
    "kubernetes": clusters.kubernetes,
    "ray": clusters.ray,
}


@pytest.fixture(params=MAKERS)
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executor]:
    made = MAKERS[request.param](tmp_path)
    yield made
    made.close()
    clusters.end(tmp_path)


def attempt(
    code: str, *, name: str = "j1.1", members: int = 1, gpus: dict[str, int] | None = None, **more: object
) -> Attempt:
    facts: dict[str, object] = {
        "id": name,
        "job": name.partition(".")[0],
        "project": "p",
        "command": ("python", "-c", code),
        "allotments": tuple(Allotment(node="here", gpus=gpus or {}, cpus=500) for _ in range(members)),
        "grace": 1.0,
    }
    return Attempt(**(facts | more))  # type: ignore[arg-type]


def until(executor: Executor, name: str, state: str, within: float = 30) -> Sighting:
    limit = time.monotonic() + within
    while (seen := executor.look([name])[name]).state != state:
        assert time.monotonic() < limit, seen
        time.sleep(0.02)
    return seen


def said(executor: Executor, name: str, rank: int = 0) -> str:
    return executor.log(name, rank=rank).text


def test_an_attempt_runs_and_tells_how_it_ended_and_what_it_used(executor: Executor) -> None:
    burn = "import time\nx = bytearray(60 << 20)\nx[::4096] = b'1' * len(x[::4096])\nt = time.process_time()\nwhile time.process_time() - t < 0.2: pass\nprint('done')"
    executor.start(attempt(burn))
    seen = until(executor, "j1.1", "ended")
    assert (seen.exit_code, seen.why) == (0, "")
    if isinstance(executor, LocalExecutor):  # a cluster's API says nothing of use: its telemetry does
        assert seen.cpu_seconds > 0.2
        assert seen.peak_bytes > 60 << 20
    assert seen.started is not None
    assert seen.ended is not None
    assert timedelta(0) < seen.ended - seen.started < timedelta(seconds=30)
    assert said(executor, "j1.1") == "done\n"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 11)", 139)],
)
def test_a_command_that_fails_is_an_outcome(executor: Executor, code: str, exit_code: int) -> None:
    executor.start(attempt(code))
    assert until(executor, "j1.1", "ended").exit_code == exit_code


def test_a_command_that_is_not_there_ends_with_127(executor: Executor) -> None:
    executor.start(attempt("", command=("no-such-command",)))
    assert until(executor, "j1.1", "ended").exit_code == 127
    assert "no-such-command" in said(executor, "j1.1")


def test_words_and_variables_arrive_as_they_were_written(executor: Executor) -> None:
    odd = ["$$", "$(LIKE)", "${LIKE}", "$$(LIKE)", "a\nb", "---", "yes", "1e3", "ä→", "'\"`", ""]
    show = (
        "import os, sys; print(ascii(sys.argv[1:])); print(ascii(os.environ['LIKE'])); print(ascii(os.environ['ODD']))"
    )
    variables = {"LIKE": "me", "ODD": "$(LIKE) ${LIKE} $$ \n---"}
    executor.start(attempt("", command=("python", "-c", show, *odd), environment=variables))
    assert until(executor, "j1.1", "ended").exit_code == 0
    assert said(executor, "j1.1").splitlines() == [ascii(odd), ascii("me"), ascii("$(LIKE) ${LIKE} $$ \n---")]


def test_one_id_runs_at_most_once_whoever_asks_how_often(executor: Executor, tmp_path: Path) -> None:
    mark = f"open({str(tmp_path / 'ran')!r}, 'a').write('x'); import time; time.sleep(0.3)"
    for _ in range(3):
        executor.start(attempt(mark))
    until(executor, "j1.1", "running")
    executor.start(attempt(mark))
    until(executor, "j1.1", "ended")
    executor.start(attempt(mark))
    time.sleep(0.3)
    assert (tmp_path / "ran").read_text() == "x"


def test_another_process_takes_over_what_runs(
    executor: Executor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    executor.start(attempt("import time; time.sleep(0.6); print('late')"))
    until(executor, "j1.1", "running")
    executor.close()
    other = MAKERS[request.node.callspec.params["executor"]](tmp_path)
    assert other.look(["j1.1"])["j1.1"].state == "running"
    other.start(attempt("raise SystemExit(9)"))
    assert until(other, "j1.1", "ended").exit_code == 0
    assert said(other, "j1.1") == "late\n"
    other.close()


def test_what_was_never_started_is_unknown(executor: Executor) -> None:
    assert executor.look(["j9.1"])["j9.1"].state == "unknown"
    with pytest.raises(NotFound):
        executor.log("j9.1")


def test_a_stop_asks_first_and_lets_it_save(executor: Executor) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: (print('saved'), sys.exit(75)))\nprint('ready', flush=True)\ntime.sleep(30)"
    executor.start(attempt(code))
    until(executor, "j1.1", "running")
    while "ready" not in said(executor, "j1.1"):
        time.sleep(0.02)
    executor.stop("j1.1", grace=10)
    seen = until(executor, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("stopped", 75)
    assert "saved" in said(executor, "j1.1")


def test_what_does_not_end_is_ended_after_its_grace(executor: Executor) -> None:
    executor.start(
        attempt("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)")
    )
    until(executor, "j1.1", "running")
    while "ready" not in said(executor, "j1.1"):
        time.sleep(0.02)
    before = time.monotonic()
    executor.stop("j1.1", grace=0.3)
    seen = until(executor, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("stopped", 137)
    assert time.monotonic() - before < 5


def test_a_stop_before_the_start_keeps_it_from_ever_starting(executor: Executor, tmp_path: Path) -> None:
    executor.stop("j1.1", grace=1)
    executor.start(attempt(f"open({str(tmp_path / 'ran')!r}, 'w')"))
    assert until(executor, "j1.1", "ended").why == "stopped"
    time.sleep(0.2)
    assert not (tmp_path / "ran").exists()


def test_a_time_limit_ends_it(executor: Executor) -> None:
    executor.start(attempt("import time; time.sleep(60)", time_limit=0.3))
    seen = until(executor, "j1.1", "ended")
    assert seen.why == "time limit"
    assert "0.3 s" in seen.message


def test_a_gang_ends_with_its_first_member_that_fails(executor: Executor) -> None:
    code = "import os, time\nprint('rank', os.environ['MACADAM_RANK'], 'of', os.environ['MACADAM_WORLD'], flush=True)\nif os.environ['MACADAM_RANK'] == '1':\n    time.sleep(0.3); raise SystemExit(4)\ntime.sleep(60)"
    executor.start(attempt(code, members=2))
    assert until(executor, "j1.1", "ended").exit_code == 4
    assert [said(executor, "j1.1", rank) for rank in (0, 1)] == ["rank 0 of 2\n", "rank 1 of 2\n"]


def test_the_platforms_credentials_do_not_reach_it(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MACADAM_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "s3cr3t")
    executor.start(
        attempt("import os; print('s3cr3t' in os.environ.values(), os.environ['MINE'])", environment={"MINE": "1"})
    )
    until(executor, "j1.1", "ended")
    assert said(executor, "j1.1") == "False 1\n"


def test_a_checkpoint_directory_outlives_the_attempt(executor: Executor) -> None:
    code = "import os, pathlib\np = pathlib.Path(os.environ['MACADAM_CHECKPOINT']) / 'n'\nn = int(p.read_text()) if p.exists() else 0\np.write_text(str(n + 1))\nprint(n)"
    for name in ("j1.1", "j1.2"):
        executor.start(attempt(code, name=name, checkpoint=True))
        until(executor, name, "ended")
    assert said(executor, "j1.2") == "1\n"
    executor.remove_checkpoint("j1")
    executor.remove_checkpoint("j1")
    executor.start(attempt(code, name="j1.3", checkpoint=True))
    until(executor, "j1.3", "ended")
    assert said(executor, "j1.3") == "0\n"


def test_a_log_is_read_in_pages(executor: Executor) -> None:
    executor.start(attempt("print('x' * 99 + '\\n' * 1, end='')"))
    until(executor, "j1.1", "ended")
    first = executor.log("j1.1", limit=60)
    assert (len(first.text), first.next, first.ended) == (60, 60, False)
    second = executor.log("j1.1", offset=first.next)
    assert (len(second.text), second.next, second.ended) == (40, 100, True)


def test_a_forgotten_attempt_leaves_nothing(executor: Executor) -> None:
    executor.start(attempt("print(1)"))
    until(executor, "j1.1", "ended")
    executor.forget("j1.1")
    with pytest.raises(NotFound):
        executor.log("j1.1")


def test_an_id_that_leads_elsewhere_is_refused(executor: Executor) -> None:
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(InvalidInput):
            executor.stop(name, grace=1)


# --- the local one only


@pytest.fixture
def here(tmp_path: Path) -> LocalExecutor:
    made = local(tmp_path)
    assert isinstance(made, LocalExecutor)
    return made


def test_only_its_gpus_are_visible(here: LocalExecutor) -> None:
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['NVIDIA_VISIBLE_DEVICES'], os.environ.get('MACADAM_GPU_MILLI'))"
    given = {"j1.1": {"gpu:virtual-1": 1000, "gpu:virtual-3": 1000}, "j2.1": {"gpu:virtual-0": 250}, "j3.1": {}}
    for name, gpus in given.items():
        here.start(attempt(show, name=name, gpus=gpus))
        until(here, name, "ended")
    assert [said(here, name) for name in given] == ["1,3 1,3 None\n", "0 0 250\n", " void None\n"]


def supervisor_of(executor: LocalExecutor, name: str) -> psutil.Process:
    return psutil.Process(executor._spawned[name])


def is_gone(pid: int) -> bool:
    """A zombie that nobody has collected yet is dead."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_killed_supervisor_takes_its_members_along_and_the_attempt_is_lost(
    here: LocalExecutor, tmp_path: Path
) -> None:
    # The member hides a grandchild in a session of its own, as daemons do.
    code = f"import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\nprint('up', flush=True)\ntime.sleep(60)"
    here.start(attempt(code))
    until(here, "j1.1", "running")
    while "up" not in said(here, "j1.1"):
        time.sleep(0.02)
    supervisor_of(here, "j1.1").kill()
    seen = until(here, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("lost", 137)
    assert is_gone(int((tmp_path / "pid").read_text()))
    here.start(attempt(code))  # begun once, never again
    time.sleep(0.3)
    assert here.look(["j1.1"])["j1.1"].why == "lost"


def test_what_a_job_leaves_in_the_background_ends_with_it(here: LocalExecutor, tmp_path: Path) -> None:
    code = f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    here.start(attempt(code))
    assert until(here, "j1.1", "ended").exit_code == 0
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("listed", [True, False])
def test_descendants_are_found_also_where_the_kernel_lists_no_children(
    monkeypatch: pytest.MonkeyPatch,
    listed: bool,  # noqa: FBT001 - a table
) -> None:
    monkeypatch.setattr(supervisor, "_LISTED", listed)
    nested = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)']); print('up', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = supervisor.descendants(os.getpid())
        below = [one for one in found if one != process.pid and psutil.Process(one).ppid() == process.pid]
        assert process.pid in found
        assert len(below) == 1
        os.kill(below[0], signal.SIGKILL)
        process.kill()


@pytest.mark.parametrize("gpus", [{}, {"gpu:virtual-0": 1000}], ids=["addresses", "resident"])
def test_memory_is_limited(here: LocalExecutor, gpus: dict[str, int]) -> None:
    code = "import time\nx = bytearray(200 << 20)\nx[::4096] = b'1' * len(x[::4096])\ntime.sleep(30)"
    allotment = Allotment(node="here", memory=100 << 20, gpus=gpus)
    here.start(attempt(code, allotments=(allotment,)))
    seen = until(here, "j1.1", "ended")
    assert seen.exit_code != 0
    assert seen.why == ("memory" if gpus else "")
    assert ("104857600" in seen.message) if gpus else ("MemoryError" in said(here, "j1.1"))


def test_a_log_without_end_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    small = LocalExecutor(tmp_path / "jobs", LocalObjects(tmp_path / "objects"), log_bytes=3 * supervisor.SEGMENT)
    small.start(attempt("import sys\nfor n in range(9 * 1024): sys.stdout.write(f'{n:01023d}\\n')"))
    until(small, "j1.1", "ended")
    assert sum(p.stat().st_size for p in (tmp_path / "jobs/attempts/j1.1/log/0").iterdir()) <= 3 * supervisor.SEGMENT
    lines, offset, cut, ended = [], 0, 0, False
    while not ended:
        page = small.log("j1.1", offset=offset, limit=1 << 20)
        lines += page.text.split()
        offset, cut, ended = page.next, cut + page.cut, page.ended
    assert (int(lines[0]), int(lines[-1])) == (0, 9 * 1024 - 1)
    assert cut == 6 * supervisor.SEGMENT


def test_what_a_member_cuts_loose_counts_for_its_memory(here: LocalExecutor) -> None:
    # Its child's child is in a session of its own and has another parent; each alone is within the limit.
    eat = "x = bytearray(80 << 20)\nx[::4096] = b'1' * len(x[::4096])\n"
    loose = f"import os, time\nif not os.fork():\n  os.setsid()\n  if os.fork(): os._exit(0)\n{eat}time.sleep(60)"
    here.start(attempt(loose, allotments=(Allotment(node="here", memory=140 << 20, gpus={"gpu:virtual-0": 1000}),)))
    seen = until(here, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("memory", 137)


def test_memory_that_forked_workers_share_is_counted_once(here: LocalExecutor) -> None:
    code = "import os, time\nx = bytearray(60 << 20)\nx[::4096] = b'1' * len(x[::4096])\nfor _ in range(4):\n  if not os.fork():\n    time.sleep(1.5)\n    os._exit(0)\ntime.sleep(1.5)"
    here.start(attempt(code, allotments=(Allotment(node="here", memory=140 << 20, gpus={"gpu:virtual-0": 1000}),)))
    seen = until(here, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("", 0)


@pytest.mark.parametrize("spoilt", ["", "{", '{"exit_code": 0}', "[]", '{"started": 1e300, "members": [], "boot": ""}'])
@pytest.mark.parametrize("name", ["outcome.json", "begun.json", "stop"])
def test_no_file_that_a_job_writes_keeps_others_from_being_seen(here: LocalExecutor, name: str, spoilt: str) -> None:
    write = f"import os, signal\nopen('../{name}', 'w').write({spoilt!r})\nos.kill(os.getppid(), signal.SIGKILL)"
    here.start(attempt(write, name="bad.1"))
    here.start(attempt("raise SystemExit(3)", name="good.1"))
    assert until(here, "good.1", "ended").exit_code == 3
    assert until(here, "bad.1", "ended").why == "lost"
    here.stop("bad.1", grace=1)
    assert here.look(["bad.1", "good.1"])["bad.1"].why == "lost"


def test_a_stop_that_cannot_be_read_gives_the_jobs_own_grace(here: LocalExecutor, tmp_path: Path) -> None:
    here.start(attempt("import time; time.sleep(60)"))
    until(here, "j1.1", "running")
    (tmp_path / "jobs/attempts/j1.1/stop").write_text("soon")
    assert until(here, "j1.1", "ended").why == "stopped"


def test_a_log_that_cannot_be_written_ends_no_job(here: LocalExecutor, tmp_path: Path) -> None:
    code = "import shutil, sys\nshutil.rmtree('../log')\nfor n in range(3 * 1024): sys.stdout.write('x' * 1023 + '\\n')\nraise SystemExit(7)"
    here.start(attempt(code))
    seen = until(here, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("", 7)


def test_a_home_may_be_moved_while_its_jobs_run(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    before = local(tmp_path / "old")
    before.start(attempt("import time; time.sleep(1); print('moved'); raise SystemExit(4)"))
    until(before, "j1.1", "running")
    (tmp_path / "old").rename(tmp_path / "new")
    after = local(tmp_path / "new")
    assert until(after, "j1.1", "ended").exit_code == 4
    assert said(after, "j1.1") == "moved\n"


def test_a_supervisor_whose_directory_is_removed_ends_with_its_job(here: LocalExecutor, tmp_path: Path) -> None:
    here.start(
        attempt(f"import time, shutil; shutil.rmtree({str(tmp_path / 'jobs/attempts/j1.1')!r}); time.sleep(0.6)")
    )
    process = supervisor_of(here, "j1.1")
    while (tmp_path / "jobs/attempts/j1.1").exists():
        time.sleep(0.01)
    assert here.look(["j1.1"])["j1.1"].state == "running"  # what it holds is not free yet
    process.wait(10)
    assert here.look(["j1.1"])["j1.1"].state == "unknown"


def test_a_clock_that_is_set_back_makes_no_time_negative(here: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    here.start(attempt("import time; time.sleep(60)"))
    until(here, "j1.1", "running")
    supervisor_of(here, "j1.1").kill()
    past = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: past)
    seen = until(here, "j1.1", "ended")
    assert 0 < seen.seconds < 60  # more than nothing: what has begun is not tried again as if it had not


def test_a_bundle_becomes_the_working_directory(here: LocalExecutor, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "job.py").write_text("print('from the bundle')")
    subprocess.run(["tar", "-cf", "b.tar", "-C", "src", "."], cwd=tmp_path, check=True)
    bundle = LocalObjects(tmp_path / "objects").put_file(tmp_path / "b.tar")
    here.start(attempt("", command=("python", "job.py"), bundle=bundle))
    until(here, "j1.1", "ended")
    assert said(here, "j1.1") == "from the bundle\n"


def test_a_bundle_that_leads_out_of_its_directory_is_refused(here: LocalExecutor, tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    subprocess.run(["tar", "-P", "-cf", "b.tar", "../evil"], cwd=(tmp_path / "jobs"), check=True)
    bundle = LocalObjects(tmp_path / "objects").put_file(tmp_path / "jobs" / "b.tar")
    here.start(attempt("print(1)", bundle=bundle))
    assert until(here, "j1.1", "ended").why == "refused"


def test_an_image_is_refused_as_there_is_no_container_runtime(here: LocalExecutor) -> None:
    here.start(attempt("print(1)", image="registry/x:1"))
    seen = until(here, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("refused", 126)


def test_requirements_are_an_environment_of_its_own_on_top_of_the_platforms(
    here: LocalExecutor, tmp_path: Path
) -> None:
    requirements = f"--no-index\n{wheel(tmp_path)}\n"
    here.start(attempt("import pebble, msgspec; print(pebble.SIZE)", requirements=requirements))
    assert until(here, "j1.1", "ended", within=120).exit_code == 0
    assert said(here, "j1.1") == "7\n"


def test_the_package_index_is_known_to_whoever_makes_the_environment_and_not_to_the_job(
    here: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wheel(tmp_path)
    page = tmp_path / "simple" / "pebble" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<!DOCTYPE html><a href="{made.as_uri()}">{made.name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    here.start(attempt("import os, pebble; print(pebble.SIZE, 'PIP_INDEX_URL' in os.environ)", requirements="pebble\n"))
    seen = until(here, "j1.1", "ended", within=120)
    assert (seen.exit_code, said(here, "j1.1")) == (0, "7 False\n"), seen


def test_requirements_that_cannot_be_met_are_said(here: LocalExecutor) -> None:
    here.start(attempt("print(1)", requirements="--no-index\nno-such-pebble==1\n"))
    seen = until(here, "j1.1", "ended", within=120)
    assert (seen.why, seen.exit_code) == ("refused", 126)
    assert "no-such-pebble" in seen.message


def test_a_node_says_when_it_goes_away(here: LocalExecutor) -> None:
    (node,) = here.nodes()
    assert node.leaving is None
    assert [device.id for device in node.devices] == [device.id for device in GPUS]
    at = datetime.now(UTC) + timedelta(seconds=90)
    here.notice(at)
    assert here.nodes()[0].leaving == at
    here.notice(None)
    assert here.nodes()[0].leaving is None


def test_a_notice_that_cannot_be_read_counts_and_one_of_long_ago_does_not(here: LocalExecutor, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "leaving").write_text("soon")
    leaving = here.nodes()[0].leaving
    assert leaving is not None
    assert abs(leaving - datetime.now(UTC) - timedelta(seconds=30)) < timedelta(seconds=20)
    here.notice(datetime.now(UTC) - timedelta(hours=1))
    assert here.nodes()[0].leaving is None


def test_a_gpu_that_is_gone_or_a_bundle_that_is_damaged_refuses_the_attempt(
    here: LocalExecutor, tmp_path: Path
) -> None:
    here.start(attempt("print(1)", name="j1.1", gpus={"gpu:GPU-gone": 1000}))
    here.start(attempt("print(1)", name="j2.1", bundle="sha256:" + "0" * 64))
    assert [seen.why for seen in here.look(["j1.1", "j2.1"]).values()] == ["refused", "refused"]


def test_a_supervisor_that_cannot_begin_leaves_the_attempt_to_be_started_anew(
    here: LocalExecutor, tmp_path: Path
) -> None:
    place = tmp_path / "jobs" / "attempts" / "j1.1"
    place.mkdir(parents=True)
    (place / "begun.new").mkdir()  # stands where it writes
    here.start(attempt("print('ran')"))
    limit = time.monotonic() + 10
    while here.look(["j1.1"])["j1.1"].state != "unknown" and time.monotonic() < limit:
        time.sleep(0.02)
    assert here.look(["j1.1"])["j1.1"].state == "unknown"
    assert said(here, "j1.1") == ""
    (place / "begun.new").rmdir()
    here.start(attempt("print('ran')"))
    assert until(here, "j1.1", "ended").exit_code == 0
    assert said(here, "j1.1") == "ran\n"


def test_killing_whoever_starts_at_any_instant_leaves_it_started_once_or_not_at_all(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from contract.test_executor import attempt, local
from pathlib import Path
executor = local(Path({str(tmp_path)!r}))
print("ready", flush=True)
sys.stdin.readline()
for n in range(5):
    executor.start(attempt(f"open({str(tmp_path / "ran")!r}, 'a').write('{{n}}')", name=f"j{{n}}.1"))
"""
    here = local(tmp_path)
    for pause in (0.0, 0.004, 0.012):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
    for n in range(5):
        here.start(attempt(f"open({str(tmp_path / 'ran')!r}, 'a').write('{n}')", name=f"j{n}.1"))
    for n in range(5):
        until(here, f"j{n}.1", "ended")
    assert sorted((tmp_path / "ran").read_text()) == list("01234")
