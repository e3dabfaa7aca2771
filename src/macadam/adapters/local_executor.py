"""The embedded executor: real processes on this machine, each attempt under a supervisor that outlives the platform.

Isolation is that of processes of one user, not a sandbox: limits of memory, time, file size and log, a bare environment
without the platform's credentials, and only the attempt's GPUs visible to CUDA. Everything known about an attempt stands
in its directory (see `supervisor`), so that any later process takes over where a killed one left off.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from macadam.adapters import interruptions, supervisor
from macadam.errors import InvalidInput, MacadamError, NotFound, StorageFull, Temporary
from macadam.lazy import lazy
from macadam.ports import Allotment, Attempt, Device, LogPage, Node, Objects, Sighting, Why
from macadam.values import parse_instant, utc_now

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")

LOG_BYTES = 64 << 20
"""Kept of each member's log: its first and its newest mebibytes."""
_SUPERVISOR = Path(supervisor.__file__)
_LEAVING = "leaving"
_TOKEN = "MACADAM_ATTEMPT_DIRECTORY"  # noqa: S105 - the name of a variable
_MILLI = 1000
_CANNOT_RUN = 126  # as shells say
_STRAYS_SECONDS = 2.0
_MOMENT = 0.001  # s; what has begun has run, so that it is never taken for something that has not
_SHORTEST_NOTICE = timedelta(seconds=30)
"""What the hastiest cloud gives: Azure's and GCP's spot machines go 30 s after their notice."""
_NOTICE_IS_OVER = timedelta(minutes=10)  # the machine is still here
# What a program needs to find its way on the machine. A list of what may pass: whatever else the platform's own
# environment holds, cloud credentials above all, is nobody's business.
_PASSED = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
_PASSED_PREFIXES = ("LC_", "NCCL_", "OMP_")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What `work.json` tells the supervisor. prepare: the command that makes the environment, () for none; bundle: the tar
    file's path, '' for none; disk: bytes that it may unpack to, 0 = no limit.
    """

    members: tuple[dict[str, Any], ...]
    signal: int
    grace: float
    time_limit: float
    log_bytes: int
    bundle: str = ""
    disk: int = 0
    prepare: tuple[str, ...] = ()


_Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]  # also since 1970: datetime takes no more


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)]
    why: Why
    message: str
    started: _Seconds
    ended: _Seconds
    seconds: _Seconds
    cpu_seconds: _Seconds
    peak_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    started: _Seconds
    members: tuple[tuple[int, int], ...]
    boot: str


class LocalExecutor:
    """place: where attempts and checkpoints are kept, made if missing. devices: the GPUs of this machine; asked for at each
    `nodes()`. bought: what is known of where it was bought and as what, by `Node`'s fields; if that is a cloud that announces when it takes a
    machine away, it is asked (see `interruptions`). metadata: where, '' = at the cloud's own address. virtual: machines that are
    declared in place of this one, to try what several would do; of them only name, devices, zone and spot count. log_bytes: kept of each member's log.
    """

    def __init__(
        self,
        place: Path,
        objects: Objects,
        devices: Callable[[], Sequence[Device]] = tuple,
        *,
        bought: Mapping[str, Any] = MappingProxyType({}),
        metadata: str = "",
        virtual: Sequence[Node] = (),
        log_bytes: int = LOG_BYTES,
    ) -> None:
        self._place = place
        self._objects = objects
        self._devices, self._bought, self._metadata = devices, bought, metadata or interruptions.ADDRESS
        self._virtual = tuple(virtual)
        self._watcher: interruptions.Watcher | None = None
        self._log_bytes = log_bytes
        self._spawned: dict[str, int] = {}
        self._cores: dict[str, tuple[int, ...]] = {}
        for part in ("attempts", "checkpoints"):
            (place / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- what there is

    def nodes(self) -> tuple[Node, ...]:
        if self._virtual:
            return self._virtual_nodes()
        said = self._announced()
        leaving = [at for at in (self._leaving(), said.leaving) if at is not None]
        here = self._node(socket.gethostname(), tuple(self._devices()), parts=1)
        return (msgspec.structs.replace(here, leaving=min(leaving, default=None), closed=said.risky, **self._bought),)

    def _virtual_nodes(self) -> tuple[Node, ...]:
        """The declared ones, each with its part of this machine. One that was taken away is gone until its notice is."""
        found = []
        for one in self._virtual:
            leaving = self._leaving(one.name)
            if leaving is None or leaving > utc_now():
                node = self._node(one.name, one.devices, parts=len(self._virtual))
                found.append(msgspec.structs.replace(node, zone=one.zone, spot=one.spot, leaving=leaving))
        return tuple(found)

    def _node(self, name: str, devices: tuple[Device, ...], *, parts: int) -> Node:
        return Node(
            name=name,
            cpus=len(_allowed_cores()) * _MILLI // parts,
            memory=psutil.virtual_memory().total // parts,
            disk=psutil.disk_usage(str(self._place)).total // parts,
            devices=devices,
        )

    def notice(self, leaving: datetime | None, machine: str = "") -> None:
        """Says that this machine goes away then (a spot interruption), or that it does not after all. machine: a virtual one's name."""
        path = self._notice(machine)
        if leaving is None:
            path.unlink(missing_ok=True)
        else:
            supervisor.write(path, leaving.astimezone(UTC).isoformat())

    def _notice(self, machine: str = "") -> Path:
        return self._place / (f"{_LEAVING}.{_safe(machine)}" if machine else _LEAVING)

    def _announced(self) -> interruptions.Notice:
        """What the cloud says, if one is named that says so."""
        provider = self._bought.get("provider", "")
        if self._watcher is None and provider in interruptions.CLOUDS:
            self._watcher = interruptions.Watcher(provider, address=self._metadata)
        return interruptions.Notice() if self._watcher is None else self._watcher.notice()

    def _leaving(self, machine: str = "") -> datetime | None:
        """What the notice says. One that cannot be read is one all the same, since somebody wrote it; an old one is over."""
        path, now = self._notice(machine), utc_now()
        try:
            at = parse_instant(msgspec.json.decode(path.read_bytes(), type=str))
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, InvalidInput):
            at = datetime.fromtimestamp(path.stat().st_mtime, UTC) + _SHORTEST_NOTICE
        return at if at > now - _NOTICE_IS_OVER else None

    # --- the verbs

    def start(self, attempt: Attempt) -> None:
        place = self._directory(attempt.id)
        if (place / supervisor.OUTCOME).exists() or attempt.id in self._alive() or _is_held(place):
            return
        try:
            self._bring(attempt, place)
        except OSError as error:
            raise StorageFull(
                f"{place} could not be written: {error.strerror}.", next_step="Free space on the disk of the home."
            ) from error
        except Temporary:
            raise
        except MacadamError as error:
            _settle(place, why="refused", exit_code=_CANNOT_RUN, message=str(error))
            return
        self._spawn(attempt.id, place)

    def look(self, attempts: Sequence[str]) -> dict[str, Sighting]:
        alive = self._alive()
        return {attempt: self._look(attempt, alive) for attempt in attempts}

    def stop(self, attempt: str, *, grace: float) -> None:
        place = self._directory(attempt)
        place.mkdir(mode=0o700, exist_ok=True)
        if (place / supervisor.OUTCOME).exists():
            return
        wished = supervisor.wish(place, float("inf"))
        if wished is None or grace < wished:
            supervisor.write(place / supervisor.STOP, grace)
        _settle(place, why="stopped", exit_code=128 + signal.SIGTERM)

    def log(self, attempt: str, *, offset: int = 0, limit: int = 65536, rank: int = 0) -> LogPage:
        place = self._directory(attempt)
        if not place.exists():
            raise NotFound(f"There is no log of {attempt}.", next_step="It has not started, or was removed.")
        ended = (place / supervisor.OUTCOME).exists()  # before the log is read: nothing is written behind it
        data, begin = _read_log(place / "log" / str(rank), offset, limit)
        end = begin + len(data)
        return LogPage(
            text=data.decode(errors="replace"), next=end, ended=ended and len(data) < limit, cut=max(0, begin - offset)
        )

    def forget(self, attempt: str) -> None:
        shutil.rmtree(self._directory(attempt), ignore_errors=True)
        self._cores.pop(attempt, None)

    def remove_checkpoint(self, job: str) -> None:
        shutil.rmtree(self._place / "checkpoints" / _safe(job), ignore_errors=True)

    def close(self) -> None:
        self._alive()
        if self._watcher is not None:
            self._watcher.close()

    # --- starting

    def _bring(self, attempt: Attempt, place: Path) -> None:
        if attempt.image:
            raise InvalidInput(
                f"This executor runs no containers, so not {attempt.image} either.",
                next_step="Submit with requirements, or choose another MACADAM_EXECUTOR.",
            )
        for part in (place, place / "work", place / "tmp", place / "log"):
            part.mkdir(mode=0o700, exist_ok=True)
        bundle = place / "bundle.tar" if attempt.bundle else None
        if bundle is not None:
            self._objects.fetch(attempt.bundle, bundle)
        requirements = place / "requirements.txt"
        if attempt.requirements.strip():
            requirements.write_text(attempt.requirements)
        order = Order(
            members=tuple(self._member(attempt, rank, place) for rank in range(len(attempt.allotments))),
            signal=attempt.signal,
            grace=attempt.grace,
            time_limit=attempt.time_limit,
            log_bytes=self._log_bytes,
            bundle=str(bundle or ""),
            disk=max((one.disk for one in attempt.allotments), default=0),
            prepare=(
                (
                    sys.executable,
                    "-m",
                    "macadam.adapters.job_environment",
                    str(self._place.parent / "work"),
                    str(requirements),
                )
                if attempt.requirements.strip()
                else ()
            ),
        )
        supervisor.write(place / supervisor.WORK, msgspec.to_builtins(order))

    def _member(self, attempt: Attempt, rank: int, place: Path) -> dict[str, Any]:
        given = attempt.allotments[rank]
        gpus = self._visible(given)
        return {
            "command": list(
                attempt.command
                if attempt.command[0] not in ("python", "python3")
                else (sys.executable, *attempt.command[1:])
            )
            if not attempt.requirements.strip()
            else list(attempt.command),
            "environment": _variables() | attempt.environment | self._told(attempt, rank, place) | gpus,
            "memory": given.memory,
            # CUDA reserves far more addresses than it uses: with a GPU only what is resident is limited.
            "address_space": 0 if given.gpus else given.memory,
            "file_bytes": given.disk,
            "cores": self._pinned(attempt.id, given.cpus),
        }

    def _told(self, attempt: Attempt, rank: int, place: Path) -> dict[str, str]:
        """What a member is told about itself. The token is how its processes are known if its supervisor is killed."""
        told = {
            _TOKEN: str(place),
            "MACADAM_ATTEMPT": attempt.id,
            "MACADAM_JOB": attempt.job,
            "MACADAM_PROJECT": attempt.project,
            "MACADAM_RANK": str(rank),
            "MACADAM_WORLD": str(len(attempt.allotments)),
            "HOME": str(place / "work"),
            "TMPDIR": str(place / "tmp"),
            "PYTHONUNBUFFERED": "1",
        }
        if attempt.checkpoint:
            checkpoint = self._place / "checkpoints" / _safe(attempt.job)
            checkpoint.mkdir(mode=0o700, exist_ok=True)
            told["MACADAM_CHECKPOINT"] = str(checkpoint)
        return told

    def _visible(self, given: Allotment) -> dict[str, str]:
        """What CUDA and container runtimes take for the GPUs that there are. Nothing given: none is visible."""
        known = {device.id: device for device in self._devices()}
        missing = sorted(set(given.gpus) - set(known))
        if missing:
            raise InvalidInput(
                f"This machine has no GPU {missing[0]}.", next_step="Look at `macadam gpu list`, and decide anew."
            )
        devices = sorted((known[one] for one in given.gpus), key=lambda device: device.index)
        names = ",".join(_cuda_name(device) for device in devices)
        shown = {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": names,
            "NVIDIA_VISIBLE_DEVICES": names or "void",
        }
        part = min(given.gpus.values(), default=_MILLI)
        if part < _MILLI:
            # Where NVIDIA's MPS serves the GPU this bounds the job's part of its processors; nothing else can.
            shown |= {"MACADAM_GPU_MILLI": str(part), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(max(1, part // 10))}
        return shown

    def _pinned(self, attempt: str, cpus: int) -> list[int]:
        """The cores for as many whole ones as it gets, those first that fewest others have; [] for a part of one."""
        whole, allowed = cpus // _MILLI, _allowed_cores()
        if not whole or cpus % _MILLI or whole >= len(allowed):
            return []
        busy = [core for cores in self._cores.values() for core in cores]
        chosen = sorted(allowed, key=lambda core: (busy.count(core), core))[:whole]
        self._cores[attempt] = tuple(chosen)
        return chosen

    def _spawn(self, attempt: str, place: Path) -> None:
        """-I -S: it starts in milliseconds, and nothing in a job's directory can shadow its imports."""
        null = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1, 2)]
        self._spawned[attempt] = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(_SUPERVISOR), str(place)],
            _variables() | _package_index(),
            file_actions=null,
            setsid=True,
        )

    def _alive(self) -> set[str]:
        """Attempts whose supervisors this process has started and that still live; the others are let go of."""
        for attempt, pid in list(self._spawned.items()):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            del self._spawned[attempt]
        return set(self._spawned)

    # --- looking

    def _look(self, attempt: str, alive: set[str]) -> Sighting:
        place = self._directory(attempt)
        if not place.exists():  # a job may have removed it and run on
            return Sighting(attempt=attempt, state="running" if attempt in alive else "unknown")
        if (outcome := _outcome(place)) is not None:
            self._cores.pop(attempt, None)
            return _ended(attempt, outcome)
        if attempt in alive or _is_held(place):
            begun = _begun(place)
            if begun is None:
                return Sighting(attempt=attempt, state="starting")
            return Sighting(attempt=attempt, state="running", started=_instant(begun.started))
        return self._bury(attempt, place)

    def _bury(self, attempt: str, place: Path) -> Sighting:
        """Of an attempt that nobody stands over any more: it has begun and is lost, or it has not begun yet."""
        with _held(place) as free:
            if free and _outcome(place) is None and (begun := _begun(place) or _spoilt(place)) is not None:
                if not _end_strays(place, begun):
                    return Sighting(attempt=attempt, state="running", started=_instant(begun.started))
                message = "its supervisor was killed, or the machine started anew"
                _write_outcome(place, why="lost", exit_code=137, message=message, started=begun.started)
        outcome = _outcome(place)
        return _ended(attempt, outcome) if outcome else Sighting(attempt=attempt, state="unknown")

    def _directory(self, attempt: str) -> Path:
        return self._place / "attempts" / _safe(attempt)


# --- files


@contextmanager
def _held(place: Path) -> Iterator[bool]:
    """Tries to hold the attempt's lock; whether nobody else does. While it is held no supervisor begins it."""
    place.mkdir(mode=0o700, exist_ok=True)
    with (place / supervisor.LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _is_held(place: Path) -> bool:
    if not (place / supervisor.LOCK).exists():
        return False
    with _held(place) as free:
        return not free


def _outcome(place: Path) -> _Outcome | None:
    """None also for one that nobody here wrote so: a job can reach it, and must not keep the others waiting."""
    try:
        return msgspec.json.decode((place / supervisor.OUTCOME).read_bytes(), type=_Outcome)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _begun(place: Path) -> _Begun | None:
    """One that cannot be read was begun all the same."""
    try:
        return msgspec.json.decode((place / supervisor.BEGUN).read_bytes(), type=_Begun)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        return _begun_then(place / supervisor.BEGUN)


def _spoilt(place: Path) -> _Begun | None:
    """What has an outcome that cannot be read has begun, whatever became of it."""
    path = place / supervisor.OUTCOME
    return _begun_then(path) if path.exists() else None


def _begun_then(path: Path) -> _Begun:
    return _Begun(started=path.stat().st_mtime, members=(), boot=supervisor.boot())


def _settle(place: Path, *, why: Why, exit_code: int, message: str = "") -> None:
    """Ends one that has not begun. Under its lock nobody can begin it meanwhile; afterwards its outcome stands there."""
    with _held(place) as free:
        if free and not (place / supervisor.BEGUN).exists() and not (place / supervisor.OUTCOME).exists():
            _write_outcome(place, why=why, exit_code=exit_code, message=message)


def _write_outcome(place: Path, *, why: Why, exit_code: int, message: str = "", started: float = 0) -> None:
    """How an attempt ended that has no supervisor to say so. Its lock must be held."""
    now = max(time.time(), started)  # a clock that was set back makes no time negative
    outcome = _Outcome(
        exit_code=exit_code,
        why=why,
        message=message,
        started=started or now,
        ended=now,
        seconds=max(now - started, _MOMENT) if started else 0,
        cpu_seconds=0,
        peak_bytes=0,
    )
    supervisor.write(place / supervisor.OUTCOME, msgspec.to_builtins(outcome))


def _ended(attempt: str, outcome: _Outcome) -> Sighting:
    return Sighting(
        attempt=attempt,
        state="ended",
        exit_code=outcome.exit_code,
        why=outcome.why,
        message=outcome.message,
        started=_instant(outcome.started),
        ended=_instant(outcome.ended),
        seconds=outcome.seconds,
        cpu_seconds=outcome.cpu_seconds,
        peak_bytes=outcome.peak_bytes,
    )


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _read_log(directory: Path, offset: int, limit: int) -> tuple[bytes, int]:
    """Bytes from `offset`, or from where the log goes on behind a gap; and where they begin."""
    try:
        starts = sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return b"", offset
    data, at = b"", offset
    for start in starts:
        if start + supervisor.SEGMENT <= at or len(data) >= limit:
            continue
        if start > at:
            if data:
                break  # a gap: the next page begins behind it
            offset = at = start
        with (directory / f"{start:015d}").open("rb") as file:
            file.seek(at - start)
            data += file.read(limit - len(data))
        at = offset + len(data)
    return data, offset


def _safe(name: str) -> str:
    """Raises InvalidInput for what could lead out of the directory."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise InvalidInput(f"{name!r} is no attempt's id.", next_step="Take it from `macadam jobs show`.")
    return name


# --- processes


def _variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    known = os.environ if environment is None else environment
    passed = {k: v for k, v in known.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
    passed["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{passed.get('PATH', os.defpath)}"
    return passed


def _package_index() -> dict[str, str]:
    """Where packages come from, often with a password in the address: for whoever makes environments, and no member of a job."""
    return {k: v for k, v in os.environ.items() if k.startswith(supervisor.INDEX)}


def _allowed_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _cuda_name(device: Device) -> str:
    """CUDA takes the driver's identifiers: 'GPU-…', and for a slice 'MIG-GPU-…/<GPU instance>/<compute instance>'; a virtual
    one has its index.
    """
    gpu, _, instance = device.id.removeprefix("gpu:").partition("/mig:")
    if not gpu.startswith("GPU-"):
        return str(device.index)
    return f"MIG-{gpu}/{instance}/0" if instance else gpu


def _end_strays(place: Path, begun: _Begun) -> bool:
    """Ends what a killed supervisor left behind: its members die with it, what they started is known by the token.

    False if some do not end, as processes that wait for a device: what they hold is not free yet.
    """
    if begun.boot != supervisor.boot():
        return True
    limit = time.monotonic() + _STRAYS_SECONDS
    while strays := [
        *_marked(place),
        *(pid for pid, start in begun.members if start and supervisor.start_of(pid) == start),
    ]:
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def _marked(place: Path) -> list[int]:
    """Processes of this user whose environment holds the attempt's token, which no other home has; zombies have none."""
    token, found = f"{_TOKEN}={place}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if token in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found
