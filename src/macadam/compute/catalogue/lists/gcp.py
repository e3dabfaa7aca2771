"""SKUs of Google Cloud's Compute Engine, as pages of its Cloud Billing Catalog API.

https://cloud.google.com/billing/docs/reference/rest/v1/services.skus/list (read in November 2026): a price is `units` and `nanos`
of a `usageUnit`, and `usageType` is OnDemand, Preemptible, Commit1Yr or Commit3Yr. No SKU is of a machine: GPUs, cores and memory
are priced apart, so a machine's price is put together here from its size in the table of machines. Local disks, which some types
bring along, are not in it; each price says so. What is sold under another name than in these descriptions is left out.
"""

import re
from datetime import date
from decimal import Decimal
from pathlib import Path

import msgspec

from macadam.compute.catalogue import machines
from macadam.compute.catalogue.lists.found import LATER, NEXT_PAGE, Found, Progress, Sold, Terms, read_day, read_pages
from macadam.compute.catalogue.machines import Machine
from macadam.compute.catalogue.prices import Kind

_NANO = 10**9
_UNITS = re.compile(r"\d{1,9}", re.ASCII)
_STEP = 10_000
_COMMITTED = re.compile(r"commitment v1: (?P<rest>.+) for (?P<years>[13]) years?")
_GPU = re.compile(
    r"(a4 )?(nvidia )?(tesla )?(?P<gpu>a100 80gb|a100|h100 80gb mega|h100 mega 80gb|h100 80gb plus|h100 80gb|h200 141gb|l4) gpu"
    r"( attached to spot preemptible vms)?( running)? in .+"
    r"|(a4 )?nvidia (?P<slice>b200) \(1 gpu slice\)( running)? in .+"
)
_HOST = re.compile(r"(?P<series>a2|a3|a3plus|a3ultra|a4|g2) (instance )?(?P<part>core|cpu|ram)( running)? in .+")
# Sold on other terms, some of them for half: they must not pass for the plain price.
_OTHER = (
    "reserved",
    "dws",
    "defined duration",
    "calendar",
    "custom",
    "sole tenancy",
    "premium",
    "workstation",
    "upgrade",
)
_PLUS = {"h100 80gb mega": "h100 80gb plus", "h100 mega 80gb": "h100 80gb plus"}
# Of a machine type's name: the series that its cores are sold under, and its GPU.
_SERIES = {
    "a2-highgpu": ("a2", "a100"),
    "a2-megagpu": ("a2", "a100"),
    "a2-ultragpu": ("a2", "a100 80gb"),
    "a3-highgpu": ("a3", "h100 80gb"),
    "a3-megagpu": ("a3plus", "h100 80gb plus"),
    "a3-ultragpu": ("a3ultra", "h200 141gb"),
    "a4-highgpu": ("a4", "b200"),
    "g2-standard": ("g2", "l4"),
}
_TYPES: dict[str, Kind] = {
    "OnDemand": "on-demand", "Preemptible": "spot", "Commit1Yr": "committed-1y", "Commit3Yr": "committed-3y",
}  # fmt: skip


class _Money(msgspec.Struct, rename="camel"):
    currency_code: str = ""
    units: int | str = 0
    nanos: int = 0


class _Tier(msgspec.Struct, rename="camel"):
    start_usage_amount: float = 0
    unit_price: _Money | None = None


class _Expression(msgspec.Struct, rename="camel"):
    usage_unit: str = ""
    tiered_rates: list[_Tier] = []


class _Info(msgspec.Struct, rename="camel"):
    effective_time: str = ""
    pricing_expression: _Expression | None = None


class _Category(msgspec.Struct, rename="camel"):
    resource_family: str = ""
    usage_type: str = ""


class _Sku(msgspec.Struct, rename="camel"):
    sku_id: str = ""
    description: str = ""
    category: _Category | None = None
    service_regions: list[str] = []
    pricing_info: list[_Info] = []


class _Page(msgspec.Struct, rename="camel"):
    skus: list[_Sku]
    next_page_token: str = ""


class _Part(msgspec.Struct, frozen=True):
    price: Decimal
    currency: str
    began: str


_Key = tuple[str, Kind, str]
"""Region, kind and part: 'gpu l4', 'core g2', 'ram g2'."""


def read(path: Path, terms: Terms, progress: Progress) -> Found:
    """Raises InvalidInput unless `terms.dated` says when the pages were fetched."""
    fetched = terms.require_day(path, "The catalogue's pages do not say when they were fetched")
    pages = read_pages(path, _Page, "page of Google Cloud's SKUs")
    skus = [sku for page in pages for sku in page.skus]
    found, parts = Found(rows=len(skus)), dict[_Key, _Part]()
    unclear: set[_Key] = set()
    for number, sku in enumerate(skus, start=1):
        if number % _STEP == 0:
            progress(f"reading {path.name}", number, len(skus))
        _take(found, sku, f"SKU {sku.sku_id or number}", fetched, parts, unclear)
    for key in unclear:
        found.skip("parts with two prices in one region")
        parts.pop(key, None)
    _assemble(found, parts, fetched, terms)
    if pages and pages[-1].next_page_token:
        found.notes.append(NEXT_PAGE)
    return found


def _take(found: Found, sku: _Sku, where: str, fetched: date, parts: dict[_Key, _Part], unclear: set[_Key]) -> None:
    category = sku.category or _Category()
    named = _named(sku.description, category.usage_type)
    if named is None:
        return found.skip("SKUs of no GPU machine, or on other terms")
    kind, part = named
    info = max(sku.pricing_info, key=lambda one: one.effective_time, default=_Info())
    expression = info.pricing_expression or _Expression()
    began = read_day(_plain(info.effective_time))
    if began is None:
        return found.refuse(where, "effectiveTime", info.effective_time, "a time such as 2026-11-20T08:00:00Z")
    if began > fetched:
        return found.skip(LATER)
    unit = "GiBy.h" if part.startswith("ram") else "h"
    if expression.usage_unit != unit:
        return found.refuse(where, "usageUnit", expression.usage_unit, unit)
    rates = [tier.unit_price for tier in expression.tiered_rates if tier.unit_price is not None]
    if len(rates) != 1:
        return found.refuse(where, "tieredRates", f"{len(rates)} rates", "one rate, whatever is used")
    currency = found.currency(where, "currencyCode", rates[0].currency_code)
    price = _price(rates[0])
    if price is None:
        return found.refuse(
            where, "unitPrice", f"{rates[0].units} and {rates[0].nanos} nanos", "an amount of at least 0"
        )
    if currency:
        _keep(_Part(price, currency, info.effective_time), sku.service_regions, kind, part, parts, unclear)
    return None


def _keep(
    one: _Part, regions: list[str], kind: Kind, part: str, parts: dict[_Key, _Part], unclear: set[_Key]
) -> None:  # fmt: skip
    for region in regions:
        key = (region, kind, part)
        known = parts.get(key)
        if known is None or one.began > known.began:
            parts[key] = one
            unclear.discard(key)
        elif one.began == known.began and (one.price, one.currency) != (known.price, known.currency):
            unclear.add(key)


def _named(description: str, usage_type: str) -> tuple[Kind, str] | None:
    """The kind and the part that a SKU is of, by its description; None for what is no part of a machine with GPUs."""
    text = " ".join(description.lower().split())
    if any(word in text for word in _OTHER) or usage_type not in _TYPES:
        return None
    kind = _TYPES[usage_type]
    if committed := _COMMITTED.fullmatch(text):
        text, kind = committed["rest"], "committed-1y" if committed["years"] == "1" else "committed-3y"
    elif kind.startswith("committed"):
        return None
    if "spot preemptible" in text:  # some of them are listed as on demand
        kind, text = "spot", text.removeprefix("spot preemptible ")
    if gpu := _GPU.fullmatch(text):
        name = gpu["gpu"] or gpu["slice"]
        return kind, f"gpu {_PLUS.get(name, name)}"
    if host := _HOST.fullmatch(text):
        return kind, f"{'ram' if host['part'] == 'ram' else 'core'} {host['series']}"
    return None


def _plain(instant: str) -> str:
    """Nanoseconds have more digits than Python's instants."""
    return re.sub(r"(\.\d{6})\d+", r"\1", instant)


def _price(money: _Money) -> Decimal | None:
    """None unless units are a whole number and nanos less than one more, as the API has them (google.type.Money)."""
    units = str(money.units)
    if not _UNITS.fullmatch(units) or not 0 <= money.nanos < _NANO:
        return None
    return int(units) + Decimal(money.nanos) / _NANO


def _assemble(found: Found, parts: dict[_Key, _Part], fetched: date, terms: Terms) -> None:
    """A price of each machine type of which all parts have one, in each region and kind."""
    for region, kind in sorted({(region, kind) for region, kind, part in parts if part.startswith("gpu")}):
        for machine in machines.sized():
            series, gpu = _SERIES.get(machine.instance.rpartition("-")[0], ("", ""))
            needed = [(region, kind, name) for name in (f"gpu {gpu}", f"core {series}", f"ram {series}")]
            if needed[0] not in parts:
                continue
            there = [parts[key] for key in needed if key in parts]
            if len(there) < len(needed) or len({one.currency for one in there}) > 1:
                found.skip("machine types of which a part has no price")
                continue
            source = f"GPUs, cores and memory put together, without local disks; {terms.about}"
            currency = there[0].currency
            sold = Sold(provider="gcp", region=region, kind=kind, currency=currency, dated=fetched, source=source)
            found.offer(f"{machine.instance} in {region}", "unitPrice", _total(machine, there), machine, sold)


def _total(machine: Machine, parts: list[_Part]) -> Decimal:
    gpu, core, ram = (one.price for one in parts)
    return gpu * int(machine.gpus) + core * machine.vcpus + ram * Decimal(str(machine.memory))
