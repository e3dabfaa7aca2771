"""Whatever bytes an exporter, a Prometheus or a recording gives: samples or a declared refusal, never a crash or a made-up value."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.mutate import fuzz, inputs
from unit.compute.telemetry import prometheus

from macadam.compute.telemetry import fold, recordings, remote_read
from macadam.compute.telemetry.dcgm import Translator
from macadam.compute.telemetry.exposition import Parser
from macadam.compute.telemetry.types import RATES, THROTTLED, Sample, to_table
from macadam.compute.waterfall import energy, profiles
from macadam.compute.waterfall.energy import Span
from macadam.errors import InvalidInput, SourceInvalid, TooLarge

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LABELS = 'gpu="0",UUID="GPU-aa",modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",pod="train-0",namespace="ml"'
SCRAPE = (
    "# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).\n# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n"
    f"DCGM_FI_DEV_GPU_UTIL{{{LABELS}}} 97\n"
    f"DCGM_FI_PROF_SM_ACTIVE{{{LABELS}}} 0.81 1763640000000\n"
    f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{LABELS}}} 1.5e+10\n"
    f'DCGM_FI_DEV_FB_USED{{{LABELS},GPU_I_ID="7"}} 40000\nDCGM_FI_DEV_FB_FREE{{{LABELS},GPU_I_ID="7"}} 41000\n'
    f"DCGM_FI_DEV_CLOCKS_EVENT_REASONS{{{LABELS}}} 68\n"
    f"DCGM_FI_PROF_NVLINK_TX_BYTES{{{LABELS}}} 2e11\nDCGM_FI_PROF_NVLINK_RX_BYTES{{{LABELS}}} 1e11\n"
    f'DCGM_FI_DEV_POWER_USAGE{{{LABELS},GPU_I_PROFILE="3g.40gb",GPU_I_ID="7"}} 400\n'
).encode()


def judged(samples: list[Sample]) -> None:
    """What was taken can be judged and folded, and every number that comes out is one."""
    if not samples:
        return
    begin = int((NOW - timedelta(hours=1)).timestamp()) * 1_000_000
    usage = fold.fold(to_table(samples), begin, begin + 7_200_000_000, pods={}, holdings=()).usage
    for row in usage.to_pylist():
        assert 0 < row["seconds"] <= 60
        assert 0 <= row["share"] <= 1 + 1e-9
        for name in ("gpu_active", "sm_active", "energy_joules", *RATES, *THROTTLED, "slice", "host_cores"):
            assert row[name] is None or math.isfinite(row[name])
            assert row["suspect"] or row[name] is None or row[name] >= 0
        assert sum(row[name] or 0.0 for name in THROTTLED) <= 1 + 1e-6
        assert row["slice"] is None or 0 < row["slice"] <= 1
    profiles.by_owner(usage)
    energy.by_owner(usage, pue=Span.exactly(1), grams_per_kwh=None)


def scrape(data: bytes) -> str:
    parsed = Parser().parse(data)
    assert len(parsed.named) <= parsed.malformed
    samples, problems = Translator(source="dcgm").samples(parsed.readings, now=NOW)
    before = [sample for sample in samples if sample.at == NOW]
    earlier = [Sample(device=s.device, part=s.part, at=NOW - timedelta(seconds=15)) for s in before]
    judged([*earlier, *before])
    why = parsed.named[0].why[:20] if parsed.named else ""
    return f"{len(samples)} samples, {problems.count} problems, {why}"


def test_no_scrape_makes_the_parser_fail_or_a_number_up() -> None:
    corpus = [
        SCRAPE,
        SCRAPE + b"# EOF\n",
        b'a{b="c"} 1 # {d="e"} 2\n',
        b"",
        b"DCGM_FI_DEV_GPU_TEMP 9223372036854775794",
    ]
    words = [b"NaN", b"+Inf", b'",', b"}", b"{", b"\\n", b"\\", b"GPU-aa", b"9223372036854775794", b" ", b"\n", b"\xff"]
    ran = fuzz(scrape, corpus, count=inputs(500), words=words)
    assert any(ending.startswith("2 samples, 0 problems") or "1 samples" in ending for ending in ran.endings)
    assert any("no label" in ending for ending in ran.endings)


SERIES = [
    (
        {"__name__": "DCGM_FI_DEV_GPU_UTIL", "UUID": "GPU-aa"},
        [(int(NOW.timestamp() * 1000) + n * 15_000, 0.1 * n) for n in range(9)],
    ),
    ({"__name__": "DCGM_FI_DEV_POWER_USAGE", "UUID": "GPU-aa"}, [(int(NOW.timestamp() * 1000), 5e-324)]),
]


def remote(kind: str, data: bytes) -> str:
    try:
        readings = list(remote_read.readings(data, kind, NOW - timedelta(days=1), NOW + timedelta(days=1)))
    except (SourceInvalid, TooLarge) as error:
        return error.what[:90]
    samples, _ = Translator(source="prometheus").samples(readings, now=NOW, live=False)
    judged(samples)
    return f"accepted {len(readings)}"


def test_no_plain_answer_makes_the_reader_fail() -> None:
    corpus = [prometheus.plain_answer(SERIES), prometheus.plain_answer([]), b""]
    ran = fuzz(lambda data: remote(prometheus.PLAIN, data), corpus, count=inputs(2_000))
    assert any(ending.startswith("accepted") for ending in ran.endings)
    assert any("not compressed" in ending for ending in ran.endings)


def test_no_message_behind_a_right_checksum_makes_the_reader_fail() -> None:
    """A changed byte would be caught by the checksum, so frames are made anew around what was changed."""
    whole = prometheus.streamed_answer(SERIES)
    corpus, at = [], 0
    while at < len(whole):
        length = whole[at] if whole[at] < 0x80 else (whole[at] & 0x7F) | whole[at + 1] << 7
        at += (1 if whole[at] < 0x80 else 2) + 4
        corpus.append(whole[at : at + length])
        at += length
    ran = fuzz(lambda data: remote(prometheus.STREAMED, prometheus.frame(data)), corpus, count=inputs(1_200))
    assert any(ending.startswith("accepted") for ending in ran.endings)
    assert any("chunk" in ending for ending in ran.endings)


def test_no_stream_is_believed_whose_checksum_does_not_fit() -> None:
    whole = prometheus.streamed_answer(SERIES)

    def check(data: bytes) -> str:
        ending = remote(prometheus.STREAMED, data)
        # Whole frames may be cut off at the end or repeated; one that was changed must not pass.
        assert not ending.startswith("accepted") or data in (whole[: len(data)], whole) or len(data) != len(whole)
        return ending

    fuzz(check, [whole], count=inputs(2_000))


def test_no_recording_makes_the_reader_fail() -> None:
    line = (
        b'{"device":"gpu:a","at":"2026-11-20T12:00:00Z","gpu_active":0.5,"claims":[{"project":"p","owner":"job:1"}]}\n'
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seen.jsonl"

        def check(data: bytes) -> str:
            path.write_bytes(data)
            try:
                samples = [s for piece, _ in recordings.read(path, now=NOW) for s in piece]
                judged(samples)
            except (SourceInvalid, InvalidInput) as error:
                return error.what[-40:]
            return f"accepted {len(samples)}"

        ran = fuzz(
            check, [line, line * 2, b""], count=inputs(1_000), words=[b"null", b"NaN", b'"at":', b"1e400", b"-1"]
        )
    assert any(ending.startswith("accepted 2") for ending in ran.endings)
