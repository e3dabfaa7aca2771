"""Spot prices of AWS, as `aws ec2 describe-spot-price-history` prints them.

Each row says when the price of a machine type in a zone changed; it holds until the next one
(https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html, read in November 2026). Prices are in
USD for an hour of the machine (VM::EC2::Spot::PriceHistory says so of the same rows); in China they are in another currency,
which the rows do not say, so those regions are left out.
"""

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import msgspec

from macadam.compute.catalogue.lists.found import NOTHING, OLDER, SYSTEM, Found, Progress, Sold, Terms, plain, read_json
from macadam.compute.catalogue.machines import Machine

_LINUX = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")
# us-east-1a; us-gov-west-1b; a local zone such as us-west-2-lax-1a is of the region us-west-2.
_ZONE = re.compile(r"(?P<region>[a-z]{2}(-[a-z]+){1,2}-\d)(-[a-z]{3,4}-\d)?[a-z]")
_STEP = 10_000


class _Row(msgspec.Struct, rename="pascal"):
    availability_zone: str = ""
    instance_type: str = ""
    product_description: str = ""
    spot_price: msgspec.Raw = NOTHING
    timestamp: str = ""


class _Page(msgspec.Struct, rename="pascal"):
    spot_price_history: list[_Row]


_Key = tuple[str, str, date]


def read(path: Path, terms: Terms, progress: Progress) -> Found:
    """The last price of each machine type, zone and day; with `terms.dated`, the newest of each holds on that day too."""
    said = read_json(path, _Page | list[_Page], "spot price history of AWS")
    pages: list[_Page] = said if isinstance(said, list) else [said]
    rows = [row for page in pages for row in page.spot_price_history]
    found = Found(rows=len(rows))
    last: dict[_Key, tuple[datetime, Decimal, Machine, str]] = {}
    for number, row in enumerate(rows, start=1):
        if number % _STEP == 0:
            progress(f"reading {path.name}", number, len(rows))
        _take(found, row, f"row {number}", terms, last)
    for (_, zone, day), (_, hourly, machine, region) in last.items():
        _offer(found, hourly, machine, region, zone, day, terms)
    if terms.dated is not None:
        newest: dict[tuple[str, str], _Key] = {}
        for key in last:
            newest[key[:2]] = max(key, newest.get(key[:2], key), key=lambda one: one[2])
        for key in newest.values():
            _, hourly, machine, region = last[key]
            _offer(found, hourly, machine, region, key[1], max(terms.dated, key[2]), terms)
    return found


def _take(
    found: Found, row: _Row, where: str, terms: Terms, last: dict[_Key, tuple[datetime, Decimal, Machine, str]]
) -> None:
    machine = found.machine(row.instance_type)
    if machine is None:
        return None
    if row.product_description not in _LINUX:
        return found.skip(SYSTEM)
    zone = _ZONE.fullmatch(row.availability_zone)
    if zone is None:
        return found.refuse(where, "AvailabilityZone", row.availability_zone, "a zone such as us-east-1a")
    if zone["region"].startswith("cn-"):
        return found.skip("regions of China, which are priced in a currency that the file does not say")
    hourly = found.amount(where, "SpotPrice", plain(row.spot_price))
    day = found.day(where, "Timestamp", row.timestamp, terms.today)
    if hourly is None or day is None:
        return None
    at = datetime.fromisoformat(row.timestamp)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)  # of a day alone
    key = (machine.instance, row.availability_zone, day)
    if key in last:
        found.skip(OLDER)
    if key not in last or at >= last[key][0]:
        last[key] = (at, hourly, machine, zone["region"])
    return None


def _offer(found: Found, hourly: Decimal, machine: Machine, region: str, zone: str, day: date, terms: Terms) -> None:
    sold = Sold(provider="aws", region=region, zone=zone, kind="spot", currency="USD", dated=day, source=terms.about)
    found.offer(f"{machine.instance} in {zone}", "SpotPrice", hourly, machine, sold)
