"""What an hour of each GPU costs, asked where jobs are priced: whoever shows money beside devices shows what jobs are charged."""

from datetime import UTC, date, datetime, time
from typing import Annotated

import msgspec

from macadam.compute.billing import store
from macadam.compute.catalogue import prices
from macadam.compute.catalogue.prices import Price
from macadam.compute.jobs import registry
from macadam.compute.jobs.prices import Desk
from macadam.compute.jobs.types import Value
from macadam.operations import Request, Transaction, operation
from macadam.ports import Node
from macadam.values import Money, Somewhere

_Text = Annotated[str, msgspec.Meta(max_length=300)]


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of GPU on a machine. model: the catalogue's name."""

    node: _Text = ""
    model: _Text


class GpuHour(Value, frozen=True, kw_only=True):
    """What an hour of one whole GPU of a machine costs. words: which price it is. charged: whether that is what jobs pay there; where
    it is not, nobody said whose the machine is or what it costs, and this is the least that anybody asks for one on demand. None:
    nobody says any price.
    """

    node: str
    model: str
    per_gpu_hour: Money | None = None
    words: str = ""
    charged: bool = False


class ShowGpuPrices(Request[tuple[GpuHour, ...]], frozen=True, kw_only=True):
    """Show what an hour of each GPU costs, as jobs are charged for it, by machine and model.

    project: in whose currency; '*' for who may read all projects
    provider: as on machines of this provider, whosever they are
    at: at the prices of this day; empty: today
    devices: machines and models; empty: those of the machines that jobs run on
    """

    project: Somewhere
    provider: _Text = ""
    at: date | None = None
    devices: Annotated[tuple[Seen, ...], msgspec.Meta(max_length=100_000)] = ()


@operation(
    ShowGpuPrices,
    permission="prices:read",
    http="POST /api/v1/projects/{project}/gpu-prices",
    cli="jobs prices",
    reads=True,
)
def show_gpu_prices(tx: Transaction, request: ShowGpuPrices) -> tuple[GpuHour, ...]:
    nodes = {node.name: node for node in registry.known_machines(tx.sql)}
    now = datetime.combine(request.at, time(12), UTC) if request.at else tx.now
    desk = Desk(tx.sql, tx.ports.settings.prices, now)
    asked = [(one.node, one.model) for one in request.devices] or [
        (node.name, device.model) for node in nodes.values() for device in node.devices if device.model
    ]
    offered = _offered(store.own_prices(tx.sql), now.date(), request.provider)
    found = []
    for name, model in sorted(set(asked)):
        known = nodes.get(name, Node(name=name, cpus=0, memory=0))
        node = Node(name="", cpus=0, memory=0, provider=request.provider) if request.provider else known
        found.append(_hour(desk, request.project, name, model, node, offered))
    return tuple(found)


def _hour(desk: Desk, project: str, name: str, model: str, node: Node, offered: dict[str, Price]) -> GpuHour:
    charged = desk.whole(project, model, node)
    if charged is None:
        return least(name, model, offered.get(model))
    return GpuHour(node=name, model=model, per_gpu_hour=charged.per_gpu_hour, words=charged.words, charged=True)


def least(node: str, model: str, price: Price | None) -> GpuHour:
    """What is shown where nobody says what jobs would pay. price: the least that is asked on demand, None for none."""
    if price is None:
        return GpuHour(node=node, model=model)
    words = f"the least asked on demand: {price.provider} {price.instance}, {price.dated}"
    return GpuHour(node=node, model=model, per_gpu_hour=price.per_gpu_hour, words=words)


def _offered(own: tuple[Price, ...], day: date, provider: str) -> dict[str, Price]:
    """The least asked by model; nothing where somebody named a provider, as another's price would not be its."""
    found: dict[str, Price] = {}
    for offer in () if provider else prices.offers(at=day, kind="on-demand", own=own):
        if offer.price.per_gpu_hour.currency == "USD":
            found.setdefault(offer.price.gpu, offer.price)
    return found
