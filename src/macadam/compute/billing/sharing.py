"""Shares whole amounts out in parts that sum to them exactly: the largest-remainder (Hamilton) method.

Every part is rounded down; what is then missing goes, one unit each, to the parts that were rounded down most. No part is more
than one unit from its exact value, and the sum is the amount (Balinski and Young, "Fair Representation", 1982, chapter 3).
Pure; numpy with whole numbers only, so that nothing depends on the order of floating-point sums.
"""

from fractions import Fraction
from typing import TYPE_CHECKING

from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
else:
    np = lazy("numpy")

MICROS_PER_CENT = 10_000
_MOST_AMOUNT = 1 << 53  # micros: nine thousand million dollars in one line; floats below it are exact
_MOST_WEIGHT = 1 << 60  # of a group: eight times it still fits 64 bits, see `share_out`


def share_out(amounts: "Ints", group: "Ints", weights: "Ints") -> "Ints":
    """Splits each amount by the weights of its group.

    amounts: shape (g,), any sign. group: shape (n,), which amount each part is of, in ascending order, none left out.
    weights: shape (n,), at least 0, not all 0 in any group. Returns the parts, shape (n,): those of a group sum to its
    amount exactly. Ties go to the earlier part. Raises InvalidInput.
    """
    if not len(amounts):
        return np.zeros(0, dtype=np.int64)
    begins = np.searchsorted(group, np.arange(len(amounts)))
    total = _totals(amounts, group, weights, begins)
    size = np.abs(amounts)[group]
    whole = total[group]
    # Floats say the quotient to within a few units; the remainder, which is small, then comes out exactly from products
    # that wrap around at 64 bits, and puts the quotient right.
    parts = np.floor(size.astype(np.float64) * (weights / whole)).astype(np.int64)
    rest = size * weights - parts * whole
    off = rest // whole
    parts += off
    rest -= off * whole
    missing = np.abs(amounts) - np.add.reduceat(parts, begins)
    order = np.lexsort((-rest, group))
    rank = np.arange(len(order)) - begins[group[order]]
    parts[order] += rank < missing[group[order]]
    return np.where(amounts[group] < 0, -parts, parts)


def _totals(amounts: "Ints", group: "Ints", weights: "Ints", begins: "Ints") -> "Ints":
    if len(group) != len(weights) or not len(group) or (weights < 0).any():
        raise InvalidInput("The weights of a sharing do not fit.", next_step="Give one of at least 0 for each part.")
    if int(np.abs(amounts).max()) >= _MOST_AMOUNT or float(weights.sum(dtype=np.float64)) >= _MOST_WEIGHT * len(
        amounts
    ):
        raise InvalidInput(
            f"An amount of {int(np.abs(amounts).max()) / 1e6:.0f}, or its weights, are too large to be shared out exactly.",
            next_step="Correct the charge, or split it.",
        )
    present = group[begins.clip(max=len(group) - 1)] == np.arange(len(amounts))
    total: Ints = np.add.reduceat(weights, begins) if present.all() else np.zeros_like(amounts)
    if (total <= 0).any() or (total >= _MOST_WEIGHT).any():
        raise InvalidInput("An amount has nobody to be shared to.", next_step="Give each at least one part above 0.")
    return total


def by_days(begin: "Ints", end: "Ints", amounts: "Ints", day: int) -> "tuple[Ints, Ints, Ints, Ints]":
    """Cuts times at midnight (UTC) and shares their amounts out by time: (which of them, begin, end, amount) of each piece, in order.

    begin, end: whole units since 1970; day: how many of those it has. A time of no length has one piece with all of its amount.
    Raises InvalidInput.
    """
    end = np.maximum(begin, end)
    days = np.maximum(1, -(-end // day) - begin // day)
    which = np.repeat(np.arange(len(begin)), days)
    number = np.arange(len(which)) - np.repeat(np.cumsum(days) - days, days)
    midnight = (begin[which] // day + number) * day
    starts, ends = np.maximum(begin[which], midnight), np.minimum(end[which], midnight + day)
    weights = np.where(days[which] == 1, 1, ends - starts)
    return which, starts, ends, share_out(amounts, which, weights)


def in_cents(micros: "list[int]") -> list[int]:
    """The same amounts in whole cents, each within a cent, summing to the sum rounded half to even, as invoices round.

    For printing: lines that were rounded one by one would not add up to the printed total.
    """
    down = [amount // MICROS_PER_CENT for amount in micros]
    missing = round(Fraction(sum(micros), MICROS_PER_CENT)) - sum(down)
    by_rest = sorted(range(len(micros)), key=lambda n: -(micros[n] % MICROS_PER_CENT))
    for place in by_rest[:missing]:
        down[place] += 1
    return down
