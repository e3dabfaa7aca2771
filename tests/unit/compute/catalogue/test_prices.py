"""Prices, machine types, energy and the cost of hardware of one's own: dated, sourced, exact."""

from datetime import date
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.catalogue import energy, gpus, machines, prices
from macadam.compute.catalogue.energy import Hardware
from macadam.compute.catalogue.prices import Price
from macadam.errors import InvalidInput, NotFound
from macadam.values import Money

NOVEMBER = date(2026, 11, 21)


def usd(amount: str) -> Money:
    return Money(micros=int(Decimal(amount) * 1_000_000))


def own(amount: str, dated: date, **changed: str) -> Price:
    return Price(
        **{"provider": "aws", "region": "us-east-1", "instance": "p5.48xlarge", "gpu": "h100-sxm-80gb", **changed},
        gpus=8,
        kind="on-demand",
        per_gpu_hour=usd(amount),
        dated=dated,
        source="our contract",
    )


def test_every_published_price_is_of_a_known_gpu_and_has_a_source_and_a_day() -> None:
    for price in prices.published():
        assert gpus.recognise(price.gpu) == price.gpu, price
        assert price.source.startswith("https://"), price
        assert date(2020, 1, 1) < price.dated <= NOVEMBER, price
        assert 50_000 < price.per_gpu_hour.micros < 50_000_000, price


def test_more_gpus_in_a_machine_never_make_each_of_them_dearer() -> None:
    # A licence that crept into a price of one size shows here: Azure's Windows adds 0.046 USD for each processor.
    by_series: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for price in prices.published():
        series = (price.provider, price.region, price.gpu, price.kind, price.dated.isoformat())
        by_series.setdefault(series, []).append((price.gpus, price.per_gpu_hour.micros))
    for series, offered in by_series.items():
        micros = [each for _, each in sorted(offered)]
        assert micros == sorted(micros, reverse=True), series


def test_every_provider_that_is_promised_has_prices() -> None:
    named = {price.provider for price in prices.published()}
    assert {"aws", "gcp", "azure", "coreweave", "lambda", "crusoe", "nebius"} <= named


def test_every_machine_type_has_known_gpus() -> None:
    for machine in machines._known().values():
        assert gpus.recognise(machine.gpu) == machine.gpu, machine
        assert machine.gpus >= 1


def test_a_price_of_a_machine_agrees_with_the_table_of_machines() -> None:
    for price in prices.published():
        machine = machines.find(price.instance)
        if machine:
            assert (machine.gpu, machine.gpus) == (price.gpu, price.gpus), price


@pytest.mark.parametrize(
    ("instance", "gpu", "count"),
    [
        ("p5.48xlarge", "h100-sxm-80gb", 8),
        ("standard_nd96isr_h100_v5", "h100-sxm-80gb", 8),
        ("h100-80gb-sxm-ib.8x", "h100-sxm-80gb", 8),
        ("a100-80gb.1x", "a100-pcie-80gb", 1),
        ("gd-8xh200ib-i128", "h200-sxm-141gb", 8),
        ("gd-8xl40-i128", "l40-48gb", 8),
        ("gd-1xgh200", "gh200-96gb", 1),
        ("b200-8x", "b200-sxm-180gb", 8),
        ("a100.8x", "a100-pcie-40gb", 8),
        ("Standard_NV12ads_A10_v5", "a10-24gb", 12 / 36),
    ],
)
def test_providers_names_of_machines_are_understood(instance: str, gpu: str, count: float) -> None:
    machine = machines.find(instance)
    assert machine is not None
    assert (machine.gpu, machine.gpus) == (gpu, count)


@pytest.mark.parametrize("instance", ["", "m7i.large", "p99.48xlarge", "gd-8xgtx-i1", "h100"])
def test_a_machine_that_is_not_known_is_none(instance: str) -> None:
    assert machines.find(instance) is None


def test_offers_are_cheapest_first_and_old_prices_are_said_to_be_old() -> None:
    found = prices.offers("H100 SXM", NOVEMBER)
    amounts = [offer.price.per_gpu_hour.micros for offer in found]
    assert amounts == sorted(amounts)
    old = prices.offers("a100-sxm-40gb", NOVEMBER, provider="gcp")
    assert old
    assert all(offer.stale and offer.age > 365 for offer in old)
    assert not prices.cheapest("h100-sxm-80gb", NOVEMBER).stale


def test_no_price_of_a_later_day_is_known() -> None:
    assert prices.offers("h100-sxm-80gb", date(2024, 1, 1)) == ()
    with pytest.raises(NotFound, match="cost prices import"):
        prices.cheapest("h100-sxm-80gb", date(2024, 1, 1))


def test_a_homes_own_price_goes_before_a_published_one_unless_it_is_older() -> None:
    newer = prices.offers("h100-sxm-80gb", NOVEMBER, provider="aws", own=[own("4.20", date(2026, 11, 9))])
    assert [offer.price.per_gpu_hour for offer in newer] == [usd("4.20")]
    older = prices.offers("h100-sxm-80gb", NOVEMBER, provider="aws", own=[own("4.20", date(2026, 1, 9))])
    assert [offer.price.per_gpu_hour for offer in older] == [usd("6.88")]


def test_currencies_are_never_compared() -> None:
    price = msgspec.structs.replace(own("0.01", NOVEMBER, provider="us"), per_gpu_hour=Money(micros=1, currency="EUR"))
    assert prices.cheapest("h100-sxm-80gb", NOVEMBER, own=[price]).price.per_gpu_hour.currency == "USD"


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(InvalidInput):
        own("-1", NOVEMBER)


# Hardware of one's own


def hardware(**changed: object) -> Hardware:
    given: dict[str, object] = {"capex": usd("30000"), "residual": usd("3000"), "years": 3, "utilisation": 0.5}
    given |= {"watts": 700, "pue": 1.25, "per_kwh": usd("0.20")}
    return msgspec.convert(given | changed, Hardware)


def test_an_hour_is_what_wears_off_in_it_and_its_power() -> None:
    # (30000 - 3000) / (3 * 8766 * 0.5) = 2.053388; 0.7 kW * 1.25 * 0.20 = 0.175
    assert energy.per_hour(hardware()) == usd("2.228388")
    assert energy.per_hour(hardware(), 8) == Money(micros=278_549)


def test_hardware_that_cannot_be_is_refused() -> None:
    for wrong in ({"years": 0}, {"utilisation": 1.1}, {"pue": 0.9}, {"watts": -1.0}, {"residual": usd("40000")}):
        with pytest.raises(InvalidInput):
            hardware(**wrong)
    with pytest.raises(InvalidInput, match="EUR, USD"):
        hardware(per_kwh=Money(micros=1, currency="EUR"))
    with pytest.raises(InvalidInput):
        energy.per_hour(hardware(), 0)


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_more_use_never_costs_more_by_the_hour(one: float, other: float) -> None:
    less, more = sorted((one, other))
    dear, cheap = (energy.per_hour(hardware(utilisation=u)).micros for u in (less, more))
    assert cheap <= dear


def test_a_grid_is_found_by_its_region_or_country_and_an_unknown_one_is_not() -> None:
    assert energy.carbon("Germany").grams_per_kwh == 329.6
    assert energy.carbon("europe-west9").grams_per_kwh == 16.30
    assert energy.carbon("").year < NOVEMBER.year
    with pytest.raises(NotFound, match="germany"):
        energy.carbon("atlantis")


def test_every_figure_about_energy_has_a_source() -> None:
    assert energy.electricity("eu").per_kwh == Money(micros=190_200, currency="EUR")
    tables = energy._tables()
    for row in (*tables.carbon, *tables.electricity):
        assert "http" in row.source or "Ember" in row.source
        assert row.dated <= NOVEMBER
