"""What can be rented, out of dated price lists, as offers to choose from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.catalogue.prices import Price
from macadam.compute.rightsizing.types import Offer
from macadam.errors import InvalidInput, NotFound, SourceInvalid

CURRENCY = "USD"
_LARGEST = 10_000_000  # bytes of a price list


def read(path: Path) -> list[Price]:
    """A price list of one's own: JSON, a list of prices in the catalogue's form, with any name that a GPU is known by.

    Raises SourceInvalid.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise SourceInvalid(f"{path} is larger than any price list.", next_step="Give a JSON list of prices.")
        found = msgspec.json.decode(path.read_bytes(), type=list[Price])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceInvalid(f"{path} is no price list: {error}.", next_step="Give a JSON list of prices.") from error
    return [_known(path, number, price) for number, price in enumerate(found, start=1)]


def _known(path: Path, number: int, price: Price) -> Price:
    """Under the catalogue's name of its GPU: what is left out unsaid could have been the cheapest."""
    try:
        return msgspec.structs.replace(price, gpu=gpus.find(price.gpu).name)
    except NotFound as error:
        raise SourceInvalid(f"{path}, price {number}: {error.what}", next_step=error.next_step) from error


def choose(
    prices: Iterable[Price],
    *,
    kinds: Sequence[str] = ("on-demand",),
    providers: Sequence[str] = (),
    only: Sequence[str] = (),
) -> list[Offer]:
    """The cheapest offer for each GPU and size of machine. only: names of GPUs, () for all. Raises NotFound,
    InvalidInput.
    """
    wanted = {gpus.find(name).name for name in only}
    best: dict[tuple[str, int], tuple[int, Price]] = {}
    for price in prices:
        if price.kind not in kinds or (providers and price.provider not in providers):
            continue
        if (wanted and price.gpu not in wanted) or price.gpu not in gpus.gpus():
            continue
        if price.per_gpu_hour.currency != CURRENCY:
            raise InvalidInput(
                f"{price.instance} of {price.provider} is priced in {price.per_gpu_hour.currency}.",
                next_step=f"Give all prices in {CURRENCY}: amounts in several currencies cannot be compared.",
            )
        hourly = price.per_gpu_hour.micros * price.gpus
        if hourly > 0 and ((price.gpu, price.gpus) not in best or hourly < best[price.gpu, price.gpus][0]):
            best[price.gpu, price.gpus] = (hourly, price)
    if not best:
        raise InvalidInput(
            "No price fits what was asked for.", next_step="Allow more providers, kinds of price or GPUs."
        )
    chosen = [best[key] for key in sorted(best)]
    named = Counter(_name(price) for _, price in chosen)
    # Machines are counted by name, and some lists name only the GPU, whatever the size.
    return [
        _offer(price, hourly, _name(price) + (f" ({price.gpus} x {price.gpu})" if named[_name(price)] > 1 else ""))
        for hourly, price in chosen
    ]


def _name(price: Price) -> str:
    return f"{price.provider} {price.instance}"


def _offer(price: Price, hourly: int, name: str) -> Offer:
    return Offer(
        name=name,
        gpu=price.gpu,
        gpus=price.gpus,
        hourly=hourly,
        provider=price.provider,
        source=price.source,
        dated=price.dated.isoformat(),
    )
