"""A home's own prices and exchange rates: added, dated, never rewritten."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec
import pytest
from databases import KINDS, environment
from hypothesis import given
from hypothesis import strategies as st

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing import exchange
from macadam.compute.billing.types import (
    ExchangeRate,
    ImportPrices,
    ImportRates,
    ListPrices,
    ListRates,
    MapCharges,
)
from macadam.compute.catalogue.prices import Price
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.testing import Clock, open_platform
from macadam.values import Money

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(scope="module", params=KINDS)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with open_platform(environment=environment(request.param), clock=Clock(NOW)) as opened:
        opened.call(CreateProject(project="flights"))
        yield opened


def price(**changed: object) -> Price:
    plain: dict[str, object] = {
        "provider": "ours",
        "region": "cellar",
        "instance": "rack-1",
        "gpu": "H100 SXM",
        "gpus": 8,
    }
    plain |= {"kind": "owned", "per_gpu_hour": {"micros": 1_100_000, "currency": "USD"}, "dated": "2026-11-01"}
    return msgspec.convert(plain | {"source": "our books"} | changed, Price)


def rate(**changed: object) -> ExchangeRate:
    plain: dict[str, object] = {"base": "EUR", "quote": "USD", "day": "2026-11-20", "rate": "1.25", "source": "ECB"}
    return msgspec.convert(plain | changed, ExchangeRate)


def test_own_prices_stand_beside_published_ones_under_the_catalogues_names(platform: Platform) -> None:
    added = platform.call(ImportPrices(prices=(price(),)))
    assert (added.repeated, added.prices) == (False, 1)
    assert platform.call(ImportPrices(prices=(price(),))).repeated
    first = platform.call(ListPrices(project="flights", gpu="h100-sxm-80gb"))[0]
    assert (first.provider, first.per_gpu_hour) == ("ours", Money(micros=1_100_000))
    assert (first.age, first.stale) == (20, False)
    assert platform.call(ListPrices(project="flights", gpu="h100-sxm-80gb", at=date(2026, 10, 1)))[0].provider != "ours"


def test_prices_that_cannot_be_are_refused(platform: Platform) -> None:
    with pytest.raises(NotFound):
        platform.call(ImportPrices(prices=(price(gpu="H9000"),)))
    with pytest.raises(InvalidInput, match="2026-12-01"):
        platform.call(ImportPrices(prices=(price(dated="2026-12-01"),)))
    with pytest.raises(InvalidInput, match="two prices"):
        platform.call(ImportPrices(prices=(price(), price(per_gpu_hour={"micros": 1, "currency": "USD"}))))


def test_a_days_rate_is_never_rewritten(platform: Platform) -> None:
    platform.call(ImportRates(rates=(rate(), rate(day="2026-11-19", rate="1.20"))))
    platform.call(ImportRates(rates=(rate(rate="1.250"),)))
    with pytest.raises(Conflict, match=r"1\.25 USD"):
        platform.call(ImportRates(rates=(rate(rate="1.30"),)))
    for wrong in (rate(rate="0"), rate(base="USD")):
        with pytest.raises(InvalidInput):
            platform.call(ImportRates(rates=(wrong,)))
    assert [r.day.isoformat() for r in platform.call(ListRates(project="flights"))] == ["2026-11-20", "2026-11-19"]


def test_a_rate_serves_a_month_and_both_ways(platform: Platform) -> None:
    platform.call(ImportRates(rates=(rate(base="CHF", day="2026-11-20", rate="1.25"),)))
    with platform.ports.sql.read() as sql:
        assert exchange.rate(sql, "CHF", "USD", date(2026, 12, 21)) == Decimal("1.25")
        assert exchange.rate(sql, "USD", "CHF", date(2026, 11, 21)) == Decimal("0.8")
        assert exchange.rate(sql, "CHF", "USD", date(2026, 12, 22)) is None
        assert exchange.rate(sql, "CHF", "USD", date(2026, 11, 19)) is None
        assert exchange.rate(sql, "CHF", "JPY", date(2026, 11, 21)) is None


@given(st.integers(-(10**15), 10**15), st.decimals("0.000001", "1000000", places=6))
def test_what_is_converted_is_within_half_a_micro(micros: int, at_rate: Decimal) -> None:
    assert abs(Decimal(exchange.converted(micros, at_rate)) - micros * at_rate) <= Decimal("0.5")


def test_rules_without_any_are_the_rules_to_charge_by_tags_alone(platform: Platform) -> None:
    first = platform.call(MapCharges(tag_keys=("project", "team", "project")))
    assert (first.version, first.tag_keys, first.rules) == (1, ("project", "team"), ())
