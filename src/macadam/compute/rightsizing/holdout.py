"""A trace in two parts: a fleet is sized on the one and judged on the other, and what was seen there gets an interval.

A search that tries a hundred fleets finds one that just keeps the promise on the requests it looked at; what that is
worth shows on requests that it never saw. Requests of one minute share their fate (a burst, a long prompt ahead), so
that a thousand of them say less than a thousand draws would: how much less follows from a bootstrap over blocks of time.
"""

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from macadam.compute.rightsizing.types import Slo, Trace
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    np = lazy("numpy")
special: Any = lazy("scipy.special")  # scipy has no types

How = Literal["auto", "blocks", "later", "none"]
Standing = Literal["kept", "missed", "open", "short"]

_BLOCKS = (86_400.0, 3600.0, 300.0, 60.0)  # s: days, hours, five minutes, minutes
_FEWEST = 8  # blocks of a trace, four a part, below which alternating ones say nothing of each other
_BINS = 256  # of time, in which requests that missed are counted
_RESAMPLES = 1000
_ALPHA = 0.05  # of 95% intervals
_SLOW = 0.02  # of the requests whose clustering is looked at where fewer than that missed
_QUIET = 5  # lags in a row without correlation end the search for a block's length (Politis & White 2004, section 3.2)
_SEED = 20_041  # of the bootstrap: the same answer twice


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """how: 'blocks' that take turns, the 'later' half, or 'none'. block: seconds of one. why: a sentence. sized, judged:
    the parts; judged None if nothing is held out.
    """

    how: Literal["blocks", "later", "none"]
    why: str
    sized: Trace
    judged: Trace | None = None
    block: float = 0.0


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet kept on requests that it was not sized on. low, high: 95% interval of attained. worth: how many
    independent requests they count for. blocks: of the bootstrap, of `block` seconds. standing: 'kept' or 'missed' if the
    interval says so, 'short' if not even a flawless part of that length could have shown the promise kept, else 'open'.
    """

    requests: int
    seconds: float
    attained: float
    low: float
    high: float
    worth: float
    block: float
    blocks: int
    standing: Standing


def split(trace: Trace, how: How) -> Split:
    """Raises InvalidInput if what was asked for by name cannot be done; 'auto' then holds nothing out, and says why."""
    if how == "none":
        return Split(how="none", why="Nothing was held out, as asked.", sized=trace)
    # What a session said before is found again only if its turns stay together.
    if how == "later" or (how == "auto" and trace.ids and trace.at[-1] >= _FEWEST * _BLOCKS[-1]):
        half = trace.at[-1] / 2
        return _parted(trace, [at > half for at in trace.at], "later", half) or _refused(trace)
    for block in _BLOCKS:
        if trace.at[-1] >= _FEWEST * block:
            parted = _parted(trace, [int(at // block) % 2 == 1 for at in trace.at], "blocks", block)
            if parted is not None:
                return parted
    if how == "blocks":
        return _refused(trace)
    return Split(how="none", why=_too_short(trace), sized=trace)


def judge(trace: Trace, slo: Slo, ttft: "Array", tpot: "Array") -> Judged:
    """ttft, tpot: seconds, of each request of the trace, infinite if it was refused."""
    slowness = np.maximum(ttft / slo.ttft, tpot / slo.tpot)
    missed = slowness > 1
    share = float(np.mean(missed))
    # Where few missed, the slowest say better how those in trouble come together; the more they do, the less all are worth.
    slowest = slowness >= np.quantile(slowness, 1 - _SLOW, method="higher")
    found = [_worth(np.asarray(trace.at), marked) for marked in ((missed,) if share >= _SLOW else (missed, slowest))]
    worth, length, blocks = min((one for one in found if one is not None), default=(0.0, trace.at[-1], 1))
    low, high = _interval(share, worth)
    return Judged(
        requests=len(trace),
        seconds=trace.seconds,
        attained=1 - share,
        low=low,
        high=high,
        worth=worth,
        block=length,
        blocks=blocks,
        standing=_standing(low, high, slo.attainment, worth),
    )


def _standing(low: float, high: float, wanted: float, worth: float) -> Standing:
    if low >= wanted:
        return "kept"
    if high < wanted:
        return "missed"
    return "short" if _interval(0.0, worth)[0] < wanted else "open"


def _interval(share: float, worth: float) -> tuple[float, float]:
    """Of the part that did not miss. Clopper and Pearson's interval at the effective number of requests (Korn & Graubard
    1998, Survey Methodology 24): also where none missed, which a bootstrap by itself would call certain.
    """
    missed, kept = share * worth, (1 - share) * worth
    least = float(special.betaincinv(missed, kept + 1, _ALPHA / 2)) if missed > 0 else 0.0
    most = float(special.betaincinv(missed + 1, kept, 1 - _ALPHA / 2)) if kept > 0 else 1.0
    return 1 - most, 1 - least


def _worth(at: "Array", marked: "Array") -> tuple[float, float, int] | None:
    """Independent requests that these count for, the bootstrap's block in seconds, and how many of those there are. None if
    all or none are marked, or if there are too few to tell.
    """
    n, span = len(at), float(at[-1] - at[0])
    share = float(np.mean(marked))
    if span <= 0 or share in (0.0, 1.0) or n < _BINS:
        return None
    bins = np.minimum(((at - at[0]) / span * _BINS).astype(int), _BINS - 1)
    of_all = np.bincount(bins, minlength=_BINS).astype(float)
    of_marked = np.bincount(bins, weights=marked, minlength=_BINS)
    length = _block_length(of_marked - share * of_all)
    count = -(-_BINS // length)
    if count < _FEWEST:
        return 1.0, length * span / _BINS, count
    shares = _resampled(of_marked, of_all, length, count)
    independent = share * (1 - share) / n
    return n / max(1.0, float(np.var(shares)) / independent), length * span / _BINS, count


def _resampled(of_marked: "Array", of_all: "Array", length: int, count: int) -> "Array":
    """The share in each resample: circular blocks of time, drawn with replacement (Politis & Romano 1992)."""
    around = np.arange(_BINS)[:, None] + np.arange(length)[None, :]
    sums = [values[around % _BINS].sum(axis=1) for values in (of_marked, of_all)]
    starts = np.random.default_rng(_SEED).integers(0, _BINS, (_RESAMPLES, count))
    totals = [values[starts].sum(axis=1) for values in sums]
    found: Array = totals[0] / np.maximum(totals[1], 1.0)
    return found


def _block_length(values: "Array") -> int:
    """Bins of a block: twice the lag from which on nothing is correlated any more (Politis & White 2004, Econometric
    Reviews 23), and no less than the cube root of their number.
    """
    centred = values - values.mean()
    power = float(centred @ centred)
    noise = 2 * math.sqrt(math.log10(_BINS) / _BINS)
    lag, quiet = 0, 0
    for shift in range(1, _BINS // 2):
        correlated = power > 0 and abs(float(centred[shift:] @ centred[:-shift])) / power >= noise
        lag, quiet = (shift, 0) if correlated else (lag, quiet + 1)
        if quiet == _QUIET:
            break
    return max(2 * lag, math.ceil(math.cbrt(_BINS)))


def _parted(trace: Trace, held: list[bool], how: Literal["blocks", "later"], block: float) -> Split | None:
    """None if a part would be empty. Blocks of a part are put end to end: the load stays what it was."""
    if all(held) or not any(held):
        return None
    why = (
        f"Blocks of {_named(block)} take turns: sized on the first, third …, judged on the second, fourth …"
        if how == "blocks"
        else "Sized on the earlier half, judged on the later one."
    )
    gone = [_gone(at, block) if how == "blocks" else 0.0 for at in trace.at]
    sized, judged = (
        trace.take([number for number, is_held in enumerate(held) if is_held == wanted], gone)
        for wanted in (False, True)
    )
    return Split(how=how, why=why, sized=sized, judged=judged, block=block)


def _gone(at: float, block: float) -> float:
    """Seconds of the other part's blocks before that moment."""
    return float((int(at // block) + 1) // 2) * block


def _named(seconds: float) -> str:
    return {86_400.0: "a day", 3600.0: "an hour", 300.0: "five minutes", 60.0: "a minute"}[seconds]


def _too_short(trace: Trace) -> str:
    return (
        f"The trace is too short to hold a part of it out: {trace.at[-1]:.0f} s, where {_FEWEST} blocks of a minute are the least. "
        "What the fleet kept was seen on the very requests that it was sized on, and says little of others."
    )


def _refused(trace: Trace) -> Split:
    raise InvalidInput(_too_short(trace), next_step="Give a longer trace, or --holdout none.")
