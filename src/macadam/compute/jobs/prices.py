"""What jobs cost: what an hour of each GPU, part of a GPU and core costs that they hold, whether used or not.

Holding is what keeps others out, so holding is what is charged, at the price that was in force when the attempt started. Which price
that is says `catalogue.tariff`; here it becomes the project's currency, and the share of a GPU that is held. A price in another currency
counts at an imported rate of its day, or not at all: then what is priced so is `Unpriced`, and says what to do.
"""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal

import msgspec
import sqlalchemy as sa

from macadam.compute.billing import budgets, exchange, store
from macadam.compute.catalogue import gpus
from macadam.compute.catalogue.tariff import SETTING, GpuPrice, Tariff
from macadam.compute.jobs import registry
from macadam.compute.jobs.types import WHOLE, Place, Rate, Resources
from macadam.compute.scheduling import mig
from macadam.errors import InvalidInput
from macadam.ports import Device, Node
from macadam.settings import Prices as Settings
from macadam.values import Money

_SLICE = "/mig:"
_NOWHERE = Node(name="", cpus=0, memory=0)
"""Where no machine is known yet: only a price that holds everywhere can be said."""


class Unpriced(msgspec.Struct, frozen=True, kw_only=True):
    """Why nobody can say what something costs. what: part of a sentence. step: what to do."""

    what: str
    step: str


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU that would do for a job, at one price, on so many machines. rate: of all that the job asks for."""

    price: GpuPrice
    machines: int
    rate: Rate


class Lists:
    """The home's own price lists, read again only when one was added."""

    def __init__(self) -> None:
        self._tariffs: dict[tuple[date, int], Tariff] = {}

    def on(self, sql: sa.Connection, settings: Settings, day: date) -> Tariff:
        """The tariff of a day."""
        key = (day, store.price_version(sql))
        if key not in self._tariffs:
            given = settings.gpu_hour_micros
            fallback = Money(micros=given, currency=settings.currency) if given else None
            if len(self._tariffs) > 16:  # noqa: PLR2004 - days that attempts of this turn started on
                self._tariffs.clear()
            self._tariffs[key] = Tariff(day, store.own_prices(sql), fallback)
        return self._tariffs[key]


class Desk:
    """Prices what projects' jobs ask for and hold, each in its project's currency. For one transaction. nodes: all machines there are;
    lists: kept by who has many transactions.
    """

    def __init__(
        self,
        sql: sa.Connection,
        settings: Settings,
        now: datetime,
        nodes: Sequence[Node] = (),
        lists: Lists | None = None,
    ) -> None:
        self._sql, self._settings, self.now, self.nodes = sql, settings, now, tuple(nodes)
        self._lists = lists or Lists()
        self._tariff = self._lists.on(sql, settings, now.date())
        self._currencies: dict[str, str] = {}
        self._rates: dict[tuple[str, str], Decimal | None] = {}
        self._like: list[_Like] | None = None
        self._kinds: dict[tuple[str, tuple[str, ...]], tuple[list[_Priced], tuple[Unpriced, ...]]] = {}

    def at(self, instant: datetime) -> "Desk":
        """The same with the prices that were in force then."""
        return (
            self
            if instant.date() == self.now.date()
            else Desk(self._sql, self._settings, instant, self.nodes, self._lists)
        )

    def currency(self, project: str) -> str:
        """That of the project's budget, else of its quota in money, else of the settings' prices."""
        if project not in self._currencies:
            budget = [b.amount.currency for b in budgets.of_project(self._sql, project) if not b.subject]
            quota = [q.money.currency for q in registry.all_quotas(self._sql) if q.project == project and q.money]
            self._currencies[project] = (budget or quota or [self._settings.currency])[0]
        return self._currencies[project]

    # --- what is held

    def held(self, project: str, places: Sequence[Place]) -> Rate | Unpriced:
        """Of what an attempt has been given."""
        known = {node.name: node for node in self.nodes}
        nanos = own = 0
        prices: dict[GpuPrice, None] = {}
        for place in places:
            node = known.get(place.node, _NOWHERE)
            devices = {device.id: device for device in node.devices}
            here = self._cores(project, place.cpus)
            if isinstance(here, Unpriced):
                return here
            for one, milli in place.devices.items():
                price = self._gpu(project, devices.get(one), node)
                if isinstance(price, Unpriced):
                    return price
                here += _nanos(price, milli, _share(devices[one]))
                prices[price] = None
            nanos += here
            own += here if self._tariff.is_own(node) else 0
        return Rate(nanos=nanos, own=own, currency=self.currency(project), prices=tuple(prices))

    def price(self, project: str, node: str, model: str) -> Money | None:
        """Of an hour of a whole GPU of a machine that the queue knows; None if it knows none, or no price."""
        for one in self.nodes:
            for device in one.devices:
                if (one.name, device.model) == (node, model) and model:
                    found = self._gpu(project, device, one)
                    return found.per_gpu_hour if isinstance(found, GpuPrice) else None
        return None

    def whole(self, project: str, model: str, node: Node) -> GpuPrice | None:
        """Of an hour of a whole GPU of a machine that the queue need not know; None if no price is known."""
        found = self._gpu(project, Device(id="", index=0, model=model), node)
        return found if isinstance(found, GpuPrice) else None

    # --- what is asked for

    def kinds(self, project: str, asked: Resources) -> tuple[tuple[Kind, ...], tuple[Unpriced, ...]]:
        """What would do, cheapest first, and why what would do has no price."""
        cores = self._cores(project, asked.cpu_milli)
        if isinstance(cores, Unpriced):
            return (), (cores,)
        priced, unknown = self._that_would_do(project, asked.models)
        currency = self.currency(project)
        kinds = [
            Kind(
                price=one.price,
                machines=one.machines,
                rate=Rate(
                    nanos=cores + _nanos(one.price, asked.demand, one.share),
                    own=0,
                    currency=currency,
                    prices=(one.price,),
                ),
            )
            for one in priced
        ]
        return tuple(sorted(kinds, key=lambda kind: kind.rate.nanos)), unknown

    def most(self, project: str, asked: Resources) -> Rate | Unpriced:
        """Of the dearest that would do, so that wherever it is placed it costs no more; Unpriced if any of them is."""
        if not asked.demand:
            cores = self._cores(project, asked.cpu_milli)
            if isinstance(cores, Unpriced):
                return cores
            return Rate(nanos=cores, own=0, currency=self.currency(project))
        kinds, unknown = self.kinds(project, asked)
        if unknown:
            return unknown[0]
        # Each member's part of the cores is rounded up to a thousandth when it is placed.
        spare = self._cores(project, asked.gpus)
        extra = spare if isinstance(spare, int) else 0
        return msgspec.structs.replace(kinds[-1].rate, nanos=kinds[-1].rate.nanos + extra)

    def _that_would_do(self, project: str, models: tuple[str, ...]) -> "tuple[list[_Priced], tuple[Unpriced, ...]]":
        key = (project, models)
        if key not in self._kinds:
            found: dict[tuple[GpuPrice, int], int] = {}
            unknown: dict[Unpriced, None] = {}
            for one in self._groups(models):
                price = self._gpu(project, one.device, one.node)
                if isinstance(price, Unpriced):
                    unknown[price] = None
                else:
                    of = (price, _share(one.device) or WHOLE)
                    found[of] = found.get(of, 0) + one.machines
            priced = [_Priced(price=price, share=share, machines=n) for (price, share), n in found.items()]
            self._kinds[key] = priced, tuple(unknown)
        return self._kinds[key]

    def _groups(self, models: tuple[str, ...]) -> "list[_Like]":
        """The GPUs that would do, one of each kind; those that are named where there are none, or no machine is known."""
        if self._like is None:
            self._like = _alike(self.nodes, self._tariff)
        found = [one for one in self._like if not models or one.device.model in models]
        return found or [
            _Like(device=Device(id="", index=0, model=model), node=_NOWHERE, machines=0) for model in models or ("",)
        ]

    # --- one price

    def _cores(self, project: str, milli: int) -> int | Unpriced:
        """Thousandths of micros an hour, of so many thousandths of cores."""
        if not self._settings.cpu_hour_micros:
            return 0
        price = Money(micros=self._settings.cpu_hour_micros, currency=self._settings.currency)
        found = self._in(project, price, "an hour of a core")
        return found if isinstance(found, Unpriced) else found.micros * milli

    def _gpu(self, project: str, device: Device | None, node: Node) -> GpuPrice | Unpriced:
        if device is None:
            return Unpriced(
                what=f"{node.name or 'a machine'} lacks a GPU that was given", step="See `macadam jobs show`."
            )
        if _share(device) is None:
            return Unpriced(
                what=f"which part of a GPU {device.id} is cannot be said", step="Name its model, or its MIG profile."
            )
        found = self._tariff.of(device.model, node)
        name = device.model or "a GPU whose model is not known"
        if found is None:
            return Unpriced(what=f"no price of {name} on {_where(node)} is known", step=_how_to_price(device, node))
        converted = self._in(project, found.per_gpu_hour, f"an hour of {name}")
        if isinstance(converted, Unpriced) or converted == found.per_gpu_hour:
            return found if isinstance(converted, Money) else converted
        words = f"{found.words}; {found.per_gpu_hour} at the imported rate of {self.now.date()} or before"
        return msgspec.structs.replace(found, per_gpu_hour=converted, words=words)

    def _in(self, project: str, price: Money, what: str) -> Money | Unpriced:
        """In the project's currency, at an imported rate, rounded half to even."""
        wanted = self.currency(project)
        if price.currency == wanted:
            return price
        key = (price.currency, wanted)
        if key not in self._rates:
            self._rates[key] = exchange.rate(self._sql, price.currency, wanted, self.now.date())
        found = self._rates[key]
        if found is None:
            return Unpriced(
                what=f"{what} is priced in {price.currency}, and no rate of the last month says what that is in {wanted}",
                step=f"Import one: macadam cost add-rates (base {price.currency}, quote {wanted}); or price it in {wanted}.",
            )
        return Money(micros=exchange.converted(price.micros, found), currency=wanted)


class _Like(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that stands for all like it, which cost the same; on so many machines."""

    device: Device
    node: Node
    machines: int


class _Priced(msgspec.Struct, frozen=True, kw_only=True):
    """share: thousandths of a whole GPU."""

    price: GpuPrice
    share: int
    machines: int


def _alike(nodes: Sequence[Node], tariff: Tariff) -> list[_Like]:
    """Of machines that new work may be put on."""
    found: dict[tuple[object, ...], tuple[Device, Node, set[str]]] = {}
    for node in nodes:
        if node.leaving is not None or node.closed:
            continue
        name = node.name if tariff.is_own(node) else ""
        for device in node.devices:
            key = (device.model, _share(device), node.provider, node.region, node.zone, node.machine, node.spot, name)
            found.setdefault(key, (device, node, set()))[2].add(node.name)
    return [_Like(device=device, node=node, machines=len(names)) for device, node, names in found.values()]


def _nanos(price: GpuPrice, milli: int, share: int | None) -> int:
    """Thousandths of micros an hour, of so many thousandths of a device that is so many thousandths of a GPU."""
    return -(-price.per_gpu_hour.micros * milli * (share or WHOLE) // WHOLE)


def _share(device: Device) -> int | None:
    """Thousandths of a whole GPU that a device is: all of it, or what a MIG slice takes of its memory. None if that cannot be said."""
    _, is_slice, profile = device.id.partition(_SLICE)
    if not is_slice:
        return WHOLE
    try:
        known, slots = mig.profiles(device.model), mig.slots(device.model)
    except InvalidInput:
        return None
    named = [one for name, one in known.items() if profile.startswith(f"{name}-")]
    if named:
        return WHOLE * named[0].size // slots
    if not device.memory:
        return None
    taken = round(device.memory / gpus.find(device.model).memory * slots)
    return WHOLE * min(slots, max(1, taken)) // slots


def _where(node: Node) -> str:
    said = " ".join(part for part in (node.provider, node.region, node.machine) if part)
    return f"{node.name or 'any machine'}{f' ({said})' if said else ''}"


def _how_to_price(device: Device, node: Node) -> str:
    if not device.model:
        return f"Set {SETTING}, or name the model in MACADAM_GPUS."
    own = f"macadam cost own --gpu {device.model}" if not node.provider else "macadam cost add-prices --prices @FILE"
    return f"Price it ({own}), or set {SETTING} for all GPUs without a price."
