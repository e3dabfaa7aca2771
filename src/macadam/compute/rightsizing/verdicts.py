"""What a decision says in words: what to do and why, what would change it, or which numbers are missing before anything
can be said.
"""

import msgspec

from macadam.compute.rightsizing.decisions import Outcome, Result
from macadam.compute.rightsizing.questions import Question

_DRIVERS = 3  # named
_WHOLE = 10  # USD from which cents are left out


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """recommended: '' if the numbers do not carry a decision. why, would_change, missing: sentences."""

    recommended: str
    why: tuple[str, ...]
    would_change: tuple[str, ...]
    missing: tuple[str, ...]


def verdict(question: Question, result: Result) -> Verdict:
    """Recommends only what is best in most draws, by worth, and without a doubt that is known."""
    best = result.outcomes[0]
    missing = _missing(question, result)
    return Verdict(
        recommended="" if missing else best.name,
        why=_why(question, result, best),
        would_change=_would_change(result),
        missing=missing,
    )


def _missing(question: Question, result: Result) -> tuple[str, ...]:
    best, found = result.outcomes[0], []
    if question.value_usd is None:
        found.append(
            "What a right answer is worth (value_usd): without it only costs can be compared, and the cheapest answer may be a wrong one."
        )
    unmeasured = [way.name for way in question.ways if way.accuracy is None]
    if unmeasured:
        found.append(f"The accuracy of {', '.join(unmeasured)}, measured on the task's own evaluation set.")
    if best.doubt:
        found.append(f"{best.name} comes out first, but cannot be recommended: {best.doubt}.")
    if best.best < question.confidence and best.regret_usd > question.tolerance * best.total_usd.value:
        rival = max(result.outcomes[1:], key=lambda o: o.best)
        driver = next(iter(_strongest(result)), "")
        narrow = f" Narrow the range of {driver} first: it moves the difference most." if driver else ""
        found.append(
            f"{best.name} is best in {best.best:.0%} of the draws and {rival.name} in {rival.best:.0%}; "
            f"{question.confidence:.0%} were asked for.{narrow}"
        )
    return tuple(found)


def _why(question: Question, result: Result, best: Outcome) -> tuple[str, ...]:
    said = [
        (
            f"{best.name} is {'best' if result.by == 'net' else 'cheapest'} in {best.best:.0%} of {result.draws} draws: "
            f"{_usd(best.total_usd.value)} over {question.months:g} months ({_usd(best.total_usd.low)} to {_usd(best.total_usd.high)})."
        )
    ]
    if best.best < question.confidence:
        said.append(
            f"Better numbers are worth {_usd(best.regret_usd)} at most: what the best of each draw leaves more, in the mean."
        )
    if best.per_accurate_usd is not None:
        each = best.per_accurate_usd
        said.append(f"A right answer costs {each.value:.3g} USD ({each.low:.3g} to {each.high:.3g}).")
    for other in result.outcomes[1:]:
        if best.net_usd is not None and other.net_usd is not None:
            said.append(f"{other.name} leaves {_usd(best.net_usd.value - other.net_usd.value)} less, in the medians.")
        else:
            said.append(
                f"{other.name} costs {_usd(other.total_usd.value - best.total_usd.value)} more, in the medians."
            )
    return tuple(said)


def _would_change(result: Result) -> tuple[str, ...]:
    said = []
    for crossing in result.crossings:
        if crossing.requests_per_month is None:
            said.append(
                f"No volume up to a thousand times larger or smaller puts {crossing.below} before {crossing.above}, all else as it is."
            )
        else:
            said.append(
                f"From {crossing.requests_per_month:,.0f} requests a month on {crossing.above} goes before {crossing.below}; "
                f"below that {crossing.below} does."
            )
    said += [
        f"{name} moves it (rank correlation {result.drivers[name]:+.2f})." for name in _strongest(result)[:_DRIVERS]
    ]
    return tuple(said)


def _strongest(result: Result) -> list[str]:
    return sorted(result.drivers, key=lambda name: -abs(result.drivers[name]))


def _usd(amount: float) -> str:
    return f"{amount:,.0f} USD" if abs(amount) >= _WHOLE else f"{amount:.2f} USD"
