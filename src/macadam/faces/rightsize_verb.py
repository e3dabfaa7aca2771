"""`macadam rightsize llm`: the cheapest machines that keep a promise on a request trace."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from macadam import plots
from macadam.compute.catalogue import gpus, llms
from macadam.compute.catalogue.llms import Llm
from macadam.compute.catalogue.prices import Price
from macadam.compute.rightsizing import measured, offers, report, traces
from macadam.compute.rightsizing.holdout import Judged
from macadam.compute.rightsizing.measured import Fit, Row
from macadam.compute.rightsizing.report import Choice, Held, Report
from macadam.compute.rightsizing.types import Efficiency, Engine, Slo, Trace
from macadam.errors import InvalidInput
from macadam.faces import pictures, price_list, printing
from macadam.faces.session import Session, Verb


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace",
        metavar="FILE",
        required=True,
        help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens; or JSON lines: an access log with usage, or Mooncake's",
    )
    parser.add_argument("--model", metavar="SPEC", required=True, help="a known model's name, or its config.json")
    parser.add_argument(
        "--slo",
        metavar="TTFT,TPOT",
        required=True,
        help="seconds to the first token, and for each further one: 1.0,0.05",
    )
    parser.add_argument(
        "--attainment", type=float, default=0.995, metavar="X", help="for that part of all requests; 0.995"
    )
    parser.add_argument("--prices", metavar="FILE", help="a price list of your own (JSON); default: the home's")
    parser.add_argument("--provider", action="append", metavar="NAME", help="only of these; may be repeated")
    parser.add_argument("--gpu", action="append", metavar="NAME", help="only these; may be repeated")
    parser.add_argument("--kind", action="append", metavar="NAME", help="kinds of price; default: on-demand")
    parser.add_argument("--tp", default="1,2,4,8", metavar="N,N", help="how many GPUs may share a replica; 1,2,4,8")
    parser.add_argument("--weights", choices=("bf16", "fp16", "fp8", "int8"), default="bf16", help="their format; bf16")
    parser.add_argument(
        "--kv", choices=("bf16", "fp16", "fp8", "int8"), default="bf16", help="of keys and values; bf16"
    )
    parser.add_argument("--chunk", type=int, default=2048, metavar="N", help="tokens of one iteration; 2048")
    parser.add_argument("--load", type=float, default=1.0, metavar="X", help="times the trace's own; 1.0")
    parser.add_argument(
        "--prefix-hit",
        type=float,
        metavar="X",
        help="part of each prompt that is cached, 0 up to but not 1; from the trace if it has ids of blocks, else 0",
    )
    parser.add_argument(
        "--holdout",
        choices=("auto", "blocks", "later", "none"),
        default="auto",
        help="judge fleets on a part of the trace that they were not sized on: blocks of time in turn, or the later half",
    )
    parser.add_argument(
        "--no-sensitivity", action="store_true", help="leave out what a fifth more or less would change"
    )
    parser.add_argument(
        "--measured",
        action="append",
        metavar="GPU[:N]=FILE",
        help="what vllm bench serve or sglang.bench_serving saved on N of that GPU; may be repeated",
    )
    parser.add_argument("--plot", metavar="FILE.svg", help="draw what each kind of fleet costs")


def _run(options: argparse.Namespace, session: Session) -> int:
    plot = pictures.wanted(options)
    found = traces.read(Path(options.trace))
    listed = offers.read(Path(options.prices)) if hasattr(options, "prices") else _known(session)
    offered = offers.choose(
        listed,
        kinds=getattr(options, "kind", ["on-demand"]),
        providers=getattr(options, "provider", []),
        only=getattr(options, "gpu", []),
    )
    llm, engine = llms.read(options.model), Engine(weights=options.weights, kv=options.kv, budget=options.chunk)
    fits = _fits(getattr(options, "measured", []), llm, engine)
    with printing.progress() as progress, _solver_silenced():
        said = report.rightsize(
            traces.faster(_known_before(found.trace, options), options.load),
            llm,
            _slo(options.slo, options.attainment),
            offered,
            engine=engine,
            fits=fits,
            efficiency=Efficiency(),
            tps=_counts(options.tp),
            hold=options.holdout,
            with_sensitivity=not getattr(options, "no_sensitivity", False),
            progress=progress,
        )
    if plot:
        _draw(said, plot)
    if session.json:
        session.show(said)
        return 0
    for text in _lines(said, found, options.model):
        session.say(text)
    return 0


def _known_before(trace: Trace, options: argparse.Namespace) -> Trace:
    """A share that is given goes before the trace's ids."""
    return traces.cached(trace, options.prefix_hit) if hasattr(options, "prefix_hit") else trace


def _known(session: Session) -> list[Price]:
    """The home's prices in the one currency that offers are compared in."""
    listed = price_list.known(session)
    found = [price for price in listed if price.per_gpu_hour.currency == offers.CURRENCY]
    if len(found) < len(listed):
        session.say(f"{len(listed) - len(found)} prices in other currencies than {offers.CURRENCY} are left out.")
    return found


@contextmanager
def _solver_silenced() -> Iterator[None]:
    """HiGHS now and then prints to the process's stdout, past Python: one JSON document must stay one."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _fits(given: list[str], llm: Llm, engine: Engine) -> list[Fit]:
    """One of each GPU that was measured."""
    rows: dict[str, list[tuple[Row, int]]] = {}
    for text in given:
        where, named, path = text.partition("=")
        gpu, counted, count = where.partition(":")
        if not named or (counted and not count.isdecimal()):
            raise InvalidInput(
                f"--measured {text} does not say on what.", next_step="Write --measured h100-sxm-80gb:2=result.json."
            )
        rows.setdefault(gpus.find(gpu).name, []).extend(
            (row, int(count) if counted else 1) for row in measured.read(Path(path))
        )
    return [measured.fit(gpus.find(gpu), of_it, llm, engine) for gpu, of_it in rows.items()]


def _slo(text: str, attainment: float) -> Slo:
    try:
        ttft, tpot = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(
            f"--slo {text} is not two numbers.",
            next_step="Write seconds to the first token and for each further one: 1.0,0.05.",
        ) from error
    return Slo(ttft=ttft, tpot=tpot, attainment=attainment)


def _counts(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InvalidInput(f"--tp {text} is not a list of numbers.", next_step="Write 1,2,4,8.") from error
    if not found or found[0] < 1:
        raise InvalidInput(f"--tp {text} is not above zero.", next_step="Write 1,2,4,8.")
    return found


def _lines(said: Report, found: traces.Read, model: str) -> list[str]:
    lines = [
        (
            f"{said.requests} requests in {said.seconds:.0f} s: {said.requests / said.seconds:.2f}/s, "
            f"{said.tokens_read} tokens read and {said.tokens_made} made by {model}."
        )
    ]
    if found.empty or found.late or found.twice:
        lines.append(
            f"Left out: {found.empty} requests without tokens, {found.twice} given twice. "
            f"Put in their place: {found.late} that came late."
        )
    if found.cached and not found.trace.ids:
        lines.append(
            f"The log says that {found.cached:.0%} of the tokens read were cached; --prefix-hit {found.cached:.2f} counts on as much here."
        )
    lines += [
        f"Promise: first token in {said.slo.ttft:g} s and {said.slo.tpot:g} s for each further one, for {said.slo.attainment:.2%}.",
        said.held.why + _parts(said.held),
        "",
        "Cheapest fleet that kept it:",
        *_choice(said.best),
        "",
        "Of one kind of GPU alone:",
    ]
    for single in said.singles:
        if single.choice is None:
            lines.append(f"  {single.gpu}: none. {single.why.partition(' Next:')[0]}")
        else:
            lines.append(f"  {single.gpu}: {_dollars(single.choice)}/h, kept for {_kept(single.choice)}")
    if said.best_single:
        both = " that kept it in both parts" if said.held.judged else ""
        lines.append(f"The mix saves {said.saving:.1%} of the best of them{both} ({said.best_single}).")
    lines += _what_if(said)
    error = said.error
    lines += [
        f"No published measurement of {gpu} stands behind this: it is taken to be as efficient as the others."
        for gpu in dict.fromkeys(line.gpu for line in said.best.lines if not line.measured)
        if gpu not in {fit.gpu for fit in said.fits}
    ]
    lines += [text for fit in said.fits for text in _fit(fit)]
    offered = {single.gpu for single in said.singles}
    lines += [
        f"  No machine with {fit.gpu} is offered: what was measured on it changes nothing here."
        for fit in said.fits
        if fit.gpu not in offered
    ]
    lines += [
        "",
        (
            f"The model's speed over {error.rows} published measurements that it was not fitted to: {error.median:.2f} times in the median "
            f"({error.low:.2f} to {error.high:.2f}); half are within {error.typical:.0%}."
        ),
    ]
    return lines


def _what_if(said: Report) -> list[str]:
    if not said.sensitivity:
        return []
    lines = [
        "",
        "If something is a fifth off (kept by this fleet over the whole trace; what the fleet chosen then costs):",
    ]
    for change in said.sensitivity:
        cost = "no fleet keeps it" if change.hourly is None else f"{change.hourly.micros / 1e6:.2f} USD/h"
        lines.append(f"  {change.what:<32} {change.attained:>8.2%}   {cost}{' (the same)' if change.same else ''}")
    return lines


def _parts(held: Held) -> str:
    """Whether what a fleet is judged on asks as much of it as what it was sized on."""
    if not held.judged:
        return ""
    return f" {held.sized} and {held.judged} requests; the part held out brings {held.load:.0%} of the other's tokens a second."


def _choice(best: Choice) -> list[str]:
    lines = [
        f"  {line.machines} x {line.machine} ({line.gpu}): {line.replicas} {'replica' if line.replicas == 1 else 'replicas'} on {line.tp} {'GPU' if line.tp == 1 else 'GPUs'} each, "
        f"{line.hourly.micros / 1e6:.2f} USD/h (price of {line.dated})"
        for line in best.lines
    ]
    return [
        *lines,
        (
            f"  {_dollars(best)}/h, {best.per_million.micros / 1e6:.3f} USD a million tokens "
            f"({best.per_million_made.micros / 1e6:.3f} a million made)"
        ),
        (
            f"  kept for {best.attained:.2%}: first token p50 {best.ttft.p50:.3f} s, p99 {best.ttft.p99:.3f} s; "
            f"each further p50 {best.tpot.p50 * 1000:.0f} ms, p99 {best.tpot.p99 * 1000:.0f} ms"
        ),
        *([f"  {best.reused:.1%} of the tokens of prompts were found in caches"] if best.reused else []),
        *_judged(best.judged),
        f"  a replica had something to do {best.busy:.0%} of the time (one request is enough); {best.preempted} preemptions, {best.refused} requests refused as too long",
    ]


def _kept(choice: Choice) -> str:
    return f"{choice.attained:.2%}" + (f", of those held out {choice.judged.attained:.2%}" if choice.judged else "")


def _fit(fit: Fit) -> list[str]:
    found, without = fit.efficiency, fit.left_out
    lines = [
        (
            f"Fitted to {fit.rows} own measurements of {', '.join(fit.models)} on {fit.gpu}: compute {found.compute:.2f} and bandwidth "
            f"{found.bandwidth:.2f} of the peak, {found.overhead * 1000:.1f} ms an iteration; half were within {fit.before.typical:.0%} "
            f"before and {fit.after.typical:.0%} after."
        )
    ]
    lines += [
        "  One row cannot say how far off the next would be: measure under several loads."
        if without is None
        else f"  Each left out in turn: {without.median:.2f} times as fast in the median ({without.low:.2f} to {without.high:.2f}), half within {without.typical:.0%}."
    ]
    if fit.guessed:
        lines.append(
            f"  {fit.guessed} of them name no model that is known; they were taken to be of the one asked about."
        )
    return lines


_STANDINGS = {
    "kept": "the promise held",
    "missed": "the promise was broken: add machines, or size for more load than was seen (--load 1.1)",
    "open": "whether the promise holds is open; a longer trace would tell",
    "short": "too few to show it either way, even if none had missed; a longer trace would tell",
}


def _judged(said: Judged | None) -> list[str]:
    if said is None:
        return []
    worth = f"{said.requests} requests that came in bursts, worth {said.worth:.0f} independent ones"
    return [
        f"  on the part held out kept for {said.attained:.2%} (95% interval {said.low:.2%} to {said.high:.2%}; {worth}): {_STANDINGS[said.standing]}"
    ]


def _dollars(choice: Choice) -> str:
    return f"{choice.hourly.micros / 1e6:.2f} USD"


def _draw(said: Report, path: Path) -> None:
    costs = {"the mix": said.best.hourly.micros / 1e6}
    costs |= {single.gpu: single.choice.hourly.micros / 1e6 for single in said.singles if single.choice}
    picture = plots.bars(
        costs,
        title="USD an hour for the promise",
        about=f"first token {said.slo.ttft:g} s, further {said.slo.tpot:g} s, {said.slo.attainment:.1%} of {said.requests} requests",
    )
    pictures.save(path, picture)


LLM = Verb(configure=_configure, run=_run)
