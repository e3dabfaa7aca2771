"""Whose a process is, and what hosts and the jobs on them use of processors and memory."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from macadam.compute.telemetry.types import Claim, Sample
from macadam.lazy import lazy

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")

_DEEPEST = 64
"""Parents looked through: a cycle, which reused ids could feign, ends here."""


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The first process of something that has an owner. Its group and all that it starts are the owner's.

    created: the process's own start, in s since the epoch as the system gives it; 0: not checked. An id that was reused
    by a younger process is nobody's.
    """

    pid: int
    project: str
    owner: str
    created: float = 0.0


def owner_of(pid: int, roots: Mapping[int, Root]) -> Claim | None:
    """Whose a process is: its own root, its group's, or that of the nearest parent. None: nobody's that is known.

    roots: by process id.
    """
    try:
        group = os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        group = 0
    for one in (pid, group, *_parents(pid)):
        root = roots.get(one)
        if root is not None and _is_same(root):
            return Claim(project=root.project, owner=root.owner)
    return None


def _parents(pid: int) -> Iterable[int]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for _ in range(_DEEPEST):
            process = process.parent()
            if process is None:
                return
            yield process.pid


def _is_same(root: Root) -> bool:
    """Whether the root's id is still its own. Systems give the start to 10 ms."""
    if not root.created:
        return True
    try:
        return bool(abs(psutil.Process(root.pid).create_time() - root.created) < 0.05)  # noqa: PLR2004 - see above
    except psutil.NoSuchProcess:
        return True  # it has ended, and what it started lives on in its group


class HostCollector:
    """Processors and memory of this machine by owner, and of the whole. Between two readings, so the first has no processors."""

    def __init__(self, *, node: str, clock: Callable[[], datetime], roots: Callable[[], Mapping[int, Root]]) -> None:
        self._node, self._clock, self._roots = node, clock, roots
        self._before: tuple[datetime, dict[int, float]] | None = None

    def read(self) -> list[Sample]:
        """One sample for each owner with processes here, and one for the rest of the machine."""
        now, roots = self._clock(), self._roots()
        times: dict[int, float] = {}
        memory: dict[tuple[str, str], int] = {}
        cores: dict[tuple[str, str], float] = {}
        elapsed = (now - self._before[0]).total_seconds() if self._before else 0.0
        for process in psutil.process_iter(["pid", "cpu_times", "memory_info"]):
            cpu, resident = process.info["cpu_times"], process.info["memory_info"]
            if cpu is None or resident is None:  # gone meanwhile, or not ours to see
                continue
            whose = owner_of(process.pid, roots) if roots else None
            key = (whose.project, whose.owner) if whose else ("", "")
            times[process.pid] = cpu.user + cpu.system
            memory[key] = memory.get(key, 0) + resident.rss
            if self._before and elapsed > 0:
                spent = times[process.pid] - self._before[1].get(process.pid, times[process.pid])
                cores[key] = cores.get(key, 0.0) + max(0.0, spent) / elapsed
        self._before = (now, times)
        total, has = psutil.virtual_memory().total, psutil.cpu_count()
        return [
            Sample(
                device=f"host:{self._node}",
                at=now,
                received=now,
                node=self._node,
                source="host",
                part=owner,
                memory_used=used,
                memory_total=total,
                host_cpu=cores.get((project, owner), 0.0) if elapsed > 0 else None,
                host_cores=float(has) if has else None,
                claims=(Claim(project=project, owner=owner, memory=used),) if owner else (),
            )
            for (project, owner), used in sorted(memory.items())
        ]
