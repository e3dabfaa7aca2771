import pytest

from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.first_fit import FirstFit
from macadam.compute.scheduling.packed import packed, typical_work
from macadam.compute.scheduling.placement import Policy
from macadam.compute.scheduling.types import Node, Running, Slot, State, Work
from macadam.compute.scheduling.types import Policy as QueuePolicy
from macadam.errors import InvalidInput

NODES = [Node(name=f"n{i}", gpus=8, zone="ab"[i % 2], cpu_milli=64_000, memory=2**38) for i in range(4)]


def work(gpus, **more):
    return Work(id="w", tenant="t", submitted=0, gpus=gpus, **more)


def test_a_job_is_on_one_machine_if_it_fits_and_on_few_if_not():
    places = packed(Policy())(NODES)
    (slot,) = places.place(work(4))
    assert slot.milli == 4000
    wide = places.place(work(12))
    assert sorted(len(slot.devices) for slot in wide) == [4, 8]
    assert places.free() == 32_000 - 16_000
    assert places.place(work(17)) is None
    places.release(work(12), wide)
    assert places.free() == 28_000


def test_a_job_over_several_machines_is_spread_evenly_and_kept_in_one_zone():
    found = packed(Policy())(NODES).place(work(8, nodes=2))
    assert [len(slot.devices) for slot in found] == [4, 4]
    assert len({slot.node for slot in found}) == 2
    assert len({node.zone for node in NODES if node.name in {slot.node for slot in found}}) == 1


def test_shares_meet_on_one_gpu():
    places = packed(Policy())(NODES)
    first, second = (places.place(work(0, milli=400)) for _ in range(2))
    assert first == second
    assert places.free() == 31_200


def test_processors_and_memory_of_the_whole_gang_are_shared_out_and_limits_of_nothing_are_none():
    places = packed(Policy())(NODES)
    assert places.place(work(8, nodes=2, cpu_milli=128_001)) is None
    assert places.place(work(8, nodes=2, cpu_milli=128_000))
    free = packed(Policy())([Node(name="any", gpus=1)])
    assert free.place(work(1, cpu_milli=10**9, memory=2**50))


def test_what_is_not_free_is_refused_whole():
    places = packed(Policy())(NODES)
    twice = (Slot(node="n0", milli=8000, devices=tuple(range(8))), Slot(node="n0", milli=1000, devices=(0,)))
    with pytest.raises(InvalidInput):
        places.take(work(9), twice)
    assert places.free() == 32_000


def test_the_queue_decides_with_it():
    job = Work(id="a", tenant="t", submitted=0, gpus=6)
    running = Running(work=job, placement=(Slot(node="n2", milli=6000, devices=tuple(range(6))),), started=0)
    state = State(nodes=tuple(NODES), waiting=(Work(id="b", tenant="t", submitted=1, gpus=2),), running=(running,))
    (start,) = decide(1.0, state, QueuePolicy(), places=packed(Policy(name="best-fit"))).starts
    assert start.placement == (Slot(node="n2", milli=2000, devices=(6, 7)),)


def test_typical_work_comes_from_jobs_that_were_submitted():
    found = typical_work([work(0, milli=500), work(0, milli=500), work(8, nodes=2, cpu_milli=8000)])
    assert {(one.demand.gpus, one.demand.gpu_milli): one.weight for one in found} == {(1, 500): 0.5, (4, 1000): 0.5}
    places = packed(Policy(typical=found))(NODES)
    assert places.place(work(8, nodes=2, cpu_milli=8000))


@pytest.mark.parametrize("places", [FirstFit, packed(Policy())])
def test_work_goes_where_its_market_is_first_choice_first(places):
    nodes = [
        Node(name="a", gpus=2, model="h100", market="on-demand"),
        Node(name="b", gpus=1, model="h100", market="spot/z"),
        Node(name="c", gpus=4, model="l4", market="spot/z"),
    ]
    free = places(nodes)

    def where(*markets, gpus=1, models=("h100",)):
        work = Work(id="w", tenant="t", submitted=0, gpus=gpus, models=models, markets=markets)
        found = free.place(work)
        if found:
            free.release(work, found)
        return sorted(slot.node for slot in found or ())

    assert where("spot/z", "on-demand") == ["b"]
    assert where("on-demand", "spot/z") == ["a"]
    assert where("on-demand", gpus=3) == []
    assert where("spot/z", gpus=2) == []
    assert where("spot/z", "on-demand", gpus=2) == ["a"], "one market is better than two"
    assert where("spot/z", "on-demand", gpus=3) == ["a", "b"], "two are better than none"
    assert where("spot/y") == []
    assert where("spot/z", models=()) in (["b"], ["c"])
