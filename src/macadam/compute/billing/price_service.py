"""Prices and exchange rates of this home: added, dated, never rewritten; and what is known of both."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

import msgspec
import sqlalchemy as sa

from macadam.access.service import PLATFORM
from macadam.compute.billing import incoming, store
from macadam.compute.billing.schema import exchange_rates, price_lists
from macadam.compute.billing.types import (
    ExchangeRate,
    ImportPriceFile,
    ImportPrices,
    ImportRates,
    ListPrices,
    ListRates,
    OfferedPrice,
    PriceFile,
    PriceList,
)
from macadam.compute.catalogue import gpus, prices
from macadam.compute.catalogue.lists import reading
from macadam.compute.catalogue.lists.found import MOST, Found, Progress, Terms
from macadam.compute.catalogue.prices import Price
from macadam.errors import ChecksFailed, Conflict, InvalidInput, SourceInvalid, TooLarge
from macadam.operations import Context, Transaction, operation
from macadam.values import digest_of

_BLOCK = 2**20
_NAME = 100  # characters of a file's name that stand in a price's source
_SHORT = len("sha256:") + 12


@operation(ListPrices, permission="prices:read", http="GET /api/v1/projects/{project}/prices", cli="cost prices")
def list_prices(tx: Transaction, request: ListPrices) -> tuple[OfferedPrice, ...]:
    """Raises NotFound for a GPU that is not known."""
    found = prices.offers(
        request.gpu,
        request.at or tx.now.date(),
        provider=request.provider,
        region=request.region,
        kind=request.kind,
        own=store.own_prices(tx.sql),
    )
    return tuple(
        OfferedPrice(**msgspec.structs.asdict(offer.price), age=offer.age, stale=offer.stale)
        for offer in found[: request.limit]
    )


@operation(
    ImportPrices, permission="prices:import", http="POST /api/v1/prices", cli="cost add-prices", resource=PLATFORM
)
def import_prices(tx: Transaction, request: ImportPrices) -> PriceList:
    """Raises NotFound for a GPU that is not known, InvalidInput for one offer twice, a day that is not there yet, or for nothing."""
    new = tuple(msgspec.structs.replace(price, gpu=gpus.find(price.gpu).name) for price in request.prices)
    late = [price for price in new if price.dated > tx.now.date()]
    if late:
        raise InvalidInput(
            f"{late[0].instance} is priced on {late[0].dated}.", next_step="Date prices of today or before."
        )
    free = [price for price in new if not price.per_gpu_hour.micros]
    if free:
        raise InvalidInput(
            f"{free[0].instance} of {free[0].provider} costs nothing, and no budget would ever stop what runs on it.",
            next_step="Leave out what is not known; of hardware of your own ask: macadam cost own.",
        )
    offered = [(price.offer, price.dated) for price in new]
    if len(set(offered)) < len(offered):
        twin = next(price for price in new if offered.count((price.offer, price.dated)) > 1)
        raise InvalidInput(f"{twin.instance} of {twin.provider} has two prices on {twin.dated}.", next_step="Keep one.")
    return _add(tx, new)


def _add(tx: Transaction, new: tuple[Price, ...], **facts: object) -> PriceList:
    """One list, one leaf. A list that says what one did before adds nothing. Raises InvalidInput."""
    odd = next((text for price in new for text in (*price.offer, price.source) if not text.isprintable()), None)
    if odd is not None:
        raise InvalidInput(f"{odd!r} has characters that cannot be shown.", next_step="Write names without them.")
    document = msgspec.to_builtins(new)
    digest = digest_of(msgspec.json.encode(document, order="sorted"))
    known = tx.sql.execute(sa.select(price_lists).where(price_lists.c.digest == digest)).first()
    if known is not None:
        return PriceList(version=known.version, digest=digest, prices=len(new), at=known.at, repeated=True)
    version = (tx.sql.execute(sa.select(sa.func.max(price_lists.c.version))).scalar() or 0) + 1
    row = {"version": version, "digest": digest, "at": tx.now, "document": document}
    tx.sql.execute(sa.insert(price_lists).values(row))
    body = {"digest": digest, "prices": len(new), **facts}
    tx.record(f"prices:own@{version}", uses=(), **body)
    return PriceList(version=version, digest=digest, prices=len(new), at=tx.now)


# --- A provider's own list


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """What a file says of GPUs. file: its SHA-256."""

    prices: tuple[Price, ...]
    file: str
    found: Found


def _read(context: Context, request: ImportPriceFile) -> _Listed:
    """Raises ChecksFailed with the refused rows, SourceInvalid, InvalidInput, TooLarge, Conflict."""
    path = Path(request.path).expanduser().resolve()
    incoming.require_outside(path, context.ports.settings.home)
    if not path.is_file():
        raise SourceInvalid(f"There is no file {path}.", next_step="Check the path on the control plane's machine.")
    today = context.call.now.date()
    if request.dated is not None and request.dated > today:
        raise InvalidInput(
            f"{request.dated} is not there yet.", next_step="Give the day on which the list was fetched."
        )
    before = _state(path)
    file = _digest(path, context.progress)
    terms = Terms(today=today, dated=request.dated, about=f"{request.from_} {path.name[:_NAME]}, {file[:_SHORT]}")
    found = reading.read(request.from_, path, terms, context.progress)
    if _state(path) != before:
        raise Conflict(f"{path.name} was changed while it was read.", next_step="Import it again once it is whole.")
    _require_whole(path, found)
    return _Listed(prices=_chosen(path, found, request.regions), file=file, found=found)


def _state(path: Path) -> tuple[int, int, int]:
    said = path.stat()
    return said.st_ino, said.st_size, said.st_mtime_ns


def _digest(path: Path, progress: Progress) -> str:
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                progress(f"hashing {path.name}, MB", done // 10**6, size // 10**6)
    except OSError as error:
        raise SourceInvalid(
            f"{path} cannot be read: {error.strerror}.", next_step="Check that it may be read."
        ) from error
    return "sha256:" + digest.hexdigest()


def _require_whole(path: Path, found: Found) -> None:
    if not found.refused:
        return
    first = found.problems[0]
    more = f" There are {found.refused - 1} more." if found.refused > 1 else ""
    raise ChecksFailed(
        f"The price list was not taken: in {path.name}, {first.where}, {first.field or 'the row'} is {first.got!r}, expected "
        f"{first.expected}.{more}",
        next_step="Nothing was imported. Correct the file or fetch it again, and import it once more.",
        details={
            "refused": found.refused,
            "problems": [{f: getattr(p, f) for f in p.__struct_fields__} for p in found.problems],
        },
    )


def _chosen(path: Path, found: Found, regions: tuple[str, ...]) -> tuple[Price, ...]:
    prices = [price for price in found.prices.values() if not regions or price.region in regions]
    if regions and len(prices) < len(found.prices):
        found.skip("prices of other regions", len(found.prices) - len(prices))
    if not prices:
        why = ", ".join(f"{rows:,} {reason}" for reason, rows in found.skipped.most_common(3))
        raise InvalidInput(
            f"{path.name} has no price of a GPU that is known. Of {found.rows:,} rows were left out: {why or 'none'}.",
            next_step="Check what --from says it is; fetch machines with GPUs.",
            details={"rows": found.rows, "skipped": dict(found.skipped)},
        )
    if len(prices) > MOST:
        raise TooLarge(
            f"{path.name} has {len(prices):,} prices of GPUs, more than {MOST:,}.",
            next_step="Take some regions at a time with --regions, or fetch fewer days.",
        )
    return tuple(sorted(prices, key=lambda price: (price.offer, price.dated)))


@operation(ImportPriceFile, permission="prices:import", http="POST /api/v1/prices/file", cli="cost prices import",
           resource=PLATFORM, prepare=_read)  # fmt: skip
def import_price_file(tx: Transaction, request: ImportPriceFile, listed: _Listed) -> PriceFile:
    """One file, one list of prices, one leaf with the file's digest. Older prices stay, and count for the days before."""
    found, days = listed.found, sorted({price.dated for price in listed.prices})
    skipped = dict(sorted(found.skipped.items()))
    added = _add(
        tx, listed.prices, file=listed.file, source=request.from_, first=days[0].isoformat(), last=days[-1].isoformat(),
        rows=found.rows, skipped=skipped,
    )  # fmt: skip
    return PriceFile(
        version=added.version,
        digest=added.digest,
        prices=added.prices,
        at=added.at,
        file=listed.file,
        first=days[0],
        last=days[-1],
        rows=found.rows,
        skipped=skipped,
        by_kind=dict(sorted(Counter(price.kind for price in listed.prices).items())),
        notes=tuple(found.notes),
        repeated=added.repeated,
    )


# --- Exchange rates


@operation(
    ImportRates, permission="rates:import", http="POST /api/v1/exchange-rates", cli="cost add-rates", resource=PLATFORM
)
def import_rates(tx: Transaction, request: ImportRates) -> tuple[ExchangeRate, ...]:
    """Raises Conflict if a day's rate is known and another one, InvalidInput for a rate of nothing."""
    for rate in request.rates:
        if Decimal(rate.rate) <= 0 or rate.base == rate.quote:
            raise InvalidInput(f"One {rate.base} is not worth {rate.rate} {rate.quote}.", next_step="Correct the rate.")
        same = sa.and_(
            exchange_rates.c.base == rate.base,
            exchange_rates.c.quote == rate.quote,
            exchange_rates.c.day == rate.day.isoformat(),
        )
        known = tx.sql.execute(sa.select(exchange_rates.c.rate).where(same)).scalar()
        if known is not None and Decimal(known) != Decimal(rate.rate):
            raise Conflict(
                f"On {rate.day} one {rate.base} was worth {known} {rate.quote}, not {rate.rate}.",
                next_step="Budgets were reckoned with it: give a correction the date on which it holds.",
            )
        if known is None:
            row = msgspec.structs.asdict(rate) | {"day": rate.day.isoformat(), "at": tx.now}
            tx.sql.execute(sa.insert(exchange_rates).values(row))
    digest = digest_of(msgspec.json.encode(request.rates, order="sorted"))
    days = sorted({rate.day.isoformat() for rate in request.rates})
    tx.record("rates:exchange", digest=digest, rates=len(request.rates), first=days[0], last=days[-1])
    return request.rates


@operation(ListRates, permission="prices:read", http="GET /api/v1/projects/{project}/exchange-rates", cli="cost rates")
def list_rates(tx: Transaction, request: ListRates) -> tuple[ExchangeRate, ...]:
    c = exchange_rates.c
    asked = (
        sa.select(c.base, c.quote, c.day, c.rate, c.source).order_by(c.day.desc(), c.base, c.quote).limit(request.limit)
    )
    if request.base:
        asked = asked.where(c.base == request.base)
    if request.quote:
        asked = asked.where(c.quote == request.quote)
    return tuple(
        ExchangeRate(base=row.base, quote=row.quote, day=date.fromisoformat(row.day), rate=row.rate, source=row.source)
        for row in tx.sql.execute(asked)
    )
