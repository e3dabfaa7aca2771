"""Reports what the gateway beside a server took, by endpoint: it answers in a process of its own, by no operation.

Its processor time between two looks is shared by the answers that each endpoint gave in between. Without answers nothing is reported:
idle time is in no stage.
"""

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macadam.app.platform import LOCAL_TOKEN, Platform
from macadam.compute.waterfall.requests import RecordWork
from macadam.errors import Unavailable
from macadam.faces import gateway_process
from macadam.lazy import lazy
from macadam.settings import Server
from macadam.values import utc_now

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")

Endpoint = tuple[str, str]
"""Project and name."""
_COUNT = re.compile(
    r'^macadam_gateway_requests_total\{project="([^"]*)",endpoint="([^"]*)",status="200"\} (\d+)$', re.MULTILINE
)
_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of a gateway. created: of its process; at: seconds since 1970; cpu: seconds; answers: with status 200."""

    pid: int
    created: float
    at: float
    cpu: float
    answers: Mapping[Endpoint, int]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One endpoint's part of the time between two looks. wall, cpu: seconds."""

    endpoint: Endpoint
    calls: int
    wall: float
    cpu: float


def parts(before: Look | None, now: Look) -> list[Part]:
    """What happened between two looks at one process; for another process than before, since its start."""
    same = before is not None and (before.pid, before.created) == (now.pid, now.created)
    known = before.answers if before is not None and same else {}
    began, spent = (before.at, before.cpu) if before is not None and same else (now.created, 0.0)
    calls = {endpoint: count - known.get(endpoint, 0) for endpoint, count in now.answers.items()}
    total = sum(max(0, count) for count in calls.values())
    return [
        Part(
            endpoint=endpoint,
            calls=count,
            wall=max(0.0, now.at - began) * count / total,
            cpu=max(0.0, now.cpu - spent) * count / total,
        )
        for endpoint, count in sorted(calls.items())
        if count > 0
    ]


def counts(metrics: str) -> dict[Endpoint, int]:
    """Answers by endpoint, out of the gateway's own metrics."""
    return {(project, endpoint): int(count) for project, endpoint, count in _COUNT.findall(metrics)}


class GatewayMeter:
    """A duty: remembers its last look."""

    def __init__(self) -> None:
        self._last: Look | None = None

    def __call__(self, platform: Platform) -> None:
        """Raises Unavailable if the gateway runs and does not answer."""
        seen = look(platform)
        if seen is None:
            return
        token = platform.ports.secrets.get(LOCAL_TOKEN).decode()
        for part in parts(self._last, seen):
            project, endpoint = part.endpoint
            work = RecordWork(
                project=project, subject=f"endpoint:{endpoint}", calls=part.calls, wall=part.wall, cpu=part.cpu
            )
            platform.call(work, token=token)
        self._last = seen


def look(platform: Platform) -> Look | None:
    """At the gateway of this home; None if there is none. Raises Unavailable."""
    process = gateway_process.running(platform.settings.home)
    if process is None:
        return None
    try:
        times, created = process.cpu_times(), process.create_time()
    except psutil.NoSuchProcess:
        return None
    answers = counts(_metrics(platform.settings.server))
    return Look(
        pid=process.pid,
        created=created,
        at=utc_now().timestamp(),
        cpu=times.user + times.system,
        answers=answers,
    )


def _metrics(server: Server) -> str:
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::", "") else server.host  # noqa: S104 - compared, not bound
    connection = http.client.HTTPConnection(host, server.gateway_port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"The gateway's metrics cannot be read: {error}.", next_step="Look at logs/gateway.log under the home."
        ) from error
    finally:
        connection.close()
