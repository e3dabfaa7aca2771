"""Which dated price holds for a GPU of a machine on a day. Pure. What is found says how it was found, in this order:

1. `own`: the home's price of this hardware. Of a machine that is not rented (no provider is known of it, or the home has a price of
   kind `owned` from that provider) its amortisation and power; of a rented one what the home agreed on for exactly this offer, also
   where a list is newer.
2. `listed`: what the provider asks for exactly this offer: provider, region, machine, kind; by this release's list and those that the
   home imported. A price without a region holds in all.
3. `estimate`: the dearest that comes close, of the same provider and GPU: another region of the same machine, another machine with
   the same GPU, on demand for spot. The dearest, so that what is held to a limit is no less than what is paid.
4. `setting`: one price for whatever GPU, where the home's settings give one.

Else there is none: a price that nobody said is not made up, least of all as nothing. That a machine is paid for by a commitment nothing
says of it: whoever has one adds what it pays as its own price of kind `on-demand`.
"""

from collections.abc import Iterable
from datetime import date
from typing import Literal

import msgspec

from macadam.compute.catalogue.prices import Kind, Price, is_stale, newest, published
from macadam.ports import Node
from macadam.values import Money

How = Literal["own", "listed", "estimate", "setting"]
SETTING = "MACADAM_PRICE_GPU_HOUR"
_HOME = ("", "own")
"""Providers that are none: nobody said whose the machine is, or it is one's own."""


class GpuPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What an hour of one whole GPU of a machine costs. model: the catalogue's name, '' if not known. words: which price it is, for a
    person. dated: when its source said so, None for a setting; stale: whether that was long ago. owned: of one's own hardware.
    """

    model: str
    per_gpu_hour: Money
    how: How
    words: str
    source: str
    dated: date | None = None
    stale: bool = False
    owned: bool = False


class Tariff:
    """The prices that are in force on a day. own: the home's; fallback: of any GPU that has no other price, None for none."""

    def __init__(self, at: date, own: Iterable[Price] = (), fallback: Money | None = None) -> None:
        self.at = at
        self._fallback = fallback
        home = tuple(own)
        self._own = _in_force((p for p in home if not p.listed), at)
        self._listed = _in_force((*published(), *(p for p in home if p.listed)), at)
        self._owners = {p.provider.lower() for some in self._own.values() for p in some if p.kind == "owned"}
        self._known: dict[tuple[object, ...], GpuPrice | None] = {}

    def is_own(self, node: Node) -> bool:
        """Whether no provider's bill will show the machine. Where nobody said whose it is, none is expected to."""
        return node.provider.lower() in {*_HOME, *self._owners}

    def of(self, model: str, node: Node) -> GpuPrice | None:
        """None if nothing says it. model: the catalogue's name."""
        name = node.name if self.is_own(node) else ""
        key = (model, node.provider, node.region, node.zone, node.machine, node.spot, name)
        if key not in self._known:
            found = self._owned(model, node) if self.is_own(node) else self._rented(model, node)
            self._known[key] = found or self._set(model)
        return self._known[key]

    def _set(self, model: str) -> GpuPrice | None:
        if not self._fallback:
            return None
        words = f"{self._fallback} for any GPU"
        return GpuPrice(model=model, per_gpu_hour=self._fallback, how="setting", words=words, source=SETTING)

    def _owned(self, model: str, node: Node) -> GpuPrice | None:
        known = [p for p in self._own.get(model, ()) if p.kind == "owned"]
        if node.provider.lower() not in _HOME:
            known = [p for p in known if p.provider.lower() == node.provider.lower()]
        names = {node.machine.lower(), node.name.lower()} - {""}
        named = [p for p in known if p.instance.lower() in names]
        found = _dearest(named or known)
        if found is None:
            return None
        if named or len(known) == 1:
            return self._said(found, "own", found.instance)
        return self._said(
            found, "estimate", f"{found.instance}, the dearest own one of {len(known)}: {node.name} is none"
        )

    def _rented(self, model: str, node: Node) -> GpuPrice | None:
        own, listed = (
            [p for p in known.get(model, ()) if p.provider.lower() == node.provider.lower()]
            for known in (self._own, self._listed)
        )
        kinds: tuple[Kind, ...] = ("spot", "on-demand") if node.spot else ("on-demand",)
        for kind in kinds:
            instead = "" if kind == kinds[0] else ", on demand as no spot price is known"
            exact: tuple[tuple[How, list[Price]], ...] = (
                ("own", _exact(own, node, kind)),
                ("listed", _exact(listed, node, kind)),
            )
            for how, some in exact:
                if found := _dearest(some):
                    return self._said(found, "estimate" if instead else how, f"{_name(found)}{instead}")
            for some in (own, listed):
                if close := _close([p for p in some if p.kind == kind], node):
                    return self._said(close[0], "estimate", f"{_name(close[0])}, {close[1]}{instead}")
        return None

    def _said(self, price: Price, how: How, words: str) -> GpuPrice:
        return GpuPrice(
            model=price.gpu,
            per_gpu_hour=price.per_gpu_hour,
            how=how,
            words=words,
            source=price.source,
            dated=price.dated,
            stale=is_stale(price, self.at),
            owned=price.kind == "owned",
        )


def _in_force(prices: Iterable[Price], at: date) -> dict[str, list[Price]]:
    """By GPU, the newest of each offer on that day. What is said to cost nothing says nothing."""
    found: dict[str, list[Price]] = {}
    for price in newest((p for p in prices if p.per_gpu_hour.micros > 0), at):
        found.setdefault(price.gpu, []).append(price)
    return found


def _exact(prices: Iterable[Price], node: Node, kind: Kind) -> list[Price]:
    """Of this very machine in this very place; what is of the zone goes before what is of the region, and that before all regions."""
    found = [p for p in prices if p.kind == kind and _same_machine(p, node) and _is_there(p, node)]
    most = max((_detail(p) for p in found), default=0)
    return [p for p in found if _detail(p) == most]


def _detail(price: Price) -> int:
    return bool(price.region) + bool(price.zone)


def _is_there(price: Price, node: Node) -> bool:
    return price.region in ("", node.region) and price.zone in ("", node.zone)


def _close(prices: list[Price], node: Node) -> tuple[Price, str] | None:
    zone = f"as none is known of {node.zone}" if node.zone else "as its zone is not known"
    where = f"as none is known of {node.region}" if node.region else "as its region is not known"
    what = f"as none is known of {node.machine}" if node.machine else "as its machine type is not known"
    tiers = (
        ([p for p in prices if _same_machine(p, node) and p.region in ("", node.region)], zone),
        ([p for p in prices if _same_machine(p, node)], where),
        ([p for p in prices if _is_there(p, node)], what),
        (prices, f"{what}, nor of its region"),
    )
    for some, why in tiers:
        if found := _dearest(some):
            return found, why
    return None


def _same_machine(price: Price, node: Node) -> bool:
    return price.instance.lower() == node.machine.lower()


def _dearest(prices: Iterable[Price]) -> Price | None:
    """None if there are none, or of several currencies: those are not compared."""
    some = list(prices)
    if len({p.per_gpu_hour.currency for p in some}) != 1:
        return None
    return max(some, key=lambda p: (p.per_gpu_hour.micros, p.offer))


def _name(price: Price) -> str:
    return " ".join(part for part in (price.provider, price.zone or price.region, price.instance, price.kind) if part)
