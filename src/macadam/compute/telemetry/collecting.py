"""Reads all sources of one machine's collector in turn: its own devices, exporters, and the processes of the host.

A source that fails is named and read again at the next turn; the others do not wait for it longer than its time limit.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol, Self

import msgspec

from macadam.compute.telemetry import nvml
from macadam.compute.telemetry.fetch import Exporter
from macadam.compute.telemetry.nvml import NvmlCollector, OwnerOf
from macadam.compute.telemetry.processes import HostCollector, Root
from macadam.compute.telemetry.types import Sample
from macadam.errors import MacadamError

_MOST_THREADS = 16


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

    def __init__(self, sources: Iterable[Source], *, clock: Callable[[], datetime]) -> None:
        self._sources, self._clock = tuple(sources), clock

    def read(self) -> Reading:
        """All sources at once: a slow one costs its own time only."""
        samples: list[Sample] = []
        problems: dict[str, tuple[str, ...]] = {}
        with ThreadPoolExecutor(max_workers=max(1, min(_MOST_THREADS, len(self._sources)))) as pool:
            for source, (found, said) in zip(self._sources, pool.map(self._one, self._sources), strict=True):
                samples += found
                if said:
                    problems[source.name] = tuple(said)
        return Reading(samples=tuple(samples), problems=problems)

    def _one(self, source: Source) -> tuple[list[Sample], list[str]]:
        try:
            return source.read(self._clock())
        except MacadamError as error:
            return [], [str(error)]

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


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
