"""`macadam decide train`: train from scratch, fine-tune, LoRA, prompt or buy an API."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from macadam import plots
from macadam.compute.catalogue import gpus, llms, prices, tokens
from macadam.compute.catalogue.prices import Price
from macadam.compute.rightsizing import costs, decisions, explained, verdicts
from macadam.compute.rightsizing.costs import Rent
from macadam.compute.rightsizing.decisions import Outcome, Result
from macadam.compute.rightsizing.explained import Terms
from macadam.compute.rightsizing.questions import Question
from macadam.compute.rightsizing.verdicts import Verdict
from macadam.errors import InvalidInput
from macadam.faces import pictures, price_list
from macadam.faces.session import Session, Verb
from macadam.lazy import lazy
from macadam.values import utc_now

if TYPE_CHECKING:
    import yaml
else:
    yaml = lazy("yaml")

_LARGEST = 1_000_000  # bytes of a question
_DEEPEST = 20
_CURRENCY = "USD"
_TEXTS = frozenset(("task", "name", "kind", "api", "model", "gpu", "serving_gpu"))
_POWER = re.compile(r"[0-9]+(\.[0-9]+)?[eE][+-]?[0-9]{1,2}")
EXAMPLE = """\
# A number that is not known for sure is a range: {low: …, high: …}. Any value in it counts as equally likely.
task: sort support mails into 40 kinds
months: 12
requests_per_month: {low: 500000, high: 900000} # in the first month
growth: {low: 1.0, high: 1.03} # of each month over the one before
prompt: 600 # tokens of one request
output: 20
value_usd: {low: 0.02, high: 0.04} # of a right answer; leave it out to compare costs only
gpu: h100-sxm-80gb # to train on; serving_gpu: the cheapest that keeps ttft and tpot, if it is not said
ways:
  - name: buy
    kind: api
    api: openai/gpt-6-sol # its price is in the catalogue; or give read_usd and made_usd for a million tokens
    extra_prompt: 1800 # the 40 kinds explained, with examples, in each request
    cached: {low: 0.5, high: 0.75} # of the prompt that the provider had read before
    accuracy: {low: 0.86, high: 0.90}
  - name: prompt
    kind: prompt
    model: llama-3.1-8b
    extra_prompt: 1800
    cached: 0.7 # by the engine's own prefix cache
    accuracy: {low: 0.74, high: 0.80}
  - name: LoRA
    kind: lora
    model: llama-3.1-8b
    training_tokens: {low: 6000000, high: 12000000}
    epochs: 3
    runs: 6
    one_off_usd: {low: 6000, high: 14000} # labels and two weeks of an engineer
    monthly_usd: {low: 300, high: 800} # new labels, evaluation
    accuracy: {low: 0.90, high: 0.94}
  - name: fine-tune
    kind: finetune
    model: llama-3.1-8b
    training_tokens: {low: 6000000, high: 12000000}
    epochs: 3
    runs: 6
    one_off_usd: {low: 8000, high: 18000}
    monthly_usd: {low: 300, high: 800}
    accuracy: {low: 0.90, high: 0.945}
  - name: from scratch
    kind: scratch
    model: llama-3.2-1b
    training_tokens: {low: 20000000000, high: 30000000000}
    one_off_usd: {low: 60000, high: 150000}
    monthly_usd: {low: 500, high: 1500}
    accuracy: {low: 0.80, high: 0.92}
"""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """sources: where prices and counts come from, with their dates. terms: how each way's cost comes about, in the middle of every
    range. meanings: what each figure of the result means, by its path.
    """

    task: str
    verdict: Verdict
    result: Result
    terms: tuple[Terms, ...]
    meanings: dict[str, str]
    sources: tuple[str, ...]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question", metavar="FILE", help="YAML: the task, its volume and worth, and the ways to compare"
    )
    parser.add_argument("--example", action="store_true", help="print a question to start from")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; 0")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw what each way costs")


def _run(options: argparse.Namespace, session: Session) -> int:
    if getattr(options, "example", False):
        session.show(msgspec.to_builtins(yaml.safe_load(EXAMPLE))) if session.json else session.say(EXAMPLE.rstrip())
        return 0
    if not hasattr(options, "question"):
        raise InvalidInput("No question was given.", next_step="macadam decide train --example > question.yaml")
    plot = pictures.wanted(options)
    question = read(Path(options.question))
    listed = price_list.known(session, kind="on-demand") if question.gpu_hour_usd is None else ()
    rent = _rent(question, listed)
    serving = _serving(question, listed)
    result = decisions.decide(question, rent, serving=serving, seed=options.seed)
    answer = Answer(
        task=question.task,
        verdict=verdicts.verdict(question, result),
        result=result,
        terms=explained.explain(question, rent, serving),
        meanings=explained.MEANINGS,
        sources=tuple(_sources(question, rent, serving)),
    )
    if plot:
        _draw(answer, plot)
    if session.json:
        session.show(answer)
        return 0
    for line in _lines(question, answer):
        session.say(line)
    return 0


def read(path: Path) -> Question:
    """Raises InvalidInput with what is wrong in the file."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InvalidInput(f"{path} is larger than any question.", next_step="Start from --example.")
        text = path.read_text(encoding="utf-8")
        _check_shape(text, path)
        _said_once(yaml.compose(text), path)
        return msgspec.convert(_ranges(yaml.safe_load(text)), Question)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise InvalidInput(f"{path} is no question: {error}.", next_step="Start from --example.") from error


def _check_shape(text: str, path: Path) -> None:
    """Before anything is built of it. Raises InvalidInput, YAMLError."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:  # the time that YAML takes grows with the square of the depth
            raise InvalidInput(f"{path} is no question: it nests deeper than any.", next_step="Start from --example.")
        if isinstance(event, yaml.AliasEvent):  # a few of them can stand for billions
            raise InvalidInput(f"{path} refers to a part of itself (*name).", next_step="Write it out each time.")


def _said_once(node: "yaml.Node | None", path: Path) -> None:
    """YAML takes the last of two; which was meant is not known. Raises InvalidInput with the line."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise InvalidInput(
                    f"{path}, line {key.start_mark.line + 1}: {name} is said twice.", next_step="Leave one out."
                )
            seen.add(name)
            _said_once(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _said_once(value, path)


def _ranges(said: object) -> object:
    """A plain number where a range belongs is one that is known for sure."""
    fields = {
        "requests_per_month", "growth", "value_usd", "mfu", "prices", "gpu_prices", "training_tokens", "one_off_usd", "monthly_usd",
        "accuracy", "cached",
    }  # fmt: skip
    if isinstance(said, dict):
        plain = {key: value if key in _TEXTS else _powered(value) for key, value in said.items()}
        return {
            key: {"low": value, "high": value}
            if key in fields and isinstance(value, (int, float)) and not isinstance(value, bool)
            else _ranges(value)
            for key, value in plain.items()
        }
    return [_ranges(value) for value in said] if isinstance(said, list) else said


def _powered(value: object) -> object:
    """2e10 is a number to everybody but YAML 1.1, which takes it for a word."""
    if not isinstance(value, str) or not _POWER.fullmatch(value):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def _rent(question: Question, listed: Sequence[Price]) -> Rent:
    """What is trained on: of the known prices that with which training costs least."""
    if question.gpu_hour_usd is not None:
        return Rent(usd=question.gpu_hour_usd, source="given in the question")
    name, today = gpus.find(question.gpu).name, utc_now().date()
    prices.cheapest(name, today, own=listed)  # says what to do where none is known
    return costs.to_train(question, _rents(name, listed))


def _serving(question: Question, listed: Sequence[Price]) -> dict[str, Rent]:
    """Of each self-hosted way, the cheapest that keeps the promise; none where the question has a price of its own."""
    if question.gpu_hour_usd is not None:
        return {}
    names = [gpus.find(question.serving_gpu).name] if question.serving_gpu else sorted(gpus.gpus())
    rents = [rent for name in names for rent in _rents(name, listed)]
    return {way.name: costs.cheapest_of(question, way, rents) for way in question.ways if way.kind != "api"}


def _rents(name: str, listed: Sequence[Price]) -> list[Rent]:
    """Of one GPU, the cheapest of each size of machine. listed: cheapest first."""
    sizes: dict[int, Rent] = {}
    for price in listed:
        if price.gpu == name and price.per_gpu_hour.currency == _CURRENCY and price.per_gpu_hour.micros > 0:
            said = f"{price.provider} {price.instance}, machines of {price.gpus}, {price.dated}: {price.source}"
            rent = Rent(usd=price.per_gpu_hour.micros / 1e6, machine=price.gpus, source=said, gpu=name)
            sizes.setdefault(price.gpus, rent)
    return list(sizes.values())


def _sources(question: Question, rent: Rent, serving: dict[str, Rent]) -> list[str]:
    rented = [rent] if any(way.training_tokens for way in question.ways) or not serving else []
    said = [f"Hour of {one.gpu or question.gpu}: {one.source}" for one in (*rented, *serving.values())]
    for way in question.ways:
        if way.kind == "api" and way.read_usd is None:
            price = tokens.find(way.api)
            said.append(f"{way.api}: {price.dated}, {price.source}")
        elif way.model:
            llm = llms.read(way.model)
            said.append(f"{llm.name}: {llm.parameters / 1e9:.2f} B parameters; {llm.source}")
    said += [
        "FLOPs: 6 for each parameter and token (Kaplan et al. 2020), 4 with LoRA (Hu et al. 2021), and attention (Chowdhery et al. 2022)",
        f"Utilisation in training {question.mfu.low:.0%} to {question.mfu.high:.0%} (default: PaLM 46%, Llama 3 38 to 43%, GPT-3 21%)",
    ]
    return list(dict.fromkeys(said))


def _lines(question: Question, answer: Answer) -> list[str]:
    verdict, result = answer.verdict, answer.result
    head = (
        f"Recommended: {verdict.recommended}."
        if verdict.recommended
        else "No recommendation: the numbers do not carry one."
    )
    lines = [
        f"{question.task}: {question.requests_per_month.middle:,.0f} requests a month for {question.months:g} months.",
        "",
        head,
    ]
    lines += [f"  {text}" for text in (*verdict.missing, *verdict.why)]
    lines += ["", "What would change it:", *(f"  {text}" for text in verdict.would_change), ""]
    lines += [f"{'way':<16}{'one-off':>12}{'a month':>12}{'in all':>14}{'a right answer':>16}{'best in':>9}"]
    for outcome in result.outcomes:
        lines.append(_row(outcome))
    for outcome in result.outcomes:
        if outcome.training is not None:
            spent = outcome.training
            lines.append(
                f"{outcome.name}: {spent.flops.value:.2g} FLOPs, {spent.gpu_hours.value:,.1f} GPU-hours "
                f"({spent.gpu_hours.low:,.1f} to {spent.gpu_hours.high:,.1f}), at least {spent.gpus} GPUs, {spent.cost_usd.value:,.0f} USD"
            )
    for outcome in result.outcomes:
        if outcome.replicas:
            grown = (
                f", {outcome.replicas_at_end} in the last month" if outcome.replicas_at_end != outcome.replicas else ""
            )
            lines.append(
                f"{outcome.name}: {outcome.replicas} {'replica' if outcome.replicas == 1 else 'replicas'}{grown} on {outcome.gpu} at {outcome.hour_usd:g} USD/h each, "
                f"serving in {outcome.used:.1%} of the GPU time paid"
            )
    lines += [
        f"{outcome.name}: {outcome.sunk_usd:,.0f} USD are spent already and not counted"
        for outcome in result.outcomes
        if outcome.sunk_usd
    ]
    return [*lines, "", "Sources:", *(f"  {text}" for text in answer.sources)]


def _row(outcome: Outcome) -> str:
    each = "" if outcome.per_accurate_usd is None else f"{outcome.per_accurate_usd.value:.4f} USD"
    return (
        f"{outcome.name:<16}{outcome.one_off_usd.value:>12,.0f}{outcome.monthly_usd.value:>12,.0f}"
        f"{outcome.total_usd.value:>14,.0f}{each:>16}{outcome.best:>9.0%}"
    )


def _draw(answer: Answer, path: Path) -> None:
    picture = plots.stacked(
        {
            outcome.name: {
                "one-off": outcome.one_off_usd.value,
                "serving": max(0.0, outcome.total_usd.value - outcome.one_off_usd.value),
            }
            for outcome in answer.result.outcomes
        },
        title="USD over the months, medians",
        about=answer.task,
    )
    pictures.save(path, picture)


TRAIN = Verb(configure=_configure, run=_run)
