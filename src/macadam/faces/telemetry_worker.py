"""Collects samples beside a running server, where there is anything to collect: a driver on this machine, or exporters.

On a machine with neither it ends at once and has loaded nothing. Sealing and expiry are duties of their own, since samples may
also be delivered from elsewhere.
"""

import contextlib
import importlib
import logging
import os
import socket
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from macadam.app.platform import LOCAL_TOKEN, Platform
from macadam.compute.telemetry import nvml, owners, service
from macadam.compute.telemetry.requests import DeclarePods, ExpireTelemetry, PodOwner, SealTelemetry
from macadam.compute.telemetry.store import HOUR
from macadam.compute.telemetry.types import Claim, to_table
from macadam.errors import MacadamError
from macadam.faces import logs
from macadam.values import utc_now

if TYPE_CHECKING:
    from macadam.compute.telemetry.processes import Root

_log = logging.getLogger(logs.LOGGER)
_ATTEMPT = "MACADAM_ATTEMPT"
"""What the local executor writes into the environment of a job's processes."""
_SUPERVISOR = "/macadam/adapters/supervisor.py"
_TRAINING = "macadam.models.worker"
_PARENTS = 32
_PODS = 1000


class TelemetryWorker:
    """Begins with its making. `close()` waits for the reading under way."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="macadam-telemetry", daemon=True)
        if wanted(platform):
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        kept = self._platform.settings.telemetry
        # By name: reading devices brings what a server without any must not hold in memory.
        collecting: Any = importlib.import_module("macadam.compute.telemetry.collecting")
        attempts = Attempts(self._platform)
        found = collecting.sources(
            exporters(kept.exporters),
            devices=kept.local,
            host=kept.hosts,
            node=socket.gethostname(),
            clock=utc_now,
            timeout=kept.timeout,
            owner_of=attempts.owner_of,
            roots=attempts.roots,
        )
        with collecting.Collector(found, clock=utc_now) as collector:
            while not self._stop.wait(kept.every):
                try:
                    attempts.refresh(utc_now())
                    reading = collector.read()
                    if reading.samples:
                        service.deliver(self._platform.ports, to_table(reading.samples), utc_now())
                    for source, said in reading.problems.items():
                        _log.warning("telemetry", extra={"facts": {"source": source, "detail": said[:3]}})
                except MacadamError as error:
                    _log.warning("telemetry", extra={"facts": {"code": error.code, "detail": str(error)}})
                except Exception as error:  # noqa: BLE001 - logged with its trace; the next turn tries again
                    _log.error("telemetry", exc_info=error)


def wanted(platform: Platform) -> bool:
    kept = platform.settings.telemetry
    return bool(exporters(kept.exporters) or kept.hosts or (kept.local and nvml.present()))


def exporters(text: str) -> list[str]:
    """The URLs of MACADAM_TELEMETRY_EXPORTERS."""
    return [url.strip() for url in text.split(",") if url.strip()]


class Attempts:
    """Whose a process is: a job's, if the executor marked it and its attempt holds something now, or a training's."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._known: dict[str, Claim] = {}

    def refresh(self, now: datetime) -> None:
        registry: Any = importlib.import_module("macadam.compute.jobs.registry")
        launch: Any = importlib.import_module("macadam.models.launch")
        with self._platform.ports.sql.read() as sql:
            rows = registry.between(sql, now, now + HOUR)
        trainings = launch.under_way(self._platform.settings.home)
        self._known = {row.id: Claim(project=row.project, owner=f"job:{row.job}") for row in rows} | {
            command: Claim(project=owner.project, owner=owner.run) for command, owner in trainings.items()
        }

    def owner_of(self, pid: int) -> Claim | None:
        """None: nobody's that runs now, or not ours to look at.

        A job may give what it starts another mark, but not to what it was started by: the supervisor of the attempt, from
        which nothing below it gets away, else the outermost mark.
        """
        if not self._known:
            return None
        found = ""
        with contextlib.suppress(psutil.Error):
            process: psutil.Process | None = psutil.Process(pid)
            for _ in range(_PARENTS):
                if process is None or process.pid == os.getpid():
                    return self._known.get(found)
                found = _mark(process) or found
                process = process.parent()
        return None

    def roots(self) -> "Mapping[int, Root]":
        """The first process of each attempt and training that runs here, for the accounts of the host."""
        processes: Any = importlib.import_module("macadam.compute.telemetry.processes")
        found = {}
        for process in psutil.process_iter(["pid", "create_time"]) if self._known else ():
            whose = self.owner_of(process.pid)
            if whose is not None:
                found[process.pid] = processes.Root(
                    pid=process.pid,
                    project=whose.project,
                    owner=whose.owner,
                    created=process.info["create_time"] or 0.0,
                )
        return found


def _mark(process: psutil.Process) -> str:
    """The attempt that a process says it is of, or the task of its training; '' if it says nothing, or not to us."""
    with contextlib.suppress(psutil.AccessDenied):
        command = process.cmdline()
        if len(command) > 1 and command[-2].endswith(_SUPERVISOR):
            return Path(command[-1]).name
        if _TRAINING in command:
            return str(command[-1])
        return str(process.environ().get(_ATTEMPT, ""))
    return ""


def know_pods(platform: Platform) -> None:
    """A duty: says whose the pods are that the Kubernetes executor started; there, nothing else tells whose a GPU is."""
    settings = platform.settings
    if settings.jobs.executor != "kubernetes":
        return
    clusters: Any = importlib.import_module("macadam.compute.jobs.clusters")
    with platform.ports.sql.read() as sql:
        known = owners.known_pods(sql)
    # A call leaves a leaf, so what is known already is not said again.
    new = [pod for pod in clusters.pod_owners(settings.clusters) if known.get((pod.namespace, pod.name)) != pod]
    token = platform.ports.secrets.get(LOCAL_TOKEN).decode()
    for at in range(0, len(new), _PODS):
        told = tuple(PodOwner(**msgspec.structs.asdict(pod)) for pod in new[at : at + _PODS])
        platform.call(DeclarePods(pods=told), token=token)


def seal(platform: Platform) -> None:
    """A duty: seals the hours that are over, if any has deliveries."""
    if service.due(platform.ports, utc_now()):
        sealed = platform.call(SealTelemetry(), token=platform.ports.secrets.get(LOCAL_TOKEN).decode())
        for problem in (*sealed.set_aside, *sealed.stuck):
            _log.error("telemetry is not sealed", extra={"facts": {"detail": problem}})


def expire(platform: Platform) -> None:
    """A duty: removes what is past its retention, and what kills left, if anything is."""
    if left := service.sweep(platform.ports, utc_now()):
        _log.info("telemetry", extra={"facts": {"detail": f"{left} files that no seal finished are removed"}})
    with platform.ports.sql.read() as sql:
        over = service.overdue(sql, platform.ports, utc_now())
    if over:
        platform.call(ExpireTelemetry(), token=platform.ports.secrets.get(LOCAL_TOKEN).decode())
