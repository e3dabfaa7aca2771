"""What would get more out of the same GPU: number formats that tensor cores take, and larger batches.

These savings rest on an assumption about the work, which is said with each: nobody can tell from outside how much of a
program is matrix products. The lower bound is therefore nothing.
"""

from collections.abc import Mapping, Sequence

from macadam.compute.advice.held import Held, by_day
from macadam.compute.advice.saving import MONTH, least, times
from macadam.compute.advice.sharing import BELIEVED
from macadam.compute.advice.types import Proposal, Saving
from macadam.compute.catalogue.gpus import gpus
from macadam.values import Money

BUSY = 0.5
"""Of the multiprocessors' time: below this, arithmetic is not what the work waits for."""
UNUSED = 0.02
"""Of the time: tensor cores that are used less than this are as good as unused."""
SPEEDUP, MOST_SPEEDUP = 1.5, 3.0
"""Of mixed precision. The most is what PyTorch's recipe for it says of Volta, Turing and Ampere ("2-3X",
https://pytorch.org/tutorials/recipes/recipes/amp_recipe.html); half of the gain is expected at the lower of its figures."""
HALF_EMPTY = 0.5
"""Of memory: room for a batch of about twice the size."""
FULLER = 0.7
"""Multiprocessors' activity that larger batches commonly get to; the bound is 1."""


def precision(held: Sequence[Held], rates: Mapping[str, Money], over: range) -> list[Proposal]:
    """Work that keeps multiprocessors busy on a GPU whose tensor cores stay unused."""
    return [_precision(one, rates, over) for one in held if _is_plain(one)]


def _is_plain(one: Held) -> bool:
    if one.model not in gpus() or one.sm is None or one.tensor_p95 is None or one.believed < BELIEVED:
        return False
    peak = gpus()[one.model].peak
    has_cores = max(peak.get("fp16", 0), peak.get("bf16", 0)) > 2 * peak.get("fp32", float("inf"))
    return has_cores and one.sm > BUSY and one.tensor_p95 < UNUSED


def _precision(one: Held, rates: Mapping[str, Money], over: range) -> Proposal:
    return Proposal(
        kind="precision",
        project=one.project,
        subjects=(one.owner,),
        devices=(one.device,),
        what=f"Let {one.owner} compute in bf16 or TF32 (mixed precision).",
        because=f"It keeps {one.sm or 0:.0%} of a {one.model}'s multiprocessors busy and its tensor cores "
        f"{one.tensor_p95 or 0:.1%} of the time.",
        saving=_faster(one, SPEEDUP, MOST_SPEEDUP, least(rates, (one.device,)), over),
        risk="medium",
        risks="Results differ in the last digits: evaluate the model again before it is promoted.",
        undo="Turn mixed precision off.",
        assumes=f"that it gets {SPEEDUP:g} times as fast, at most {MOST_SPEEDUP:g} times, as its makers' documentation says "
        "of matrix products; nothing if it has none",
    )


def batch(held: Sequence[Held], rates: Mapping[str, Money], over: range) -> list[Proposal]:
    """Work that is always running kernels which leave most multiprocessors and half of the memory empty."""
    return [_batch(one, rates, over) for one in held if _is_thin(one)]


def _is_thin(one: Held) -> bool:
    known = one.model in gpus() and one.sm is not None and one.active is not None and one.memory_peak is not None
    if not known or one.believed < BELIEVED:
        return False
    room = (one.memory_peak or 0) < HALF_EMPTY * gpus()[one.model].memory
    return room and (one.active or 0) > BUSY and 0 < (one.sm or 0) < FULLER * BUSY


def _batch(one: Held, rates: Mapping[str, Money], over: range) -> Proposal:
    thin = one.sm or FULLER
    peak, memory = (one.memory_peak or 0) / (1 << 30), gpus()[one.model].memory / (1 << 30)
    return Proposal(
        kind="batch",
        project=one.project,
        subjects=(one.owner,),
        devices=(one.device,),
        what=f"Give {one.owner} larger batches.",
        because=f"Kernels run {one.active or 0:.0%} of the time on {thin:.0%} of the multiprocessors, and {peak:.0f} of "
        f"{memory:.0f} GiB are in use.",
        saving=_faster(one, FULLER / thin, 1 / thin, least(rates, (one.device,)), over),
        risk="medium",
        risks="Training may need another learning rate, and single requests wait for their batch.",
        undo="Set the batch size back.",
        assumes=f"that multiprocessors get to {FULLER:.0%} of activity with the work done in proportion; at most 100%",
    )


def _faster(one: Held, factor: float, most: float, rate: Money | None, over: range) -> Saving:
    """The same work in less time, which is not paid any more."""
    daily = by_day(one.when, over)
    held = MONTH * sum(daily) / len(daily) if daily else 0.0
    hours, high = held * (1 - 1 / factor), held * (1 - 1 / most)
    return Saving(
        hours=hours,
        low_hours=0,
        high_hours=high,
        expected=times(rate, hours),
        low=times(rate, 0),
        high=times(rate, high),
    )
