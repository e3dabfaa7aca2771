"""Stands over one attempt at a job: starts its members, limits them, keeps their logs, and writes down how it ended.

Run by its path as a process of its own (standard library only), in its own session, so that it outlives the platform.
What it does is known by files in the attempt's directory, each there whole or not at all, so that a kill of anybody at
any instant leaves the truth: `work.json` what is to be done, `lock` held while it lives, `begun.json` written before
the first member runs, `stop` written by whoever wants it ended, `outcome.json` how it ended. An attempt that has begun
is never begun again.

It works in the attempt's directory and names files from there, so that a home may be moved under it.

Usage: supervisor.py DIRECTORY
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

LOCK, WORK, BEGUN, STOP, OUTCOME = "lock", "work.json", "begun.json", "stop", "outcome.json"
INDEX = ("PIP_INDEX", "PIP_EXTRA", "PIP_CERT")  # variables of whoever makes environments, and of nobody else
SEGMENT = 1 << 20  # bytes of one file of a log; the first and the newest are kept
_TICK = 0.1  # s between two looks at limits and wishes: how late a stop or a memory limit is noticed
_LOCK_SECONDS, _FULL_SECONDS = 1.0, 1.0
_SAMPLE = 0.5  # s between two sums of resident memory: reading /proc costs more than the tick
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_MOST_FILES, _NICE = 100_000, 5


def main(directory: Path) -> None:
    """Carries the attempt out, unless somebody does or did."""
    os.chdir(directory)
    directory = Path()
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    if not _lock(lock) or (directory / OUTCOME).exists():
        return
    if (directory / BEGUN).exists():  # by a supervisor that died: whoever looks cleans up and says so
        return
    if sys.platform == "linux":
        # Whatever the members leave behind becomes this process's child, wherever it hides, and ends with it.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who wants it ended writes `stop`; SIGKILL is seen as 'lost'
    work = json.loads((directory / WORK).read_bytes())
    Supervision(directory, work).run()


def _lock(lock: int) -> bool:
    """Tried for a while: whoever looks whether somebody holds it holds it for a moment."""
    limit = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > limit:
                return False
            time.sleep(0.01)
        else:
            return True


class Member:
    """One process of the gang and its log."""

    def __init__(self, rank: int, pid: int, gate: int, output: int, log: "Log", limit: int) -> None:
        self.rank, self.pid, self.gate, self.output, self.log, self.limit = rank, pid, gate, output, log, limit
        self.code: int | None = None


class Supervision:
    """work: see `local_executor.Order`, whose JSON it is."""

    def __init__(self, directory: Path, work: dict) -> None:  # type: ignore[type-arg] # JSON
        self._directory = directory
        self._work = work
        self._members: list[Member] = []
        self._why, self._message, self._code = "", "", 0
        self._cpu, self._peak = 0.0, 0
        self._kill_at = float("inf")
        self._started = self._sampled = self._asked = 0.0
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """What goes wrong before it has begun leaves no outcome: somebody may start it anew."""
        began, known = time.time(), False
        try:
            known = not self._prepare()
            if not known:
                for rank, member in enumerate(self._work["members"]):
                    self._members.append(self._start(rank, member))
                if self._begin(began):
                    self._watch()
                else:
                    self._why, self._code = "stopped", 128 + signal.SIGTERM
                known = True
        finally:
            self._end_all()
            for member in self._members:
                member.log.drain(member.output)
            if known:
                self._write_outcome(began)

    # --- before it runs

    def _prepare(self) -> bool:
        """Unpacks the working files and makes the environment. Whether it can run."""
        try:
            if self._work["bundle"]:
                unpack(Path(self._work["bundle"]), self._directory / "work", self._work["disk"])
            if self._work["prepare"]:
                return self._make_environment()
        except (OSError, ValueError, tarfile.TarError) as error:
            self._why, self._message, self._code = "refused", f"its working files cannot be unpacked: {error}", 126
            return False
        return True

    def _make_environment(self) -> bool:
        """The interpreter of the requirements; what it prints last is the interpreter's path."""
        log = Log(self._directory / "log" / "0", self._work["log_bytes"])
        index = {k: v for k, v in os.environ.items() if k.startswith(INDEX)}
        variables = index | self._work["members"][0]["environment"]
        with subprocess.Popen(  # noqa: S603 - the platform's own command
            self._work["prepare"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables
        ) as making:
            said, complaints = self._wait_for(making)
        log.write(complaints)
        if self._wish() is not None:
            return True  # `_begin` sees it too
        if making.returncode:
            why = complaints.decode(errors="replace").strip()[-500:]
            self._why, self._message, self._code = "refused", f"its environment could not be made: {why}", 126
            return False
        python = said.decode().strip().splitlines()[-1]
        for member in self._work["members"]:
            if member["command"][0] in ("python", "python3"):
                member["command"][0] = python
            member["environment"]["PATH"] = f"{Path(python).parent}{os.pathsep}{member['environment']['PATH']}"
        return True

    def _wait_for(self, making: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
        """What it says to stdout and stderr; ended early if the attempt is to stop."""
        while True:
            try:
                return making.communicate(timeout=_TICK)
            except subprocess.TimeoutExpired:
                if self._wish() is not None:
                    making.kill()

    def _start(self, rank: int, member: dict) -> Member:  # type: ignore[type-arg] # JSON
        """Forks a member that waits at its gate. One thread, so forking is safe."""
        gate_read, gate_write = os.pipe()
        output_read, output_write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(gate_write)
            _become(member, gate_read, output_write, self._directory / "work")
        os.close(gate_read)
        os.close(output_write)
        os.set_blocking(output_read, False)
        log = Log(self._directory / "log" / str(rank), self._work["log_bytes"])
        return Member(rank, pid, gate_write, output_read, log, member["memory"])

    def _begin(self, began: float) -> bool:
        """Says durably that it has begun, then opens the gates. False if it was to be stopped before."""
        if (self._directory / STOP).exists():
            return False
        facts = {"started": began, "members": [[m.pid, start_of(m.pid)] for m in self._members], "boot": boot()}
        write(self._directory / BEGUN, facts)
        for member in self._members:
            os.write(member.gate, b"1")
            os.close(member.gate)
            member.gate = -1
        return True

    # --- while it runs

    def _watch(self) -> None:
        self._started = time.monotonic()
        open_outputs = {member.output: member for member in self._members}
        while any(member.code is None for member in self._members):
            ready, _, _ = select.select([self._wake, *open_outputs], [], [], _TICK)
            for descriptor in ready:
                if descriptor == self._wake:
                    os.read(self._wake, 1024)
                elif not open_outputs[descriptor].log.pump(descriptor):
                    del open_outputs[descriptor]
            self._reap()
            self._look_at_limits()

    def _reap(self) -> None:
        for pid, status, usage in _ended_children():
            self._cpu += usage.ru_utime + usage.ru_stime
            self._peak = max(self._peak, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
            for member in self._members:
                if member.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    member.code = code if code >= 0 else 128 - code
                    if member.code:  # a gang is whole or not at all
                        self._code = self._code or member.code
                        self._kill_at = min(self._kill_at, time.monotonic())

    def _look_at_limits(self) -> None:
        now = time.monotonic()
        if now >= self._kill_at:
            self._kill(signal.SIGKILL)
            return
        limit, wish = self._work["time_limit"], self._wish()
        if not self._asked and limit and now - self._started > limit:
            self._ask("time limit", f"it ran longer than its limit of {limit:g} s", self._work["grace"])
        elif wish is not None:
            if not self._asked:
                self._ask("stopped", "", wish)
            self._kill_at = min(self._kill_at, self._asked + wish)  # it may have become shorter
        if now - self._sampled >= _SAMPLE:
            self._sampled = now
            self._look_at_memory()

    def _wish(self) -> float | None:
        """Seconds of grace, if it is to stop."""
        return wish(self._directory, self._work["grace"])

    def _look_at_memory(self) -> None:
        for member in self._members:
            if member.code is None:
                self._limit_memory([member.pid, *descendants(member.pid)], member.limit)
        # What a member has cut loose from itself is this process's child, and nobody's but the gang's.
        limits = [member.limit for member in self._members]
        self._limit_memory(descendants(os.getpid()), sum(limits) if all(limits) else 0)

    def _limit_memory(self, processes: list[int], limit: int) -> None:
        used = sum(map(resident, processes))
        if limit and used > limit:
            used = sum(map(proportional, processes))  # pages that they share are counted once; that takes longer
        self._peak = max(self._peak, used)
        if limit and used > limit:
            self._why = "memory"
            self._message = f"it used {used} bytes of memory; its limit is {limit}"
            self._kill_at = time.monotonic()

    def _ask(self, why: str, message: str, grace: float) -> None:
        self._why, self._message = why, message
        self._asked = time.monotonic()
        self._kill_at = self._asked + grace
        self._kill(self._work["signal"])

    def _kill(self, number: int) -> None:
        """Signals each member's group; at the end, with SIGKILL, whatever descends from this process."""
        for member in self._members:
            if member.code is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(member.pid, number)

    # --- after it

    def _end_all(self) -> None:
        """Until nothing is left that came from here: a resource is free only when nobody uses it any more."""
        for member in self._members:
            if member.gate >= 0:
                os.close(member.gate)  # it waits there still: end of file tells it to go
        while left := descendants(os.getpid()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for member in self._members:
                member.log.pump(member.output)
            self._reap()
            time.sleep(0.002)
        self._reap()

    def _write_outcome(self, began: float) -> None:
        facts = {
            "exit_code": self._code,
            "why": self._why,
            "message": self._message,
            "started": began,
            "ended": time.time(),
            "seconds": time.monotonic() - self._started if self._started else 0.0,
            "cpu_seconds": self._cpu,
            "peak_bytes": self._peak,
        }
        while _is_there():  # once the directory is removed nobody asks any more
            try:
                write(self._directory / OUTCOME, facts)
            except OSError:  # a full disk: nobody else knows how it ended, so it is waited for
                time.sleep(_FULL_SECONDS)
            else:
                return


def _is_there() -> bool:
    """Whether the directory that this process works in was not removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


class Log:
    """A log in files named by the offset of their first byte. Full, it keeps its first and its newest ones.

    Where a program went wrong stands at the end, and what it was started with at the beginning.
    """

    def __init__(self, directory: Path, most: int) -> None:
        self._directory = directory
        self._keep = max(2, most // SEGMENT)
        self._at = 0
        self._file = -1
        directory.mkdir(parents=True, exist_ok=True)

    def pump(self, source: int) -> bool:
        """Takes what is there. False at the end of it."""
        try:
            data = os.read(source, 1 << 16)
        except BlockingIOError:
            return True
        self.write(data)
        return bool(data)

    def drain(self, source: int) -> None:
        while True:
            try:
                data = os.read(source, 1 << 16)
            except (BlockingIOError, OSError):
                break
            if not data:
                break
            self.write(data)

    def write(self, data: bytes) -> None:
        while data:
            piece = data[: SEGMENT - self._at % SEGMENT]
            with contextlib.suppress(OSError):  # a full disk must not end the job: its outcome is what counts
                if self._at % SEGMENT == 0:
                    self._next()
                if self._file >= 0:
                    os.write(self._file, piece)
            self._at += len(piece)
            data = data[len(piece) :]

    def _next(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        name = self._directory / f"{self._at:015d}"
        self._file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        kept = sorted(self._directory.iterdir())
        for old in kept[1 : len(kept) - self._keep + 1]:
            old.unlink(missing_ok=True)


def unpack(bundle: Path, to: Path, most: int) -> None:
    """Raises ValueError over the limits, tarfile.TarError. Members that lead out of the directory are refused."""
    with tarfile.open(bundle) as tar:
        members = tar.getmembers()
        size = sum(member.size for member in members)
        if len(members) > _MOST_FILES or (most and size > most):
            raise ValueError(f"{len(members)} files of {size} bytes are more than {_MOST_FILES} files or {most} bytes")
        tar.extractall(to, members, filter="data")


def write(path: Path, facts: object) -> None:
    """Whole, durable, or not at all."""
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def boot() -> str:
    """Which start of the machine this is: process ids of another one mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_of(pid: int) -> int:
    """When a process started, in ticks since the boot: with its id that names it. 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat behind the name, from the state on (proc(5), field 3)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[21]) * resource.getpagesize() if fields else 0


def proportional(pid: int) -> int:
    """Bytes of memory that a process holds, each page divided by how many share it: forked workers share most of theirs."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return resident(pid)
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


def wish(directory: Path, grace: float) -> float | None:
    """Seconds of grace, if an attempt is to stop. grace: its own, if what was written cannot be read."""
    try:
        return max(0.0, float((directory / STOP).read_text()))
    except FileNotFoundError:
        return None
    except ValueError:
        return grace


def descendants(pid: int) -> list[int]:
    """All processes below one, zombies that nobody reaped left out."""
    found = []
    for child in _children(pid):
        fields = _stat(child)
        if fields:
            if fields[0] != "Z":
                found.append(child)
            found += descendants(child)
    return found


def _children(pid: int) -> list[int]:
    if not _LISTED:
        everybody = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [one for one in everybody if (fields := _stat(one)) and int(fields[1]) == pid]
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


_LISTED = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()
"""Whether this kernel lists children (CONFIG_PROC_CHILDREN); without it every process has to be asked for its parent."""


def _ended_children() -> "list[tuple[int, int, resource.struct_rusage]]":
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.wait4(-1, os.WNOHANG))[0]:
            found.append(ended)
    return found


def _become(member: dict, gate: int, output: int, directory: Path) -> None:  # type: ignore[type-arg] # JSON
    """In the forked child: waits for the gate, then becomes the command. Never returns."""
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if not os.read(gate, 1):  # the supervisor is gone, or has thought better of it
            os._exit(125)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _limit(member)
        os.chdir(directory)
        os.execvpe(member["command"][0], member["command"], member["environment"])  # noqa: S606 - words, no shell
    except OSError as error:
        os.write(2, f"{member['command'][0]}: {error.strerror}\n".encode())
    except BaseException as error:  # noqa: BLE001 - this is a copy of the supervisor, which must not go on as one
        os.write(2, f"{member['command'][0]}: {error}\n".encode())
        os._exit(126)
    os._exit(127)


def _limit(member: dict) -> None:  # type: ignore[type-arg] # JSON
    if member["address_space"]:
        resource.setrlimit(resource.RLIMIT_AS, (member["address_space"],) * 2)
    if member["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (member["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if member["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, member["cores"])
    os.nice(_NICE)  # the platform answers while every core computes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
