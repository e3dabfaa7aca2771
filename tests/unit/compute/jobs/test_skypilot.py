"""Workloads as SkyPilot tasks: the cheapest place first, and only what SkyPilot can do."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.catalogue.prices import Price
from macadam.compute.jobs import skypilot, validation
from macadam.compute.jobs.workload import Workload
from macadam.errors import InvalidInput, NotFound
from macadam.values import Money

DAY = date(2026, 11, 21)
SELLERS = ("aws", "gcp", "azure", "lambda", "nebius", "runpod", "coreweave", "crusoe", "own")


def workload(**given: Any) -> Workload:
    fixed: dict[str, Any] = {"name": "train-1", "project": "p", "image": "x:1", "command": ("python", "a b.py")}
    return Workload(**(fixed | {"gpus": 4, "gpu": "h100-sxm-80gb"} | given))


def price(micros: int, *, provider: str = "aws", kind: Any = "on-demand", gpus: int = 8, **given: Any) -> Price:
    fixed: dict[str, Any] = {"region": "r", "instance": f"{provider}-{gpus}", "gpu": "h100-sxm-80gb"}
    money = Money(micros=micros)
    facts = fixed | given
    return Price(provider=provider, kind=kind, gpus=gpus, per_gpu_hour=money, dated=DAY, source="a test", **facts)


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macadam.compute.catalogue.prices.published", lambda: ())


PRICES = st.lists(
    st.builds(
        price,
        st.integers(0, 10**8),
        provider=st.sampled_from(SELLERS),
        kind=st.sampled_from(["on-demand", "spot", "committed-1y", "owned"]),
        gpus=st.sampled_from([1, 2, 4, 8]),
        region=st.sampled_from(["r1", "r2"]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(PRICES, st.integers(1, 8), st.booleans())
def test_candidates_cost_what_their_whole_machine_costs_and_stand_in_that_order(own, gpus, spot) -> None:
    wanted = workload(gpus=gpus, spot=spot)
    with pytest.MonkeyPatch.context() as patch:
        alone(patch)
        try:
            found = skypilot.candidates(wanted, DAY, own=own)
        except NotFound:
            found = ()
    assert [one.hourly for one in found] == sorted(one.hourly for one in found)
    for one in found:
        said = one.offer.price
        assert one.hourly == said.per_gpu_hour.micros * said.gpus
        assert said.gpus >= gpus
        assert said.kind in (("on-demand", "spot") if spot else ("on-demand",))
        assert said.provider in ("aws", "gcp", "azure", "lambda", "nebius", "runpod")
    reachable = [
        p.per_gpu_hour.micros * p.gpus
        for p in {p.offer: p for p in own}.values()
        if p.provider not in ("coreweave", "crusoe", "own")
        and p.gpus >= gpus
        and (p.kind == "on-demand" or (spot and p.kind == "spot"))
    ]
    assert min(reachable, default=None) == (found[0].hourly if found else None)


def test_a_machine_with_more_gpus_than_are_needed_costs_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    own = [price(3_000_000, gpus=8), price(4_000_000, provider="lambda", gpus=1)]
    found = skypilot.candidates(workload(gpus=1), DAY, own=own)
    assert [(one.cloud, one.hourly) for one in found] == [("lambda", 4_000_000), ("aws", 24_000_000)]
    assert [line["hourly"] for line in skypilot.describe(found)] == ["4.000000 USD", "24.000000 USD"]


def test_a_task_tries_its_candidates_in_order_and_comes_back_after_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone(monkeypatch)
    own = [price(3_000_000), price(1_000_000, kind="spot", region="r2"), price(9_000_000, provider="gcp")]
    wanted = workload(spot=True, attempts=4, members=2, deadline=60, checkpoint="s3://b/c", secrets={"HF_TOKEN": "hub"})
    made = skypilot.task(wanted, skypilot.candidates(wanted, DAY, own=own), setup="pip install x")
    validation.check_task(made)
    ordered = made["resources"]["ordered"]
    assert [(one["infra"], one["use_spot"]) for one in ordered] == [
        ("aws/r2", True),
        ("aws/r", False),
        ("gcp/r", False),
    ]
    assert all(one["accelerators"] == {"H100": 4} for one in ordered)
    assert made["resources"]["job_recovery"] == {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 3}
    assert (made["num_nodes"], made["setup"]) == (2, "pip install x")
    assert made["file_mounts"] == {"/checkpoint": {"source": "s3://b/c", "mode": "MOUNT_CACHED"}}
    assert made["secrets"] == {"HF_TOKEN": None}
    assert "timeout --signal=TERM --kill-after=30 60 python 'a b.py'" in made["run"]


def test_published_prices_give_candidates_with_their_sources() -> None:
    found = skypilot.candidates(workload(gpus=8), DAY)
    assert found
    assert all(line["source"] and line["dated"] for line in skypilot.describe(found))


@pytest.mark.parametrize("wrong", [{"gpus": 0, "gpu": ""}, {"mig": "1g.10gb"}])
def test_what_no_cloud_rents_this_way_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        skypilot.candidates(workload(**wrong), DAY)


def test_a_price_that_nobody_knows_is_said_and_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    with pytest.raises(NotFound, match="No price"):
        skypilot.candidates(workload(), DAY, own=[price(1, provider="coreweave")])
    with pytest.raises(InvalidInput, match="no bucket"):
        skypilot.task(workload(checkpoint="claim"), skypilot.candidates(workload(), DAY, own=[price(1)]))


def test_a_field_that_skypilot_does_not_have_is_an_error_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    made = skypilot.task(workload(), skypilot.candidates(workload(), DAY, own=[price(1)]))
    made["resources"]["spot_recovery"] = "FAILOVER"
    with pytest.raises(InvalidInput, match="spot_recovery"):
        validation.check_task(made)
