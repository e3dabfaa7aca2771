"""Reads all sources of one machine's collector in turn: its own devices, exporters, and the processes of the host.

A source that fails is named and read again at the next turn. One that hangs, as a broken driver does, is named at each turn and
not asked again before it answers; the others do not wait for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Protocol, Self

import msgspec

from macadam.compute.telemetry import nvml
from macadam.compute.telemetry.fetch import Exporter
from macadam.compute.telemetry.nvml import NvmlCollector, OwnerOf
from macadam.compute.telemetry.processes import HostCollector, Root
from macadam.compute.telemetry.types import Sample
from macadam.errors import MacadamError

_PATIENCE = 30.0
"""Seconds of one turn: several times what an exporter may take."""


class Source(Protocol):
    """Something that samples are read from. Raises MacadamError if it cannot be read now."""

    name: str

    def read(self, now: datetime) -> tuple[list[Sample], list[str]]:
        """Samples, and what was left out of them, in words."""
        ...

    def close(self) -> None: ...


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. problems: by source, what failed or was left out."""

    samples: tuple[Sample, ...]
    problems: dict[str, tuple[str, ...]]


class Collector:
    """Close it, or use it as a context manager."""

    def __init__(
        self, sources: Iterable[Source], *, clock: Callable[[], datetime], patience: float = _PATIENCE
    ) -> None:
        """patience: s that one turn waits for all of them."""
        self._asked, self._patience = [_Asked(source, clock) for source in sources], patience

    def read(self) -> Reading:
        """All sources at once: a slow one costs its own time only."""
        for one in self._asked:
            one.ask()
        limit = time.monotonic() + self._patience
        samples: list[Sample] = []
        problems: dict[str, tuple[str, ...]] = {}
        for one in self._asked:
            found, said = one.answer(max(0.0, limit - time.monotonic()))
            samples += found
            if said:
                problems[one.source.name] = tuple(said)
        return Reading(samples=tuple(samples), problems=problems)

    def close(self) -> None:
        """What hangs is left as it is: closing it would hang too."""
        for one in self._asked:
            if not one.hangs:
                one.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Asked:
    """A source and the question that is under way, in a thread that keeps no program from ending."""

    def __init__(self, source: Source, clock: Callable[[], datetime]) -> None:
        self.source, self._clock = source, clock
        self._thread: threading.Thread | None = None
        self._since = 0.0
        self._found: tuple[list[Sample], list[str]] = ([], [])
        self._error: Exception | None = None

    @property
    def hangs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def ask(self) -> None:
        """Unless it still owes an answer."""
        if self._thread is None:
            self._since, self._found, self._error = time.monotonic(), ([], []), None
            self._thread = threading.Thread(target=self._read, name=f"read {self.source.name}", daemon=True)
            self._thread.start()

    def answer(self, seconds: float) -> tuple[list[Sample], list[str]]:
        """What it said, or that it has not; raises what it raised beyond what sources may."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return [], [f"It has not answered for {time.monotonic() - self._since:.0f} s."]
            self._thread = None
        if self._error is not None:
            raise self._error
        return self._found

    def _read(self) -> None:
        try:
            self._found = self.source.read(self._clock())
        except MacadamError as error:
            self._found = [], [str(error)]
        except Exception as error:  # noqa: BLE001 - raised again where the answer is taken
            self._error = error


class LocalDevices:
    """NVIDIA devices of this machine. Raises Unavailable without a driver."""

    name = "nvml"

    def __init__(self, *, node: str, clock: Callable[[], datetime], owner_of: OwnerOf) -> None:
        self._collector = NvmlCollector(nvml.library(), node=node, clock=clock, owner_of=owner_of)

    def read(self, _now: datetime) -> tuple[list[Sample], list[str]]:
        return self._collector.read(), []

    def close(self) -> None:
        self._collector.close()


class Scraped:
    """One dcgm-exporter."""

    def __init__(self, url: str, *, timeout: float) -> None:
        self.name = url
        self._exporter = Exporter(url, timeout=timeout)

    def read(self, now: datetime) -> tuple[list[Sample], list[str]]:
        samples, problems = self._exporter.read(now)
        more = problems.count - len(problems.named)
        return samples, [*problems.named, *([f"and {more} more"] if more > 0 else [])]

    def close(self) -> None:
        self._exporter.close()


class LocalHost:
    """Processors and memory of this machine, by owner."""

    name = "host"

    def __init__(
        self, *, node: str, clock: Callable[[], datetime], roots: Callable[[], Mapping[int, Root]] = dict
    ) -> None:
        self._collector = HostCollector(node=node, clock=clock, roots=roots)

    def read(self, _now: datetime) -> tuple[list[Sample], list[str]]:
        return self._collector.read(), []

    def close(self) -> None:
        """Nothing is held."""


def sources(
    exporters: Iterable[str],
    *,
    devices: bool,
    host: bool,
    node: str,
    clock: Callable[[], datetime],
    timeout: float,
    owner_of: OwnerOf,
    roots: Callable[[], Mapping[int, Root]] = dict,
) -> list[Source]:
    """What there is to read. devices: this machine's, if it has a driver. Raises InvalidInput for what is no URL."""
    found: list[Source] = [Scraped(url, timeout=timeout) for url in exporters]
    if devices and nvml.present():
        with contextlib.suppress(MacadamError):  # device files without a driver: nothing is there to be read
            found.append(LocalDevices(node=node, clock=clock, owner_of=owner_of))
    if host:
        found.append(LocalHost(node=node, clock=clock, roots=roots))
    return found


def nobody(_pid: int) -> None:
    """Whose a process is, where nobody can know."""
