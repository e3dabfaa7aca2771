"""What a provider's price list says of GPUs, gathered row by row: prices, what was left out and why, and what cannot be.

A row that is about no GPU of the catalogue is left out and counted. A row that is, and holds nonsense, is refused: then nothing
of its file is taken.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from macadam.compute.catalogue import machines
from macadam.compute.catalogue.machines import Machine
from macadam.compute.catalogue.prices import Kind, Price
from macadam.errors import InvalidInput, SourceInvalid, TooLarge
from macadam.values import Money

_Page = TypeVar("_Page")
Source = Literal["aws-spot", "aws-price-list", "azure-retail", "gcp-skus", "csv"]
Progress = Callable[[str, int, int], None]

MOST = 20_000
"""Prices of one list: all regions of one provider have a few thousand that are of GPUs."""
KEPT = 100
"""Refused cells that are kept; all are counted."""
MAX_JSON = 512 * 2**20
"""Bytes of a JSON file, which is read as a whole."""
HOURS = {"1": 8_760, "3": 26_280}
"""Of a term in years, as providers count them: 365 days each."""
_TERM = re.compile(r"([13]) ?(yr|years?)", re.ASCII | re.IGNORECASE)
DEAREST = 1000
"""An hour of one GPU in USD, EUR or GBP: ten times the dearest that anybody lists. More is the price of something longer."""
_COMPARABLE = ("USD", "EUR", "GBP")
_SHOWN = 80
_MOST_MONEY = 10**9  # of any currency, for a machine and a term
_CURRENCY = re.compile(r"[A-Z]{3}")
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,30})?([eE][+-]?\d{1,2})?", re.ASCII)
_MICROS = 1_000_000

NEXT_PAGE = "the last page names a next one, which is not in the file: fetch it too, as one JSON list of pages"
NOTHING = msgspec.Raw(b"")

UNKNOWN = "machine types without a GPU of the catalogue"
PART = "machine types with a part of a GPU"
SYSTEM = "operating systems and licences beside plain Linux"
FREE = "prices of nothing"
LATER = "prices that come into force later"
OLDER = "older prices of the same offer and day"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is refused. where: the row, such as 'line 7' or 'item 3'. got: what stands there, shortened."""

    where: str
    field: str
    got: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a list is read with. today: the day of the import, UTC. dated: on which the list was fetched, None if the file says
    so itself or nobody does. about: what a price says of its source.
    """

    today: date
    dated: date | None
    about: str

    def require_day(self, path: Path, why: str) -> date:
        """Raises InvalidInput where nobody says when the list was fetched."""
        if self.dated is None:
            told = datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
            raise InvalidInput(
                f"{why}, so nobody knows how old its prices are.",
                next_step=f"Say when you fetched it; the file was written on {told}: --dated {told}.",
                details={"field": "dated"},
            )
        return self.dated


class Sold(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine is offered: everything of a price but the machine and the amount."""

    provider: str
    region: str
    kind: Kind
    currency: str
    dated: date
    source: str
    zone: str = ""
    listed: bool = True


@dataclass(kw_only=True)
class Found:
    """What one file says so far. rows: how many were looked at."""

    rows: int = 0
    prices: dict[tuple[object, ...], Price] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    refused: int = 0
    notes: list[str] = field(default_factory=list)

    def skip(self, why: str, rows: int = 1) -> None:
        self.skipped[why] += rows

    def refuse(self, where: str, name: str, got: object, expected: str) -> None:
        self.refused += 1
        if len(self.problems) < KEPT:
            shown = str(got)[:_SHOWN] if got not in (None, "") else "(no value)"
            self.problems.append(Problem(where=where, field=name, got=shown, expected=expected))

    def machine(self, instance: str) -> Machine | None:
        """The machine type, if it has whole GPUs of the catalogue; else it is counted as left out."""
        found = machines.find(instance)
        if found is None or found.gpus != int(found.gpus):
            self.skip(UNKNOWN if found is None else PART)
            return None
        return found

    def amount(self, where: str, name: str, text: str) -> Decimal | None:
        """A price as it is written: None if it is none, which is refused."""
        found = _decimal(text)
        if found is None or not 0 <= found < _MOST_MONEY:
            self.refuse(where, name, text, "an amount of at least 0, such as 12.34")
            return None
        return found

    def currency(self, where: str, name: str, text: str) -> str:
        """'' if it is none, which is refused."""
        if not _CURRENCY.fullmatch(text):
            self.refuse(where, name, text, "an ISO 4217 code such as USD")
            return ""
        return text

    def day(self, where: str, name: str, text: str, today: date) -> date | None:
        """The UTC day of an instant or of a day. None if it is none or to come, which is refused."""
        found = read_day(text)
        if found is None:
            self.refuse(where, name, text, "a time such as 2026-11-20T08:00:00Z")
        elif found > today:
            self.refuse(where, name, text, f"no later than today, {today}")
            return None
        return found

    def offer(self, where: str, name: str, hourly: Decimal, machine: Machine, sold: Sold) -> None:
        """Adds what a machine costs by the hour. Nothing is no price: whoever lists it lists no offer."""
        gpus = int(machine.gpus)
        each = per_gpu(hourly, gpus, sold.currency)
        if each.micros == 0:
            return self.skip(FREE)
        if sold.currency in _COMPARABLE and hourly > DEAREST * gpus:
            expected = f"at most {DEAREST} {sold.currency} for an hour of one GPU: is it of a month or a term?"
            return self.refuse(where, name, hourly, expected)
        price = Price(
            instance=machine.instance,
            gpu=machine.gpu,
            gpus=gpus,
            per_gpu_hour=each,
            provider=sold.provider,
            region=sold.region,
            zone=sold.zone,
            kind=sold.kind,
            dated=sold.dated,
            source=sold.source,
            listed=sold.listed,
        )
        known = self.prices.setdefault((price.offer, price.dated), price)
        if known.per_gpu_hour != each:
            self.refuse(
                where, name, hourly, f"one price of an offer on a day: an earlier row says {known.per_gpu_hour}"
            )
        return None


def per_gpu(hourly: Decimal, gpus: int, currency: str) -> Money:
    """What one GPU of a machine costs by the hour, rounded half to even."""
    with localcontext(prec=60):
        micros = (hourly * _MICROS / gpus).quantize(Decimal(1), ROUND_HALF_EVEN)
    return Money(micros=int(micros), currency=currency)


def _decimal(written: str) -> Decimal | None:
    return Decimal(written.strip()) if _NUMBER.fullmatch(written.strip()) else None


def plain(raw: msgspec.Raw) -> str:
    """A JSON number as it is written, or what stands in a JSON string: no float ever comes between."""
    return bytes(raw).decode(errors="replace").strip('"')


def years(term: str) -> str:
    """'1' or '3' of what providers call one or three years; '' of any other term, such as a month."""
    found = _TERM.fullmatch(term.strip())
    return found[1] if found else ""


def read_day(text: str) -> date | None:
    """Of RFC 3339 with a zone, or of a day alone, which is UTC."""
    try:
        if len(text.strip()) == len("2026-11-20"):
            return date.fromisoformat(text.strip())
        found = datetime.fromisoformat(text.strip())
        return None if found.tzinfo is None else found.astimezone(UTC).date()
    except (ValueError, OverflowError):
        return None


def read_pages(path: Path, page: type[_Page], what: str) -> list[_Page]:
    """One page, or a JSON list of pages. Raises as `read_json` does."""
    said: _Page | list[_Page] = read_json(path, page | list[page], what)  # type: ignore[valid-type]
    return said if isinstance(said, list) else [said]


def read_json(path: Path, kind: Any, what: str) -> Any:
    """A whole JSON file in a shape. Raises TooLarge, SourceInvalid with the field that does not fit."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise TooLarge(
                f"{path.name} has {size:,} bytes, and a JSON file is read as a whole: at most {MAX_JSON:,}.",
                next_step="Fetch it for one region, or as CSV where there is one, which is read row by row.",
            )
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise SourceInvalid(
            f"{path.name} is no {what}: {error}.", next_step="Fetch it again as the guide says."
        ) from error
