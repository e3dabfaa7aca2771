"""Amounts of several currencies: kept apart, or converted at dated rates that somebody imported, and never else.

A rate is a decimal: how many of `quote` one of `base` was worth on a day. What is converted is rounded half to even to
the micro, once for each amount.
"""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import sqlalchemy as sa

from macadam.compute.billing.schema import exchange_rates
from macadam.values import Money

OLDEST = timedelta(days=31)
"""A rate serves for this long after its day: weekends, holidays and a monthly table, but not last year's."""
_DIGITS = 50


class Converter:
    """Adds amounts in one currency, and keeps apart what it cannot count in it."""

    def __init__(self, sql: sa.Connection, currency: str, *, wanted: bool) -> None:
        self._sql = sql
        self._wanted = wanted
        self._rates: dict[tuple[str, date], Decimal | None] = {}
        self.currency = currency

    def money(self, micros: int) -> Money:
        return Money(micros=micros, currency=self.currency)

    def sums(self, amounts: Iterable[tuple[Money, date]]) -> dict[str, int]:
        """Micros by currency: of this one all that can be counted, each at the rate of its day; of others what cannot."""
        found: dict[str, int] = {}
        for amount, day in amounts:
            counted = self._one(amount, day)
            currency, micros = (amount.currency, amount.micros) if counted is None else (self.currency, counted)
            found[currency] = found.get(currency, 0) + micros
        return found

    def one(self, amount: Money, at: datetime) -> int | None:
        """Micros in this currency, None if no rate says it or none is wanted."""
        return self._one(amount, at.date())

    def _one(self, amount: Money, day: date) -> int | None:
        if amount.currency == self.currency:
            return amount.micros
        if not self._wanted:
            return None
        key = (amount.currency, day)
        if key not in self._rates:
            self._rates[key] = rate(self._sql, amount.currency, self.currency, day)
        found = self._rates[key]
        return None if found is None else converted(amount.micros, found)


def converted(micros: int, at_rate: Decimal) -> int:
    """Rounded half to even."""
    with localcontext(prec=_DIGITS):
        return int((Decimal(micros) * at_rate).to_integral_value(ROUND_HALF_EVEN))


def rate(sql: sa.Connection, base: str, quote: str, day: date) -> Decimal | None:
    """The newest imported rate of at most `OLDEST` before the day, in either direction; None if there is none."""
    direct = _newest(sql, base, quote, day)
    inverse = _newest(sql, quote, base, day)
    if direct and (not inverse or direct[0] >= inverse[0]):
        return direct[1]
    if inverse:
        with localcontext(prec=_DIGITS):
            return 1 / inverse[1]
    return None


def _newest(sql: sa.Connection, base: str, quote: str, day: date) -> tuple[str, Decimal] | None:
    c = exchange_rates.c
    found = sql.execute(
        sa.select(c.day, c.rate)
        .where(c.base == base, c.quote == quote, c.day <= day.isoformat(), c.day >= (day - OLDEST).isoformat())
        .order_by(c.day.desc())
        .limit(1)
    ).first()
    return None if found is None else (found.day, Decimal(found.rate))
