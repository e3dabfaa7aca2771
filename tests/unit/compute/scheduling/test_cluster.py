import pytest

from macadam.compute.scheduling.cluster import Assignment, Cluster, Demand, Machine, Part
from macadam.errors import InvalidInput


def cluster():
    return Cluster([Machine(name="a", cpu_milli=8000, memory_mib=1000, gpus=2, model="t4-16gb")])


def at(*devices, node="a", start=-1):
    return Assignment(parts=(Part(node=node, devices=devices, start=start),))


def test_what_is_taken_is_gone_until_it_is_given_back():
    state, demand = cluster(), Demand(cpu_milli=3000, memory_mib=400, gpus=1, gpu_milli=600)
    state.take(demand, at(1))
    assert (state.cpu[0], state.memory[0], state.gpu[0].tolist()) == (5000, 600, [1000, 400])
    state.give_back(demand, at(1))
    assert (state.cpu[0], state.memory[0], state.gpu[0].tolist()) == (8000, 1000, [1000, 1000])


@pytest.mark.parametrize(
    ("demand", "where"),
    [
        (Demand(cpu_milli=9000), at()),
        (Demand(memory_mib=1001), at()),
        (Demand(gpus=1), at(2)),
        (Demand(gpus=2), at(0)),
        (Demand(gpus=2), at(0, 0)),
        (Demand(gpus=1), at(0, node="b")),
        (Demand(slice="1g.5gb"), at(0, start=0)),
        (Demand(gpus=1, members=2), at(0)),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_changes(demand, where):
    state = cluster()
    with pytest.raises(InvalidInput):
        state.take(demand, where)
    assert (state.cpu[0], state.memory[0], state.gpu[0].tolist(), state.version) == (8000, 1000, [1000, 1000], 0)


def test_a_gang_of_which_one_member_does_not_fit_leaves_nothing_behind():
    state = cluster()
    parts = (Part(node="a", devices=(0,)), Part(node="a", devices=(1,)), Part(node="a", devices=(1,)))
    with pytest.raises(InvalidInput):
        state.take(Demand(gpus=1, cpu_milli=1000, members=3), Assignment(parts=parts))
    assert (state.cpu[0], state.gpu[0].tolist()) == (8000, [1000, 1000])


def test_more_cannot_be_given_back_than_was_taken():
    state = cluster()
    state.take(Demand(gpus=1, gpu_milli=300), at(0))
    with pytest.raises(InvalidInput, match="was not taken"):
        state.give_back(Demand(gpus=1, gpu_milli=400), at(0))
    assert state.gpu[0].tolist() == [700, 1000]


def test_slices_take_their_own_memory_slots():
    state = Cluster([Machine(name="a", cpu_milli=0, memory_mib=0, gpus=1, model="h100-sxm-80gb", partitioned=True)])
    half = Demand(slice="3g.40gb")
    state.take(half, at(0, start=4))
    assert state.slots[0, 0] == 0b11110000
    for start in (4, 2):  # taken, and no place where it may begin
        with pytest.raises(InvalidInput):
            state.take(half, at(0, start=start))
    state.take(half, at(0, start=0))
    state.give_back(half, at(0, start=4))
    assert state.slots[0, 0] == 0b00001111
    with pytest.raises(InvalidInput, match="is not free"):
        state.take(Demand(gpus=1), at(0))  # a device in slices is never given whole


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": -1},
        {"gpus": 2, "gpu_milli": 500},
        {"gpus": 1, "gpu_milli": 0},
        {"gpus": 1, "gpu_milli": 1001},
        {"gpu_milli": 500},
        {"members": 0},
        {"gpus": 1, "slice": "1g.5gb"},
        {"cpu_milli": -1},
        {"near": "node", "apart": True, "members": 2},
    ],
)
def test_a_demand_that_cannot_be_meant_is_not_built(wrong):
    with pytest.raises(InvalidInput):
        Demand(**wrong)


def test_two_nodes_of_one_name_are_refused():
    twin = Machine(name="a", cpu_milli=1, memory_mib=1)
    with pytest.raises(InvalidInput, match="same name"):
        Cluster([twin, twin])


def test_a_node_with_less_than_nothing_is_refused():
    with pytest.raises(InvalidInput):
        Machine(name="a", cpu_milli=-1, memory_mib=0)


def test_changes_are_remembered_only_as_long_as_it_pays():
    state, demand = cluster(), Demand(cpu_milli=1)
    for _ in range(50):
        state.take(demand, at())
    assert state.since(state.version - 3).tolist() == [0]
    assert state.since(0) is None
    assert state.since(state.version).tolist() == []
