"""Retail prices of Azure, as pages of its Retail Prices API.

https://learn.microsoft.com/en-us/rest/api/cost-management/retail-prices/azure-retail-prices (read in November 2026): of the type
Consumption `retailPrice` is for a `unitOfMeasure`, and Spot and Low Priority are told by `skuName` and `meterName`, Windows by
`productName`; of the type Reservation it is of the whole `reservationTerm`, though the unit still says '1 Hour' (its own sample:
25,007 USD for a year of an E64 v4); a savings plan's rates stand in `savingsPlan` of the Consumption item, by the hour. Pages do
not say when they were fetched, and `effectiveStartDate` is when a price began, however long ago.
"""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal, localcontext
from pathlib import Path

import msgspec

from macadam.compute.catalogue.lists.found import (
    HOURS,
    LATER,
    NEXT_PAGE,
    NOTHING,
    OLDER,
    SYSTEM,
    Found,
    Progress,
    Sold,
    Terms,
    plain,
    read_day,
    read_pages,
    years,
)
from macadam.compute.catalogue.machines import Machine
from macadam.compute.catalogue.prices import Kind

_SERVICE = "Virtual Machines"
_HOUR = "1 Hour"
_STEP = 10_000
_OTHER_WAY = "other ways to commit to the same machine"


class _Plan(msgspec.Struct, rename="camel"):
    term: str = ""
    retail_price: msgspec.Raw = NOTHING


class _Item(msgspec.Struct, rename="camel"):
    currency_code: str = ""
    tier_minimum_units: float = 0
    reservation_term: str = ""
    retail_price: msgspec.Raw = NOTHING
    arm_region_name: str = ""
    effective_start_date: str = ""
    product_name: str = ""
    sku_name: str = ""
    meter_name: str = ""
    service_name: str = ""
    unit_of_measure: str = ""
    type: str = ""
    is_primary_meter_region: bool = True
    arm_sku_name: str = ""
    savings_plan: list[_Plan] | None = None


class _Page(msgspec.Struct):
    Items: list[_Item]
    NextPageLink: str | None = None


class _Best(msgspec.Struct, frozen=True):
    """One of several prices of an offer: the primary meter's before others', then the one that began last.
    hourly: None where two of the same rank differ, as nobody says which counts.
    """

    rank: tuple[int, bool, str]
    hourly: Decimal | None
    machine: Machine
    currency: str
    how: str
    where: str


_Key = tuple[str, str, Kind]


def read(path: Path, terms: Terms, progress: Progress) -> Found:
    """Raises InvalidInput unless `terms.dated` says when the pages were fetched."""
    fetched = terms.require_day(path, "Azure's pages do not say when they were fetched")
    pages = read_pages(path, _Page, "page of Azure's retail prices")
    items = [item for page in pages for item in page.Items]
    found, best = Found(rows=len(items)), dict[_Key, _Best]()
    for number, item in enumerate(items, start=1):
        if number % _STEP == 0:
            progress(f"reading {path.name}", number, len(items))
        _take(found, item, f"item {number}", fetched, best)
    for (region, _, kind), one in best.items():
        if one.hourly is None:
            found.skip("offers with two prices")
            continue
        source = f"{one.how}; {terms.about}"
        sold = Sold(provider="azure", region=region, kind=kind, currency=one.currency, dated=fetched, source=source)
        found.offer(one.where, "retailPrice", one.hourly, one.machine, sold)
    if pages and pages[-1].NextPageLink:
        found.notes.append(NEXT_PAGE)
    return found


def _take(found: Found, item: _Item, where: str, fetched: date, best: dict[_Key, _Best]) -> None:
    why = _left_out(item)
    if why:
        return found.skip(why)
    machine = found.machine(item.arm_sku_name)
    if machine is None:
        return None
    began = read_day(item.effective_start_date)
    if began is None:
        return found.refuse(
            where, "effectiveStartDate", item.effective_start_date, "a time such as 2026-11-20T08:00:00Z"
        )
    if began > fetched:
        return found.skip(LATER)
    if not item.arm_region_name:
        return found.refuse(where, "armRegionName", "", "a region such as eastus")
    currency = found.currency(where, "currencyCode", item.currency_code)
    price = found.amount(where, "retailPrice", plain(item.retail_price))
    if item.unit_of_measure != _HOUR:
        return found.refuse(where, "unitOfMeasure", item.unit_of_measure, _HOUR)
    if currency and price is not None:
        for kind, first, hourly, how in _rates(found, item, where, price):
            rank = (first, item.is_primary_meter_region, item.effective_start_date)
            one = _Best(rank, hourly, machine, currency, how, where)
            _keep(found, one, (item.arm_region_name, machine.instance, kind), best)
    return None


def _left_out(item: _Item) -> str:
    """Why an item is of no plain virtual machine; '' if it is of one."""
    names = f"{item.sku_name} {item.meter_name}"
    reasons = {
        "services beside virtual machines": item.service_name != _SERVICE or item.tier_minimum_units > 0,
        SYSTEM: "Windows" in item.product_name,
        "low priority": "Low Priority" in names,
        "cloud services": "CloudServices" in item.product_name.replace(" ", ""),
        "prices for development and tests": item.type not in ("Consumption", "Reservation"),
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _rates(found: Found, item: _Item, where: str, price: Decimal) -> Iterator[tuple[Kind, int, Decimal, str]]:
    """What an item says: the kind of price, 1 if it is of this very machine (0 for a savings plan, which is of any), the price
    of an hour, and how it is sold.
    """
    if item.type == "Reservation":
        term = years(item.reservation_term)
        if not term:
            return found.skip("terms beside one and three years")
        with localcontext(prec=60):
            hourly = price / HOURS[term]
        yield (
            _committed(term),
            1,
            hourly,
            f"reservation of {item.reservation_term}, {price} {item.currency_code} in all",
        )
        return None
    spot = "Spot" in f"{item.sku_name} {item.meter_name}"
    yield "spot" if spot else "on-demand", 1, price, "spot" if spot else "pay as you go"
    for plan in item.savings_plan or ():
        term = years(plan.term)
        rate = found.amount(where, "savingsPlan.retailPrice", plain(plan.retail_price))
        if term and rate is not None:
            yield _committed(term), 0, rate, f"savings plan of {plan.term}"
    return None


def _keep(found: Found, one: _Best, key: _Key, best: dict[_Key, _Best]) -> None:
    known = best.get(key)
    if known is not None and known.currency != one.currency:
        return found.refuse(
            one.where, "currencyCode", one.currency, f"one currency of an offer: {known.where} has {known.currency}"
        )
    if known is not None:
        found.skip(OLDER if known.rank[0] == one.rank[0] else _OTHER_WAY)
    if known is None or one.rank > known.rank:
        best[key] = one
    elif one.rank == known.rank and one.hourly != known.hourly:
        best[key] = msgspec.structs.replace(known, hourly=None)
    return None


def _committed(term: str) -> Kind:
    return "committed-1y" if term == "1" else "committed-3y"
