"""Plays a project's past as live traffic: facts become known on the replay's own clock, questions go over HTTP.

Used by the demo. Facts of a few minutes are pushed together, ahead of the questions of those minutes: the gateway answers
as of each question's instant, so what is known later is not seen earlier.
"""

import bisect
import contextlib
import http.client
import json
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from macadam.access.types import CreatePrincipal, GrantRole, IssueToken, Kind, Role
from macadam.app.platform import Platform
from macadam.errors import Unavailable
from macadam.features.types import PushRows
from macadam.journal.types import ListSegments, SealClosed
from macadam.models.types import ModelVersion, Run, ShowVersion
from macadam.serving.types import Label, RecordFeedback
from macadam.settings import Settings
from macadam.values import instant

STEP = timedelta(minutes=10)
_CALLERS = 4
_LABELS_AT_ONCE = 2000
_ROWS_AT_ONCE = 5000
_START_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Events:
    """What happened, each list in order of its instants."""

    questions: list[tuple[datetime, str, dict[str, object]]]  # instant, key, inputs
    facts: list[tuple[datetime, str, dict[str, object]]]  # instant, table, row
    labels: list[tuple[datetime, str, float]]  # instant, key of the question, label


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """predictions: ids, in the order asked. pushed: rows. seconds: for everything."""

    predictions: list[str]
    pushed: int
    seconds: float
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """Sums over the journal's segments: records sealed, and the gateway's own count of its answers."""

    records: int
    answers: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def token_for(platform: Platform, principal: str, kind: Kind, project: str, role: Role) -> str:
    """Makes a principal with one role and returns a token for a day."""
    platform.call(CreatePrincipal(principal=principal, kind=kind))
    platform.call(GrantRole(project=project, principal=principal, role=role))
    return platform.call(IssueToken(principal=principal, days=1)).token


def version_of(platform: Platform, project: str, model: str, number: int) -> ModelVersion:
    return platform.call(ShowVersion(project=project, model=model, version=str(number)))


def run_facts(run: Run) -> Iterator[tuple[str, str]]:
    """What a person wants to see of a run."""
    yield "run", run.ref
    yield "snapshots", ", ".join(run.snapshots)
    yield "code, environment", f"{run.code.archive[:19]}…, {run.environment.digest[:19]}…" if run.environment else ""
    yield "seconds, CPU seconds, peak memory", f"{run.seconds:.1f}, {run.cpu_seconds:.1f}, {run.peak_bytes >> 20} MB"
    yield "cost at the configured price", str(run.cost)


@dataclass(kw_only=True)
class Work:
    """What a gateway process took, known once it has ended. wall, cpu: seconds."""

    wall: float = 0.0
    cpu: float = 0.0


@contextlib.contextmanager
def gateway(settings: Settings, port: int, work: Work) -> Iterator[tuple[str, int]]:
    """A gateway process for the block, ready when the block begins and drained when it ends. work: filled in at the end."""
    command = [sys.executable, "-m", "macadam.serving.gateway", "--home", str(settings.home), "--port", str(port)]
    log = settings.home / "logs" / "demo-gateway.log"
    log.parent.mkdir(exist_ok=True)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 - our own gateway
    try:
        _await_ready(process, settings.server.host, port)
        yield settings.server.host, port
    finally:
        process.terminate()
        process.wait(timeout=_START_SECONDS)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # no other child ends while the block runs
        work.wall = time.monotonic() - began
        work.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _await_ready(process: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection(host, port, timeout=1)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        time.sleep(0.02)
    raise Unavailable("The gateway did not become ready.", next_step="Read logs/demo-gateway.log under the home.")


def seal(platform: Platform, project: str) -> Sealed:
    """Seals what the gateway closed, and sums up all segments of the project."""
    platform.call(SealClosed(project=project))
    segments = platform.call(ListSegments(project=project, limit=1000))
    return Sealed(records=sum(s.count for s in segments), answers=sum(s.answers for s in segments))


@dataclass(kw_only=True)
class Player:
    """Asks one endpoint as one caller. Callers share the work; each keeps one connection."""

    platform: Platform
    project: str
    endpoint: str
    address: tuple[str, int]
    token: str
    _connections: threading.local = field(default_factory=threading.local)
    _seconds: list[float] = field(default_factory=list)

    def play(self, events: Events, on_asked: Callable[[int], None]) -> Outcome:
        """Plays everything, then reports the labels that became known. Raises Unavailable if an answer is missing."""
        began = time.monotonic()
        asked: dict[str, str] = {}
        pushed = labelled = position = 0
        with ThreadPoolExecutor(_CALLERS) as pool:
            while position < len(events.questions):
                until = events.questions[position][0] + STEP
                pushed = self._push(events.facts, pushed, until)
                end = _first_from(events.questions, position, until)
                batch = events.questions[position:end]
                answers = pool.map(self._ask, [(at, inputs) for at, _, inputs in batch])
                asked.update(zip((key for _, key, _ in batch), answers, strict=True))
                on_asked(len(batch))
                labelled = self._label(events.labels, labelled, until - STEP, asked)
                position = end
        end_of_time = datetime.max.replace(tzinfo=UTC)
        pushed = self._push(events.facts, pushed, end_of_time)
        self._label(events.labels, labelled, end_of_time, asked)
        return Outcome(
            predictions=list(asked.values()),
            pushed=pushed,
            seconds=time.monotonic() - began,
            median_ms=statistics.median(self._seconds) * 1e3,
            p99_ms=statistics.quantiles(self._seconds, n=100)[-1] * 1e3,
        )

    def _push(self, facts: Sequence[tuple[datetime, str, dict[str, object]]], start: int, until: datetime) -> int:
        """Pushes the facts from `start` on that are known before `until`; returns where the rest begins."""
        end = _first_from(facts, start, until)
        by_table: dict[str, list[dict[str, object]]] = {}
        for _, table, row in facts[start:end]:
            by_table.setdefault(table, []).append(row)
        for table, rows in by_table.items():
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                part = rows[first : first + _ROWS_AT_ONCE]
                self.platform.call(PushRows(project=self.project, table=table, rows=part), token=self.token)
        return end

    def _label(
        self, labels: Sequence[tuple[datetime, str, float]], start: int, until: datetime, asked: Mapping[str, str]
    ) -> int:
        """Reports labels once there are enough for a batch, or at the end of time."""
        end = _first_from(labels, start, until)
        if end - start < _LABELS_AT_ONCE and end < len(labels):
            return start
        known = [
            Label(prediction=asked[key], label=label, at=at) for at, key, label in labels[start:end] if key in asked
        ]
        for first in range(0, len(known), _LABELS_AT_ONCE):
            part = known[first : first + _LABELS_AT_ONCE]
            self.platform.call(RecordFeedback(project=self.project, labels=part), token=self.token)
        return end

    def _ask(self, question: tuple[datetime, dict[str, object]]) -> str:
        at, inputs = question
        body = json.dumps({"inputs": inputs, "at": instant(at)}).encode()
        began = time.perf_counter()
        status, answer = self._post(body)
        self._seconds.append(time.perf_counter() - began)
        if status != http.HTTPStatus.OK:
            raise Unavailable(
                f"The gateway answered {status}: {answer.decode()[:300]}", next_step="Read logs/demo-gateway.log."
            )
        return str(json.loads(answer)["prediction"])

    def _post(self, body: bytes) -> tuple[int, bytes]:
        connection = getattr(self._connections, "open", None)
        if connection is None:
            connection = http.client.HTTPConnection(*self.address, timeout=30)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.open = connection
        path = f"/v1/projects/{self.project}/endpoints/{self.endpoint}/predict"
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def _first_from(events: "Sequence[tuple[datetime, Any, Any]]", start: int, until: datetime) -> int:
    """The position, from `start` on, of the first event at or after `until`."""
    return bisect.bisect_left(events, until, lo=start, key=lambda event: event[0])
