"""What `gpu top` says that devices cost: what jobs are charged where there is a platform, else this release's lists and the settings."""

import time
from collections.abc import Iterable
from datetime import date, datetime

from macadam import operations
from macadam.compute.catalogue import prices
from macadam.compute.catalogue.tariff import Tariff
from macadam.compute.jobs.price_service import GpuHour, Seen, ShowGpuPrices, least
from macadam.errors import NotFound
from macadam.faces import price_list
from macadam.faces.session import Session
from macadam.ports import Node
from macadam.settings import Settings
from macadam.values import Money

Pair = tuple[str, str]
"""Node and model."""
_FRESH = 60.0
"""Seconds for which an answer is shown: lists are imported now and then, and a live picture is drawn every two seconds."""


class Prices:
    """provider: price as on its machines; '' for what jobs are charged."""

    def __init__(self, session: Session, provider: str = "") -> None:
        self._session, self._provider = session, provider
        self._known: dict[Pair, GpuHour] = {}
        self._asked: tuple[date, float] | None = None

    def of(self, pairs: Iterable[Pair], at: datetime) -> dict[Pair, GpuHour]:
        """What an hour of each costs on the day."""
        wanted, now = set(pairs), time.monotonic()
        if self._asked is None or self._asked[0] != at.date() or now - self._asked[1] > _FRESH:
            self._known, self._asked = {}, (at.date(), now)
        missing = sorted(wanted - self._known.keys())
        if missing:
            there = price_list.has_platform(self._session)
            found = self._told(missing, at.date()) if there else self._alone(missing, at.date())
            self._known |= {(one.node, one.model): one for one in found}
        return self._known

    def _told(self, pairs: list[Pair], day: date) -> Iterable[GpuHour]:
        operations.load("jobs")
        asked = {
            "project": self._session.project() or "*",
            "provider": self._provider,
            "at": day,
            "devices": [Seen(node=node, model=model) for node, model in pairs],
        }
        found: tuple[GpuHour, ...] = self._session.call(operations.of_request(ShowGpuPrices), asked)
        return found

    def _alone(self, pairs: list[Pair], day: date) -> Iterable[GpuHour]:
        given = Settings.load().prices
        fallback = Money(micros=given.gpu_hour_micros, currency=given.currency) if given.gpu_hour_micros else None
        tariff = Tariff(day, fallback=fallback)
        return [self._list_price(tariff, node, model) for node, model in pairs]

    def _list_price(self, tariff: Tariff, node: str, model: str) -> GpuHour:
        found = tariff.of(model, Node(name="", cpus=0, memory=0, provider=self._provider))
        if found is not None:
            return GpuHour(node=node, model=model, per_gpu_hour=found.per_gpu_hour, words=found.words, charged=True)
        try:
            offer = None if self._provider else prices.cheapest(model, tariff.at)
        except NotFound:
            offer = None
        return least(node, model, offer.price if offer else None)
