"""A day of a thousand GPUs every 15 s: taken in, judged, sealed, and asked about. And how fast a scrape is parsed."""

import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

from benchmarks import _fleet
from benchmarks.report import Figure, median_of
from macadam.access.types import CreateProject
from macadam.compute.telemetry import exposition, service
from macadam.compute.telemetry.dcgm import Translator
from macadam.compute.telemetry.requests import DeclarePods, ListFindings, PodOwner, ReadUsage, SealTelemetry
from macadam.testing import Clock, open_platform
from macadam.values import utc_now

GPUS, HOURS = 1000, 24
_ROUNDS = 7


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        return [*_series(Path(directory)), *_scrapes()]


def _series(home: Path) -> list[Figure]:
    clock = Clock(_fleet.START + timedelta(hours=HOURS, minutes=10))
    with open_platform(home / "home", clock=clock) as platform:
        pods = tuple(
            PodOwner(
                namespace=f"team-{n % _fleet.PROJECTS}",
                name=f"train-{n // 4}",
                project=f"team-{n % _fleet.PROJECTS}",
                owner=f"job:{n // 4}",
            )
            for n in range(GPUS)
        )
        for number in range(_fleet.PROJECTS):
            platform.call(CreateProject(project=f"team-{number}"))
        platform.call(DeclarePods(pods=pods))
        delivering, processor, samples = 0.0, 0.0, 0
        counters = np.full(GPUS, 1e6)
        for number in range(HOURS):
            table = _fleet.hour(counters, number)
            began, spent = time.perf_counter(), time.process_time()
            samples += service.deliver(platform.ports, table, clock()).samples
            delivering += time.perf_counter() - began
            processor += time.process_time() - spent
        began, spent = time.perf_counter(), time.process_time()
        sealed = platform.call(SealTelemetry())
        sealing = time.perf_counter() - began
        processor += time.process_time() - spent
        found = platform.call(ListFindings(project="*", start=_fleet.START, end=clock()))
        size = sum(f.stat().st_size for f in (home / "home" / "telemetry").rglob("*.parquet"))
        kept = sum(f.stat().st_size for f in (home / "home" / "telemetry" / "minute").rglob("*.parquet"))
        assert len(sealed.hours) == HOURS, sealed
        assert not [f for f in found if f.suspect], found[:3]

        def query(**asked: object) -> float:
            began = time.perf_counter()
            request = ReadUsage(start=_fleet.START, end=_fleet.START + timedelta(days=1), **asked)  # type: ignore[arg-type]
            assert platform.call(request)
            return (time.perf_counter() - began) * 1000

        device = "gpu:GPU-000001f4-aaaa-4bbb-8ccc-dddddddddddd"
        queries = {
            "per project per hour": [query(project="*") for _ in range(_ROUNDS)],
            "one project by owner": [query(project="team-3", by="owner") for _ in range(_ROUNDS)],
            "one GPU's day by minute": [
                query(project="*", by="device", step="minute", device=device) for _ in range(_ROUNDS)
            ],
        }
    note = f"{samples:,.0f} samples of {GPUS} GPUs; delivering {delivering:.1f} s, judging and sealing {sealing:.1f} s"
    return [
        Figure(name="a day taken in", value=delivering + sealing, unit="s", at_most=60, note=note),
        Figure(
            name="processor time of it", value=processor, unit="s", note="all threads: what a busy machine leaves alone"
        ),
        Figure(name="on disk, per sample", value=size / samples, unit="bytes", note="raw, minutes and hours together"),
        Figure(name="minutes of a day", value=kept / 1e6, unit="MB", note="what stays after two days"),
        *(
            Figure(name=f"query: {name}", value=median_of(taken), unit="ms", at_most=200, note="through the operation")
            for name, taken in queries.items()
        ),
    ]


def _scrapes() -> list[Figure]:
    """One node of 8 GPUs with 20 fields each, scraped again and again."""
    fields = ["DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_USED"] * 5
    names = [name if n < 4 else f"{name}_{n}" for n, name in enumerate(fields)]
    lines = [
        f'{name}{{gpu="{g}",UUID="GPU-{g:08x}",device="nvidia{g}",modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",'
        f'container="main",namespace="team",pod="train-{g}"}} 0.5'
        for name in names
        for g in range(8)
    ]
    text = ("\n".join(lines) + "\n").encode()
    parser, translator = exposition.Parser(), Translator(source="dcgm")
    taken = []
    for _ in range(200):
        began = time.perf_counter()
        scrape = parser.parse(text)
        translator.samples(scrape.readings, now=utc_now())
        taken.append(time.perf_counter() - began)
    rate = len(lines) / median_of(taken)
    needed = GPUS * len(names) / _fleet.EVERY
    return [
        Figure(
            name="scrape parsed",
            value=rate / 1000,
            unit="k lines/s",
            note=f"{needed / 1000:.1f} k lines/s is {GPUS} GPUs",
        )
    ]
