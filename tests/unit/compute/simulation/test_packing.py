import json
from pathlib import Path

import pytest

from macadam.compute.scheduling.cluster import Demand, Machine
from macadam.compute.scheduling.placement import Policy
from macadam.compute.simulation import packing
from macadam.errors import InvalidInput, SourceInvalid
from macadam.faces import cli

TRACE = Path("../shared/data/gpu")
needs_trace = pytest.mark.skipif(not TRACE.exists(), reason="Alibaba's trace is not on this machine")

NODES = "sn,cpu_milli,memory_mib,gpu,model\na,64000,1000,4,T4\nb,64000,1000,4,V100M16\n"
PODS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n"
    "p,1000,1,1,500,,LS\nq,1000,1,2,1000,V100M16|V100M32,LS\nr,1000,1,0,0,,LS\n"
)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "nodes.csv").write_text(NODES)
    (tmp_path / "pods.csv").write_text(PODS)
    return tmp_path / "nodes.csv", tmp_path / "pods.csv"


def test_files_are_read_as_they_are_meant(files):
    assert packing.read_nodes(files[0])[1] == Machine(
        name="b", cpu_milli=64_000, memory_mib=1000, gpus=4, model="V100M16"
    )
    shared, models, plain = packing.read_pods(files[1])
    assert (shared.gpus, shared.gpu_milli) == (1, 500)
    assert models.models == ("V100M16", "V100M32")
    assert (plain.gpus, plain.total_milli) == (0, 0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("p,1000", "p,-1", "line 2"),
        ("p,1000", "p,many", "line 2"),
        ("2,1000,V100", "2,700,V100", "line 3"),
        ("1,500,,LS", "1,NaN,,LS", "line 2"),
        ("q,1000,1,2,1000,V100M16|V100M32,LS", "q,1000", "line 3"),
        ("p,1000", "p,99999999999999999999", "line 2: cpu_milli is 9999"),
        ("1,500,,LS", "1,1500,,LS", "line 2"),
        ("2,1000,V100M16|V100M32,LS", "2,1000", "line 3, has too few columns"),  # no wish for a model would be read
        ("gpu_milli", "gpu", "no column gpu_milli"),
    ],
)
def test_a_wrong_line_is_named(files, old, new, said):
    files[1].write_text(PODS.replace(old, new))
    with pytest.raises(SourceInvalid, match=said):
        packing.read_pods(files[1])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("4,T4", "1000000000,T4", "line 2: gpu is 1000000000"),  # rather than running out of memory
        ("64000,1000,4,T4", "1e3,1000,4,T4", "line 2: cpu_milli is 1e3"),
        ("b,64000", "a,64000", "more than one node 'a'"),
    ],
)
def test_nodes_that_cannot_be_are_refused_by_line_or_name(files, old, new, said):
    files[0].write_text(NODES.replace(old, new))
    with pytest.raises(SourceInvalid, match=said) as error:
        packing.read_nodes(files[0])
    assert "Next:" not in error.value.what


def test_the_mark_that_spreadsheets_put_before_a_file_is_no_part_of_the_first_column(files):
    files[0].write_text(NODES, encoding="utf-8-sig")
    assert [node.name for node in packing.read_nodes(files[0])] == ["a", "b"]


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("x.csv", "none.csv"):
        with pytest.raises(SourceInvalid, match="cannot be read"):
            packing.read_nodes(tmp_path / name)


def test_every_pod_arrives_once_before_any_arrives_again():
    pods = [Demand(gpus=1, gpu_milli=100 + i) for i in range(50)]
    order = list(packing.arrivals(pods, 1.5 * sum(pod.total_milli for pod in pods), seed=1))
    assert sorted(pod.gpu_milli for pod in order[:50]) == [pod.gpu_milli for pod in pods]
    assert sum(pod.total_milli for pod in order) >= 1.5 * sum(pod.total_milli for pod in pods)
    assert order == list(packing.arrivals(pods, 1.5 * sum(pod.total_milli for pod in pods), seed=1))
    assert order[:50] != list(packing.arrivals(pods, 1000, seed=2))[:50]


def test_arrivals_that_would_never_end_are_refused():
    with pytest.raises(InvalidInput, match="No pod asks"):
        next(packing.arrivals([Demand(cpu_milli=1)], 1000, seed=0))


def test_gpus_add_up_and_what_was_dropped_is_told():
    machines = [Machine(name="a", cpu_milli=3000, memory_mib=1, gpus=4)]
    found = packing.run(machines, [Demand(gpus=1, cpu_milli=1000)], Policy(name="best-fit"), demand=1.0, seed=0)
    assert (found.allocated, found.unallocated, found.placed, found.dropped) == (3, 1, 3, 1)
    assert found.lacking == {"cpu": 1}
    assert found.curve[-1] == (1.0, 0.75)


def test_a_study_of_nothing_says_what_to_give():
    for machines, pods in [([], [Demand(gpus=1)]), ([Machine(name="a", cpu_milli=1, memory_mib=1)], [Demand(gpus=1)])]:
        with pytest.raises(InvalidInput):
            packing.study(machines, pods, ["random"])


def test_the_command_prints_one_json_value_and_draws(files, tmp_path, capsys):
    words = ["simulate", "packing", "--nodes", str(files[0]), "--pods", str(files[1]), "--seeds", "2"]
    assert cli.main([*words, "--policy", "all", "--plot", str(tmp_path / "p.svg"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {one["policy"] for one in said["summaries"]} >= {"random", "balanced", "gradient"}
    assert all(one["allocated"] + one["unallocated"] == said["gpus"] for one in said["outcomes"])
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert cli.main([*words, "--policy", "worst"]) == 2
    assert "Choose one of" in capsys.readouterr().err


@needs_trace
def test_on_a_real_cluster_few_gpus_stay_unallocated():
    machines = packing.read_nodes(TRACE / "openb_node_list_gpu_node.csv")
    pods = packing.read_pods(TRACE / "openb_pod_list_default.csv")
    found = packing.study(machines, pods, ["random", "best-fit", "packing", "gradient", "balanced"], seeds=1)
    left = {one.policy: one.unallocated for one in found.summaries}
    assert found.gpus == 6212
    assert left["balanced"] <= 296  # what FGD's authors publish for their own policy; the mean of 10 seeds is 258
    # One seed, so a little wider than the 10% that the mean of ten keeps; see benchmarks/packing.py.
    for name, published in {"random": 851, "best-fit": 443, "packing": 511, "gradient": 296}.items():
        assert left[name] == pytest.approx(published, rel=0.15)


def test_what_nobody_asked_for_is_unallocated_too():
    machines = [Machine(name="a", cpu_milli=4000, memory_mib=1, gpus=4)]
    found = packing.run(machines, [Demand(gpus=1)], Policy(name="best-fit"), demand=0.5, seed=0)
    assert (found.gpus, found.demanded, found.allocated, found.unallocated) == (4, 2, 2, 2)
