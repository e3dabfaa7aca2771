"""`macadam simulate packing | spot`: what policies would have done on traces. Files in, figures and a picture out; no home is needed."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

from macadam import plots
from macadam.compute.scheduling.placement import Name
from macadam.compute.scheduling.spot import SPOT_PRICE, Job
from macadam.compute.scheduling.spot import Name as SpotName
from macadam.compute.scheduling.spot import Policy as SpotPolicy
from macadam.compute.simulation import packing, spot
from macadam.errors import InvalidInput
from macadam.faces import pictures, printing
from macadam.faces.session import Session, Verb
from macadam.values import parse_duration

_NAMES: tuple[Name, ...] = get_args(Name)
_SPOT_NAMES: tuple[SpotName, ...] = get_args(SpotName)
_ALL = "all"
_HOUR = 3600.0
_Name = TypeVar("_Name", bound=str)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", metavar="FILE", required=True, help="CSV: " + ",".join(packing.NODES))
    parser.add_argument("--pods", metavar="FILE", required=True, help="CSV: " + ",".join(packing.PODS))
    parser.add_argument(
        "--policy",
        metavar="NAME",
        action="append",
        help=f"{', '.join(_NAMES)} or all; may be repeated; default: balanced",
    )
    parser.add_argument(
        "--demand",
        metavar="X",
        type=float,
        default=1.0,
        help="GPUs demanded / GPUs there are, above 0, at most 100; default: 1",
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=10, help="orders of arrival; default: 10")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw what stays unallocated while demand grows")


def _run(options: argparse.Namespace, session: Session) -> int:
    plot = pictures.wanted(options)
    names = _names(getattr(options, "policy", ["balanced"]), _NAMES)
    machines, pods = packing.read_nodes(Path(options.nodes)), packing.read_pods(Path(options.pods))
    with printing.progress() as progress:
        found = packing.study(
            machines,
            pods,
            names,
            demand=options.demand,
            seeds=options.seeds,
            capability=packing.capability(machines),
            progress=progress,
        )
    if plot:
        _plot(plot, found)
    if session.json:
        session.show(found)
        return 0
    session.say(f"{found.pods} pods on {found.nodes} nodes with {found.gpus} GPUs, demand {found.demand:g}:")
    session.show([_row(summary) for summary in found.summaries], title="GPUs left unallocated")
    return 0


def _row(summary: packing.Summary) -> dict[str, object]:
    return {
        "policy": summary.policy,
        "unallocated": f"{summary.unallocated:.1f}",
        "between seeds": f"± {summary.deviation:.1f}" if summary.seeds > 1 else "",
        "allocated": f"{summary.allocated_part:.2%}",
        "pods dropped": f"{summary.dropped:.0f}",
        "seconds": f"{summary.seconds:.1f}",
    }


def _names(given: Sequence[str], names: Sequence[_Name]) -> list[_Name]:
    """The policies that were named, each once. Raises InvalidInput."""
    known = {str(name): name for name in names}
    unknown = [name for name in given if name not in known and name != _ALL]
    if unknown:
        raise InvalidInput(
            f"There is no policy {unknown[0]!r}.", next_step=f"Choose one of: {', '.join(known)} or all."
        )
    return list(names) if _ALL in given else list(dict.fromkeys(known[name] for name in given))


def _plot(path: Path, found: packing.Study) -> None:
    drawn = plots.lines(
        packing.mean_curves(found),
        title="GPUs that are demanded and stay unallocated, while demand grows",
        about=f"Mean of {found.summaries[0].seeds} orders of arrival on {found.gpus} GPUs",
        x_label="GPUs demanded, % of all",
        y_label="% of all GPUs",
    )
    pictures.save(path, drawn)


def _configure_spot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--zones", metavar="FILE", nargs="+", required=True, help="a trace of availability for each zone"
    )
    parser.add_argument(
        "--work",
        metavar="TIME",
        type=_hours,
        default=48.0,
        help="without any interruption: hours, or 48h, 2d, 90m; default: 48",
    )
    parser.add_argument(
        "--deadline", metavar="TIME", type=_hours, nargs="+", required=True, help="from the start; as --work"
    )
    known = ", ".join(_SPOT_NAMES)
    parser.add_argument(
        "--policy", metavar="NAME", action="append", help=f"{known} or all; may be repeated; default: expected-cost"
    )
    parser.add_argument(
        "--starts", metavar="N", type=int, default=50, help="jobs, spread evenly over the traces; default: 50"
    )
    parser.add_argument(
        "--changeover", metavar="TIME", type=_hours, default=0.2, help="until a new machine goes on; default: 0.2 hours"
    )
    parser.add_argument(
        "--checkpoint-every",
        metavar="TIME",
        type=_hours,
        default=0.0,
        help="of work; default: 0, all is saved all the time",
    )
    parser.add_argument(
        "--checkpoint-cost", metavar="TIME", type=_hours, default=0.0, help="that one takes; default: 0"
    )
    parser.add_argument(
        "--spot-price",
        metavar="X",
        type=float,
        default=SPOT_PRICE,
        help=f"part of the on-demand price; default: {SPOT_PRICE}",
    )
    parser.add_argument("--plot", metavar="FILE.svg", help="draw savings by deadline")


def _hours(text: str) -> float:
    """Hours: a plain number of them, or a duration with its unit."""
    try:
        hours = float(text)
    except ValueError:
        try:
            hours = parse_duration(text).total_seconds() / _HOUR
        except (InvalidInput, OverflowError):
            hours = -1.0
    if not 0 <= hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither hours, such as 1.5, nor a duration, such as 90m")
    return hours


def _run_spot(options: argparse.Namespace, session: Session) -> int:
    plot = pictures.wanted(options)
    zones = spot.read_zones([Path(name) for name in options.zones])
    job = Job(
        work=options.work * _HOUR,
        deadline=min(options.deadline) * _HOUR,
        changeover=options.changeover * _HOUR,
        checkpoint_every=options.checkpoint_every * _HOUR,
        checkpoint_cost=options.checkpoint_cost * _HOUR,
        step=zones[0].gap,
    )
    names = _names(getattr(options, "policy", ["expected-cost"]), _SPOT_NAMES)
    with printing.progress() as progress:
        found = spot.study(
            zones,
            [SpotPolicy(name=name) for name in names],
            [hours * _HOUR for hours in options.deadline],
            job=job,
            starts=options.starts,
            price=options.spot_price,
            progress=progress,
        )
    if plot:
        pictures.save(plot, _spot_picture(found, names, job))
    if session.json:
        session.show(found)
        return 0
    session.say(
        f"{options.work:g} h of work in {len(zones)} zone(s), {found[0].starts} starts; "
        f"spot at {options.spot_price:g} of the on-demand price:"
    )
    session.show([_spot_row(summary) for summary in found], title="Savings against on demand")
    return 0


def _spot_row(summary: spot.Summary) -> dict[str, object]:
    return {
        "policy": summary.policy,
        "deadline": f"{summary.deadline / _HOUR:g} h",
        "missed": summary.missed,
        "savings": f"{summary.savings:.1%}",
        "worst tenth": f"{summary.low:.1%}",
        "time on spot": f"{summary.on_spot_part:.0%}",
        "interruptions": f"{summary.interruptions:.1f}",
    }


def _spot_picture(found: Sequence[spot.Summary], names: Sequence[str], job: Job) -> str:
    return plots.lines(
        {name: [(one.deadline / job.work, 100 * one.savings) for one in found if one.policy == name] for name in names},
        title="Savings against on demand",
        about=f"Mean of {found[0].starts} starts in {', '.join(found[0].zones)}",
        x_label="deadline / work",
        y_label="savings, %",
        marks=True,
    )


PACKING = Verb(configure=_configure, run=_run)
SPOT = Verb(configure=_configure_spot, run=_run_spot)
