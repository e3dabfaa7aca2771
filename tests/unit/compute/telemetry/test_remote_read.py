"""Remote read: what a Prometheus remembers becomes samples, over real HTTP, in both of its encodings; what is broken is said."""

import gzip
import re
import shutil
import socket
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.telemetry import prometheus
from unit.compute.telemetry.prometheus import PLAIN, STALE, STREAMED, Stored, plain_answer, streamed_answer

from macadam.compute.telemetry import fetch, remote_read, wire
from macadam.compute.telemetry.dcgm import FIELDS
from macadam.compute.telemetry.fetch import Exporter
from macadam.errors import InvalidInput, MacadamError, SourceInvalid, TooLarge, Unavailable
from macadam.values import utc_now

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
END = START + timedelta(hours=1)
NOW = START + timedelta(days=1)
FIRST = int(START.timestamp() * 1000)
LABELS = {
    "UUID": "GPU-aa",
    "modelName": "NVIDIA H100 80GB HBM3",
    "Hostname": "node-1",
    "exported_pod": "train-0",
    "exported_namespace": "ml",
    "exported_container": "main",
    "instance": "10.0.0.1:9400",
    "job": "dcgm",
}


def stored() -> Stored:
    """Three fields of one device every 15 s, and one sample after the end, as a chunk may hold."""
    at = [FIRST + n * 15_000 + n % 3 for n in range(241)] + [FIRST + 3_700_000]
    fields = {
        "DCGM_FI_DEV_GPU_UTIL": [float(n % 101) for n in range(len(at))],
        "DCGM_FI_PROF_SM_ACTIVE": [0.5 + 0.001 * n for n in range(len(at))],
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": [1e9 + 9e6 * n for n in range(len(at))],
    }
    return [({**LABELS, "__name__": name}, list(zip(at, values, strict=True))) for name, values in fields.items()]


def served(body: bytes, kind: str, status: int = 200) -> Any:
    return prometheus.server(lambda _asked: (status, kind, body))


@pytest.mark.parametrize(("kind", "encode"), [(PLAIN, plain_answer), (STREAMED, streamed_answer)])
def test_history_becomes_samples_in_either_encoding(kind: str, encode: Any) -> None:
    asked: list[Any] = []

    def answer(request: Any) -> tuple[int, str, bytes]:
        asked.append(request)
        return 200, kind, encode(stored())

    with prometheus.server(answer) as url:
        samples, problems = fetch.history(url, START, END, now=NOW, timeout=5)
    (request,) = asked
    (query,) = request.queries
    assert (query.start_timestamp_ms, query.end_timestamp_ms) == (FIRST, FIRST + 3_600_000)
    assert list(request.accepted_response_types) == [1, 0]
    (matcher,) = query.matchers
    assert (matcher.name, matcher.type) == ("__name__", 2)
    assert all(re.fullmatch(matcher.value, name) for name in FIELDS)
    assert problems.count == 0
    assert len(samples) == 241
    first, tenth = samples[0], samples[10]
    assert (first.device, first.node, first.pod, first.namespace) == ("gpu:GPU-aa", "node-1", "train-0", "ml")
    assert (first.at, first.received, first.source) == (START, None, "prometheus")
    assert tenth.at == START + timedelta(seconds=150, milliseconds=1)
    assert (tenth.gpu_active, tenth.sm_active, tenth.energy) == (0.1, 0.51, 1_090_000_000)


def test_the_end_of_a_series_is_no_measurement() -> None:
    labels = {**LABELS, "__name__": "DCGM_FI_DEV_GPU_UTIL"}
    with served(streamed_answer([(labels, [(FIRST, 50.0), (FIRST + 15_000, STALE)])]), STREAMED) as url:
        samples, _ = fetch.history(url, START, END, now=NOW, timeout=5)
    assert [s.gpu_active for s in samples] == [0.5]


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(-(10**6), 10**9) | st.integers(0, 20_000),
            st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, 0.1, 5e-324, 1.7e308]),
        ),
        max_size=40,
    )
)
def test_a_chunk_is_read_back_bit_by_bit(steps: list[tuple[int, float]]) -> None:
    at, samples = FIRST, []
    for step, value in steps:
        at += abs(step)  # times never go back within a chunk
        samples.append((at, value))
    found = wire.xor_chunk(prometheus.xor_chunk(samples))
    assert [(t, struct.pack(">d", v)) for t, v in found] == [(t, struct.pack(">d", v)) for t, v in samples]


@pytest.mark.parametrize("width", [14, 17, 20])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_step_that_changes_by_what_just_fits_is_read_back(width: int, off: int) -> None:
    step, edge = 10**7, (1 << (width - 1)) + off
    at = [FIRST, FIRST + step, FIRST + 2 * step + edge, FIRST + 3 * step + edge - edge]
    samples = [(t, 1.0) for t in at]
    assert wire.xor_chunk(prometheus.xor_chunk(samples)) == samples


BROKEN = {
    "not compressed": (b"\xff\xff plain", PLAIN),
    "cut within a frame": (streamed_answer(stored())[:-7], STREAMED),
    "a changed byte": (streamed_answer(stored())[:200] + b"\x00" + streamed_answer(stored())[201:], STREAMED),
    "a changed label": (streamed_answer(stored()).replace(b"GPU-aa", b"GPU-ab"), STREAMED),
    "no checksum": (b"\x05", STREAMED),
    "a cut message": (prometheus.frame(b"\x0a\x7f\x01"), STREAMED),
    "a chunk that ends early": (
        prometheus.frame(
            prometheus.MESSAGES["ChunkedReadResponse"](
                chunked_series=[{"chunks": [{"type": 1, "data": b"\x00\x05\x01"}]}]
            ).SerializeToString()
        ),
        STREAMED,
    ),
    "a histogram": (
        prometheus.frame(
            prometheus.MESSAGES["ChunkedReadResponse"](
                chunked_series=[{"chunks": [{"type": 2, "data": b"\x00\x05\x01"}]}]
            ).SerializeToString()
        ),
        STREAMED,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_an_error_and_never_a_shorter_history(name: str) -> None:
    body, kind = BROKEN[name]
    with served(body, kind) as url, pytest.raises(SourceInvalid):
        fetch.history(url, START, END, now=NOW, timeout=5)


def test_an_answer_that_says_it_is_huge_is_refused_before_it_is_unpacked() -> None:
    with served(wire.put_uvarint(1 << 40) + b"x", PLAIN) as url, pytest.raises(TooLarge):
        fetch.history(url, START, END, now=NOW, timeout=5)


def test_a_server_that_refuses_or_is_not_there_is_named() -> None:
    with served(b"no", PLAIN, status=404) as url, pytest.raises(SourceInvalid, match="status 404"):
        fetch.history(url, START, END, now=NOW, timeout=5)
    with pytest.raises(Unavailable, match="cannot be read"):
        fetch.history(url, START, END, now=NOW, timeout=5)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "node:9400/metrics", "http://", "ftp://x/y", "http://[bad"])
def test_only_http_is_fetched(url: str) -> None:
    with pytest.raises(InvalidInput, match="no URL"):
        Exporter(url, timeout=1)


def test_an_exporter_is_scraped_over_http_and_told_apart_from_nonsense() -> None:
    text = 'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-aa"} 42\nnonsense{\n'
    with served(text.encode(), "text/plain") as url, Exporter(url, timeout=5) as exporter:
        (seen,), problems = exporter.read(NOW)
    assert (seen.gpu_active, seen.at, seen.received) == (0.42, NOW, NOW)
    assert problems.count == 1
    assert "line 2" in problems.named[0]


def test_an_exporter_that_sends_us_elsewhere_is_not_followed() -> None:
    def redirect(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        return httpx.Response(302, headers={"location": "http://169.254.169.254/latest"})

    transport = httpx.MockTransport(redirect)
    with (
        Exporter("http://exporter:9400/metrics", timeout=1, transport=transport) as exporter,
        pytest.raises(SourceInvalid, match="status 302"),
    ):
        exporter.read(NOW)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_read, "MOST_BYTES", 1000)
    with served(streamed_answer(stored()), STREAMED) as url, pytest.raises(MacadamError, match="more than 1000 bytes"):
        fetch.history(url, START, END, now=NOW, timeout=5)


def answering(body: bytes, **headers: str) -> Exporter:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=httpx.ByteStream(body)))
    return Exporter("http://exporter:9400/metrics", timeout=5, transport=transport)


def test_a_scrape_may_be_compressed_and_must_be_whole() -> None:
    packed = gzip.compress(b'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-aa"} 42\n')
    with answering(packed, **{"content-encoding": "gzip"}) as exporter:
        assert exporter.read(NOW)[0][0].gpu_active == 0.42
    for broken in (packed[:-9], b"not gzip"):
        with answering(broken, **{"content-encoding": "gzip"}) as exporter, pytest.raises(SourceInvalid, match="gzip"):
            exporter.read(NOW)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_is_never_unpacked(layers: int) -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024), 1)
    encoding = "gzip"
    for _ in range(layers - 1):
        bomb, encoding = gzip.compress(bomb), f"{encoding}, gzip"
    tracemalloc.start()
    try:
        with answering(bomb, **{"content-encoding": encoding}) as exporter, pytest.raises((TooLarge, SourceInvalid)):
            exporter.read(NOW)
        assert tracemalloc.get_traced_memory()[1] < 150 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_an_exporter_that_drips_costs_its_time_limit_and_no_more() -> None:
    class Drip(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                time.sleep(0.01)
                yield b"#"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Drip()))
    began = time.monotonic()
    with (
        Exporter("http://exporter:9400/metrics", timeout=0.2, transport=transport) as exporter,
        pytest.raises(Unavailable, match="whole"),
    ):
        exporter.read(NOW)
    assert time.monotonic() - began < 2


def test_more_samples_than_an_answer_can_have_are_refused_before_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_read, "MOST_SAMPLES", 500)
    with served(streamed_answer(stored()), STREAMED) as url, pytest.raises(TooLarge, match="samples"):
        fetch.history(url, START, END, now=NOW, timeout=5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("prometheus"), reason="no `prometheus` is installed (Debian: apt install prometheus)"
)
def test_a_real_prometheus_remembers_what_a_real_scrape_said(tmp_path: Path) -> None:
    scraped = [0]

    def metrics(_request: Any) -> tuple[int, str, bytes]:
        scraped[0] += 1
        text = f'DCGM_FI_DEV_GPU_UTIL{{UUID="GPU-aa",Hostname="node-1"}} {scraped[0]}\n'
        text += f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{UUID="GPU-aa",Hostname="node-1"}} {scraped[0] * 1e6}\n'
        return 200, "text/plain; version=0.0.4", text.encode()

    port = _free_port()
    with prometheus.server(metrics) as exporter:
        target = exporter.removeprefix("http://").removesuffix("/api/v1/read")
        config = tmp_path / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: dcgm, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
        began = utc_now()
        running = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            limit = time.monotonic() + 30
            while scraped[0] < 12:
                assert time.monotonic() < limit, "Prometheus does not scrape"
                time.sleep(0.05)
            end = utc_now()
            url = f"http://127.0.0.1:{port}/api/v1/read"
            samples, problems = fetch.history(url, began, end, now=end, timeout=10)
        finally:
            running.terminate()
            running.wait()
    assert problems.count == 0
    seen = [round((s.gpu_active or 0) * 100) for s in samples]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= 11
    assert [s.energy for s in samples] == [n * 10**6 for n in seen]
    assert {(s.device, s.node) for s in samples} == {("gpu:GPU-aa", "node-1")}
