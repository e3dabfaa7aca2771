import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.scheduling.cluster import Assignment, Cluster, Demand, Machine, Part, Refusal
from macadam.compute.scheduling.fragmentation import Measure, Typical, typical
from macadam.compute.scheduling.placement import Placer, Policy, place

NAMES = ("random", "best-fit", "packing", "dot-product", "gradient", "balanced", "least-capable")
WORK = (
    Typical(demand=Demand(cpu_milli=4000, memory_mib=100, gpus=1, gpu_milli=500), weight=0.5),
    Typical(demand=Demand(cpu_milli=8000, memory_mib=200, gpus=1), weight=0.3),
    Typical(demand=Demand(cpu_milli=30_000, memory_mib=800, gpus=4), weight=0.2),
)


def machine(name, gpus=4, cpu=32, model="t4", rack=""):
    return Machine(name=name, cpu_milli=cpu * 1000, memory_mib=10_000, gpus=gpus, model=model, rack=rack)


def one(found):
    assert isinstance(found, Assignment), found
    (part,) = found.parts
    return part


def taken(cluster, demand, policy=None):
    found = place(cluster, demand, policy or Policy())
    assert isinstance(found, Assignment), found
    cluster.take(demand, found)
    return found


def room(cluster, node, demand):
    """How many members a node could hold, counted one by one."""
    i, count = cluster.index[node.name], 0
    cpu, memory, gpus = int(cluster.cpu[i]), int(cluster.memory[i]), [int(free) for free in cluster.gpu[i]]
    while (not demand.models or node.model in demand.models) and count < 20:
        fitting = [d for d, free in enumerate(gpus) if free >= demand.gpu_milli][: demand.gpus]
        if len(fitting) < demand.gpus or cpu < demand.cpu_milli or memory < demand.memory_mib:
            break
        for device in fitting:
            gpus[device] -= demand.gpu_milli
        cpu, memory, count = cpu - demand.cpu_milli, memory - demand.memory_mib, count + 1
    return count


demands = st.one_of(
    st.builds(Demand, cpu_milli=st.integers(0, 12_000), memory_mib=st.integers(0, 3000), gpus=st.integers(0, 5)),
    st.builds(Demand, cpu_milli=st.integers(0, 6000), gpus=st.just(1), gpu_milli=st.integers(1, 999)),
    st.builds(
        Demand,
        cpu_milli=st.integers(0, 6000),
        gpus=st.integers(1, 2),
        models=st.sampled_from([("t4",), ("v100",), ("t4", "v100")]),
        members=st.integers(1, 3),
        near=st.sampled_from(["", "node", "rack"]),
        required=st.booleans(),
    ),
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NAMES), st.lists(st.tuples(demands, st.booleans()), max_size=25))
def test_remembered_scores_decide_as_fresh_ones_and_nothing_is_ever_overbooked(name, events):
    nodes = [machine("a", 4, 32, "t4", "r1"), machine("b", 2, 8, "v100", "r1"), machine("c", 8, 64, "v100", "r2")]
    cluster = Cluster(nodes)
    policy = Policy(name=name, seed=3, typical=WORK, capability={"t4": 1.0, "v100": 2.0})
    placer = Placer(cluster, policy)
    running = []
    for demand, ends in events:
        found = placer.place(demand)
        assert found == place(cluster, demand, policy)
        if isinstance(found, Assignment):
            cluster.take(demand, found)  # raises if it did not fit
            running.append((demand, found))
            used = {part.node for part in found.parts}
            assert all(not demand.models or cluster.nodes[cluster.index[n]].model in demand.models for n in used)
            if demand.near == "node" and demand.required:
                assert len(used) == 1
        else:
            assert found.reason
            assert demand.members > 1 or found.lacking
            assert demand.near or sum(room(cluster, node, demand) for node in nodes) < demand.members
        if ends and running:
            cluster.give_back(*running.pop(0))
    for demand, found in running:
        cluster.give_back(demand, found)
    bare = Cluster(nodes)
    assert (cluster.cpu == bare.cpu).all()
    assert (cluster.gpu == bare.gpu).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_finds_the_only_place_there_is(name):
    cluster = Cluster([machine("a"), machine("b")])
    for node, device in [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1), ("b", 3)]:
        cluster.gpu[cluster.index[node], device] = 100
    part = one(place(cluster, Demand(gpus=1, gpu_milli=700), Policy(name=name, typical=WORK)))
    assert (part.node, part.devices) == ("b", (2,))


def test_packing_fills_gpus_in_use_then_nodes_in_use_then_idle_nodes():
    cluster, policy = Cluster([machine("a", 8), machine("b", 2), machine("c", 2)]), Policy(name="packing")
    half = Demand(cpu_milli=100, gpus=1, gpu_milli=500)
    assert [one(taken(cluster, half, policy)).node for _ in range(2)] == ["b", "b"]  # fewest GPUs; then the same GPU
    assert one(taken(cluster, Demand(gpus=1), policy)) == part_of("b", 1)
    assert one(taken(cluster, Demand(gpus=1), policy)).node == "c"


def part_of(node, *devices):
    return Part(node=node, devices=devices)


def test_best_fit_leaves_least():
    cluster = Cluster([machine("wide", 8, 64), machine("tight", 1, 4)])
    assert one(place(cluster, Demand(cpu_milli=2000, gpus=1), Policy(name="best-fit"))).node == "tight"


def test_random_draws_by_its_seed_alone():
    cluster = Cluster([machine(f"n{i}") for i in range(20)])
    demand = Demand(gpus=1, gpu_milli=500)
    drawn = {seed: one(place(cluster, demand, Policy(name="random", seed=seed))) for seed in range(30)}
    assert drawn == {seed: one(place(cluster, demand, Policy(name="random", seed=seed))) for seed in range(30)}
    assert len({part.node for part in drawn.values()}) > 5
    assert len({part.devices for part in drawn.values()}) == 4


def test_work_without_gpu_goes_where_cpu_would_be_left_over():
    # Both have room. On the tight node each core will be asked for by the work that its GPUs attract.
    cluster = Cluster([machine("tight", 8, 64), machine("rich", 2, 104)])
    policy = Policy(typical=(Typical(demand=Demand(cpu_milli=8000, gpus=1), weight=1.0),))
    assert one(place(cluster, Demand(cpu_milli=32_000), policy)).node == "rich"


def test_scarce_models_are_kept_for_those_who_need_them():
    cluster = Cluster([machine("new", 8, 64, "h100"), machine("old", 8, 64, "t4")])
    policy = Policy(name="least-capable", capability={"t4": 65e12, "h100": 989e12})
    assert one(taken(cluster, Demand(gpus=8), policy)).node == "old"
    assert one(taken(cluster, Demand(gpus=1), policy)).node == "new"  # better than to wait
    wanted = one(place(cluster, Demand(gpus=1, models=("h100",)), policy))
    assert wanted.node == "new"


def test_gangs_are_near_each_other_where_they_ask_for_it():
    cluster = Cluster([machine(n, 4, 64, rack=r) for n, r in [("a", "r1"), ("b", "r2"), ("c", "r1"), ("d", "r2")]])
    pair = taken(cluster, Demand(gpus=2, members=2, near="node", required=True))
    assert {part.node for part in pair.parts} == {"a"}
    large = taken(cluster, Demand(gpus=4, members=2, near="rack", required=True))
    assert {part.node for part in large.parts} == {"b", "d"}


def test_a_gang_that_only_wishes_to_be_near_goes_apart_rather_than_wait():
    cluster = Cluster([machine("a", 2, rack="r1"), machine("b", 2, rack="r2")])
    wish = Demand(gpus=2, members=2, near="node")
    assert isinstance(place(cluster, wish, Policy()), Assignment)
    must = place(cluster, Demand(gpus=2, members=2, near="rack", required=True), Policy())
    assert isinstance(must, Refusal)
    assert "but not in one rack" in must.reason


def test_members_that_must_be_apart_are():
    cluster = Cluster([machine(n) for n in "abc"])
    found = place(cluster, Demand(gpus=1, members=3, apart=True), Policy())
    assert isinstance(found, Assignment)
    assert {part.node for part in found.parts} == {"a", "b", "c"}
    assert isinstance(place(cluster, Demand(gpus=1, members=4, apart=True), Policy()), Refusal)


def test_a_refusal_says_what_is_lacking_and_whether_waiting_helps():
    cluster = Cluster([machine("a"), machine("b", model="v100")])
    taken(cluster, Demand(cpu_milli=30_000, models=("t4",)))
    busy = place(cluster, Demand(gpus=1, cpu_milli=4000, models=("t4",)), Policy())
    assert isinstance(busy, Refusal)
    assert busy.lacking == {"model": 1, "cpu": 1}
    assert busy.ever
    never = place(cluster, Demand(gpus=5), Policy())
    assert isinstance(never, Refusal)
    assert never.lacking == {"gpu": 2}
    assert not never.ever
    assert "if nothing else ran" in never.reason
    gang = place(cluster, Demand(gpus=2, members=5), Policy())
    assert isinstance(gang, Refusal)
    assert gang.reason.startswith("There is room for 4 of 5 members.")


def test_fragmentation_is_what_typical_work_cannot_use():
    # Worked by hand from the definition in FGD, section 3.2.
    cluster = Cluster([machine("a", 2, 16)])
    measure = Measure(cluster, WORK)

    def of(cpu, *gpu):
        return measure.of(*(np.array([value]) for value in (cpu * 1000, 10_000)), np.array([gpu]), np.array([0]))[0]

    assert of(16, 1000, 1000) == pytest.approx(0.2 * 2000)  # only the gang of four cannot use it
    assert of(16, 400, 1000) == pytest.approx(0.5 * 400 + 0.3 * 400 + 0.2 * 1400)
    assert of(16, 600, 600) == pytest.approx((0.3 + 0.2) * 1200)
    assert of(5, 1000, 1000) == pytest.approx((0.3 + 0.2) * 2000)  # for want of CPU
    assert of(1, 1000, 1000) == pytest.approx(2000)
    assert of(16, 0, 0) == 0


def test_typical_work_is_the_commonest_and_its_weights_sum_to_one():
    common, rare = Demand(gpus=1), Demand(gpus=8)
    found = typical([common] * 97 + [rare] * 3 + [Demand(slice="1g.5gb")])
    assert found == (Typical(demand=common, weight=1.0),)
    gang = typical([Demand(gpus=1, members=4, near="rack"), rare], covered=1.0)
    assert {one.demand.gpus: one.weight for one in gang} == {1: 0.8, 8: 0.2}
    assert typical([]) == ()


def test_an_empty_cluster_refuses():
    assert isinstance(place(Cluster([]), Demand(), Policy()), Refusal)


def test_packing_takes_the_fullest_of_the_gpus_in_use():
    cluster, policy = Cluster([machine("a", 2), machine("b", 2)]), Policy(name="packing")
    for node, share in (("a", 300), ("b", 600)):
        demand = Demand(gpus=1, gpu_milli=share)
        cluster.take(demand, Assignment(parts=(Part(node=node, devices=(0,)),)))
    assert one(place(cluster, Demand(gpus=1, gpu_milli=200), policy)).node == "b"
    assert one(place(cluster, Demand(gpus=1, gpu_milli=500), policy)).node == "a"
