"""`macadam simulate packing | spot`: what policies would have done on traces. Files in, figures and a picture out; no home is needed."""

import argparse
from pathlib import Path
from typing import get_args

from macadam import plots
from macadam.compute.scheduling.placement import Name
from macadam.compute.simulation import packing
from macadam.errors import InvalidInput
from macadam.faces import printing
from macadam.faces.session import Session, Verb

_NAMES: tuple[Name, ...] = get_args(Name)
_ALL = "all"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", metavar="FILE", required=True, help="CSV: " + ",".join(packing.NODES))
    parser.add_argument("--pods", metavar="FILE", required=True, help="CSV: " + ",".join(packing.PODS))
    parser.add_argument(
        "--policy", metavar="NAME", action="append", help=f"{', '.join(_NAMES)} or all; may be repeated"
    )
    parser.add_argument("--demand", metavar="X", type=float, default=1.0, help="GPUs demanded / GPUs there are")
    parser.add_argument("--seeds", metavar="N", type=int, default=10, help="orders of arrival")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw what stays unallocated while demand grows")


def _run(options: argparse.Namespace, session: Session) -> int:
    names = _names(getattr(options, "policy", ["balanced"]))
    machines, pods = packing.read_nodes(Path(options.nodes)), packing.read_pods(Path(options.pods))
    with printing.progress(shown=not session.json) as progress:
        found = packing.study(
            machines,
            pods,
            names,
            demand=options.demand,
            seeds=options.seeds,
            capability=packing.capability(machines),
            progress=progress,
        )
    if hasattr(options, "plot"):
        _plot(Path(options.plot), found)
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
        "between seeds": f"± {summary.deviation:.1f}",
        "allocated": f"{summary.allocated_part:.2%}",
        "pods dropped": f"{summary.dropped:.0f}",
        "seconds": f"{summary.seconds:.1f}",
    }


def _names(given: list[str]) -> list[Name]:
    known = dict(zip(map(str, _NAMES), _NAMES, strict=True))
    unknown = [name for name in given if name not in known and name != _ALL]
    if unknown:
        raise InvalidInput(
            f"There is no policy {unknown[0]!r}.", next_step=f"Choose one of: {', '.join(_NAMES)} or all."
        )
    return list(_NAMES) if _ALL in given else list(dict.fromkeys(known[name] for name in given))


def _plot(path: Path, found: packing.Study) -> None:
    drawn = plots.lines(
        packing.mean_curves(found),
        title="GPUs that stay unallocated while demand grows",
        about=f"Mean of {found.summaries[0].seeds} orders of arrival on {found.gpus} GPUs",
        x_label="GPUs demanded, % of all",
        y_label="unallocated, %",
    )
    _save(path, drawn)


def _save(path: Path, drawn: str) -> None:
    try:
        path.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another place.") from error


PACKING = Verb(configure=_configure, run=_run)
