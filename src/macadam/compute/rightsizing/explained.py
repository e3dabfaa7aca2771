"""Every number of a decision, explained: what each figure means, and for each way the sum that leads to its cost, with the
middle of every range put in, so that it can be checked by hand.

The sums are the same lines that the draws go through (costs.py, training.py). A median of draws is not the sum of the middles:
it differs where costs come in steps, and by what serving was off the model in published measurements.
"""

from collections.abc import Mapping

import msgspec

from macadam.compute.catalogue import gpus, llms
from macadam.compute.rightsizing import costs, training
from macadam.compute.rightsizing.costs import Rent
from macadam.compute.rightsizing.questions import Question, Way

_HOUR = 3600


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """what: is computed. how: from which numbers, as they are put in."""

    what: str
    value: float
    unit: str
    how: str


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of one way, in the middle of every range."""

    name: str
    terms: tuple[Term, ...]


MEANINGS = {
    "outcomes.one_off_usd": "Paid once: what the question says (labels, people), and the training at today's price of a GPU's hour.",
    "outcomes.monthly_usd": "All that is paid by the month, over the months: tokens or GPUs at the prices to come, and upkeep.",
    "outcomes.total_usd": "one_off_usd and monthly_usd times the months. Not discounted.",
    "outcomes.net_usd": "Right answers times what one is worth, less total_usd. A wrong answer costs nothing beyond.",
    "outcomes.per_accurate_usd": "total_usd over all right answers of the months.",
    "outcomes.best": "Part of the draws in which this way is best: by net_usd where all can be judged, else by total_usd.",
    "outcomes.regret_usd": "What the best way of each draw is better by than this one, in the mean: what perfect numbers are worth at most.",
    "outcomes.replicas": "Replicas that the busiest hour of the first month needs, by the model as it is.",
    "outcomes.replicas_at_end": "The same of the last month, grown by the middle of growth.",
    "outcomes.used": "Part of the GPU time paid in the first month in which requests are served; the rest is idle and paid.",
    "outcomes.hour_usd": "Of one GPU of the kind that this way is served on (gpu), today.",
    "outcomes.sunk_usd": "Spent already, as the question says. Counted nowhere: it is gone whatever is decided.",
    "outcomes.training.flops": "Of all runs and epochs: 6 (LoRA 4) for each parameter used and token, and 12 x layers x heads x head_dim x sequence for each token.",
    "outcomes.training.gpu_hours": "flops over the dense peak times utilisation; at least an hour of the GPUs needed, each run.",
    "outcomes.training.gpus": "The fewest whose memory holds weights, gradients and the optimiser's state, in whole machines.",
    "outcomes.training.days": "gpu_hours on so many GPUs, one run after another.",
    "outcomes.training.cost_usd": "gpu_hours at today's price.",
    "crossings.requests_per_month": "The first month's requests at which the two ways change places, all else in the middle of its range; null: nowhere within a thousandfold.",
    "drivers": "Spearman's rank correlation of that range with the lead of the best way over the next, over the draws; below 0.05 it is left out.",
    "gpu_hour_usd": "Of one GPU to train on, today; gpu_source says where it stands.",
    "seed": "Of the draws: the same question and seed give the same answer.",
    "draws": "How often a value was taken out of each range.",
    "value": "The median of the draws.",
    "low": "One draw of twenty is below.",
    "high": "One draw of twenty is above.",
}


def explain(question: Question, rent: Rent, serving: Mapping[str, Rent] | None = None) -> tuple[Terms, ...]:
    """rent, serving: as for decisions.decide. Raises InvalidInput, NotFound if a way cannot be computed."""
    hosts = serving or {}
    return tuple(
        Terms(name=way.name, terms=tuple(_terms(question, way, rent, hosts.get(way.name, rent))))
        for way in question.ways
    )


def _terms(question: Question, way: Way, rent: Rent, host: Rent) -> list[Term]:
    requests, growth, months = question.requests_per_month.middle, question.growth.middle, question.months
    answers = float(costs.total(question, requests, growth))
    found = [
        Term(
            what="requests over the months",
            value=answers,
            unit="requests",
            how=f"{requests:g} in the first month, times {growth:g} each month, over {months:g} months",
        )
    ]
    once = [
        Term(what="said to be paid once", value=way.one_off_usd.middle, unit="USD", how="one_off_usd of the question")
    ]
    if way.kind == "api":
        running = _bought(question, way, answers)
    else:
        running = _hosted(question, way, host)
        once += _trained(question, way, rent)
    upkeep = way.monthly_usd.middle * months
    kept = Term(what="upkeep", value=upkeep, unit="USD", how=f"{way.monthly_usd.middle:g} USD x {months:g} months")
    paid = [one.value for one in (once[0], *(once[-1:] if len(once) > 1 else ()), running[-1], kept)]
    total = Term(
        what="total", value=sum(paid), unit="USD", how=" + ".join(f"{value:.6g}" for value in paid)
    )  # fmt: skip
    found += [*once, *running, kept, total]
    if way.accuracy is not None:
        right = answers * way.accuracy.middle
        how = f"{answers:.6g} requests x {way.accuracy.middle:g} right"
        found.append(Term(what="right answers", value=right, unit="answers", how=how))
        if question.value_usd is not None:
            how = f"{right:.6g} x {question.value_usd.middle:g} USD - {total.value:.6g} USD"
            found.append(Term(what="net", value=right * question.value_usd.middle - total.value, unit="USD", how=how))
    return found


def _bought(question: Question, way: Way, answers: float) -> list[Term]:
    price, cached = costs.rates(question, way), way.cached.middle
    each = float(costs.bought(question, way, cached))
    prompt = question.prompt + way.extra_prompt
    how = (
        f"({prompt} tokens x {1 - cached:g} x {price.read:g} USD + {prompt} x {cached:g} cached x {price.cached:g} USD "
        f"+ {question.output} x {price.made:g} USD) / 10^6"
    )
    factor = question.prices.middle
    return [
        Term(what="a request", value=each, unit="USD", how=how),
        Term(
            what="tokens over the months",
            value=each * answers * factor,
            unit="USD",
            how=f"{each:.6g} USD x {answers:.6g} requests x {factor:g} of today's price",
        ),
    ]


def _hosted(question: Question, way: Way, rent: Rent) -> list[Term]:
    own, requests, growth = (
        costs.hosted(question, way, rent),
        question.requests_per_month.middle,
        question.growth.middle,
    )
    parts, volumes = costs.months(question), costs.volumes(question, requests, growth)
    copies = [int(costs.replicas(question, own.seconds, volume)) for volume in volumes]
    paid = [float(rent.paid(count * own.gpus)) for count in copies]
    gpu_months = sum(part * count for part, count in zip(parts, paid, strict=True))
    used = sum(part * volume for part, volume in zip(parts, volumes, strict=True)) * own.seconds * own.gpus
    factor = question.gpu_prices.middle
    cost = gpu_months * rent.usd * costs.MONTH * factor
    idle = 1 - min(1.0, used / (gpu_months * costs.MONTH * _HOUR))
    return [
        Term(
            what="a request's time",
            value=own.seconds,
            unit="s of a replica",
            how=f"roofline of {way.model} on {own.gpus} x {rent.gpu or question.gpu}, as many at once as {question.ttft:g} s and {question.tpot:g} s allow",
        ),
        Term(
            what="replicas",
            value=copies[0],
            unit="replicas in the first month",
            how=f"{requests:g} requests / {costs.MONTH * _HOUR:.6g} s x {question.peak:g} in the busiest hour x {own.seconds:.6g} s / {costs.PLANNED:g}, "
            f"rounded up, at least {question.replicas}; {copies[-1]} in the last month",
        ),
        Term(
            what="GPUs paid",
            value=paid[0],
            unit="GPUs in the first month",
            how=f"{copies[0]} replicas x {own.gpus} GPUs, " + (f"in machines of {rent.machine}" if rent.machine else "one by one"),
        ),
        Term(what="idle", value=cost * idle, unit="USD, part of the GPUs' cost", how=f"{idle:.4f} of the GPU time paid serves no request"),
        Term(
            what="GPUs over the months",
            value=cost,
            unit="USD",
            how=f"{gpu_months:g} GPU-months x {costs.MONTH:g} h x {rent.usd:g} USD x {factor:g} of today's price",
        ),
    ]  # fmt: skip


def _trained(question: Question, way: Way, rent: Rent) -> list[Term]:
    if way.training_tokens is None:
        return []
    llm, gpu, mfu = llms.read(way.model), gpus.find(question.gpu), question.mfu.middle
    read = way.training_tokens.middle * way.epochs * way.runs
    sequence = training.sequence(question, way)
    flops = training.flops(way.kind, llm, read, sequence)
    needed = int(rent.paid(training.gpus_at_least(way.kind, llm, gpu)))
    computed = training.gpu_hours(flops, gpu, mfu)
    hours = max(computed, float(needed * way.runs))
    per_parameter = training.FLOPS[way.kind]
    return [
        Term(
            what="training tokens",
            value=read,
            unit="tokens",
            how=f"{way.training_tokens.middle:g} tokens x {way.epochs:g} epochs x {way.runs} runs",
        ),
        Term(
            what="training FLOPs",
            value=flops,
            unit="FLOPs",
            how=f"({per_parameter} x {llm.active:.6g} parameters + 12 x {llm.layers} layers x {llm.heads} heads x {llm.head_dim} x {sequence} tokens) x {read:g} tokens",
        ),
        Term(
            what="GPU-hours of training",
            value=hours,
            unit="GPU-hours",
            how=f"the larger of {computed:.6g} (FLOPs / (peak x {mfu:g} utilisation) / 3600) and {needed} GPUs x {way.runs} runs x 1 h",
        ),
        Term(what="training", value=hours * rent.usd, unit="USD", how=f"{hours:.6g} GPU-hours x {rent.usd:g} USD"),
    ]
