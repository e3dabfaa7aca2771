"""AWS's own price list of EC2, the file `index.csv` or `index.json` of a region or of all of them: on demand and reserved.

https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/reading-service-price-list-file-for-services.html (read in November
2026). Of CSV five lines of facts come before the header; it is read in blocks, whatever its size. A plain machine is Linux, Shared,
without software, CapacityStatus Used. A reservation has an hourly rate (unit Hrs) and an upfront fee (unit Quantity), which are
put together over its term; of the ways to pay for one, that with the least paid ahead is taken.
"""

from collections.abc import Iterable, Iterator
from datetime import date
from decimal import Decimal, localcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue import machines
from macadam.compute.catalogue.lists.found import HOURS, SYSTEM, UNKNOWN, Found, Progress, Sold, Terms, read_json, years
from macadam.compute.catalogue.machines import Machine
from macadam.compute.catalogue.prices import Kind
from macadam.errors import InvalidInput, SourceInvalid
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")
    pa_csv = lazy("pyarrow.csv")

_HOURLY = ("Hrs", "Hours")
_FACTS = 5
"""Lines before the header."""
_BLOCK = 8 * 2**20
_UPFRONT = ("No Upfront", "Partial Upfront", "All Upfront")
_OTHER_WAY = "other ways to pay for the same reservation, and convertible ones"
_SHARED = "dedicated machines, unused reservations, capacity blocks and zones beside regions"
# What of a row matters: its name here, in CSV and among a product's attributes in JSON; '' where it is of the term.
_COLUMNS = {
    "sku": ("SKU", ""),
    "offer": ("OfferTermCode", ""),
    "term": ("TermType", ""),
    "unit": ("Unit", ""),
    "price": ("PricePerUnit", ""),
    "currency": ("Currency", ""),
    "lease": ("LeaseContractLength", ""),
    "option": ("PurchaseOption", ""),
    "offering": ("OfferingClass", ""),
    "instance": ("Instance Type", "instanceType"),
    "system": ("Operating System", "operatingSystem"),
    "tenancy": ("Tenancy", "tenancy"),
    "software": ("Pre Installed S/W", "preInstalledSw"),
    "status": ("CapacityStatus", "capacitystatus"),
    "market": ("MarketOption", "marketoption"),
    "place": ("Location Type", "locationType"),
    "region": ("Region Code", "regionCode"),
}
_OPTIONAL = ("lease", "option", "offering", "market", "place")


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    where: str
    sku: str
    offer: str
    term: str
    unit: str
    price: str
    currency: str
    lease: str = ""
    option: str = ""
    offering: str = ""
    instance: str
    system: str
    tenancy: str
    software: str
    status: str
    market: str = ""
    place: str = ""
    region: str


class _Reserved(msgspec.Struct):
    """One way to pay for one reservation, from its rows."""

    row: _Row
    machine: Machine
    currency: str
    hourly: Decimal | None = None
    upfront: Decimal | None = None


class _Rate(msgspec.Struct, rename="camel"):
    unit: str = ""
    price_per_unit: dict[str, str] = {}


class _Term(msgspec.Struct, rename="camel"):
    price_dimensions: dict[str, _Rate] = {}
    term_attributes: dict[str, str] = {}


class _Product(msgspec.Struct):
    attributes: dict[str, str] = {}


class _File(msgspec.Struct, rename="camel"):
    publication_date: str
    products: dict[str, _Product]
    terms: dict[str, dict[str, dict[str, _Term]]]


def read(path: Path, terms: Terms, progress: Progress) -> Found:
    """Raises SourceInvalid, TooLarge, InvalidInput for a list of the future or without the columns that are needed."""
    found = Found()
    if path.suffix.lower() == ".json":
        said: _File = read_json(path, _File, "price list of AWS")
        published, rows = said.publication_date, _of_json(said, found)
    else:
        published, columns = _facts(path)
        rows = _of_csv(path, columns, found, progress)
    day = found.day("the file", "Publication Date", published, terms.today)
    if day is None:
        return found
    reserved: dict[tuple[str, str], _Reserved] = {}
    for row in rows:
        _take(found, row, day, terms, reserved)
    _settle(found, reserved.values(), day, terms)
    return found


# Rows


def _facts(path: Path) -> tuple[str, list[str]]:
    """The publication date and the columns of a CSV file."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [file.readline(2**20) for _ in range(_FACTS + 1)]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceInvalid(f"{path.name} cannot be read as text: {error}.", next_step="Fetch it again.") from error
    facts = dict(line.strip().replace('"', "").split(",", 1) for line in lines[:_FACTS] if "," in line)
    columns = [name.strip('"') for name in lines[_FACTS].strip().split(",")]
    lacking = [c for name, (c, _) in _COLUMNS.items() if c not in columns and name not in _OPTIONAL]
    if "Publication Date" not in facts or lacking:
        what = f"has no column {', '.join(lacking)}" if lacking else "does not say when it was published"
        raise InvalidInput(
            f"{path.name} is no price list of AWS's EC2: it {what}.",
            next_step="Fetch it: https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonEC2/current/REGION/index.csv",
        )
    return facts["Publication Date"], columns


def _of_csv(path: Path, columns: list[str], found: Found, progress: Progress) -> Iterator[_Row]:
    """Rows of machines that have a GPU, in blocks: of the others nothing but their number is kept."""
    wanted = {name: column for name, (column, _) in _COLUMNS.items() if column in columns}
    options = pa_csv.ConvertOptions(
        include_columns=list(wanted.values()), column_types={c: pa.string() for c in columns}, strings_can_be_null=False
    )
    known: dict[str, bool] = {}
    size, done = path.stat().st_size, 0
    try:
        reader = pa_csv.open_csv(
            path,
            read_options=pa_csv.ReadOptions(skip_rows=_FACTS, block_size=_BLOCK),
            parse_options=pa_csv.ParseOptions(newlines_in_values=False),
            convert_options=options,
        )
        with reader:
            for batch in reader:
                first, done = found.rows + _FACTS + 2, done + _BLOCK
                found.rows += batch.num_rows
                progress(f"reading {path.name}, MB", min(done, size) // 10**6, size // 10**6)
                yield from _with_gpus(batch, wanted, first, known, found)
    except pa.ArrowInvalid as error:
        raise SourceInvalid(f"{path.name} is no whole CSV file: {error}.", next_step="Fetch it again.") from error


def _with_gpus(
    batch: "pa.RecordBatch", wanted: dict[str, str], first: int, known: dict[str, bool], found: Found
) -> Iterator[_Row]:
    instances = batch.column(wanted["instance"])
    for name in pc.unique(instances).to_pylist():
        known.setdefault(name, machines.find(name) is not None)
    with_gpu = pc.is_in(instances, value_set=pa.array([name for name, one in known.items() if one], pa.string()))
    named = int(pc.sum(pc.not_equal(instances, pa.scalar(""))).as_py() or 0)
    there = int(pc.sum(with_gpu).as_py() or 0)
    found.skip("rows of no machine", batch.num_rows - named)
    found.skip(UNKNOWN, named - there)
    numbers = pa.array(range(first, first + batch.num_rows))
    rows = pa.table({name: batch.column(column) for name, column in wanted.items()} | {"where": numbers}).filter(
        with_gpu
    )
    for row in rows.to_pylist():
        row["where"] = f"line {row['where']}"
        yield _Row(**row)


def _of_json(said: _File, found: Found) -> Iterator[_Row]:
    attributes = {name: plain for name, (_, plain) in _COLUMNS.items() if plain}
    for term, products in said.terms.items():
        for sku, offers in products.items():
            product = said.products.get(sku, _Product()).attributes
            facts = {name: product.get(plain, "") for name, plain in attributes.items()}
            for code, one in offers.items():
                for rate in one.price_dimensions.values():
                    found.rows += 1
                    if not facts["instance"]:
                        found.skip("rows of no machine")
                        continue
                    currency, price = _one(rate.price_per_unit)
                    bought = one.term_attributes
                    yield _Row(
                        where=f"product {sku}, term {code.rpartition('.')[2]}", sku=sku, offer=code, term=term, unit=rate.unit,
                        price=price, currency=currency, lease=bought.get("LeaseContractLength", ""),
                        option=bought.get("PurchaseOption", ""), offering=bought.get("OfferingClass", ""), **facts,
                    )  # fmt: skip


def _one(prices: dict[str, str]) -> tuple[str, str]:
    """The currency and the price; of several, as of none, it is not said which counts."""
    return next(iter(prices.items())) if len(prices) == 1 else (", ".join(prices), "")


# Prices


def _take(found: Found, row: _Row, day: date, terms: Terms, reserved: dict[tuple[str, str], _Reserved]) -> None:
    machine = found.machine(row.instance)
    if machine is None:
        return None
    why = _left_out(row)
    if why:
        return found.skip(why)
    price = found.amount(row.where, "PricePerUnit", row.price)
    currency = found.currency(row.where, "Currency", row.currency)
    if not row.region:
        return found.refuse(row.where, "Region Code", "", "a region such as us-east-1")
    if price is None or not currency:
        return None
    if row.term == "Reserved":
        return _gather(found, row, machine, price, currency, reserved)
    if row.unit not in _HOURLY:
        return found.refuse(row.where, "Unit", row.unit, "Hrs")
    sold = Sold(provider="aws", region=row.region, kind="on-demand", currency=currency, dated=day, source=terms.about)
    return found.offer(row.where, "PricePerUnit", price, machine, sold)


def _left_out(row: _Row) -> str:
    """Why a row is of no plain machine, or of a term that is not compared; '' if it is taken."""
    place = row.place in ("AWS Region", "") and row.market in ("OnDemand", "")
    way = row.offering == "standard" and row.option in _UPFRONT and row.lease != ""
    reasons = {
        SYSTEM: row.system != "Linux" or row.software not in ("NA", ""),
        _SHARED: row.tenancy != "Shared" or row.status != "Used" or not place,
        "terms beside on demand and reserved": row.term not in ("OnDemand", "Reserved"),
        _OTHER_WAY: row.term == "Reserved" and not way,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _gather(
    found: Found, row: _Row, machine: Machine, price: Decimal, currency: str, reserved: dict[tuple[str, str], _Reserved]
) -> None:
    one = reserved.setdefault((row.sku, row.offer), _Reserved(row=row, machine=machine, currency=currency))
    if currency != one.currency:
        found.refuse(row.where, "Currency", currency, f"{one.currency}, as of the rest of this reservation")
    elif row.unit == "Quantity" and one.upfront is None:
        one.upfront = price
    elif row.unit in _HOURLY and one.hourly is None:
        one.hourly = price
    elif row.unit == "Quantity" or row.unit in _HOURLY:
        found.refuse(row.where, "Unit", row.unit, "one rate and one fee of a reservation: an earlier row has it")
    else:
        found.refuse(row.where, "Unit", row.unit, "Hrs, or Quantity of an upfront fee")


def _settle(found: Found, reserved: Iterable[_Reserved], day: date, terms: Terms) -> None:
    """One price of each machine, region and term, by the rows of all that can be bought."""
    best: dict[tuple[str, str, str], _Reserved] = {}
    for one in reserved:
        term = years(one.row.lease)
        paid_ahead = one.row.option != "No Upfront"
        if not term:
            found.skip("terms beside one and three years")
        elif one.hourly is None or (paid_ahead and not one.upfront):
            found.skip("reservations of which a part of the price is missing")
        else:
            key = (one.row.region, one.machine.instance, term)
            known = best.get(key)
            if known is not None:
                found.skip(_OTHER_WAY)
            if known is None or _UPFRONT.index(one.row.option) < _UPFRONT.index(known.row.option):
                best[key] = one
    for (region, _, term), one in best.items():
        kind: Kind = "committed-1y" if term == "1" else "committed-3y"
        with localcontext(prec=60):
            ahead = one.upfront or Decimal(0)
            hourly = (one.hourly or Decimal(0)) + ahead / HOURS[term]
        source = f"reservation, {one.row.option}, {ahead} {one.currency} ahead; {terms.about}"
        sold = Sold(provider="aws", region=region, kind=kind, currency=one.currency, dated=day, source=source)
        found.offer(one.row.where, "PricePerUnit", hourly, one.machine, sold)
