"""Scrapes: what is a sample, what is not, and what dcgm-exporter's labels mean in their several ways."""

import csv
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.telemetry.dcgm import FIELDS, Translator
from macadam.compute.telemetry.exposition import MOST_BYTES, MOST_LINES, Parser
from macadam.compute.telemetry.types import Sample
from macadam.errors import TooLarge

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
COUNTERS = Path(__file__).parents[4] / ".." / "shared" / "data" / "gpu" / "dcgm_default_counters.csv"
HEAD = '{gpu="0",UUID="GPU-aa",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="node-1"'


def samples(text: str) -> tuple[list[Sample], int]:
    found, problems = Translator(source="dcgm").samples(Parser().parse(text.encode()).readings, now=NOW)
    return found, problems.count


def only(text: str) -> Sample:
    (found,), problems = samples(text)
    assert problems == 0
    return found


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("up 1", 1.0),
        ("up{} 1", 1.0),
        ('up{a="b"} +1.5e3', 1500.0),
        ('up{a="b",} 1', 1.0),
        ('up { a = "b" , c="d" } -2', -2.0),
        ("up\t3", 3.0),
        ("up NaN", math.nan),
        ("up +Inf", math.inf),
        ("up -Inf", -math.inf),
        ("up 5 1700000000000", 5.0),
        ('up{a="b"} 5 1700000000.5 # {trace_id="x"} 1.0', 5.0),
        ("up 7\r", 7.0),
    ],
)
def test_a_sample_line_is_read_in_every_form_that_the_format_allows(line: str, value: float) -> None:
    scrape = Parser().parse(line.encode())
    assert scrape.malformed == 0
    assert [r.value for r in scrape.readings] == pytest.approx([value], nan_ok=True)


@pytest.mark.parametrize(
    "line",
    [
        "up",
        "up one",
        "up 1_000",
        "up 0x10",
        "up 1 2 3",
        "up 1 soon",
        "up{a} 1",
        'up{a="b} 1',
        'up{a="b"',
        'up{a="b"}1',
        'up{a="b" c="d"} 1',
        'up{a="b",a="c"} 1',
        'up{a="\\q"} 1',
        '{a="b"} 1',
        "9up 1",
        "up \xff",
        "up 1 NaN",
        "x" * 20_000 + " 1",
    ],
)
def test_a_line_that_is_no_sample_is_counted_and_named_and_never_a_value(line: str) -> None:
    scrape = Parser().parse(f"good 1\n{line}\ngood 2\n".encode("latin-1"))
    assert [r.value for r in scrape.readings] == [1.0, 2.0]
    assert scrape.malformed == 1
    assert scrape.named[0].number == 2
    assert scrape.named[0].why


def test_escapes_in_labels_are_undone() -> None:
    (reading,) = Parser().parse(rb'm{a="x\"y\\z\nw"} 1').readings
    assert reading.series.labels == {"a": 'x"y\\z\nw'}


def test_times_are_milliseconds_in_the_old_format_and_seconds_in_openmetrics() -> None:
    assert Parser().parse(b"m 1 1700000000123\n").readings[0].at == 1700000000123
    assert Parser().parse(b"m 1 1700000000.5\n# EOF\n").readings[0].at == 1700000000500


def test_the_same_series_scraped_again_gives_the_new_value() -> None:
    parser = Parser()
    for value in ("1", "2", "nonsense", "3"):
        scrape = parser.parse(f'm{{a="b"}} {value}\n'.encode())
        assert [str(int(r.value)) for r in scrape.readings] == ([value] if value != "nonsense" else [])


def test_a_scrape_of_endless_size_is_refused() -> None:
    with pytest.raises(TooLarge, match="bytes"):
        Parser().parse(b"\n" * (MOST_BYTES + 1))


@given(st.text(alphabet='ab{}=", \\n01.#', max_size=60))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    scrape = Parser().parse(text.encode())
    again = Parser()
    again.parse(text.encode())
    # What is kept of a first scrape must not change what a second one says.
    assert [r.value for r in again.parse(text.encode()).readings] == pytest.approx(
        [r.value for r in scrape.readings], nan_ok=True
    )


def test_the_exporters_own_default_counters_make_one_sample() -> None:
    if not COUNTERS.exists():
        pytest.skip("the shared data is absent")
    rows = [r for r in csv.reader(COUNTERS.read_text().splitlines()) if r and not r[0].startswith("#")]
    lines = [f"# HELP {r[0].strip()} x\n# TYPE {r[0].strip()} gauge" for r in rows]
    values = {"DCGM_FI_DEV_GPU_UTIL": 97, "DCGM_FI_DEV_FB_USED": 40_000, "DCGM_FI_DEV_FB_FREE": 41_000}
    lines += [f"{r[0].strip()}{HEAD}}} {values.get(r[0].strip(), 0.5)}" for r in rows if r[1].strip() != "label"]
    seen = only("\n".join(lines))
    assert (seen.gpu_active, seen.gr_active, seen.tensor_active) == (0.97, 0.5, 0.5)
    assert seen.sm_active is None  # not among the defaults
    assert seen.memory_used == 40_000 * 2**20
    assert {r[0].strip() for r in rows} & set(FIELDS)


@pytest.mark.parametrize(
    ("labels", "pod"),
    [
        (',pod="train-1",namespace="ml",container="main"', ("train-1", "ml", "main")),
        (
            ',exported_pod="train-1",exported_namespace="ml",exported_container="m",pod="dcgm-exporter-x"',
            ("train-1", "ml", "m"),
        ),
        (
            ',pod="dcgm-exporter-8x2",namespace="gpu-operator",container="e",job="dcgm",instance="10.0.0.1:9400"',
            (None, None, None),
        ),
        # A tenant's pod that calls itself so is the tenant's.
        (',pod="my-dcgm-exporter-1",namespace="ml",container="main"', ("my-dcgm-exporter-1", "ml", "main")),
        (',pod_name="train-1",pod_namespace="ml",container_name="main"', ("train-1", "ml", "main")),
        ("", (None, None, None)),
    ],
)
def test_whose_pod_it_is_stands_in_labels_that_differ(labels: str, pod: tuple[str, ...]) -> None:
    seen = only(f"DCGM_FI_DEV_GPU_UTIL{HEAD}{labels}}} 50")
    assert (seen.pod, seen.namespace, seen.container) == pod


def test_where_an_exporter_names_pods_one_without_is_empty_and_not_unknown() -> None:
    text = f'DCGM_FI_DEV_GPU_UTIL{HEAD},pod="p",namespace="n"}} 5\nDCGM_FI_DEV_GPU_UTIL{{UUID="GPU-bb",hostname="node-1"}} 6'
    found, _ = samples(text)
    assert [(s.pod, s.node) for s in found] == [("p", "node-1"), ("", "node-1")]


def test_slices_stand_for_themselves_and_the_device_is_left_out() -> None:
    mig = HEAD + ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="7"}'
    found, _ = samples(f"DCGM_FI_DEV_POWER_USAGE{HEAD}}} 200\nDCGM_FI_PROF_GR_ENGINE_ACTIVE{mig} 0.4")
    assert [(s.device, s.gr_active, s.gpu_active) for s in found] == [("gpu:GPU-aa/mig:7", 0.4, None)]


def test_a_device_that_is_divided_within_a_history_keeps_what_it_was_before() -> None:
    mig = HEAD + ',GPU_I_ID="7"}'
    text = f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{HEAD}}} 0.9 1000\nDCGM_FI_PROF_GR_ENGINE_ACTIVE{HEAD}}} 0.1 2000\n"
    found, _ = samples(text + f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{mig} 0.4 2000")
    assert [(s.device, s.gr_active) for s in found] == [("gpu:GPU-aa", 0.9), ("gpu:GPU-aa/mig:7", 0.4)]


def test_slices_do_not_each_have_the_power_of_the_whole_device() -> None:
    text = ""
    for instance in ("1", "2"):
        mig = HEAD + f',GPU_I_PROFILE="3g.40gb",GPU_I_ID="{instance}"}}'
        text += f"DCGM_FI_DEV_POWER_USAGE{mig} 400\nDCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{mig} 1e9\n"
        text += f"DCGM_FI_DEV_GPU_UTIL{mig} 0\nDCGM_FI_PROF_GR_ENGINE_ACTIVE{mig} 0.4\n"
    found, _ = samples(text)
    assert [(s.power, s.energy, s.gpu_active, s.gr_active) for s in found] == [(None, None, None, 0.4)] * 2
    assert [(s.gpu_power, s.gpu_energy, s.profile) for s in found] == [(400, 10**9, "3g.40gb")] * 2
    busy = f'DCGM_FI_DEV_GPU_UTIL{HEAD},GPU_I_ID="1"}} 70'
    assert only(busy).gpu_active == 0.7  # a value that no slice has is for the checks to see


def test_slices_know_of_their_device_where_it_is_given_once_for_itself() -> None:
    text = f"DCGM_FI_DEV_POWER_USAGE{HEAD}}} 400\nDCGM_FI_DEV_CLOCKS_EVENT_REASONS{HEAD}}} 4\n"
    for instance in ("1", "2"):
        text += f'DCGM_FI_PROF_SM_ACTIVE{HEAD},GPU_I_PROFILE="3g.40gb",GPU_I_ID="{instance}"}} 0.4\n'
    found, _ = samples(text)
    assert [(s.gpu_power, s.gpu_energy, s.throttle, s.power) for s in found] == [(400, None, 4, None)] * 2
    assert [s.device for s in found] == ["gpu:GPU-aa/mig:1", "gpu:GPU-aa/mig:2"]


def test_traffic_over_links_counts_both_directions_and_only_where_both_are_known() -> None:
    text = f"DCGM_FI_PROF_NVLINK_TX_BYTES{HEAD}}} 3e9\nDCGM_FI_PROF_NVLINK_RX_BYTES{HEAD}}} 2e9\n"
    seen = only(text + f"DCGM_FI_PROF_PCIE_TX_BYTES{HEAD}}} 7e9")
    assert (seen.nvlink, seen.pcie) == (5e9, None)
    assert only(text.replace("2e9", "NaN")).nvlink != only(text).nvlink
    assert only(text.replace("2e9", "9223372036854775792")).nvlink is None  # DCGM's mark of a blank


@pytest.mark.parametrize("forged", ['UUID="GPU-aa/mig:1"', 'UUID="GPU-aa",GPU_I_ID="x/1"'])
def test_a_name_that_looks_like_another_devices_slice_does_not_hide_that_device(forged: str) -> None:
    found, problems = samples(f"DCGM_FI_DEV_GPU_UTIL{HEAD}}} 50\nDCGM_FI_DEV_GPU_UTIL{{{forged}}} 1")
    assert [(s.device, s.gpu_active) for s in found] == [("gpu:GPU-aa", 0.5)]
    assert problems == 1


def test_labels_that_never_come_again_do_not_pile_up() -> None:
    parser, translator = Parser(), Translator(source="dcgm")
    for turn in range(20):
        text = "\n".join(f'DCGM_FI_DEV_GPU_UTIL{{UUID="GPU-{turn}-{n}"}} 1' for n in range(500))
        translator.samples(parser.parse(text.encode()).readings, now=NOW)
    assert len(parser._known) <= 2500
    assert len(translator._places) <= 2500


def test_a_scrape_of_endless_lines_is_refused() -> None:
    with pytest.raises(TooLarge, match="lines"):
        Parser().parse(b"a\n" * (MOST_LINES + 1))


@pytest.mark.parametrize("blank", ["9223372036854775794", "2147483634", "140737488355328", "9.223372036854776e+18"])
def test_a_value_that_dcgm_marks_as_blank_is_unknown(blank: str) -> None:
    seen = only(f"DCGM_FI_DEV_GPU_TEMP{HEAD}}} {blank}\nDCGM_FI_DEV_GPU_UTIL{HEAD}}} 1")
    assert seen.temperature is None


def test_two_values_of_one_field_at_one_instant_are_both_not_believed() -> None:
    (seen,), problems = samples(f"DCGM_FI_DEV_GPU_UTIL{HEAD}}} 1\nDCGM_FI_DEV_GPU_UTIL{HEAD}}} 2")
    assert problems == 1
    assert seen.gpu_active is not None
    assert math.isnan(seen.gpu_active)


@pytest.mark.parametrize(
    "line",
    [
        'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 5',
        f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{HEAD}}} NaN",
        f"DCGM_FI_DEV_FB_USED{HEAD}}} -1e300",
        f"DCGM_FI_DEV_GPU_UTIL{HEAD}}} 5 99999999999999999",
        f'DCGM_FI_DEV_GPU_UTIL{HEAD},pod="{"x" * 300}"}} 5',
    ],
)
def test_what_cannot_be_understood_is_left_out_and_counted(line: str) -> None:
    found, problems = samples(line)
    assert problems == 1
    assert found == []


def test_a_value_that_cannot_be_is_kept_for_the_checks_to_see() -> None:
    assert only(f"DCGM_FI_PROF_SM_ACTIVE{HEAD}}} 1.7").sm_active == 1.7
    assert math.isnan(only(f"DCGM_FI_PROF_SM_ACTIVE{HEAD}}} NaN").sm_active or 0)
