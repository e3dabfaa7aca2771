"""Providers' own price lists: what is taken of GPUs, what is left out and why, and what is refused with its row and field."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macadam.compute.catalogue import prices
from macadam.compute.catalogue.lists import aws_list, found, reading
from macadam.compute.catalogue.lists.found import Found, Source, Terms
from macadam.errors import InvalidInput, SourceInvalid, TooLarge

TODAY = date(2026, 11, 21)
TERMS = Terms(today=TODAY, dated=None, about="the file")
FETCHED = Terms(today=TODAY, dated=date(2026, 11, 20), about="the file")


def quiet(_what: str, _done: int, _whole: int) -> None:
    """Nobody looks."""


def read(source: Source, path: Path, terms: Terms = TERMS) -> Found:
    return reading.read(source, path, terms, quiet)


def told(one: Found) -> dict[tuple[str, str, str], str]:
    """(instance, region or zone, kind) → what one GPU costs an hour, of the newest day."""
    newest = sorted(one.prices.values(), key=lambda price: price.dated)
    return {
        (price.instance, price.zone or price.region, price.kind): str(Decimal(price.per_gpu_hour.micros) / 10**6)
        for price in newest
    }


def refused(one: Found) -> set[tuple[str, str]]:
    return {(problem.where, problem.field) for problem in one.problems}


def write(path: Path, said: object) -> Path:
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


# AWS spot


def spot(**changed: object) -> dict[str, object]:
    plain = {"AvailabilityZone": "us-east-1a", "InstanceType": "p5.48xlarge", "ProductDescription": "Linux/UNIX"}
    return plain | {"SpotPrice": "16.000000", "Timestamp": "2026-11-20T06:00:00+00:00"} | changed


def spots(path: Path, *rows: Mapping[str, object]) -> Path:
    return write(path / "spot.json", {"SpotPriceHistory": list(rows)})


def test_a_spot_price_is_of_a_zone_and_the_last_of_its_day(tmp_path: Path) -> None:
    rows = [
        spot(),
        spot(SpotPrice="17.6", Timestamp="2026-11-20T23:59:59Z"),
        spot(SpotPrice="8", Timestamp="2026-11-19T01:00:00Z"),
        spot(AvailabilityZone="us-east-1b", SpotPrice="24"),
        spot(AvailabilityZone="us-west-2-lax-1a", InstanceType="g4dn.12xlarge", SpotPrice="2"),
    ]
    one = read("aws-spot", spots(tmp_path, *rows))
    assert told(one) == {
        ("p5.48xlarge", "us-east-1a", "spot"): "2.2",
        ("p5.48xlarge", "us-east-1b", "spot"): "3",
        ("g4dn.12xlarge", "us-west-2-lax-1a", "spot"): "0.5",
    }
    assert {price.region for price in one.prices.values()} == {"us-east-1", "us-west-2"}
    days = sorted(p.dated.day for p in one.prices.values() if p.zone == "us-east-1a")
    assert (days, one.skipped) == ([19, 20], {found.OLDER: 1})


def test_a_spot_price_that_did_not_change_holds_on_the_day_of_the_list(tmp_path: Path) -> None:
    path = spots(
        tmp_path, spot(Timestamp="2026-11-02T00:00:00Z"), spot(SpotPrice="9", Timestamp="2026-11-01T00:00:00Z")
    )
    one = read("aws-spot", path, FETCHED)
    assert sorted((p.dated.day, p.per_gpu_hour.micros) for p in one.prices.values()) == [
        (1, 1_125_000), (2, 2_000_000), (20, 2_000_000),
    ]  # fmt: skip


def test_what_is_no_plain_linux_machine_with_a_known_gpu_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        spot(InstanceType="m7i.large", SpotPrice="nonsense"),
        spot(InstanceType="Standard_NV6ads_A10_v5"),
        spot(ProductDescription="Windows"),
        spot(AvailabilityZone="cn-north-1a"),
        spot(SpotPrice="0.0"),
    ]
    one = read("aws-spot", spots(tmp_path, *rows))
    assert (one.prices, one.refused, sum(one.skipped.values())) == ({}, 0, 5)
    assert (one.skipped[found.UNKNOWN], one.skipped[found.PART], one.skipped[found.SYSTEM]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"SpotPrice": "-1"}, "SpotPrice"),
        ({"SpotPrice": "NaN"}, "SpotPrice"),
        ({"SpotPrice": "Infinity"}, "SpotPrice"),
        ({"SpotPrice": "1e99"}, "SpotPrice"),
        ({"SpotPrice": ""}, "SpotPrice"),
        ({"SpotPrice": "9999"}, "SpotPrice"),
        ({"Timestamp": "2026-11-22T00:00:00Z"}, "Timestamp"),
        ({"Timestamp": "2026-11-20T00:00:00"}, "Timestamp"),
        ({"Timestamp": "yesterday"}, "Timestamp"),
        ({"AvailabilityZone": "moon-1"}, "AvailabilityZone"),
    ],
)
def test_nonsense_in_a_spot_price_is_refused_with_its_row_and_field(
    tmp_path: Path, changed: dict[str, object], field: str
) -> None:
    one = read("aws-spot", spots(tmp_path, spot(), spot(AvailabilityZone="us-east-1c") | changed))
    ((where, named),) = refused(one)
    assert named == field
    assert where == "row 2" or "us-east-1c" in where


# AWS's price list


COLUMNS = [column for column, _ in aws_list._COLUMNS.values()]
PLAIN = {
    "SKU": "A", "OfferTermCode": "JRTC", "TermType": "OnDemand", "Unit": "Hrs", "PricePerUnit": "55.0400000000", "Currency": "USD",
    "Instance Type": "p5.48xlarge", "Operating System": "Linux", "Tenancy": "Shared", "Pre Installed S/W": "NA",
    "CapacityStatus": "Used", "MarketOption": "OnDemand", "Location Type": "AWS Region", "Region Code": "us-east-1",
}  # fmt: skip


def listed(path: Path, rows: Iterable[Mapping[str, str]], *, published: str = "2026-11-18T16:00:00Z") -> Path:
    text = io.StringIO()
    text.write(f'"FormatVersion","v1.0"\n"Disclaimer","For information, only"\n"Publication Date","{published}"\n')
    text.write('"Version","2026"\n"OfferCode","AmazonEC2"\n')
    writer = csv.DictWriter(text, ["RateCode", *COLUMNS, "vCPU"], quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write(path / "index.csv", text.getvalue())


def reserved(option: str, term: str, rate: str, fee: str = "", *, offering: str = "standard") -> list[dict[str, str]]:
    plain = PLAIN | {"TermType": "Reserved", "OfferTermCode": f"{option}{term}{offering}", "PurchaseOption": option}
    plain |= {"LeaseContractLength": term, "OfferingClass": offering}
    rows = [plain | {"PricePerUnit": rate}]
    return [*rows, plain | {"Unit": "Quantity", "PricePerUnit": fee}] if fee else rows


def test_on_demand_and_reservations_are_taken_with_what_is_paid_ahead_spread_over_the_term(tmp_path: Path) -> None:
    rows = [PLAIN, *reserved("No Upfront", "1yr", "40"), *reserved("All Upfront", "1yr", "0", "300000")]
    rows += reserved("Partial Upfront", "3yr", "12", "315360")
    one = read("aws-price-list", listed(tmp_path, rows))
    assert told(one) == {
        ("p5.48xlarge", "us-east-1", "on-demand"): "6.88",
        ("p5.48xlarge", "us-east-1", "committed-1y"): "5",
        ("p5.48xlarge", "us-east-1", "committed-3y"): "3",  # (12 + 315,360 / 26,280) / 8
    }
    assert {price.dated for price in one.prices.values()} == {date(2026, 11, 18)}
    by_kind = {price.kind: price.source for price in one.prices.values()}
    assert "Partial Upfront, 315360 USD ahead" in by_kind["committed-3y"]


def test_other_systems_tenancies_and_ways_to_pay_are_left_out(tmp_path: Path) -> None:
    rows = [
        PLAIN,
        PLAIN | {"Instance Type": "m5.large"},
        PLAIN | {"Instance Type": ""},
        PLAIN | {"Operating System": "Windows", "PricePerUnit": "1"},
        PLAIN | {"Pre Installed S/W": "SQL Std"},
        PLAIN | {"Tenancy": "Dedicated"},
        PLAIN | {"CapacityStatus": "UnusedCapacityReservation"},
        PLAIN | {"MarketOption": "CapacityBlock", "PricePerUnit": "0"},
        PLAIN | {"Location Type": "AWS Local Zone"},
        *reserved("No Upfront", "1yr", "30", offering="convertible"),
        *reserved("All Upfront", "3yr", "0"),
        PLAIN | {"PricePerUnit": "0.0000000000", "Region Code": "us-east-2"},
    ]
    one = read("aws-price-list", listed(tmp_path, rows))
    assert told(one) == {("p5.48xlarge", "us-east-1", "on-demand"): "6.88"}
    assert (sum(one.skipped.values()), one.rows, one.refused) == (len(rows) - 1, len(rows), 0)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"PricePerUnit": "-1"}, "PricePerUnit"),
        ({"PricePerUnit": "nan"}, "PricePerUnit"),
        ({"Currency": ""}, "Currency"),
        ({"Unit": "Quantity"}, "Unit"),
        ({"Unit": "Months", "PricePerUnit": "40000"}, "Unit"),
        ({"PricePerUnit": "480000"}, "PricePerUnit"),
        ({"Region Code": ""}, "Region Code"),
    ],
)
def test_nonsense_in_awss_list_is_refused_with_its_line(tmp_path: Path, changed: dict[str, str], field: str) -> None:
    assert refused(read("aws-price-list", listed(tmp_path, [PLAIN, PLAIN | changed]))) == {("line 8", field)}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ([PLAIN | {"PricePerUnit": "1"}], "PricePerUnit"),
        ([PLAIN | {"Currency": "CNY"}], "PricePerUnit"),
        (reserved("No Upfront", "1yr", "40") * 2, "Unit"),
        ([*reserved("All Upfront", "1yr", "0", "9"), *reserved("All Upfront", "1yr", "0", "9")[1:]], "Unit"),
        ([*reserved("All Upfront", "1yr", "0", "9")[:1], reserved("All Upfront", "1yr", "0", "9")[1] | {"Currency": "CNY"}], "Currency"),
    ],
)  # fmt: skip
def test_two_prices_or_currencies_of_one_offer_are_refused(
    tmp_path: Path, more: list[dict[str, str]], field: str
) -> None:
    one = read("aws-price-list", listed(tmp_path, [PLAIN, *more]))
    assert {name for _, name in refused(one)} == {field}


def test_the_json_of_a_region_says_the_same_as_its_csv(tmp_path: Path) -> None:
    attributes = {
        "instanceType": "p5.48xlarge",
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
    }
    attributes |= {
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
        "locationType": "AWS Region",
        "regionCode": "us-east-1",
    }
    hour = {"A.J.6": {"unit": "Hrs", "pricePerUnit": {"USD": "55.04"}}}
    bought = {"LeaseContractLength": "1yr", "OfferingClass": "standard", "PurchaseOption": "No Upfront"}
    term = {"priceDimensions": {"A.N.6": {"unit": "Hrs", "pricePerUnit": {"USD": "40"}}}, "termAttributes": bought}
    said = {
        "publicationDate": "2026-11-18T16:00:00Z",
        "products": {"A": {"sku": "A", "attributes": attributes}, "B": {"attributes": {"volumeApiName": "gp3"}}},
        "terms": {
            "OnDemand": {
                "A": {"A.J": {"priceDimensions": hour, "termAttributes": {}}},
                "B": {"B.J": {"priceDimensions": hour}},
            },
            "Reserved": {"A": {"A.N": term}},
        },
    }
    plain = listed(tmp_path, [PLAIN, *reserved("No Upfront", "1yr", "40")])
    assert told(read("aws-price-list", write(tmp_path / "index.json", said))) == told(read("aws-price-list", plain))


def test_a_price_in_two_currencies_is_in_none(tmp_path: Path) -> None:
    names = dict(pair for pair in aws_list._COLUMNS.values() if pair[1])
    attributes = {plain: PLAIN[column] for column, plain in names.items()}
    rate = {"A.J.6": {"unit": "Hrs", "pricePerUnit": {"CNY": "1", "USD": "55.04"}}}
    said = {"publicationDate": "2026-11-18T16:00:00Z", "products": {"A": {"attributes": attributes}}}
    said |= {"terms": {"OnDemand": {"A": {"A.J": {"priceDimensions": rate}}}}}
    one = read("aws-price-list", write(tmp_path / "index.json", said))
    assert {field for _, field in refused(one)} == {"PricePerUnit", "Currency"}


def test_a_list_of_tomorrow_or_of_something_else_is_refused(tmp_path: Path) -> None:
    assert refused(read("aws-price-list", listed(tmp_path, [PLAIN], published="2026-12-01T00:00:00Z"))) == {
        ("the file", "Publication Date")
    }
    with pytest.raises(InvalidInput, match="no price list"):
        read("aws-price-list", write(tmp_path / "other.csv", "a,b\n1,2\n"))
    with pytest.raises(SourceInvalid):
        read("aws-price-list", write(tmp_path / "index.json", "{"))


def test_a_json_file_that_is_too_large_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "MAX_JSON", 10)
    with pytest.raises(TooLarge) as caught:
        read("aws-spot", spots(tmp_path, spot()))
    assert "one region" in caught.value.next_step


# Azure


def item(**changed: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": 98.32,
        "armRegionName": "eastus",
    }
    plain |= {"effectiveStartDate": "2024-05-01T00:00:00Z", "productName": "Virtual Machines NDisrH100v5 Series"}
    plain |= {"skuName": "ND96isrH100v5", "meterName": "ND96isrH100v5", "serviceName": "Virtual Machines"}
    plain |= {"unitOfMeasure": "1 Hour", "type": "Consumption", "isPrimaryMeterRegion": True}
    return plain | {"armSkuName": "Standard_ND96isr_H100_v5"} | changed


def azures(path: Path, *items: Mapping[str, object], more: str | None = None) -> Path:
    return write(
        path / "azure.json", {"BillingCurrency": "USD", "Items": list(items), "NextPageLink": more, "Count": len(items)}
    )


def test_azures_spot_is_told_by_its_name_and_a_reservation_is_of_its_whole_term(tmp_path: Path) -> None:
    plans = [{"term": "1 Year", "retailPrice": 72, "unitPrice": 72}, {"term": "3 Years", "retailPrice": 56}]
    items = [
        item(savingsPlan=plans),
        item(skuName="ND96isrH100v5 Spot", meterName="ND96isrH100v5 Spot", retailPrice=24.0),
        item(type="Reservation", reservationTerm="1 Year", retailPrice=560640.0),
    ]
    one = read("azure-retail", azures(tmp_path, *items), FETCHED)
    where = ("Standard_ND96isr_H100_v5", "eastus")
    assert told(one) == {
        (*where, "on-demand"): "12.29",
        (*where, "spot"): "3",
        (*where, "committed-1y"): "8",  # 560,640 / 8,760 / 8, not the savings plan's 9
        (*where, "committed-3y"): "7",
    }
    assert {price.dated for price in one.prices.values()} == {date(2026, 11, 20)}
    assert any("reservation of 1 Year, 560640" in price.source for price in one.prices.values())


def test_windows_low_priority_development_and_prices_to_come_are_left_out(tmp_path: Path) -> None:
    items = [
        item(),
        item(productName="Virtual Machines NDisrH100v5 Series Windows", retailPrice=1),
        item(skuName="ND96isrH100v5 Low Priority", retailPrice=1),
        item(type="DevTestConsumption", retailPrice=1),
        item(serviceName="Virtual Machine Licenses", retailPrice=1),
        item(armSkuName="Standard_D2s_v5", retailPrice=1),
        item(effectiveStartDate="2026-12-01T00:00:00Z", retailPrice=1),
        item(isPrimaryMeterRegion=False, retailPrice=1),
        item(type="Reservation", reservationTerm="5 Years", retailPrice=1),
    ]
    one = read("azure-retail", azures(tmp_path, *items), FETCHED)
    assert told(one) == {("Standard_ND96isr_H100_v5", "eastus", "on-demand"): "12.29"}
    assert sum(one.skipped.values()) == len(items) - 1


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"retailPrice": -1}, "retailPrice"),
        ({"retailPrice": "NaN"}, "retailPrice"),
        ({"currencyCode": ""}, "currencyCode"),
        ({"unitOfMeasure": "1 Month", "retailPrice": 70000}, "unitOfMeasure"),
        ({"unitOfMeasure": "100 Hours"}, "unitOfMeasure"),
        ({"armRegionName": ""}, "armRegionName"),
        ({"effectiveStartDate": "soon"}, "effectiveStartDate"),
        ({"retailPrice": 860000}, "retailPrice"),
    ],
)
def test_nonsense_in_azures_pages_is_refused_with_its_item(
    tmp_path: Path, changed: dict[str, object], field: str
) -> None:
    one = read("azure-retail", azures(tmp_path, item(), item(armRegionName="westus") | changed), FETCHED)
    assert refused(one) == {("item 2", field)}


def test_a_reservation_of_a_month_is_not_one_of_a_year(tmp_path: Path) -> None:
    plans = [{"term": "1 Month", "retailPrice": 1}]
    items = [item(savingsPlan=plans), item(type="Reservation", reservationTerm="1 Month", retailPrice=50000)]
    one = read("azure-retail", azures(tmp_path, *items), FETCHED)
    assert {kind for _, _, kind in told(one)} == {"on-demand"}
    assert one.skipped["terms beside one and three years"] == 1


def test_of_two_azure_prices_none_is_guessed(tmp_path: Path) -> None:
    two = read("azure-retail", azures(tmp_path, item(), item(retailPrice=50)), FETCHED)
    assert (two.prices, two.skipped["offers with two prices"]) == ({}, 1)
    mixed = read("azure-retail", azures(tmp_path, item(), item(currencyCode="EUR")), FETCHED)
    assert refused(mixed) == {("item 2", "currencyCode")}


def test_pages_without_a_day_ask_for_it_and_a_missing_page_is_noted(tmp_path: Path) -> None:
    path = azures(tmp_path, item(), more="https://prices.azure.com/api/retail/prices?$skip=1000")
    with pytest.raises(InvalidInput) as caught:
        read("azure-retail", path)
    assert "--dated 20" in caught.value.next_step
    assert "names a next one" in read("azure-retail", path, FETCHED).notes[0]
    pages = [json.loads(path.read_text()), {"Items": [item(armRegionName="westus")], "NextPageLink": None}]
    both = read("azure-retail", write(tmp_path / "both.json", pages), FETCHED)
    assert (len(both.prices), both.notes) == (2, [])


# Google Cloud


def sku(description: str, price: float, usage: str = "OnDemand", **changed: object) -> dict[str, object]:
    units, nanos = divmod(round(price * 10**9), 10**9)
    expression = {
        "usageUnit": "GiBy.h" if " Ram " in description else "h",
        "tieredRates": [
            {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": str(units), "nanos": nanos}}
        ],
    }
    info = {"effectiveTime": "2026-11-19T23:15:07.123456789Z", "pricingExpression": expression | changed}
    category = {"resourceFamily": "Compute", "usageType": usage}
    return {
        "skuId": description,
        "description": description,
        "category": category,
        "serviceRegions": ["us-central1"],
        "pricingInfo": [info],
    }


G2 = [
    sku("Nvidia L4 GPU running in Americas", 0.56),
    sku("G2 Instance Core running in Americas", 0.025),
    sku("G2 Instance Ram running in Americas", 0.003),
]


def skus(path: Path, *several: Mapping[str, object]) -> Path:
    return write(path / "gcp.json", {"skus": list(several), "nextPageToken": ""})


def test_a_machine_of_google_is_put_together_from_its_gpus_cores_and_memory(tmp_path: Path) -> None:
    one = read("gcp-skus", skus(tmp_path, *G2), FETCHED)
    found_ = told(one)
    assert found_["g2-standard-4", "us-central1", "on-demand"] == str(
        Decimal("0.56") + 4 * Decimal("0.025") + 16 * Decimal("0.003")
    )
    # 8 GPUs, 96 cores, 384 GiB
    assert found_["g2-standard-96", "us-central1", "on-demand"] == "1.004"
    assert all("put together, without local disks" in price.source for price in one.prices.values())


def test_kinds_are_told_by_description_where_the_usage_type_says_less(tmp_path: Path) -> None:
    several = [
        sku("Nvidia Tesla A100 GPU attached to Spot Preemptible VMs running in Americas", 1, "Preemptible"),
        sku("Spot Preemptible A2 Instance Core running in Americas", 0.01, "Preemptible"),
        sku("Spot Preemptible A2 Instance Ram running in Americas", 0.001, "Preemptible"),
        sku("Spot Preemptible A4 Nvidia B200 (1 gpu slice) running in Americas", 5, "OnDemand"),
        sku("Spot Preemptible A4 Instance Core running in Americas", 0.01, "Preemptible"),
        sku("Spot Preemptible A4 Instance Ram running in Americas", 0.001, "Preemptible"),
        sku("Commitment v1: Nvidia L4 GPU running in Americas for 1 Year", 0.3, "Commit1Yr"),
        sku("Commitment v1: G2 Cpu in Americas for 1 Year", 0.01, "Commit1Yr"),
        sku("Commitment v1: G2 Ram in Americas for 1 Year", 0.001, "Commit1Yr"),
    ]
    found_ = told(read("gcp-skus", skus(tmp_path, *several), FETCHED))
    assert found_["a2-highgpu-1g", "us-central1", "spot"] == "1.205"
    assert found_["a4-highgpu-8g", "us-central1", "spot"] == "5.776"
    assert found_["g2-standard-4", "us-central1", "committed-1y"] == "0.356"
    assert {kind for _, _, kind in found_} == {"spot", "committed-1y"}


def test_what_is_sold_on_other_terms_never_passes_for_the_plain_price(tmp_path: Path) -> None:
    cheap = [
        "Nvidia L4 Virtual Workstation GPU running in Americas", "Reserved Nvidia L4 GPU running in Americas",
        "DWS Defined Duration Nvidia L4 GPU running in Americas", "Nvidia L4 GPU Calendar Mode running in Americas",
        "G2 Custom Instance Core running in Americas", "Nvidia L40 GPU running in Americas",
    ]  # fmt: skip
    one = read("gcp-skus", skus(tmp_path, *G2, *(sku(name, 0.01) for name in cheap)), FETCHED)
    assert told(one)["g2-standard-4", "us-central1", "on-demand"] == "0.708"
    assert one.skipped["SKUs of no GPU machine, or on other terms"] == len(cheap)


def test_a_machine_of_which_a_part_has_no_price_or_two_is_left_out(tmp_path: Path) -> None:
    assert read("gcp-skus", skus(tmp_path, *G2[:2]), FETCHED).prices == {}
    twice = read("gcp-skus", skus(tmp_path, *G2, sku("G2 Instance Core running in Iowa", 0.03)), FETCHED)
    assert (twice.prices, twice.skipped["parts with two prices in one region"]) == ({}, 1)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"usageUnit": "mo"}, "usageUnit"),
        ({"tieredRates": []}, "tieredRates"),
        ({"tieredRates": [{"unitPrice": {"currencyCode": "", "units": "1", "nanos": 0}}]}, "currencyCode"),
        ({"tieredRates": [{"unitPrice": {"currencyCode": "USD", "units": "-1", "nanos": 0}}]}, "unitPrice"),
        *(
            ({"tieredRates": [{"unitPrice": {"currencyCode": "USD", "units": units, "nanos": nanos}}]}, "unitPrice")
            for units, nanos in (("x", 0), ("1_0", 0), ("٣", 0), (" 1", 0), ("9" * 4000, 0), ("1", -5), ("1", 10**9))
        ),
    ],
)
def test_nonsense_in_googles_skus_is_refused(tmp_path: Path, changed: dict[str, object], field: str) -> None:
    bad = sku("Nvidia L4 GPU running in Americas", 1, **changed)
    assert {name for _, name in refused(read("gcp-skus", skus(tmp_path, *G2[1:], bad), FETCHED))} == {field}


# Our own CSV

OURS = {
    "provider": "ours", "region": "cellar", "instance": "rack-1", "gpu": "H100 SXM", "gpus": "8", "kind": "owned",
    "currency": "EUR", "dated": "2026-11-01", "source": "our books", "per_hour": "16",
}  # fmt: skip


def ours(path: Path, *rows: Mapping[str, str]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write(path / "ours.csv", text.getvalue())


def test_a_csv_says_the_price_of_a_gpu_or_of_a_machine_and_not_both(tmp_path: Path) -> None:
    assert told(read("csv", ours(tmp_path, OURS))) == {("rack-1", "cellar", "owned"): "2"}
    each = {name: value for name, value in OURS.items() if name != "per_hour"} | {"per_gpu_hour": "2.5", "zone": "left"}
    assert told(read("csv", ours(tmp_path, each))) == {("rack-1", "left", "owned"): "2.5"}
    for wrong in (OURS | {"per_gpu_hour": "2"}, {k: v for k, v in OURS.items() if k != "per_hour"}):
        with pytest.raises(InvalidInput, match="of one GPU or of the whole machine"):
            read("csv", ours(tmp_path, wrong))
    with pytest.raises(InvalidInput, match="no currency"):
        read("csv", ours(tmp_path, {k: v for k, v in OURS.items() if k != "currency"}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("per_hour", "-1"), ("per_hour", "nan"), ("per_hour", "0"), ("per_hour", "1,5"), ("currency", "euro"), ("currency", ""),
        ("dated", "2026-11-22"), ("dated", "01.11.2026"), ("gpu", "H9000"), ("gpu", "H100"), ("gpus", "0"), ("gpus", "1.5"),
        ("kind", "cheap"), ("source", ""), ("provider", ""), ("provider", "x" * 201),
    ],
)  # fmt: skip
def test_nonsense_in_a_csv_is_refused_with_its_line_and_field(tmp_path: Path, field: str, value: str) -> None:
    one = read("csv", ours(tmp_path, OURS, OURS | {"instance": "rack-2", field: value}))
    assert refused(one) == {("line 3", field)}


def test_two_prices_of_one_offer_on_a_day_and_a_line_that_is_too_short_are_refused(tmp_path: Path) -> None:
    path = ours(tmp_path, OURS, OURS | {"per_hour": "17"})
    assert refused(read("csv", path)) == {("line 3", "per_hour")}
    path.write_text(path.read_text() + "ours,cellar\n")
    assert ("line 4", "") in refused(read("csv", path))


# Laws


@given(st.decimals(Decimal("0.0001"), 1000, places=10), st.integers(1, 16))
def test_a_gpus_price_times_its_number_is_the_machines_within_half_a_micro_each(hourly: Decimal, gpus: int) -> None:
    each = Decimal(found.per_gpu(hourly, gpus, "USD").micros) / 10**6
    assert abs(each * gpus - hourly) <= Decimal("0.0000005") * gpus


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), source=st.sampled_from(get_args(Source)))
def test_a_file_of_anything_is_an_answer_or_a_clear_error(
    data: bytes, source: Source, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.csv"
    path.write_bytes(data)
    try:
        one = read(source, path, FETCHED)
    except InvalidInput as error:
        said = error.next_step
    else:
        said = "" if one.prices else "nothing of it was taken"
    assert said


def test_the_newest_price_that_is_not_later_counts_and_old_spot_prices_are_marked(tmp_path: Path) -> None:
    rows = [
        spot(SpotPrice="8", Timestamp="2026-11-01T00:00:00Z"),
        spot(SpotPrice="16", Timestamp="2026-11-10T00:00:00Z"),
    ]
    own = list(read("aws-spot", spots(tmp_path, *rows)).prices.values())

    def at(day: int) -> list[tuple[int, bool]]:
        offers = prices.offers("h100-sxm-80gb", date(2026, 11, day), provider="aws", kind="spot", own=own)
        return [(one.price.per_gpu_hour.micros, one.stale) for one in offers]

    assert at(9) == [(1_000_000, False)]
    assert at(10) == [(2_000_000, False)]
    assert at(25) == [(2_000_000, True)]
