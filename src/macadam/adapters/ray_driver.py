"""Stands over one attempt inside a Ray cluster: runs its members, limits them, and says last how they ended.

Sent as text with the job (the cluster has none of Macadam's code), so it needs only the standard library, and Ray for gangs. Its
log is the attempt's: what members write stands between two marks, lines of a gang behind their rank. Ray signals the whole tree of the
driver when a job is stopped, so a single member has been asked already when the driver notices.

Environment: MACADAM_ORDER, the JSON of `ray_executor.Order` in Base64.
"""

import base64
import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

BEGIN, END = "\x1emacadam begins", "\x1emacadam ended "
_TICK = 0.1
_SWEEP = 5.0  # s for killed processes to go
_NOT_FOUND, _TIMED_OUT, _KILLED = 127, 124, 137


class Member:
    """One process of the attempt with all that it starts. out: where its output goes, None = ours."""

    def __init__(self, order: dict[str, Any], rank: int, out: int | None = None) -> None:
        told = {"MACADAM_RANK": str(rank), "MACADAM_WORLD": str(order["members"])}
        given = {k: v for k, v in os.environ.items() if k not in ("MACADAM_ORDER", "MACADAM_DRIVER")}
        variables = given | order["environment"] | told
        if order["checkpoint"]:
            Path(order["checkpoint"]).mkdir(mode=0o700, parents=True, exist_ok=True)
            variables["MACADAM_CHECKPOINT"] = order["checkpoint"]
        command = [sys.executable if order["command"][0] == "python" else order["command"][0], *order["command"][1:]]
        self.code: int | None = None
        self.memory, self.peak, self._limit = 0, 0, order["memory"]
        self.over = False
        adopt()
        self._others = set(descendants(os.getpid()))
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the job's own command is what is to run
                command,
                env=variables,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            os.write(out or 1, f"{command[0]}: {error.strerror}\n".encode())
            self.code = _NOT_FOUND

    def poll(self) -> int | None:
        """Its exit code once it has ended; notices memory on the way."""
        if self.code is None:
            self.peak = max(self.peak, used := sum(resident(pid) for pid in self._own()))
            if self._limit and used > self._limit:
                self.over = True
                self.kill()
            code = self._process.poll()
            self.code = None if code is None else code if code >= 0 else 128 - code
            if self.code is not None:
                self.kill()  # what it left in the background
        return self.code

    def signal(self, number: int) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Until nothing is left of it, in whatever session it hides: its GPUs are free only then."""
        if not hasattr(self, "_process"):
            return
        limit = time.monotonic() + _SWEEP
        while (left := self._own()) and time.monotonic() < limit:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.01)

    def _own(self) -> list[int]:
        """All that it started and that lives; Ray's own processes beside it are not."""
        return [pid for pid in descendants(os.getpid()) if pid not in self._others]


def adopt() -> None:
    """Whatever a member leaves behind becomes this process's child (Linux): PR_SET_CHILD_SUBREAPER, linux/prctl.h."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)


def descendants(process: int) -> list[int]:
    """All living processes below one; none where there is no /proc."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        fields = _fields(entry)
        if fields and fields[0] != "Z":
            below.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, ahead = [], [process]
    while ahead:
        children = below.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, each page divided by how many share it; 0 if it is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    fields = _fields(Path(f"/proc/{pid}/stat"))
    return int(fields[21]) * resource.getpagesize() if fields else 0


def _fields(entry: Path) -> list[str]:
    """Of /proc/<pid>/stat behind the name, from the state on (proc(5), field 3); [] if it is gone."""
    try:
        return entry.read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Driver:
    """Waits for members, whoever runs them, and ends them all when one fails, time is up or somebody asks."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order, self.why, self.asked_at, self._began = order, "", 0.0, time.time()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

    def _asked(self, *_: object) -> None:
        if not self.asked_at:
            self.asked_at = time.monotonic()
            self.why = self.why or "stopped"

    def watch(self, members: Any) -> int:
        """members: with poll() → list of codes or None, signal(number), kill()."""
        started, killed = time.monotonic(), False
        told = False
        while None in (codes := members.poll()):
            now = time.monotonic()
            failed = any(codes)
            late = self.order["time_limit"] and now - started > self.order["time_limit"]
            if late and not self.asked_at:
                self.why, self.asked_at = "time limit", now
            if (failed or self.asked_at) and not told:
                told = True
                if self.why != "stopped" or not members.beside:
                    members.signal(self.order["signal"])
                self.asked_at = self.asked_at or now
            if told and not killed and now > self.asked_at + self.order["grace"]:
                killed = True
                members.kill()
            time.sleep(_TICK)
        self.why = "memory" if members.over() and not self.why else self.why
        return _TIMED_OUT if self.why == "time limit" else members.first_failure()

    def report(self, code: int, cpu: float, peak: int) -> None:
        facts = {
            "exit_code": code,
            "why": self.why,
            "started": self._began,
            "ended": time.time(),
            "cpu_seconds": cpu,
            "peak_bytes": peak,
        }
        sys.stdout.flush()
        sys.stdout.write(f"{END}{json.dumps(facts)}\n")
        sys.stdout.flush()


class Here:
    """A single member, beside the driver: what Ray signals, it has had already."""

    beside = True

    def __init__(self, order: dict[str, Any]) -> None:
        self._member = Member(order, 0)

    def poll(self) -> list[int | None]:
        return [self._member.poll()]

    def signal(self, number: int) -> None:
        self._member.signal(number)

    def kill(self) -> None:
        self._member.kill()

    def over(self) -> bool:
        return self._member.over

    def first_failure(self) -> int:
        return _KILLED if self._member.code is None else self._member.code

    def used(self) -> tuple[float, int]:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime, max(self._member.peak, used.ru_maxrss << 10)


class Remote:
    """An actor of Ray that runs one member where its part of the gang was placed, and hands its lines on."""

    def __init__(self, order: dict[str, Any], rank: int) -> None:
        reader, writer = os.pipe()
        self._member = Member(order, rank, writer)
        os.close(writer)
        self._lines: list[bytes] = []
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()

    def _read(self, reader: int) -> None:
        with os.fdopen(reader, "rb") as stream:
            for line in stream:
                self._lines.append(line if line.endswith(b"\n") else line + b"\n")

    def step(self) -> dict[str, Any]:
        code = self._member.poll()
        lines, self._lines = self._lines, []
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        peak = max(self._member.peak, used.ru_maxrss << 10)
        return {"code": code, "lines": lines, "cpu": cpu, "peak": peak, "over": self._member.over}

    def signal(self, number: int) -> None:
        self._member.signal(number)

    def kill(self) -> None:
        self._member.kill()


class Gang:
    """All members or none: their places are one placement group, which Ray grants whole."""

    beside = False

    def __init__(self, order: dict[str, Any], ray: Any) -> None:
        self._ray = ray
        group = ray.util.placement_group([dict(order["bundle"]) for _ in range(order["members"])], strategy="PACK")
        ray.get(group.ready())
        chosen = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        actor = ray.remote(max_restarts=0, max_task_retries=0)(Remote)
        resources = dict(order["bundle"])
        cpus, gpus = resources.pop("CPU", 0), resources.pop("GPU", 0)
        memory = resources.pop("memory", None)
        self._actors = [
            actor.options(
                num_cpus=cpus,
                num_gpus=gpus,
                memory=memory,
                resources=resources,
                scheduling_strategy=chosen(group, placement_group_bundle_index=rank),
            ).remote(order, rank)
            for rank in range(order["members"])
        ]
        self._seen: list[dict[str, Any]] = [{"code": None, "over": False, "cpu": 0.0, "peak": 0} for _ in self._actors]
        self._first = 0

    def poll(self) -> list[int | None]:
        for rank, actor in enumerate(self._actors):
            try:
                seen = self._ray.get(actor.step.remote())
            except self._ray.exceptions.RayActorError:
                seen = {**self._seen[rank], "code": _KILLED, "lines": []}  # its node is gone
            for line in seen["lines"]:
                sys.stdout.write(f"{rank}\t{line.decode(errors='replace')}")
            self._first = self._first or seen["code"] or 0
            self._seen[rank] = seen
        sys.stdout.flush()
        return [seen["code"] for seen in self._seen]

    def signal(self, number: int) -> None:
        for actor in self._actors:
            actor.signal.remote(number)

    def kill(self) -> None:
        for actor in self._actors:
            actor.kill.remote()

    def over(self) -> bool:
        return any(seen["over"] for seen in self._seen)

    def first_failure(self) -> int:
        return self._first

    def used(self) -> tuple[float, int]:
        return sum(seen["cpu"] for seen in self._seen), max(seen["peak"] for seen in self._seen)


def main() -> int:
    order = json.loads(base64.b64decode(os.environ["MACADAM_ORDER"]))
    sys.stdout.write(f"{BEGIN}\n")
    sys.stdout.flush()
    members: Any
    if order["members"] == 1:
        driver = Driver(order)
        members = Here(order)
    else:
        ray = importlib.import_module("ray")  # Ray takes seconds to import, and only gangs need it

        ray.init(log_to_driver=False, logging_level="ERROR")
        driver = Driver(order)  # after Ray has set its own handlers, which would end the driver at once
        members = Gang(order, ray)
    code = driver.watch(members)
    members.poll()  # lines that came between the last look and the end
    driver.report(code, *members.used())
    return code


if __name__ == "__main__":
    sys.exit(main())
