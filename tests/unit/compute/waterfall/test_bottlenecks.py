"""From samples to a named bottleneck: what telemetry stores is enough to see throttling, links and the host."""

from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.compute.telemetry.fleets import START

from macadam.compute.catalogue import gpus
from macadam.compute.telemetry.dcgm import Translator
from macadam.compute.telemetry.exposition import Parser
from macadam.compute.telemetry.fold import HOUR, fold, rollup
from macadam.compute.telemetry.types import Claim, Sample, to_table
from macadam.compute.waterfall import links, profiles
from macadam.compute.waterfall.profiles import Profile

H100 = gpus.find("h100-sxm-80gb")
BEGIN = int(START.timestamp()) * 1_000_000
MINE = Claim(project="vision", owner="run:a")


def read(device: int, second: float, **values: object) -> Sample:
    given: dict[str, object] = {
        "product": "NVIDIA H100 80GB HBM3",
        "node": "n",
        "gpu_active": 0.98,
        "sm_active": 0.3,
        "claims": (MINE,),
    }
    return Sample(device=f"gpu:{device}", at=START + timedelta(seconds=second), **{**given, **values})  # type: ignore[arg-type]


def judged(*samples: Sample) -> Profile:
    rows = fold(to_table(list(samples)), BEGIN, BEGIN + 3600 * 1_000_000, pods={}, holdings=()).usage
    (found,) = profiles.by_owner(rollup(rows, HOUR))
    return found


def over(gpus: int, **values: object) -> list[Sample]:
    return [read(device, 15 * n, **values) for device in range(gpus) for n in range(40)]


def test_clocks_held_down_by_heat_are_named_from_what_is_stored():
    hot = [read(0, 15 * n, throttle=0x40 if n % 4 == 0 else 0x4) for n in range(40)]
    found = judged(*hot)
    assert found.likely.bottleneck == "throttling"
    assert "by heat 23%" in found.likely.evidence[0]
    assert found.means["throttled_power"] == pytest.approx(30 / 39, abs=0.01)


def test_a_power_limit_that_busy_matrix_units_reach_is_evidence_and_not_the_bottleneck():
    found = judged(*over(1, throttle=0x4, sm_active=0.95, tensor_active=0.7))
    assert found.likely.bottleneck == "compute"
    assert "power limit 100%" in found.likely.evidence[1]
    assert judged(*over(1, throttle=0x4, sm_active=0.95, tensor_active=0.2)).likely.bottleneck == "throttling"


def test_gpus_that_wait_for_each_other_over_nvlink_are_named():
    busy = 0.6 * 2 * H100.link
    assert judged(*over(8, nvlink=busy)).likely.bottleneck == "communication"
    assert judged(*over(8, nvlink=busy / 10)).likely.bottleneck == "small_kernels"
    assert judged(*over(1, nvlink=busy)).likely.bottleneck == "small_kernels"


def test_a_gpu_that_waits_for_its_host_is_named_by_the_bus_or_the_hosts_cores():
    waiting = over(1, gpu_active=0.4, sm_active=0.3, pcie=0.6 * 126e9)
    assert "bus to the host was 60%" in judged(*waiting).likely.evidence[1]
    host = [
        Sample(
            device="host:n",
            at=START + timedelta(seconds=15 * n),
            node="n",
            source="host",
            part="run:a",
            host_cpu=15.0,
            host_cores=16.0,
            claims=(MINE,),
        )
        for n in range(40)
    ]
    found = judged(*over(1, gpu_active=0.4), *host)
    assert (found.likely.bottleneck, found.host_cores) == ("data_loading", pytest.approx(15 / 16))
    assert judged(*over(1, gpu_active=0.4)).likely.bottleneck == "waiting"


def test_a_recorded_scrape_is_enough():
    """Two scrapes of dcgm-exporter, as its release 4 writes them with the profiling counters and event reasons enabled."""
    translator, parser = Translator(source="dcgm"), Parser()
    samples: list[Sample] = []
    for second in (0, 15):
        text = "".join(
            f'{field}{{gpu="{n}",UUID="GPU-{n}",pci_bus_id="00000000:0{n}:00.0",device="nvidia{n}",'
            f'modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",container="main",namespace="ml",pod="train-0"}} {value}\n'
            for n in range(2)
            for field, value in (
                ("DCGM_FI_DEV_GPU_UTIL", 99),
                ("DCGM_FI_PROF_SM_ACTIVE", 0.31),
                ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", 0),
                ("DCGM_FI_PROF_NVLINK_TX_BYTES", 270e9),
                ("DCGM_FI_PROF_NVLINK_RX_BYTES", 270e9),
            )
        )
        found, problems = translator.samples(
            parser.parse(text.encode()).readings, now=START + timedelta(seconds=second)
        )
        assert problems.count == 0
        samples += found
    found_ = judged(*samples)
    assert (found_.owner, found_.gpus) == ("pod:ml/train-0", 2)
    assert found_.rates["nvlink"] == pytest.approx(540e9, rel=1e-6)
    assert found_.likely.bottleneck == "communication"
    assert "60% busy" in found_.likely.evidence[0]


def test_usage_from_before_there_were_such_columns_is_judged_by_what_it_has():
    rows = fold(
        to_table(over(8, nvlink=540e9, throttle=0x40)), BEGIN, BEGIN + 3_600_000_000, pods={}, holdings=()
    ).usage
    old: pa.Table = rows.select(rows.column_names[:16])
    assert old.column_names[-1] == "suspect"
    (found,) = profiles.by_owner(old)
    assert found.likely.bottleneck == "small_kernels"


rates = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 2e12))


@given(rates, rates, st.integers(1, 64), st.integers(1, 8), st.sampled_from(sorted(gpus.gpus())))
def test_links_are_parts_of_the_whole_or_unknown(nvlink, pcie, count, nodes, name):
    found = links.traffic(gpus.find(name), nvlink=nvlink, pcie=pcie, gpus=count, nodes=nodes)
    for part in (found.links, found.bus):
        assert part is None or 0 <= part <= 1
    assert found.links is None or count > 1


def test_between_machines_gpus_talk_over_pcie_too():
    rates = {"nvlink": 90e9, "pcie": 100e9}
    assert links.traffic(H100, **rates, gpus=16, nodes=2) == links.Traffic(links=pytest.approx(100 / 126), bus=None)
    assert links.traffic(H100, **rates, gpus=8, nodes=1) == links.Traffic(links=0.1, bus=pytest.approx(100 / 126))
    without = gpus.find("h100-pcie-80gb")
    assert links.traffic(without, **rates, gpus=2, nodes=1) == links.Traffic(links=pytest.approx(100 / 126), bus=None)


def test_a_rate_that_no_link_carries_is_not_measured():
    assert links.traffic(H100, nvlink=5e12, pcie=5e12, gpus=8, nodes=1) == links.Traffic(links=None, bus=None)
