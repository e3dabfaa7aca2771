"""Runs attempts at jobs on a Ray cluster, over its Jobs REST API: one submission each, known by its id.

No `ray` package is needed here, nor the cluster's version of it: the API is HTTP and JSON, and what runs there (`ray_driver.py`) is sent along.
Stateless: the submission's id keeps an attempt from running twice, and any process can look, stop and read logs after a kill. What the
cluster's head forgets when it dies, is forgotten: run Ray with GCS fault tolerance where that matters.
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

import base64
import hashlib
import io
import json
import math
import re
import shlex
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from macadam.adapters import markets, ray_views
from macadam.adapters.ray_driver import BEGIN, END
from macadam.errors import Busy, InvalidInput, NotFound, Unavailable
from macadam.ports import Allotment, Attempt, Device, LogPage, Node, Objects, Sighting

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_SECONDS = 30.0
_RUN = "python -c " + shlex.quote(
    "import base64,os;exec(compile(base64.b64decode(os.environ['MACADAM_DRIVER']),'driver','exec'))"
)
_BUNDLE = 100 << 20  # bytes: Ray's own limit of a working directory
_LAST_RESORT = 10  # s after its grace, at which Ray kills what the driver did not
_PINNED = 0.001  # of the resource that Ray gives each node under its address
_REFUSED, _TERMINATED, _KILLED = 126, 143, 137
_MILLI = 1000
_MISSING, _UNAUTHENTICATED, _FORBIDDEN = 404, 401, 403
_LOG, _TAIL = 32 << 20, 1 << 20  # bytes of a log that are kept: its beginning and its end
_MANY = 10_000  # nodes in one answer; Ray's own limit


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver is told. memory: bytes of each member, 0 = no limit. bundle: Ray's resources of one member. environment: the
    job's own variables: what stands in Ray's `env_vars`, it takes for a template (`${NAME}`).
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    members: int
    signal: int
    grace: float
    time_limit: float
    memory: int
    checkpoint: str
    bundle: dict[str, float]


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    exit_code: int
    why: str
    started: float
    ended: float
    cpu_seconds: float
    peak_bytes: int


class _Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What the Jobs API says of one, as far as we need it. Times: ms since 1970."""

    status: str
    submission_id: str | None = None
    job_id: str | None = None
    message: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    metadata: dict[str, str] | None = None
    driver_exit_code: int | None = None


class RayExecutor:
    """address: of the cluster's dashboard, http(s)://…; token: if it asks for one. objects: None for whoever only looks. checkpoints: a directory that all its nodes see, '' = jobs
    with checkpoints are refused. pin: whether members run on the nodes that they were allotted; otherwise Ray chooses.
    prefix: of submission ids, where several platforms share a cluster. recognise: the catalogue's name for what Ray calls a GPU.
    """

    def __init__(
        self,
        address: str,
        objects: Objects | None,
        *,
        token: str = "",
        checkpoints: str = "",
        pin: bool = True,
        prefix: str = "",
        recognise: Callable[[str], str] = str,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=address, headers=headers, timeout=_SECONDS, trust_env=False)
        self._address, self._objects, self._checkpoints = address, objects, checkpoints
        self._pin, self._prefix, self._recognise = pin, prefix, recognise
        self._driver = base64.b64encode(Path(__file__).with_name("ray_driver.py").read_bytes()).decode()

    def nodes(self) -> tuple[Node, ...]:
        try:
            found = self._call("GET", f"/api/v0/nodes?detail=1&limit={_MANY}")["data"]["result"]["result"]
            return tuple(self._node(node) for node in found if node["state"] == "ALIVE")
        except (LookupError, TypeError) as error:
            raise self._unavailable(error) from error

    def start(self, attempt: Attempt) -> None:
        try:
            wanted = self._submission(attempt)
        except (InvalidInput, NotFound) as error:
            self._bury(attempt.id, why="refused", message=str(error))
        else:
            self._submit(wanted)

    def look(self, attempts: Sequence[str]) -> dict[str, Sighting]:
        return {attempt: self._look(attempt) for attempt in attempts}

    def stop(self, attempt: str, *, grace: float) -> None:  # noqa: ARG002 - Ray knows only the grace that the job was submitted with
        found = self._find(attempt)
        if found is None and self._bury(attempt, why="stopped", message="before it started"):
            return
        if found is None or found.status in ("PENDING", "RUNNING"):
            self._call("POST", f"/api/jobs/{self._id(attempt)}/stop")

    def log(self, attempt: str, *, offset: int = 0, limit: int = 65536, rank: int = 0) -> LogPage:
        found = self._find(attempt)
        if found is None:
            raise NotFound(f"There is no attempt {attempt}.", next_step="List the job's attempts: macadam jobs show.")
        text = self._logs(attempt)
        members = int((found.metadata or {}).get("macadam_members", "1"))
        data = _own_lines(text, rank if members > 1 else None).encode()
        page = data[offset : offset + limit]
        ended = found.status not in ("PENDING", "RUNNING") and offset + len(page) >= len(data)
        return LogPage(text=page.decode(errors="replace"), next=offset + len(page), ended=ended)

    def forget(self, attempt: str) -> None:
        try:
            self._call("DELETE", f"/api/jobs/{self._id(attempt)}")
        except NotFound:
            return

    def remove_checkpoint(self, job: str) -> None:
        """By a job on the cluster, as only its nodes see the directory; waits for it. Raises Busy if no node gets to it."""
        self._id(job)
        if not self._checkpoints:
            return
        code = f"import shutil; shutil.rmtree({self._checkpoint(job)!r}, ignore_errors=True)"
        name = f"remove-{hashlib.sha256(f'{job}{time.time_ns()}'.encode()).hexdigest()[:16]}"
        self._submit({"submission_id": self._id(name), "entrypoint": f"python -c {shlex.quote(code)}"})
        limit = time.monotonic() + _SECONDS
        while (found := self._find(name)) is not None and found.status in ("PENDING", "RUNNING"):
            if time.monotonic() > limit:
                raise Busy(f"Ray did not get to removing the checkpoint of {job}.", next_step="Try again.")
            time.sleep(_PINNED * 100)
        self._call("DELETE", f"/api/jobs/{self._id(name)}")

    def views(self, at: datetime) -> list[ray_views.View]:
        """What Ray believes is used now, by node and job. Raises Unavailable."""
        return ray_views.read(lambda path: self._call("GET", path), at)

    def close(self) -> None:
        self._http.close()

    # --- seeing

    def _look(self, attempt: str) -> Sighting:
        found = self._find(attempt)
        if found is None:
            return Sighting(attempt=attempt, state="unknown")
        notes = found.metadata or {}
        if why := notes.get("macadam_why"):
            code = _REFUSED if why == "refused" else _TERMINATED
            said = notes.get("macadam_message", "")
            return Sighting(attempt=attempt, state="ended", why=why, exit_code=code, message=said)  # type: ignore[arg-type] # one of two words
        started = _instant(found.start_time)
        if found.status == "PENDING":
            return Sighting(attempt=attempt, state="starting", message=found.message or "")
        if found.status == "RUNNING":
            return Sighting(attempt=attempt, state="running", started=started)
        return self._ended(attempt, found, notes)

    def _ended(self, attempt: str, found: _Submission, notes: dict[str, str]) -> Sighting:
        text = self._logs(attempt)
        if (report := _report(text)) is not None:
            why = report.why
            if found.status == "STOPPED" and not why:
                why = "stopped"
            limit = notes.get("macadam_time_limit", "?")
            return Sighting(
                attempt=attempt,
                state="ended",
                exit_code=report.exit_code,
                why=why,  # type: ignore[arg-type] # the driver's words are those of `Sighting`
                message=f"It met its time limit of {limit} s." if why == "time limit" else "",
                started=datetime.fromtimestamp(report.started, UTC),
                ended=datetime.fromtimestamp(report.ended, UTC),
                seconds=report.ended - report.started,
                cpu_seconds=report.cpu_seconds,
                peak_bytes=report.peak_bytes,
            )
        began, over = _instant(found.start_time), _instant(found.end_time)
        if found.status == "STOPPED":
            return Sighting(
                attempt=attempt, state="ended", why="stopped", exit_code=_TERMINATED, started=began, ended=over
            )
        message = (found.message or "")[:1000]
        refused = "runtime_env" in message
        return Sighting(
            attempt=attempt,
            state="ended",
            why="refused" if refused else "lost",
            exit_code=_REFUSED if refused else _KILLED,
            message=message,
            started=began,
            ended=over,
        )

    def _node(self, node: dict[str, Any]) -> Node:
        """Ray tells how many GPUs there are and, at best, of which kind; so their ids name node and number."""
        room, name = node["resources_total"], node["node_ip"]
        kinds = [k.removeprefix("accelerator_type:") for k in room if k.startswith("accelerator_type:")]
        model = self._recognise(kinds[0]) if len(kinds) == 1 else ""
        devices = tuple(
            Device(id=f"gpu:{name}/{n}", index=n, model=model, virtual=not kinds)
            for n in range(int(room.get("GPU", 0)))
        )
        labels = node.get("labels")  # older versions have none
        return Node(
            name=name,
            cpus=int(room.get("CPU", 0) * _MILLI),
            memory=int(room.get("memory", 0)),
            devices=devices,
            **markets.bought(labels if isinstance(labels, dict) else {}),
        )

    # --- submitting

    def _submission(self, attempt: Attempt) -> dict[str, Any]:
        """Raises InvalidInput for what Ray can never run, NotFound for working files that are gone."""
        first = attempt.allotments[0]
        _refuse(bool(attempt.image), "an image: Ray's nodes have theirs", "Leave it out, or give requirements.")
        other = attempt.signal not in (signal.SIGTERM, signal.SIGINT)
        _refuse(other, f"the signal {attempt.signal}", "Choose 15 (SIGTERM) or 2 (SIGINT).")
        _refuse(
            attempt.checkpoint and not self._checkpoints,
            "a checkpoint",
            "Set MACADAM_RAY_CHECKPOINTS to a shared directory.",
        )
        alike = {(a.cpus, a.memory, _gpus(a)) for a in attempt.allotments}
        _refuse(len(alike) > 1, "members that differ", "Ask for the same for each member.")
        members = len(attempt.allotments)
        bundle = self._resources(first)
        order = Order(
            command=attempt.command,
            environment=attempt.environment,
            members=members,
            signal=attempt.signal,
            grace=attempt.grace,
            time_limit=attempt.time_limit,
            memory=first.memory,
            checkpoint=self._checkpoint(attempt.job) if attempt.checkpoint else "",
            bundle=bundle,
        )
        wanted: dict[str, Any] = {
            "submission_id": self._id(attempt.id),
            "entrypoint": _RUN,
            "metadata": self._notes(attempt, members),
            "runtime_env": self._environment(attempt, order),
        }
        return wanted | ({} if members > 1 else _of_entry_point(bundle))

    def _resources(self, allotment: Allotment) -> dict[str, float]:
        found: dict[str, float] = {"CPU": allotment.cpus / _MILLI}
        if gpus := _gpus(allotment):
            found["GPU"] = gpus
        if allotment.memory:
            found["memory"] = allotment.memory
        if self._pin:
            found[f"node:{allotment.node}"] = _PINNED
        return found

    def _environment(self, attempt: Attempt, order: Order) -> dict[str, Any]:
        told = {
            "MACADAM_ORDER": base64.b64encode(msgspec.json.encode(order)).decode(),
            "MACADAM_DRIVER": self._driver,
            "MACADAM_JOB": attempt.job,
            "MACADAM_PROJECT": attempt.project,
            "RAY_JOB_STOP_SIGNAL": signal.Signals(attempt.signal).name,
            "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(attempt.grace) + _LAST_RESORT),
        }
        found: dict[str, Any] = {"env_vars": told}
        lines = [
            line.strip() for line in attempt.requirements.splitlines() if line.strip() and not line.startswith("#")
        ]
        if lines:
            found["pip"] = {"packages": lines, "pip_check": False}
        if attempt.bundle and self._objects is not None:
            found["working_dir"] = self._upload(self._objects.get(attempt.bundle))
        return found

    def _upload(self, bundle: bytes) -> str:
        """The working files as the package that Ray unpacks on each node. Raises InvalidInput if they are no tar or too large."""
        data = _zipped(bundle)
        _refuse(len(data) > _BUNDLE, f"working files of {len(data)} bytes", "Keep large files in object storage.")
        name = f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip"
        try:
            self._call("GET", f"/api/packages/gcs/{name}")
        except NotFound:
            self._call("PUT", f"/api/packages/gcs/{name}", content=data)
        return f"gcs://{name}"

    def _notes(self, attempt: Attempt, members: int) -> dict[str, str]:
        return {
            "macadam_job": attempt.job,
            "macadam_project": attempt.project,
            "macadam_members": str(members),
            "macadam_time_limit": f"{attempt.time_limit:g}",
        }

    def _bury(self, attempt: str, *, why: str, message: str) -> bool:
        """Takes the id for something that does nothing, so that nothing else gets it. False if something has it."""
        notes = {"macadam_why": why, "macadam_message": message[:1000]}
        return self._submit({"submission_id": self._id(attempt), "entrypoint": "true", "metadata": notes})

    def _submit(self, wanted: dict[str, Any]) -> bool:
        """False if the id is taken: it was started, stopped or refused before."""
        try:
            self._call("POST", "/api/jobs/", wanted)
        except Unavailable as error:
            # Ray answers a twin with 500 and its traceback, so only its words tell it from a fault.
            if "already exists" in error.what or self._submitted(wanted["submission_id"]) is not None:
                return False
            raise
        return True

    def _find(self, attempt: str) -> _Submission | None:
        return self._submitted(self._id(attempt))

    def _submitted(self, name: str) -> _Submission | None:
        try:
            return msgspec.convert(self._call("GET", f"/api/jobs/{name}"), _Submission)
        except NotFound:
            return None
        except msgspec.ValidationError as error:
            raise self._unavailable(error) from error

    def _id(self, attempt: str) -> str:
        """Raises InvalidInput for what is no id."""
        if not _ID.match(attempt):
            raise InvalidInput(f"{attempt!r} is no attempt's id.", next_step="Give a job's id and a number: JOB.1.")
        return f"{self._prefix}{attempt}"

    def _checkpoint(self, job: str) -> str:
        return f"{self._checkpoints}/{job}"

    def _logs(self, attempt: str) -> str:
        """All that was written, without the middle of what is too long: Ray knows no pages, and a job may write without end."""
        head, tail = bytearray(), b""
        try:
            with self._http.stream("GET", f"/api/jobs/{self._id(attempt)}/logs") as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._error(answer)
                for chunk in answer.iter_bytes():
                    room = _LOG - len(head)
                    head += chunk[:room]
                    tail = (tail + chunk[room:])[-_TAIL:] if room < len(chunk) else tail
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        try:
            found = json.loads(joined(bytes(head), tail) if tail else head)
            return str(found["logs"] or "")
        except (ValueError, LookupError, TypeError) as error:
            raise self._unavailable(error) from error

    def _call(self, method: str, path: str, body: object = None, *, content: bytes | None = None) -> Any:
        try:
            answer = (
                self._http.request(method, path, json=body, content=content)
                if body is not None
                else (self._http.request(method, path, content=content))
            )
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if not answer.is_success:
            raise self._error(answer)
        try:
            return answer.json() if answer.headers.get("Content-Type", "").startswith("application/json") else None
        except ValueError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"Ray at {self._address} does not answer: {type(error).__name__}: {error}",
            next_step="Check that the cluster is up: ray status.",
        )

    def _error(self, answer: httpx.Response) -> NotFound | Unavailable:
        what = f"Ray answered {answer.status_code}: {answer.text.strip()[-500:]}"
        if answer.status_code == _MISSING:
            return NotFound(what, next_step="List what there is: ray job list.")
        if answer.status_code in (_UNAUTHENTICATED, _FORBIDDEN):
            return Unavailable(what, next_step="Set MACADAM_RAY_TOKEN to the cluster's token.")
        return Unavailable(what, next_step="Try again, and look at the head's dashboard log.")


def joined(head: bytes, tail: bytes) -> bytes:
    """The beginning and the end of a JSON document whose one string was cut in between, as a document that can be read."""
    ending = re.search(rb"(\\+)(u[0-9a-fA-F]{0,3})?\Z", head)
    if ending and len(ending[1]) % 2:  # within an escape
        head = head[: ending.end(1) - 1]
    head = head.decode(errors="ignore").encode()
    line = re.search(rb"[^\\](?:\\\\)*(?:(\\n)|\\u001e)", tail)
    begin = line.end(1) if line and line[1] else line.end() - len(rb"\u001e") if line else tail.rfind(b'"')
    return head + b"\\n... cut ...\\n" + tail[begin:]


def _of_entry_point(bundle: dict[str, float]) -> dict[str, Any]:
    """A single member runs where the driver runs, so the driver holds its resources."""
    named = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    found: dict[str, Any] = {named[k]: v for k, v in bundle.items() if k in named}
    if "entrypoint_memory" in found:
        found["entrypoint_memory"] = int(found["entrypoint_memory"])
    other = {k: v for k, v in bundle.items() if k not in named}
    return found | ({"entrypoint_resources": other} if other else {})


def _gpus(allotment: Allotment) -> float:
    """Ray gives whole GPUs, or a part of one; it chooses which."""
    parts = [milli for milli in allotment.gpus.values() if milli != _MILLI]
    _refuse(bool(parts) and len(allotment.gpus) > 1, "parts of several GPUs", "Ask for whole ones, or a part of one.")
    return sum(allotment.gpus.values()) / _MILLI


def _zipped(bundle: bytes) -> bytes:
    """A tar as a zip: regular files only, with fixed times, so that the same files make the same package."""
    made = io.BytesIO()
    try:
        with (
            tarfile.open(fileobj=io.BytesIO(bundle)) as tar,
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for member in tar:
                inside = tarfile.data_filter(member, "/nowhere")
                if inside.isfile() and (file := tar.extractfile(member)) is not None:
                    entry = zipfile.ZipInfo(inside.name.removeprefix("./"))
                    entry.external_attr = ((inside.mode or 0o644) & 0o777) << 16
                    archive.writestr(entry, file.read())
    except (tarfile.TarError, OSError) as error:
        raise InvalidInput(f"The working files cannot be unpacked: {error}", next_step="Submit them again.") from error
    return made.getvalue()


def _own_lines(text: str, rank: int | None) -> str:
    """What a member wrote, without what Ray and the driver say around it. rank: None for a single member."""
    _, found, after = text.partition(f"{BEGIN}\n")
    inside = after.partition(END)[0] if found else ""
    if rank is None:
        return inside
    mark = f"{rank}\t"
    return "".join(line.removeprefix(mark) for line in inside.splitlines(keepends=True) if line.startswith(mark))


def _report(text: str) -> _Report | None:
    """The driver's last line. A job may print one like it, so the last one counts, which is the driver's."""
    found = text.rpartition(END)
    if not found[1]:
        return None
    try:
        return msgspec.json.decode(found[2].partition("\n")[0], type=_Report)
    except msgspec.DecodeError:
        return None


def _instant(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _refuse(wrong: bool, what: str, next_step: str) -> None:  # noqa: FBT001 - the condition is the sentence's subject
    if wrong:
        raise InvalidInput(f"This cluster takes no job with {what}.", next_step=next_step)
