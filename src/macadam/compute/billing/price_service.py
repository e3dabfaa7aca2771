"""Prices and exchange rates of this home: added, dated, never rewritten; and what is known of both."""

from datetime import date
from decimal import Decimal

import msgspec
import sqlalchemy as sa

from macadam.access.service import PLATFORM
from macadam.compute.billing import store
from macadam.compute.billing.schema import exchange_rates, price_lists
from macadam.compute.billing.types import (
    ExchangeRate,
    ImportPrices,
    ImportRates,
    ListPrices,
    ListRates,
    OfferedPrice,
    PriceList,
)
from macadam.compute.catalogue import gpus, prices
from macadam.errors import Conflict, InvalidInput
from macadam.operations import Transaction, operation
from macadam.values import digest_of


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
    document = msgspec.to_builtins(new)
    digest = digest_of(msgspec.json.encode(document, order="sorted"))
    known = tx.sql.execute(sa.select(price_lists).where(price_lists.c.digest == digest)).first()
    if known is not None:
        return PriceList(version=known.version, digest=digest, prices=len(new), at=known.at, repeated=True)
    version = (tx.sql.execute(sa.select(sa.func.max(price_lists.c.version))).scalar() or 0) + 1
    row = {"version": version, "digest": digest, "at": tx.now, "document": document}
    tx.sql.execute(sa.insert(price_lists).values(row))
    tx.record(f"prices:own@{version}", digest=digest, prices=len(new))
    return PriceList(version=version, digest=digest, prices=len(new), at=tx.now)


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
