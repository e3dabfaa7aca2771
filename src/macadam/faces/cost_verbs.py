"""`macadam cost waterfall | report`: where a month's money went, as a table, a picture, or a page to send to somebody."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from macadam import operations, plots
from macadam.compute.billing import sharing
from macadam.compute.waterfall.requests import BreakDown, Breakdown
from macadam.compute.waterfall.types import STEPS, By, Step, Waterfall
from macadam.errors import InvalidInput
from macadam.faces import cost_report, printing
from macadam.faces.session import Session, Verb
from macadam.plots import Bar

_STEP_COLORS = {"effective": 2, "idle": 5, "no_telemetry": 7, "not_believed": 7, "not_measured": 7, "unused": 3}
_OTHER_COLOR = 1
_SHOWN: tuple[Step, ...] = ("unallocated", "idle", "low_sm", "effective")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--month", default="", help="YYYY-MM; default: this month, UTC")


def _configure_waterfall(parser: argparse.ArgumentParser) -> None:
    _configure(parser)
    parser.add_argument("--by", choices=get_args(By), default="project", help="what the parts are of; default: project")
    parser.add_argument("--limit", type=int, default=20, help="parts that are listed; the rest is summed up")
    parser.add_argument("--plot", metavar="FILE.svg", help="also write a picture")


def _configure_report(parser: argparse.ArgumentParser) -> None:
    _configure(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="where report.html and its data go")


def _ask(options: argparse.Namespace, session: Session, by: str, limit: int) -> Breakdown:
    """A project's own part if one was named, else the whole."""
    operations.load("cost")
    project = session.project() or "*"
    found: Breakdown = session.call(
        operations.of_request(BreakDown), {"project": project, "month": options.month, "by": by, "limit": limit}
    )
    return found


def _waterfall(options: argparse.Namespace, session: Session) -> int:
    found = _ask(options, session, options.by, options.limit)
    if hasattr(options, "plot"):
        _write(Path(options.plot), picture(found))
    if session.json:
        session.show(found)
        return 0
    for whole in found.whole:
        (cents,) = sharing.in_cents([whole.bill.micros])
        said = f"{cents / 100:,.2f} {whole.bill.currency}"
        whose = "all projects" if found.project == "*" else found.project
        session.say(f"{whose}, {found.month}: {said}")
        printing.as_text(_steps(whole))
    printing.as_text(_parts(found.parts), title=f"by {found.by}")
    if found.outdated:
        session.say(f"Note: since then somebody changed {found.outdated}. macadam cost allocate --month {found.month}")
    for flag in found.flags:
        session.say(f"Note: {flag.what}: {flag.count}, such as {flag.example or 'one without a name'}.")
    if found.doubts:
        session.say(f"{len(found.doubts)} findings of telemetry that is not believed: macadam gpu trust")
    if hasattr(options, "plot"):
        session.say(f"The picture is in {options.plot}.")
    return 0


def _steps(whole: Waterfall) -> list[dict[str, object]]:
    """Amounts in cents that add up to the bill as it is printed."""
    cents = sharing.in_cents([line.amount.micros for line in whole.lines])
    return [
        {
            "step": line.title,
            "amount": f"{cent / 100:,.2f}",
            "of the bill": "" if line.part is None else f"{line.part:.1%}",
            "GPU hours": f"{line.gpu_hours:,.1f}" if line.gpu_hours else "",
            "what is in it": line.about,
        }
        for line, cent in zip(whole.lines, cents, strict=True)
    ]


def _parts(parts: Sequence[Waterfall]) -> list[dict[str, object]]:
    """All of one currency in cents that add up to its bill as it is printed."""
    rows = []
    for currency in dict.fromkeys(one.bill.currency for one in parts):
        own = [one for one in parts if one.bill.currency == currency]
        cents = sharing.in_cents([one.bill.micros for one in own])
        rows += [_part(one, cent) for one, cent in zip(own, cents, strict=True)]
    return rows


def _part(one: Waterfall, cents: int) -> dict[str, object]:
    total = one.bill.micros
    row: dict[str, object] = {
        "name": one.key or "(nobody's)",
        "amount": f"{cents / 100:,.2f} {one.bill.currency}",
    }
    for step in _SHOWN:
        row[STEPS[step][0]] = f"{one.amount(step) / total:.1%}" if total else ""
    return row


def picture(found: Breakdown) -> str:
    """The waterfall of the currency that most was spent in. Raises InvalidInput if there is nothing."""
    if not found.whole:
        raise InvalidInput(f"Nothing was charged in {found.month}.", next_step="Choose another month.")
    whole = max(found.whole, key=lambda one: one.bill.micros)
    whose = "all projects" if found.project == "*" else found.project
    return plots.waterfall(
        bars(whole),
        title=f"Where the money went: {whose}, {found.month}",
        about=f"From a bill of {whole.bill} down to what was effective; the steps sum to the bill.",
    )


def bars(whole: Waterfall) -> Sequence[Bar]:
    """The bill, what is taken away from it step by step, and what is left as the last bar."""
    cents = sharing.in_cents([line.amount.micros for line in whole.lines])
    texts = {
        line.step: f"{cent / 100:,.2f}  {line.part or 0:6.1%}" for line, cent in zip(whole.lines, cents, strict=True)
    }
    total = f"{sum(cents) / 100:,.2f} {whole.bill.currency}"
    bill = Bar(label="bill", value=whole.bill.micros / 1_000_000, total=True, text=total, color=0)
    steps = [
        Bar(
            label=line.title,
            value=line.amount.micros / 1_000_000,
            total=line.step == "effective",
            text=texts[line.step],
            color=_STEP_COLORS.get(line.step, _OTHER_COLOR),
        )
        for line in whole.lines
    ]
    return [bill, *steps]


def _report(options: argparse.Namespace, session: Session) -> int:
    by_project, by_owner = (_ask(options, session, by, 100) for by in ("project", "owner"))
    folder = Path(options.out)
    page = cost_report.page(by_project, by_owner, [(whole, bars(whole)) for whole in by_project.whole])
    _write(folder / "report.html", page)
    session.show(
        {"report": str(folder / "report.html"), "month": by_project.month, "allocation": by_project.allocation}
    )
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another place.") from error


WATERFALL = Verb(configure=_configure_waterfall, run=_waterfall)
REPORT = Verb(configure=_configure_report, run=_report)
