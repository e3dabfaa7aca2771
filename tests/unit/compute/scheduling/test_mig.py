import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.scheduling import mig
from macadam.compute.scheduling.cluster import Assignment, Cluster, Demand, Machine, Refusal
from macadam.compute.scheduling.placement import Placer, Policy
from macadam.errors import InvalidInput

MODELS = ("a100-sxm-40gb", "a100-sxm-80gb", "h100-sxm-80gb", "h100-nvl-94gb", "h200-sxm-141gb", "a30-24gb")


def test_places_are_those_that_nvidia_smi_lists():
    # nvidia-smi mig -lgipp on an A100-SXM4-40GB
    known = mig.profiles("a100-sxm-40gb")
    assert {name: (p.starts, p.size) for name, p in known.items() if name != "1g.10gb"} == {
        "1g.5gb": ((0, 1, 2, 3, 4, 5, 6), 1),
        "2g.10gb": ((0, 2, 4), 2),
        "3g.20gb": ((0, 4), 4),
        "4g.20gb": ((0,), 4),
        "7g.40gb": ((0,), 8),
    }
    assert (known["1g.10gb"].starts, known["1g.10gb"].size) == ((0, 2, 4, 6), 2)


@pytest.mark.parametrize("model", MODELS)
def test_no_set_of_slices_that_fits_has_more_compute_than_the_device(model):
    known = mig.profiles(model)
    most = max(profile.compute for profile in known.values())
    spots = [(p.mask(start), p.compute) for p in known.values() for start in p.starts]
    for count in range(1, 8):
        for chosen in itertools.combinations(spots, count):
            masks = [mask for mask, _ in chosen]
            if sum(masks) == _union(masks):
                assert sum(compute for _, compute in chosen) <= most


def _union(masks):
    union = 0
    for mask in masks:
        union |= mask
    return union


def test_a_small_slice_goes_where_large_ones_cannot_begin():
    known = mig.profiles("h100-sxm-80gb")
    assert mig.choices(known["1g.10gb"], known, 0)[0][1] == 6
    assert mig.choices(known["3g.40gb"], known, 0)[0][1] == 4  # 4g.40gb may begin at 0 only
    assert mig.choices(known["7g.80gb"], known, 1) == []


def test_a_gpu_without_slices_says_what_to_do():
    with pytest.raises(InvalidInput, match="t4-16gb splits"):
        mig.profiles("t4-16gb")
    with pytest.raises(InvalidInput):
        Machine(name="a", cpu_milli=0, memory_mib=0, gpus=1, model="t4-16gb", partitioned=True)


@given(st.lists(st.sampled_from(sorted(mig.profiles("h100-sxm-80gb"))), max_size=12))
def test_slices_are_placed_as_long_as_any_place_is_left(names):
    cluster = Cluster(
        [Machine(name=n, cpu_milli=0, memory_mib=0, gpus=1, model="h100-sxm-80gb", partitioned=True) for n in "ab"]
    )
    placer, known = Placer(cluster, Policy()), mig.profiles("h100-sxm-80gb")
    for name in names:
        demand = Demand(slice=name)
        free = any(known[name].free_starts(int(used)) for used in cluster.slots[:, 0])
        found = placer.place(demand)
        assert isinstance(found, Assignment) == free
        if isinstance(found, Assignment):
            cluster.take(demand, found)


def test_slices_are_packed_so_that_large_ones_still_fit():
    cluster = Cluster(
        [Machine(name=n, cpu_milli=0, memory_mib=0, gpus=1, model="h100-sxm-80gb", partitioned=True) for n in "ab"]
    )
    placer = Placer(cluster, Policy())
    for name in ("1g.10gb", "3g.40gb", "2g.20gb", "7g.80gb"):
        found = placer.place(Demand(slice=name))
        assert isinstance(found, Assignment), name
        cluster.take(Demand(slice=name), found)
    assert isinstance(placer.place(Demand(slice="4g.40gb")), Refusal)


def test_a_gang_of_slices_is_placed_whole_or_not_at_all():
    cluster = Cluster([Machine(name="a", cpu_milli=0, memory_mib=0, gpus=2, model="a100-sxm-40gb", partitioned=True)])
    placer = Placer(cluster, Policy())
    found = placer.place(Demand(slice="2g.10gb", members=6, near="node", required=True))
    assert isinstance(found, Assignment)
    assert len({(part.devices, part.start) for part in found.parts}) == 6
    many = placer.place(Demand(slice="2g.10gb", members=7))
    assert isinstance(many, Refusal)
    assert many.reason.startswith("There is room for 6 of 7 members.")
