"""`macadam simulate queue` and `macadam cost replay`: what other policies would have done with jobs, and what that would have cost."""

import argparse
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import get_args

import msgspec

from macadam import plots
from macadam.compute.jobs import past
from macadam.compute.jobs.types import Job, JobCost, ListJobs, ShowJobCosts
from macadam.compute.simulation import queueing
from macadam.errors import InvalidInput
from macadam.faces import pictures, printing
from macadam.faces.session import Session, Verb
from macadam.operations import load, of_request
from macadam.values import Money

_NAMES: tuple[queueing.Name, ...] = get_args(queueing.Name)
_PAGE = 1000


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", metavar="FILE", required=True, help="CSV: " + ",".join(queueing.COLUMNS))
    parser.add_argument("--gpus", metavar="N", type=int, required=True, help="GPUs of the pool")
    parser.add_argument(
        "--policy", metavar="NAME", action="append", help=f"{', '.join(_NAMES)} or all; may be repeated"
    )
    parser.add_argument("--cost", metavar="S", type=float, default=30.0, help="seconds of work that a preemption loses")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw how many jobs took how long")


def _run(options: argparse.Namespace, session: Session) -> int:
    plot = pictures.wanted(options)
    names = _names(getattr(options, "policy", ["default"]))
    jobs = queueing.read_jobs(Path(options.jobs))
    with printing.progress() as progress:
        runs = [queueing.run(jobs, options.gpus, name, cost=options.cost, progress=progress) for name in names]
    if plot:
        curves = {summary.policy: found for summary, outcome in runs if (found := queueing.curve(jobs, outcome))}
        about = f"{len(jobs)} jobs of {len(set(jobs.tenant))} tenants on {options.gpus} GPUs"
        _draw(plot, curves, about)
    if session.json:
        session.show([summary for summary, _ in runs])
        return 0
    session.say(f"{len(jobs)} jobs of {len(set(jobs.tenant))} tenants on {options.gpus} GPUs:")
    session.show([_row(summary) for summary, _ in runs], title="From submission to end")
    for summary, _ in runs[:1]:
        session.show([_tenant(tenant) for tenant in summary.tenants], title=f"Waiting under {summary.policy}, p95")
    return 0


def _names(given: list[str]) -> list[queueing.Name]:
    known: dict[str, queueing.Name] = {str(name): name for name in _NAMES}
    unknown = [name for name in given if name not in known and name != "all"]
    if unknown:
        raise InvalidInput(f"There is no policy {unknown[0]!r}.", next_step=f"Choose: {', '.join(known)} or all.")
    return list(_NAMES) if "all" in given else list(dict.fromkeys(known[name] for name in given))


def _row(summary: queueing.Summary) -> dict[str, object]:
    return {
        "policy": summary.policy,
        "mean": _seconds(summary.mean),
        "median": _seconds(summary.median),
        "p95": _seconds(summary.p95),
        "preemptions": summary.preemptions,
        "GPU-hours lost": f"{summary.lost_gpu_hours:,.0f}",
        "tenants worse off": len(summary.worse),
        "GPU-hours paid": f"{summary.pool_gpu_hours:,.0f}",
        "if elastic": f"{summary.elastic_gpu_hours:,.0f}",
        "jobs/s": f"{summary.jobs_per_second:,.0f}" if summary.jobs_per_second else "",
    }


def _tenant(tenant: queueing.Tenant) -> dict[str, object]:
    return {
        "tenant": tenant.tenant,
        "jobs": tenant.jobs,
        "share": tenant.share,
        "wait": _seconds(tenant.wait_p95),
        "on its share alone": _seconds(tenant.alone_p95),
    }


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if isfinite(value) else "never runs"


def _draw(path: Path, curves: "dict[str, list[tuple[float, float]]]", about: str) -> None:
    drawn = plots.lines(
        curves,
        title="Jobs that took no longer",
        about=about,
        x_label="hours from submission to end",
        y_label="% of jobs",
        x_scale="log",
    )
    pictures.save(path, drawn)


def _configure_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", metavar="FILE", help="CSV instead of the project's own jobs: " + ",".join(queueing.COLUMNS)
    )
    parser.add_argument(
        "--gpus", metavar="N", type=int, help="GPUs of the baseline's pool; default: enough for no wait"
    )
    parser.add_argument("--policy", metavar="NAME", help=f"{', '.join(_NAMES)}; default: default")
    parser.add_argument("--cost", metavar="S", type=float, default=30.0, help="seconds of work that a preemption loses")


def _replay(options: argparse.Namespace, session: Session) -> int:
    """Whoever may list a project's jobs may replay them: the operation that reads them is asked."""
    name = _names([getattr(options, "policy", "default")])[0]
    given = getattr(options, "jobs", None)
    own = [] if given else list(_listed(session))
    paid = () if given else _paid(session)
    jobs = queueing.read_jobs(Path(given)) if given else past.trace(own)
    gpus = options.gpus if hasattr(options, "gpus") else queueing.ample(jobs)
    with printing.progress() as progress:
        found = queueing.save(jobs, gpus, name=name, cost=options.cost, progress=progress)
    hour = past.an_hour(paid)
    if session.json:
        session.show(msgspec.to_builtins(found) | {"money": _money(found, hour)} if paid else found)
        return 0
    session.say(
        f"{len(jobs)} jobs, {found.work_gpu_hours:,.0f} GPU-hours of work; static shares of {gpus} GPUs, first come first "
        f"served, pay {found.baseline.pool_gpu_hours:,.0f}."
    )
    if parts := sum(bool(job.spec.resources.milli) for job in own):
        session.say(f"{parts} of them asked for a part of a GPU; each counts as one GPU here.")
    session.say(
        f"A pool of {found.found.gpus} under {name} pays {found.found.pool_gpu_hours:,.0f}: {_less(found.saved)}. "
        f"No schedule could save more than {100 * found.saved_at_most:.1f}% with so many GPUs."
    )
    session.say(
        f"Up to {found.elastic.gpus} GPUs rented by the hour, 8 at a time, pay {found.elastic.elastic_gpu_hours:,.0f}: "
        f"{_less(found.saved_elastic)}."
    )
    rows = {"static shares": found.baseline, "smaller pool": found.found, "elastic pool": found.elastic}
    session.show([{"": label} | _row(summary) for label, summary in rows.items()], title="From submission to end")
    if paid:
        _say_money(session, found, paid, hour)
    return 0


def _paid(session: Session) -> tuple[JobCost, ...]:
    """What the project's own attempts were charged, at the prices that were in force when each started."""
    found: tuple[JobCost, ...] = session.call(of_request(ShowJobCosts), {"project": session.project()})
    return found


def _money(found: queueing.Saving, hour: Money | None) -> dict[str, object] | None:
    """The pools at what an hour of a GPU has cost the project on average; None where nothing says that."""
    if hour is None:
        return None
    pools = {
        "baseline": found.baseline.pool_gpu_hours,
        "found": found.found.pool_gpu_hours,
        "elastic": found.elastic.elastic_gpu_hours,
    }
    priced = {
        name: Money(micros=round(hours * hour.micros), currency=hour.currency)
        for name, hours in pools.items()
        if isfinite(hours)
    }
    return msgspec.to_builtins({"gpu_hour": hour, **priced})  # type: ignore[no-any-return] # of a dictionary


def _say_money(session: Session, found: queueing.Saving, paid: tuple[JobCost, ...], hour: Money | None) -> None:
    if hour is None:
        session.say(
            "What that is in money cannot be said: its jobs had no price, or several currencies (`macadam jobs costs`)."
        )
        return
    each = {"static shares": found.baseline.pool_gpu_hours, "smaller pool": found.found.pool_gpu_hours}
    each["elastic pool"] = found.elastic.elastic_gpu_hours
    said = ", ".join(f"{name} {hours * hour.micros / 1e6:,.2f}" for name, hours in each.items())
    session.say(f"At {hour} an hour, what a GPU has cost its jobs on average: {said} {hour.currency}.")
    session.show(paid, title="What its jobs were charged")
    if unpriced := sum(one.gpu_hours for one in paid if one.cost is None):
        session.say(f"{unpriced:,.1f} GPU-hours had no price when they were held; they count at the same average.")


def _less(part: float) -> str:
    return f"{part:.0%} less" if part >= 0 else f"{-part:.0%} more"


def _listed(session: Session) -> Iterator[Job]:
    project, before = session.project(), ""
    if not project:
        raise InvalidInput("`macadam cost replay` needs jobs.", next_step="Give --project NAME or --jobs FILE.")
    load("jobs")
    while True:
        arguments = {"project": project, "state": "succeeded", "before": before, "limit": _PAGE}
        page = session.call(of_request(ListJobs), arguments)
        yield from page
        if len(page) < _PAGE:
            return
        before = page[-1].id


QUEUE = Verb(configure=_configure, run=_run)
REPLAY = Verb(configure=_configure_replay, run=_replay)
