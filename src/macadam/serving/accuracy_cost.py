"""What one accurate prediction costs: what a version cost, divided by how many of its answers were right, with bounds.

Pure. Answers whose truth is known are counted. Of the others two things can be said, and both are: if those whose truth is known are
like all, their accuracy holds for the rest (Wilson's 95% interval: Wilson 1927, recommended by Brown, Cai and DasGupta,
"Interval Estimation for a Binomial Proportion", Statistical Science 16(2), 2001); and without any assumption, between none and all
of the rest were right. Costs are bounds and no sample, so Fieller's interval has no variance to work with; the two intervals are combined
as a box, the lowest cost over the most accurate answers and the reverse (Polsky, Glick, Willke and Schulman, "Confidence Intervals for
Cost-Effectiveness Ratios: A Comparison of Four Methods", Health Economics 6(3), 1997), which leans to the wide side.
"""

import math

import msgspec

from macadam.compute.waterfall import stages
from macadam.compute.waterfall.stages import CostSpan
from macadam.errors import InvalidInput
from macadam.values import Money

_Z = 1.959963984540054  # the 97.5% quantile of the normal distribution


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of a version. labelled: those whose truth is known and is yes or no; right: of these."""

    predictions: int
    labelled: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.labelled <= self.predictions:
            raise InvalidInput(
                f"{self.right} right of {self.labelled} labelled of {self.predictions} predictions cannot be.",
                next_step="Count each answer once.",
            )


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a version's cost. what: such as 'training'; how: how it was measured and how much of it is taken."""

    what: str
    cost: CostSpan
    how: str


class AccuratePrice(msgspec.Struct, frozen=True, kw_only=True):
    """What one accurate prediction costs. value and bounds in millionths of the currency, with fractions: they are small.

    None where nothing can be said: no label has arrived, or none was right. any_high: the upper bound if labels say nothing about
    the answers without one, and all of those were wrong.
    """

    currency: str
    value: float | None
    low: float | None
    high: float | None
    any_low: float | None
    any_high: float | None
    note: str


class VersionCost(msgspec.Struct, frozen=True, kw_only=True):
    """A version's cost and accuracy. accuracy, accuracy_low, accuracy_high: of labelled answers, None without any.

    over: predictions that what is paid once (training, evaluation) is spread over.
    """

    version: str
    judged: Judged
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    over: int
    parts: tuple[Part, ...]
    total: CostSpan
    per_prediction: float | None
    per_accurate: AccuratePrice


def wilson(right: int, labelled: int) -> tuple[float, float]:
    """The 95% interval of a proportion, 0 to 1. Raises InvalidInput without any observation."""
    if labelled <= 0 or not 0 <= right <= labelled:
        raise InvalidInput(f"{right} of {labelled} is no proportion.", next_step="Wait for the first label.")
    z2 = _Z * _Z
    middle = (right + z2 / 2) / (labelled + z2)
    half = _Z / (labelled + z2) * math.sqrt(right * (labelled - right) / labelled + z2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_of_once(cost: CostSpan, predictions: int, over: int) -> CostSpan:
    """What is paid once, for the predictions so far: all of it if no more are expected, else their part of `over`."""
    expected = max(over, predictions)
    if expected <= 0:
        return cost

    def part(money: Money) -> Money:
        return Money(micros=round(money.micros * predictions / expected), currency=money.currency)

    return CostSpan(value=part(cost.value), low=part(cost.low), high=part(cost.high))


def of_version(version: str, judged: Judged, parts: tuple[Part, ...], *, over: int, currency: str) -> VersionCost:
    """parts: already for the predictions that are judged, see `share_of_once`."""
    total = stages.total((part.cost for part in parts), currency)
    known = judged.labelled > 0
    low, high = wilson(judged.right, judged.labelled) if known else (None, None)
    return VersionCost(
        version=version,
        judged=judged,
        accuracy=judged.right / judged.labelled if known else None,
        accuracy_low=low,
        accuracy_high=high,
        over=max(over, judged.predictions),
        parts=parts,
        total=total,
        per_prediction=total.value.micros / judged.predictions if judged.predictions else None,
        per_accurate=per_accurate(total, judged),
    )


def per_accurate(cost: CostSpan, judged: Judged) -> AccuratePrice:
    currency = cost.value.currency
    if not judged.labelled:
        nothing = AccuratePrice(
            currency=currency, value=None, low=None, high=None, any_low=None, any_high=None, note="no label has arrived"
        )
        count = judged.predictions
        return msgspec.structs.replace(nothing, any_low=cost.low.micros / count) if count else nothing
    rest = judged.predictions - judged.labelled
    low, high = wilson(judged.right, judged.labelled)
    # What is known needs no interval: Wilson's is for the answers whose truth is not.
    accurate = judged.right + rest * judged.right / judged.labelled
    least, most = judged.right + rest * low, judged.right + rest * high
    note = "all labels have arrived" if not rest else f"{rest} of {judged.predictions} have no label yet"
    return AccuratePrice(
        currency=currency,
        value=_per(cost.value.micros, accurate),
        low=_per(cost.low.micros, most),
        high=_per(cost.high.micros, least),
        any_low=_per(cost.low.micros, judged.right + rest),
        any_high=_per(cost.high.micros, judged.right),
        note=note if judged.right else "none of the labelled answers was right",
    )


def _per(micros: int, count: float) -> float | None:
    return micros / count if count else None
