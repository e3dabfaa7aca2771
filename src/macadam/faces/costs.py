"""The demo's chapter on money: what each stage of the road cost on this machine, and what a correct prediction did."""

from macadam.app.platform import Platform
from macadam.compute.waterfall import metering, stages
from macadam.compute.waterfall.requests import ShowStages, Stages
from macadam.compute.waterfall.stages import CostSpan
from macadam.faces.story import Story
from macadam.serving import accuracy_cost
from macadam.serving.accuracy_cost import AccuratePrice, VersionCost
from macadam.serving.types import CostAccuracy

_MICROS = 1_000_000
_THOUSANDTH = 1000


def tell(story: Story, platform: Platform, project: str, model: str) -> None:
    """Everything in it was measured in this demo; the price of a core-hour is the one assumption, and is named."""
    platform.keep_work()
    found = platform.call(ShowStages(project=project))
    _by_stage(story, found)
    versions = [
        one for one in platform.call(CostAccuracy(project=project, model=model)).versions if one.judged.labelled
    ]
    for version in versions:
        _per_answer(story, version, found)
    story.say(f"Not in it: {found.left_out}. `macadam cost stages` and `macadam cost accuracy {model}` say it again.")


def _by_stage(story: Story, found: Stages) -> None:
    core = dollars(found.price.core_hour.micros)
    story.say(
        f"Measured wall and processor seconds of every operation, children included, at {core} a core-hour "
        f"({found.price.source}; this machine gives {found.price.cores} cores). At least: the processor time that was used. "
        "At most: the whole machine for as long as it ran."
    )
    rows = [
        (one.stage, f"{one.calls:,}", f"{one.wall:.1f}", f"{one.cpu:.1f}", *_bounds(one.cost)) for one in found.stages
    ]
    cpu = sum(one.cpu for one in found.stages)
    calls = sum(one.calls for one in found.stages)
    rows.append(("the whole road", f"{calls:,}", "", f"{cpu:.1f}", *_bounds(found.total)))
    story.table(("stage", "calls or answers", "seconds", "CPU seconds", "at least", "at most"), rows)
    everything = metering.processor_seconds()
    story.fact("CPU seconds of the demo so far", f"{everything:.1f}, of which the road took {cpu:.1f}")
    story.say("The rest extracted the raw files, played the callers over HTTP, and started things.")


def _bounds(cost: CostSpan) -> tuple[str, str]:
    return dollars(cost.low.micros), dollars(cost.high.micros)


def _per_answer(story: Story, version: VersionCost, found: Stages) -> None:
    judged = version.judged
    story.fact(
        f"{version.version}: correct",
        f"{judged.right:,} of {judged.labelled:,} labelled ({version.accuracy or 0:.1%}), {judged.predictions:,} asked",
    )
    story.fact("a correct prediction, the version alone", _price(version.per_accurate))
    whole = accuracy_cost.per_accurate(found.total, judged)
    story.fact("a correct prediction, the whole road", _price(whole))
    serving = stages.nothing(found.price.core_hour.currency)
    for stage in found.stages:
        if stage.stage == "serve":
            serving = stage.cost
    story.fact("the next one (serving alone)", _price(accuracy_cost.per_accurate(serving, judged)))


def _price(price: AccuratePrice) -> str:
    if price.value is None or price.low is None or price.high is None:
        return price.note
    return f"{dollars(price.value)}   {dollars(price.low)} to {dollars(price.high)}"


def dollars(micros: float) -> str:
    """Small amounts in millionths (µ$), with three digits: here a prediction costs less than one."""
    amount = micros / _MICROS
    if amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.3g}" if micros >= _THOUSANDTH else f"{micros:.3g} µ$"
