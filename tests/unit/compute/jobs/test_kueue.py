"""Quotas as Kueue's objects mean what they mean here."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.jobs import kueue, validation
from macadam.compute.jobs.kueue import Flavor, apportion, quantities
from macadam.compute.jobs.naming import parse_quantity
from macadam.compute.scheduling.types import Policy, Quota
from macadam.errors import InvalidInput


def flavor(name: str = "h100", gpus: int = 8, **given: Any) -> Flavor:
    return Flavor(name=name, gpus=gpus, cpu_milli=gpus * 12_000, memory=gpus << 37, **given)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Quota], list[Flavor]]:
    flavors = [
        Flavor(
            name=f"flavor_{i}",
            gpus=draw(st.integers(0, 40)),
            cpu_milli=draw(st.integers(0, 10**6)),
            memory=draw(st.integers(0, 2**44)),
            mig="1g.10gb" if slices > 1 else "",
            slices=slices,
        )
        for i in range(draw(st.integers(1, 4)))
        for slices in [draw(st.sampled_from([1, 1, 7]))]
    ]
    left = sum(f.gpus for f in flavors)
    quotas = []
    for i in range(draw(st.integers(1, 6))):
        own = draw(st.integers(0, left))
        left -= own
        limit = st.none() | st.integers(0, 50)
        cohort = draw(st.sampled_from(["all", "", "research"]))
        quotas.append(Quota(tenant=f"team_{i}", gpus=own, cohort=cohort, borrow=draw(limit), lend=draw(limit)))
    return quotas, flavors


def queues(rendered: kueue.Rendered) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o for o in rendered.objects if o["kind"] == "ClusterQueue"}


def gpus_in(found: dict[str, Any], flavors: list[Flavor], limit: str) -> Fraction | None:
    """What a queue or cohort says of whole GPUs over all its flavors; None if it says nothing."""
    amounts = quantities(found)
    slices = {(kueue._flavor_name(f), f.resource): f.slices for f in flavors}
    said = [
        parse_quantity(row[limit]) / slices.get(key, 1)
        for key, row in amounts.items()
        if "nvidia" in key[1] and limit in row
    ]
    return sum(said, Fraction(0)) if said else None


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_what_is_rendered_sums_to_the_quotas(given: tuple[list[Quota], list[Flavor]]) -> None:
    quotas, flavors = given
    rendered = kueue.render(quotas, flavors, Policy())
    validation.check_objects(rendered.objects)
    found = queues(rendered)
    for quota in quotas:
        queue = found[kueue.queue_name(quota.tenant)]
        assert gpus_in(queue, flavors, "nominalQuota") == quota.gpus
        has_gpus = any(f.gpus for f in flavors)
        if quota.cohort and quota.borrow is not None and has_gpus:
            assert gpus_in(queue, flavors, "borrowingLimit") == quota.borrow
        else:
            assert gpus_in(queue, flavors, "borrowingLimit") in (None, 0)
        if quota.cohort and quota.lend is not None:
            assert gpus_in(queue, flavors, "lendingLimit") == min(quota.lend, quota.gpus)


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_no_flavor_is_promised_more_often_than_it_is_there(given: tuple[list[Quota], list[Flavor]]) -> None:
    quotas, flavors = given
    rendered = kueue.render(quotas, flavors, Policy())
    holders = [o for o in rendered.objects if o["kind"] in ("ClusterQueue", "Cohort")]
    for one in flavors:
        name = kueue._flavor_name(one)
        for resource, there in (
            ("cpu", Fraction(one.cpu_milli, 1000)),
            ("memory", Fraction(one.memory)),
            (one.resource, Fraction(one.gpus * one.slices)),
        ):
            rows = [quantities(o).get((name, resource)) for o in holders]
            assert sum(parse_quantity(row["nominalQuota"]) for row in rows if row) <= there


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_all_gpus_of_the_cluster_can_be_used_if_somebody_may_borrow(given: tuple[list[Quota], list[Flavor]]) -> None:
    quotas, flavors = given
    if not any(q.cohort == "all" for q in quotas):
        return
    holders = [o for o in kueue.render(quotas, flavors, Policy()).objects if o["kind"] in ("ClusterQueue", "Cohort")]
    said = sum((gpus_in(o, flavors, "nominalQuota") or Fraction(0) for o in holders), Fraction(0))
    assert said == sum(f.gpus for f in flavors)


@given(st.integers(0, 1000), st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_parts_sum_to_the_whole_and_stay_near_their_share(total: int, sizes: list[int]) -> None:
    parts = apportion(total, sizes)
    assert sum(parts) == total
    assert min(parts) >= 0
    if sum(sizes):
        assert all(abs(part - Fraction(total * size, sum(sizes))) < 1 for part, size in zip(parts, sizes, strict=True))


def test_a_quota_lends_borrows_and_reclaims_as_it_does_here() -> None:
    quotas = [Quota(tenant="a", gpus=4, borrow=2, lend=1, weight=2.5), Quota(tenant="b", gpus=2)]
    rendered = kueue.render(quotas, [flavor(gpus=8)], Policy(reclaim="any", preempt="lower-priority"))
    queue = queues(rendered)["macadam-a"]
    assert quantities(queue)["h100", "nvidia.com/gpu"] == {
        "nominalQuota": "4",
        "borrowingLimit": "2",
        "lendingLimit": "1",
    }
    assert queue["spec"]["cohortName"] == "macadam-all"
    assert queue["spec"]["fairSharing"] == {"weight": "2500m"}
    assert queue["spec"]["preemption"] == {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"}
    free = next(o for o in rendered.objects if o["kind"] == "Cohort")
    assert quantities(free)["h100", "nvidia.com/gpu"] == {"nominalQuota": "2"}
    unlimited = quantities(queues(rendered)["macadam-b"])["h100", "nvidia.com/gpu"]
    assert unlimited == {"nominalQuota": "2"}


def test_a_tenant_without_a_cohort_neither_borrows_nor_reclaims() -> None:
    rendered = kueue.render([Quota(tenant="a", gpus=4, cohort="", borrow=9)], [flavor()], Policy())
    spec = queues(rendered)["macadam-a"]["spec"]
    assert "cohortName" not in spec
    assert spec["preemption"]["reclaimWithinCohort"] == "Never"


def test_a_tenants_queue_takes_work_from_its_own_namespace_only() -> None:
    rendered = kueue.render([Quota(tenant="a", gpus=1), Quota(tenant="b", gpus=1)], [flavor()], Policy())
    selectors = [q["spec"]["namespaceSelector"]["matchLabels"] for q in queues(rendered).values()]
    assert selectors == [{"kubernetes.io/metadata.name": "macadam-a"}, {"kubernetes.io/metadata.name": "macadam-b"}]
    local = [o for o in rendered.objects if o["kind"] == "LocalQueue"]
    assert [(o["metadata"]["namespace"], o["spec"]["clusterQueue"]) for o in local] == [
        ("macadam-a", "macadam-a"),
        ("macadam-b", "macadam-b"),
    ]


def test_what_kueue_cannot_hold_is_said() -> None:
    rendered = kueue.render([Quota(tenant="a", gpus=1, gpu_hours=5, micros=10)], [flavor("x"), flavor("y")], Policy())
    assert any("GPU-hours and money" in note for note in rendered.notes)
    assert any("shared out among the flavors" in note for note in rendered.notes)
    assert any("gittins" in note for note in rendered.notes)
    assert any("takes back what was lent at once" in note for note in rendered.notes)
    plain = kueue.render([Quota(tenant="a", gpus=1)], [flavor()], Policy(order="priority", reclaim="any"))
    assert plain.notes == ()


def test_more_than_there_is_or_twice_the_same_is_refused() -> None:
    with pytest.raises(InvalidInput, match="9 GPUs"):
        kueue.render([Quota(tenant="a", gpus=9)], [flavor()], Policy())
    with pytest.raises(InvalidInput, match="two of the quota"):
        kueue.render([Quota(tenant="a", gpus=1)] * 2, [flavor()], Policy())
    with pytest.raises(InvalidInput, match="two of the flavor"):
        kueue.render([], [flavor(), flavor()], Policy())
    with pytest.raises(InvalidInput):
        kueue.render([], [], Policy())
    with pytest.raises(InvalidInput):
        kueue.render([], [flavor()], Policy(), priorities=[2**31])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cohortName": None}, "no cohort"),
        ({"queueingStrategy": "LIFO"}, "queueingStrategy"),
        ({"cohort": "old-name"}, "cohort"),
    ],
)
def test_a_queue_that_kueue_would_refuse_is_refused_here(change: dict[str, Any], said: str) -> None:
    (queue,) = queues(kueue.render([Quota(tenant="a", gpus=4, borrow=2)], [flavor()], Policy())).values()
    for key, value in change.items():
        if value is None:
            del queue["spec"][key]
        else:
            queue["spec"][key] = value
    with pytest.raises(InvalidInput, match=said):
        validation.check_objects([queue])
