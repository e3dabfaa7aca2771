"""`macadam rightsize elastic`: how many replicas each part of the day needs, and what that saves against a number that
never changes.
"""

import argparse
from decimal import Decimal, InvalidOperation
from pathlib import Path

from macadam import plots
from macadam.compute.rightsizing import elastic, traces
from macadam.compute.rightsizing.elastic import Elastic, Scaling
from macadam.errors import InvalidInput
from macadam.faces import pictures
from macadam.faces.session import Session, Verb
from macadam.values import parse_duration

_SHOWN = 48  # steps that are printed
_DEAREST = 1_000_000  # USD an hour


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace", metavar="FILE", required=True, help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens; or JSON lines"
    )
    parser.add_argument("--capacity", type=float, required=True, metavar="X", help="requests/s that one replica serves")
    parser.add_argument("--hourly", required=True, metavar="USD", help="what one replica costs in an hour")
    parser.add_argument("--step", default="5m", metavar="TIME", help="between two looks; 5m")
    parser.add_argument("--up", default="5m", metavar="TIME", help="until a new replica serves; 5m")
    parser.add_argument("--down", default="15m", metavar="TIME", help="fewer must have sufficed so long; 15m")
    parser.add_argument("--least", type=int, default=1, metavar="N", help="replicas that always run; 1")
    parser.add_argument("--headroom", type=float, default=0.25, metavar="X", help="of capacity, kept free; 0.25")
    parser.add_argument("--load", type=float, default=1.0, metavar="X", help="times the trace's own; 1.0")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the replicas over time")


def _run(options: argparse.Namespace, session: Session) -> int:
    plot = pictures.wanted(options)
    scaling = Scaling(
        capacity=options.capacity,
        hourly=_micros(options.hourly),
        step=parse_duration(options.step).total_seconds(),
        up=parse_duration(options.up).total_seconds(),
        down=parse_duration(options.down).total_seconds(),
        least=options.least,
        headroom=options.headroom,
    )
    trace = traces.read(Path(options.trace)).trace
    # More requests in the same time, rather than the same in less: the day keeps its length.
    arrivals = [rate * options.load for rate in elastic.rates(trace, scaling.step)]
    found = elastic.plan(arrivals, scaling)
    if plot:
        _draw(found, plot)
    if session.json:
        session.show(found)
        return 0
    for line in _lines(found, scaling):
        session.say(line)
    return 0


def _micros(text: str) -> int:
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise InvalidInput(f"--hourly {text} is no amount.", next_step="Write USD, such as 3.49.") from error
    if not amount.is_finite() or not 0 <= amount <= _DEAREST:
        raise InvalidInput(f"--hourly {text} is no price.", next_step=f"Write USD of 0 to {_DEAREST}.")
    return round(amount * 1_000_000)


def _lines(found: Elastic, scaling: Scaling) -> list[str]:
    lines = [f"{'from':>8}{'requests/s':>12}{'needed':>8}{'serving':>9}{'paid':>6}"]
    lines += [
        f"{step.start / 60:>6.0f} m{step.rate:>12.2f}{step.needed:>8}{step.serving:>9}{step.paid:>6}"
        for step in found.steps[:_SHOWN]
    ]
    if len(found.steps) > _SHOWN:
        lines.append(f"… and {len(found.steps) - _SHOWN} more steps; --json has all.")
    hours = len(found.steps) * scaling.step / 3600
    return [
        *lines,
        (
            f"Elastic: {found.cost / 1e6:.2f} USD for {hours:.1f} h. Static with {found.static}: {found.static_cost / 1e6:.2f} USD. "
            f"Saved: {found.saving:.1%}."
        ),
        f"{found.short:.1%} of the requests came while fewer replicas served than carry that load without headroom (needed has it).",
    ]


def _draw(found: Elastic, path: Path) -> None:
    series = {
        "paid": [(step.start / 60, float(step.paid)) for step in found.steps],
        "needed": [(step.start / 60, float(step.needed)) for step in found.steps],
    }
    picture = plots.lines(series, title="Replicas", x_label="minutes", y_label="replicas", step=True)
    pictures.save(path, picture)


ELASTIC = Verb(configure=_configure, run=_run)
