"""A home's own prices and exchange rates: added, dated, never rewritten."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from databases import KINDS, environment
from hypothesis import given
from hypothesis import strategies as st

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing import exchange, price_service
from macadam.compute.billing.types import (
    ExchangeRate,
    ImportPriceFile,
    ImportPrices,
    ImportRates,
    ListPrices,
    ListRates,
    MapCharges,
)
from macadam.compute.catalogue.prices import Price
from macadam.errors import ChecksFailed, Conflict, InvalidInput, NotAuthorised, NotFound, SourceInvalid, TooLarge
from macadam.ledger.types import ShowLog
from macadam.testing import Clock, open_platform, token_of
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


def history(path: Path, *prices: tuple[str, str, str]) -> Path:
    """AWS's spot prices of an eight-GPU H100 machine: (zone, day, price)."""
    rows = [
        {
            "AvailabilityZone": zone,
            "InstanceType": "p5.48xlarge",
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": price,
        }
        | {"Timestamp": f"{day}T06:00:00Z"}
        for zone, day, price in prices
    ]
    path.write_text(json.dumps({"SpotPriceHistory": rows}))
    return path


@pytest.mark.parametrize(
    "changed", [{"provider": "ou\0rs"}, {"source": "books\x1b[2J"}, {"region": "cellar\u202e"}, {"instance": "a\nb"}]
)
def test_a_name_that_cannot_be_shown_is_refused_of_any_list(
    platform: Platform, changed: dict[str, str], tmp_path: Path
) -> None:
    before = platform.call(ListPrices(project="flights", kind="owned"))
    with pytest.raises(InvalidInput, match=r"cannot be shown|NUL"):
        platform.call(ImportPrices(prices=(price(**changed),)))
    facts = {"provider": "ours", "region": "r", "instance": "i", "gpu": "H100 SXM", "gpus": "8", "kind": "owned"}
    facts |= {"currency": "USD", "dated": "2026-11-01", "source": "books", "per_hour": "9"} | changed
    (tmp_path / "ours.csv").write_text(",".join(facts) + "\n" + ",".join(f'"{one}"' for one in facts.values()) + "\n")
    with pytest.raises(InvalidInput, match="cannot be shown"):
        platform.call(ImportPriceFile(path=str(tmp_path / "ours.csv"), from_="csv"))
    assert platform.call(ListPrices(project="flights", kind="owned")) == before


def test_a_providers_list_is_one_dated_list_with_a_leaf_that_names_its_file(platform: Platform, tmp_path: Path) -> None:
    path = history(tmp_path / "spot.json", ("us-east-1a", "2026-11-19", "16"), ("us-east-1a", "2026-11-20", "8"))
    taken = platform.call(ImportPriceFile(path=str(path), from_="aws-spot"))
    assert taken.file == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert (taken.prices, taken.first, taken.last) == (2, date(2026, 11, 19), date(2026, 11, 20))
    assert (taken.by_kind, taken.repeated) == ({"spot": 2}, False)
    (entry,) = platform.call(ShowLog(subject=f"prices:own@{taken.version}")).entries
    assert (entry.body["file"], entry.body["source"], entry.body["last"]) == (taken.file, "aws-spot", "2026-11-20")

    def cheapest(at: date | None) -> int:
        found = platform.call(ListPrices(project="*", gpu="H100 SXM", provider="aws", kind="spot", at=at))
        assert all(one.zone == "us-east-1a" and path.name in one.source for one in found)
        return found[0].per_gpu_hour.micros if found else 0

    assert (cheapest(date(2026, 11, 18)), cheapest(date(2026, 11, 19)), cheapest(None)) == (0, 2_000_000, 1_000_000)
    assert platform.call(ImportPriceFile(path=str(path), from_="aws-spot")).repeated


def test_a_list_with_a_row_of_nonsense_is_not_taken_at_all(platform: Platform, tmp_path: Path) -> None:
    path = history(tmp_path / "spot.json", ("us-east-1a", "2026-11-20", "5"), ("us-east-1b", "2026-11-20", "-5"))
    with pytest.raises(ChecksFailed, match="row 2, SpotPrice is '-5'") as caught:
        platform.call(ImportPriceFile(path=str(path), from_="aws-spot"))
    assert caught.value.details["refused"] == 1
    assert all(p.per_gpu_hour.micros != 625_000 for p in platform.call(ListPrices(project="flights", provider="aws")))


def test_what_cannot_be_read_says_what_to_do(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = history(tmp_path / "spot.json", ("us-east-1a", "2026-11-15", "5"), ("eu-west-1b", "2026-11-15", "6"))

    def take(where: Path, **options: object) -> object:
        return platform.call(ImportPriceFile(path=str(where), from_="aws-spot", **options))  # type: ignore[arg-type] # each its own

    with pytest.raises(SourceInvalid, match="no file"):
        take(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="home"):
        take(platform.ports.settings.home / "any.json")
    with pytest.raises(InvalidInput, match="not there yet"):
        take(path, dated=date(2026, 11, 22))
    with pytest.raises(InvalidInput, match="2 prices of other regions"):
        take(path, regions=("ap-south-1",))
    monkeypatch.setattr(price_service, "MOST", 1)
    with pytest.raises(TooLarge) as caught:
        take(path)
    assert "--regions" in caught.value.next_step
    assert platform.call(ImportPriceFile(path=str(path), from_="aws-spot", regions=("eu-west-1",))).prices == 1


def test_a_list_that_grows_while_it_is_read_is_refused(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = history(tmp_path / "spot.json", ("us-east-1a", "2026-11-14", "5"))
    real = price_service.reading.read

    def growing(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type] # passed on as they came
        path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(price_service.reading, "read", growing)
    with pytest.raises(Conflict, match="was changed while"):
        platform.call(ImportPriceFile(path=str(path), from_="aws-spot"))


def test_prices_are_imported_by_administrators_and_read_by_readers(platform: Platform, tmp_path: Path) -> None:
    path = history(tmp_path / "spot.json", ("us-east-1a", "2026-11-13", "5"))
    token = token_of(platform, "pia", {"flights": "viewer"})
    with pytest.raises(NotAuthorised):
        platform.call(ImportPriceFile(path=str(path), from_="aws-spot"), token=token)
    assert platform.call(ListPrices(project="flights", limit=1), token=token)
    with pytest.raises(NotAuthorised):
        platform.call(ListPrices(project="*", limit=1), token=token)


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
