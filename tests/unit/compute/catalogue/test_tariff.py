"""Which price holds for a GPU of a machine: the home's own, the provider's, one that comes close, the setting, or none."""

from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.catalogue import tariff
from macadam.compute.catalogue.prices import Price
from macadam.compute.catalogue.tariff import Tariff
from macadam.ports import Node
from macadam.values import Money

TODAY = date(2026, 11, 21)
H100, A100 = "h100-sxm-80gb", "a100-sxm-80gb"
RENTED = Node(
    name="n1",
    cpus=1,
    memory=1,
    provider="aws",
    region="us-east-1",
    zone="us-east-1a",
    machine="p5.48xlarge",
    spot=False,
)
MINE = Node(name="rack-1", cpus=1, memory=1)


def price(micros: int, dated: date = date(2026, 11, 1), **more: object) -> Price:
    plain = {"provider": "aws", "region": "us-east-1", "instance": "p5.48xlarge", "gpu": H100, "gpus": 8}
    facts = {"kind": "on-demand", "per_gpu_hour": Money(micros=micros), "dated": dated, "source": "test", **more}
    return Price(**plain | facts)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = (
        price(7_000_000),
        price(8_000_000, region="eu-west-1"),
        price(2_000_000, kind="spot", zone="us-east-1b"),
        price(3_000_000, kind="spot", zone="us-east-1a"),
        price(6_000_000, provider="crusoe", region="", instance="h100.8x"),
        price(1_000_000, provider="gcp", instance="a3", kind="committed-3y"),
    )
    monkeypatch.setattr(tariff, "published", lambda: prices)


def test_the_homes_own_price_goes_before_the_providers_list_and_that_before_the_setting() -> None:
    fallback = Money(micros=9)
    agreed = price(5_000_000, date(2026, 1, 1))
    assert _found(Tariff(TODAY, [agreed], fallback), RENTED) == ("own", 5_000_000)
    assert _found(Tariff(TODAY, [], fallback), RENTED) == ("listed", 7_000_000)
    assert _found(Tariff(TODAY, [], fallback), MINE) == ("setting", 9)
    assert Tariff(TODAY).of(H100, MINE) is None
    assert Tariff(TODAY).of("", RENTED) is None


def _found(prices: Tariff, node: Node, model: str = H100) -> tuple[str, int]:
    found = prices.of(model, node)
    assert found is not None
    return found.how, found.per_gpu_hour.micros


@pytest.mark.parametrize(
    ("changed", "micros", "said"),
    [
        ({"region": "ap-south-1"}, 8_000_000, "none is known of ap-south-1"),
        ({"region": ""}, 8_000_000, "its region is not known"),
        ({"machine": "p5.4xlarge"}, 7_000_000, "none is known of p5.4xlarge"),
        ({"spot": True, "zone": "us-east-1c"}, 3_000_000, "none is known of us-east-1c"),
        ({"spot": True, "region": "eu-west-1", "machine": "p5.4xlarge"}, 3_000_000, "nor of its region"),
    ],
)
def test_what_is_only_close_is_called_an_estimate_and_is_the_dearest(
    changed: dict[str, object], micros: int, said: str
) -> None:
    found = Tariff(TODAY).of(H100, msgspec.structs.replace(RENTED, **changed))
    assert found is not None
    assert (found.how, found.per_gpu_hour.micros) == ("estimate", micros)
    assert said in found.words


def test_a_spot_machine_is_priced_by_its_zone_and_where_none_is_known_on_demand() -> None:
    spot = msgspec.structs.replace(RENTED, spot=True)
    assert _found(Tariff(TODAY), spot) == ("listed", 3_000_000)
    elsewhere = msgspec.structs.replace(spot, provider="crusoe", machine="h100.8x", region="x")
    found = Tariff(TODAY).of(H100, elsewhere)
    assert found is not None
    assert (found.how, found.per_gpu_hour.micros) == ("estimate", 6_000_000)
    assert "no spot price is known" in found.words


def test_no_machine_is_taken_to_be_under_a_commitment() -> None:
    assert Tariff(TODAY).of(H100, msgspec.structs.replace(RENTED, provider="gcp", machine="a3")) is None


def test_own_hardware_is_known_by_its_name_and_expected_on_no_bill() -> None:
    cheap, dear = (price(n, provider="ours", instance=name, kind="owned") for n, name in ((1, "rack-1"), (2, "rack-2")))
    prices = Tariff(TODAY, [cheap, dear])
    assert _found(prices, MINE) == ("own", 1)
    assert _found(prices, msgspec.structs.replace(MINE, name="x")) == ("estimate", 2)
    ours = msgspec.structs.replace(MINE, provider="ours", machine="RACK-2")
    assert _found(prices, ours) == ("own", 2)
    assert [prices.is_own(node) for node in (MINE, ours, RENTED)] == [True, True, False]
    assert _found(Tariff(TODAY, [dear]), MINE) == ("own", 2)


def test_a_price_is_the_one_in_force_on_its_day_and_says_when_it_is_old() -> None:
    history = [price(1, date(2026, 1, 1)), price(2, date(2026, 6, 1)), price(3, date(2026, 12, 1))]
    for day, micros, stale in ((date(2026, 2, 1), 1, False), (date(2026, 8, 1), 2, False), (TODAY, 2, True)):
        found = Tariff(day, history).of(H100, RENTED)
        assert found is not None
        assert (found.per_gpu_hour.micros, found.stale) == (micros, stale)
    assert Tariff(date(2025, 1, 1), history).of(H100, RENTED) is None


def test_what_is_said_to_cost_nothing_says_nothing() -> None:
    assert _found(Tariff(TODAY, [price(0)]), RENTED) == ("listed", 7_000_000)


def test_the_dearest_of_two_currencies_is_not_to_be_had() -> None:
    euros = price(1, provider="nebius", region="eu", per_gpu_hour=Money(micros=1, currency="EUR"))
    dollars = price(2, provider="nebius", region="us")
    nowhere = msgspec.structs.replace(RENTED, provider="nebius", region="")
    assert Tariff(TODAY, [euros, dollars]).of(H100, nowhere) is None


@given(
    st.lists(
        st.builds(
            price,
            st.integers(1, 10**8),
            st.dates(date(2026, 1, 1), TODAY),
            region=st.sampled_from(["", "us-east-1", "eu-west-1"]),
            instance=st.sampled_from(["p5.48xlarge", "p5.4xlarge"]),
            kind=st.sampled_from(["on-demand", "spot", "owned"]),
        ),
        max_size=8,
    ),
    st.sampled_from(["us-east-1", "eu-west-1", ""]),
    st.sampled_from([True, False]).map(lambda spot: {"spot": spot}),
)
def test_an_estimate_is_never_below_what_any_that_comes_as_close_asks(
    own: list[Price], region: str, market: dict[str, bool]
) -> None:
    node = msgspec.structs.replace(RENTED, region=region, **market, provider="elsewhere")
    own = [msgspec.structs.replace(one, provider="elsewhere") for one in own if one.kind != "owned"]
    found = Tariff(TODAY, own).of(H100, node)
    assert (found is None) == (not [one for one in own if market["spot"] or one.kind == "on-demand"])
    if found is not None and found.how == "own":
        assert any(one.per_gpu_hour == found.per_gpu_hour and one.instance == node.machine for one in own)


def test_a_newer_list_that_the_home_imported_does_not_undo_what_was_agreed() -> None:
    agreed = price(5_000_000, date(2026, 1, 1))
    imported = price(6_000_000, TODAY, listed=True)
    assert _found(Tariff(TODAY, [agreed, imported]), RENTED) == ("own", 5_000_000)
    assert _found(Tariff(TODAY, [imported]), RENTED) == ("listed", 6_000_000)
