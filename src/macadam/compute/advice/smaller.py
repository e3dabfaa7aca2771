"""What needs less: the cheapest GPU that has the memory, the bandwidth and the arithmetic that were really used.

Arithmetic is bounded from above: multiprocessors that were active for a part of the time did at most that part of the
peak. So a GPU that this says is enough is enough, as far as the catalogue's peaks can be reached there as here.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from macadam.compute.advice.held import Held, by_day
from macadam.compute.advice.saving import MONTH, least, of_money
from macadam.compute.advice.sharing import BELIEVED, HEADROOM, LOAD
from macadam.compute.advice.types import Proposal
from macadam.compute.catalogue.gpus import Gpu, gpus
from macadam.compute.catalogue.prices import Price
from macadam.values import Money

WORTH = 0.1
"""Of the price; moving costs somebody's day."""
_TENSOR = 0.01  # of the time: what uses tensor cores less than this does not need them


def smaller(held: Sequence[Held], rates: Mapping[str, Money], offers: Iterable[Price], over: range) -> list[Proposal]:
    """offers: prices on demand that may be chosen from."""
    choices = tuple(offers)
    found = []
    for owner, group in groupby(held, key=lambda one: one.owner):
        mine = list(group)
        proposal = _smaller(owner, mine, least(rates, (one.device for one in mine)), choices, over)
        if proposal is not None:
            found.append(proposal)
    return found


def is_enough(gpu: Gpu, mine: Sequence[Held]) -> bool:
    """Whether one device of it does what each of these did, with room to spare."""
    return all(_fits(gpu, gpus()[one.model], one) for one in mine)


def _fits(gpu: Gpu, now: Gpu, one: Held) -> bool:
    return (
        HEADROOM * (one.memory_peak or 0) <= gpu.memory
        and (one.dram_p95 or 0) * now.bandwidth <= LOAD * gpu.bandwidth
        and all((one.sm_p95 or 0) * now.peak[form] <= LOAD * gpu.peak.get(form, 0.0) for form in _formats(now, one))
    )


def _formats(now: Gpu, one: Held) -> list[str]:
    """The number formats in which the work may have been done: tensor formats only if tensor cores were used."""
    wanted = ("fp32",) if (one.tensor_p95 or 0) < _TENSOR else ("fp16", "bf16")
    return [form for form in wanted if form in now.peak]


def _known(one: Held) -> bool:
    measured = (one.memory_peak, one.sm_p95, one.tensor_p95, one.dram_p95)
    return one.model in gpus() and None not in measured and one.believed >= BELIEVED and "/mig:" not in one.device


def _smaller(
    owner: str, mine: Sequence[Held], rate: Money | None, choices: Sequence[Price], over: range
) -> Proposal | None:
    if rate is None or len({one.model for one in mine}) > 1 or not all(_known(one) for one in mine):
        return None
    most = rate.micros * (1 - WORTH)
    for offer in sorted(choices, key=lambda offer: (_whole(offer, len(mine)), offer.gpu, offer.provider)):
        same = offer.per_gpu_hour.currency == rate.currency and offer.gpu != mine[0].model and offer.gpu in gpus()
        if same and _whole(offer, len(mine)) <= most and is_enough(gpus()[offer.gpu], mine):
            return _proposal(owner, mine, rate, offer, over)
    return None


def _whole(offer: Price, devices: int) -> int:
    """Millionths for an hour of each of so many devices, as machines are rented whole."""
    rented = -(-devices // offer.gpus) * offer.gpus
    return -(-offer.per_gpu_hour.micros * rented // devices)


def _proposal(owner: str, mine: Sequence[Held], rate: Money, offer: Price, over: range) -> Proposal:
    daily = [sum(hours) for hours in zip(*(by_day(one.when, over) for one in mine), strict=True)]
    less = Money(micros=rate.micros - _whole(offer, len(mine)), currency=rate.currency)
    peak = max(one.memory_peak or 0 for one in mine)
    busiest = max(one.sm_p95 or 0 for one in mine)
    memory = max(one.dram_p95 or 0 for one in mine)
    return Proposal(
        kind="smaller-gpu",
        project=mine[0].project,
        subjects=(owner,),
        devices=tuple(one.device for one in mine),
        what=f"Run {owner} on {offer.gpu} instead of {mine[0].model}: {offer.instance} of {offer.provider}, {offer.region}.",
        because=f"It used {peak / (1 << 30):.0f} GiB at most, {busiest:.0%} of the multiprocessors and {memory:.0%} of the "
        f"memory bandwidth at their 95th percentiles.",
        saving=of_money(daily, most=len(mine) * 24 * MONTH, rate=less),
        risk="medium",
        risks=_risks(gpus()[offer.gpu], gpus()[mine[0].model], offer),
        undo=f"Ask for {mine[0].model} again.",
        assumes=f"the price of {offer.dated.isoformat()} ({offer.source}), and that as much of its peak is reached there as here",
    )


def _risks(new: Gpu, now: Gpu, offer: Price) -> str:
    lacking = sorted(form for form in now.peak if form not in new.peak)
    said = [f"{new.name} lacks {', '.join(lacking)}."] if lacking else []
    if offer.gpus > 1:
        said.append(f"It is rented {offer.gpus} at a time, and counted so.")
    return " ".join([*said, "Single requests or steps may take longer, as one burst has less to burst into."])
