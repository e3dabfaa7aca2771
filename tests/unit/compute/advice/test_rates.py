from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from unit.compute.advice.telling import START, told, usage

from macadam.compute.advice.held import summarise
from macadam.compute.advice.rates import rates
from macadam.compute.billing.types import Charge
from macadam.compute.catalogue.prices import Price
from macadam.values import Money

AT = date(2026, 11, 15)
HELD = summarise(usage(told(range(24), "job:1")))  # an H100 called gpu:a, in n1


def euros(amount: float) -> Money:
    return Money(micros=round(amount * 1e6), currency="EUR")


def charge(effective: Money, **facts: Any) -> Charge:
    of_a_day = {"start": START, "end": START + timedelta(days=1), "category": "usage", "node": "n1", "gpus": 8.0}
    return Charge(id="c", bill="b", billed=effective, effective=effective, **(of_a_day | facts))


def listed(price: float) -> Price:
    return Price(
        provider="own", region="here", instance="box", gpu="h100-sxm-80gb", gpus=1, kind="on-demand",
        per_gpu_hour=Money(micros=round(price * 1e6)), dated=AT, source="a quotation",
    )  # fmt: skip


def test_an_hour_costs_what_the_machines_bill_says_for_each_gpu_and_hour() -> None:
    next_day = {"start": START + timedelta(days=1), "end": START + timedelta(days=2)}
    found = rates(HELD, [charge(euros(192)), charge(euros(384), **next_day)], [], AT, "USD")
    assert found.by_device == {"gpu:a": euros(1.5)}
    assert found.listed == frozenset()


def test_an_hour_that_a_commitment_covers_in_part_costs_both_parts() -> None:
    found = rates(HELD, [charge(euros(192), commitment="used"), charge(euros(384))], [], AT, "USD")
    assert found.by_device == {"gpu:a": euros(3)}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"commitment": "unused"}, id="a commitment that nobody used"),
        pytest.param({"capacity": "unused"}, id="a reservation that nobody used"),
        pytest.param({"category": "credit"}, id="a credit"),
        pytest.param({"category": "purchase"}, id="a purchase, whose use is on the bill as well"),
        pytest.param({"gpus": 0.0}, id="a charge for no GPU"),
        pytest.param({"node": "n2"}, id="another machine"),
    ],
)
def test_what_is_no_price_of_its_use_does_not_count(other: dict[str, Any]) -> None:
    found = rates(HELD, [charge(euros(192)), charge(euros(999), **other)], [], AT, "USD")
    assert found.by_device == {"gpu:a": euros(1.0)}


def test_a_device_on_bills_in_two_currencies_and_one_on_none_go_by_the_catalogue() -> None:
    twice = [charge(euros(192)), charge(Money(micros=192_000_000))]
    for charges in (twice, []):
        found = rates(HELD, charges, [listed(0.01)], AT, "USD")
        assert found.by_device == {"gpu:a": Money(micros=10_000)}
        assert found.listed == {"gpu:a"}


def test_a_device_that_nothing_prices_has_no_rate() -> None:
    unheard = summarise(usage(told(range(24), "job:1", model="unheard of")))
    assert rates(unheard, [], [listed(0.01)], AT, "USD").by_device == {}


def test_the_cheapest_offer_of_a_kind_is_of_its_currency_and_day() -> None:
    found = rates(HELD, [], [listed(0.01)], AT, "USD")
    assert found.cheapest("on-demand", "USD")["h100-sxm-80gb"].per_gpu_hour == Money(micros=10_000)
    assert found.cheapest("on-demand", "EUR") == {}
    earlier = rates(HELD, [], [listed(0.01)], date(2026, 11, 1), "USD")
    assert all(offer.price.provider != "own" for offer in earlier.offers)


def test_a_model_paid_in_two_currencies_has_no_rate_of_its_own() -> None:
    two = summarise(usage(told(range(24), "job:1"), told(range(24), "job:2", device="gpu:b", node="n2")))
    both = [charge(euros(192)), charge(Money(micros=192_000_000), node="n2")]
    assert rates(two, both, [], AT, "USD").by_model(two) == {}
    assert rates(two, both[:1], [], datetime(2000, 1, 1, tzinfo=UTC).date(), "USD").by_model(two) == {
        "h100-sxm-80gb": euros(1.0)
    }
