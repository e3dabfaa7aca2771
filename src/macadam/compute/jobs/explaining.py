"""Why a job waits, when it will start and end, what it will cost: in words, from the same decision that the queue takes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import sqlalchemy as sa

from macadam.compute.jobs import clusters, forecast, history, registry, spending
from macadam.compute.jobs.buying import Buyer
from macadam.compute.jobs.forecast import Outlook
from macadam.compute.jobs.history import Durations, Memory
from macadam.compute.jobs.loop import bounds, payable, placing, policy, refusal
from macadam.compute.jobs.picture import Picture
from macadam.compute.jobs.prices import Desk, Kind, Unpriced
from macadam.compute.jobs.spending import Counted
from macadam.compute.jobs.types import AttemptRow, Explanation, Job, Offer, Price, Rate, Span
from macadam.compute.scheduling import markets
from macadam.compute.scheduling.markets import Bounds
from macadam.compute.scheduling.types import Wait
from macadam.errors import Unavailable
from macadam.ports import Node, Ports

_SHOWN = 6  # kinds of GPUs that are named in a sentence; all of them are in the answer
_HOW: dict[str, str] = {
    "own": "own price: ",
    "listed": "list price: ",
    "estimate": "an estimate: ",
    "setting": "by the settings: ",
}
_UNKNOWN = Span(likely=None, late=None, basis="")


def explain(sql: sa.Connection, ports: Ports, job: Job, now: datetime, *, seconds: float = 0) -> Explanation:
    """seconds: how long the job is thought to run, 0 = as its like. The job may be one that was not submitted yet."""
    if job.ended is not None:
        return _ended(sql, job)
    desk = Desk(sql, ports.settings.prices, now, registry.known_machines(sql) or _machines(ports))
    if job.attempt and job.state != "waiting":
        return _running(sql, ports, job, desk)
    said = Durations(likely=seconds, late=seconds, basis="as you say")
    lasts = said if seconds else history.of(sql, job, job.attained)
    memory = Memory()
    memory.update(sql, now)
    counted = spending.of_quotas(sql, registry.all_quotas(sql), now)
    seen = _picture(sql, ports, memory, job, desk, counted)
    cost = _price(job, lasts, desk)
    why = _other_reason(sql, seen, job, desk, counted)
    if why is not None:
        reason, words, step = why
        return Explanation(
            job=job.ref,
            state=job.state,
            reason=reason,
            words=words,
            start=_UNKNOWN,
            end=_UNKNOWN,
            cost=cost,
            next_step=step,
        )
    return _waiting(sql, ports, seen, job, lasts, cost, memory)


def _waiting(
    sql: sa.Connection, ports: Ports, seen: Picture, job: Job, lasts: Durations, cost: Price, memory: Memory
) -> Explanation:
    known = _durations(sql, seen) | {job.id: lasts}
    rules, places = policy(ports.settings.jobs), placing(memory)
    likely, late = (
        forecast.outlook(
            seen,
            job,
            rules,
            lambda one, at=is_late: known[one].at(at),  # type: ignore[misc]
            places=places,
            estimates=memory.estimates,
        )
        for is_late in (False, True)
    )
    basis = (
        "as the queue stands, with nothing more submitted"
        if likely.seconds is not None
        else _unsaid(seen, known, likely)
    )
    start = Span(likely=_later(seen.now, likely.seconds), late=_later(seen.now, late.seconds), basis=basis)
    end = Span(likely=_later(start.likely, lasts.likely), late=_later(start.late, lasts.late), basis=lasts.basis)
    wait = likely.wait or Wait(reason="behind", words="It starts with the queue's next turn.")
    step = "" if likely.wait else "The queue runs with `macadam up`, or with `macadam jobs run`."
    if wait.reason == "impossible":
        start = Span(likely=None, late=None, basis="never, with the machines that there are")
        step = f"Cancel it (`macadam jobs cancel {job.id}`), and ask for what there is."
    reason: str = "next" if likely.wait is None else wait.reason if job.spec.resources.demand else "no-processors"
    reason, words = _bounded(reason, wait, seen.markets.get(job.id))
    return Explanation(
        job=job.ref,
        state=job.state,
        reason=reason,
        words=words,
        start=start,
        end=end,
        cost=cost,
        ahead=wait.ahead,
        missing=wait.needs,
        next_step=step,
    )


def _bounded(reason: str, wait: Wait, bound: Bounds | None) -> tuple[str, str]:
    """With what is to be said of where its machines may be bought."""
    if bound is None or not bound.words:
        return reason, wait.words
    if reason in ("impossible", "no-gpus", "fragmented", "no-processors") and all(map(markets.is_spot, bound.markets)):
        return "spot", bound.words
    return reason, f"{wait.words} {bound.words}"


def _durations(sql: sa.Connection, seen: Picture) -> dict[str, Durations]:
    """By job's id, of those that run given how long they have; those that are alike are read once."""
    began = {row.job: row.began or row.started for row in seen.attempts}
    known: dict[tuple[str, str], list[float]] = {}
    found = {}
    for job in (*seen.waiting, *seen.jobs.values()):
        key = job.project, job.spec.likeness
        if key not in known:
            known[key] = [one.attained for one in registry.finished_like(sql, *key)]
        ran = job.standing + max(0.0, (seen.now - began.get(job.id, seen.now)).total_seconds())
        found[job.id] = history.expected(known[key], job.spec.time_limit, max(job.attained, ran))
    return found


def _unsaid(seen: Picture, known: dict[str, Durations], outlook: Outlook) -> str:
    if open_ended := sum(known[row.job].likely is None for row in seen.attempts):
        return f"it cannot be said: of {open_ended} running jobs nobody knows how long they run"
    if outlook.after:
        return f"it cannot be said: not within {max(1, outlook.after // 60):,.0f} minutes, and no further was looked"
    return "it cannot be said: nothing runs whose end would let it start"


def _other_reason(
    sql: sa.Connection, seen: Picture, job: Job, desk: Desk, counted: dict[str, Counted]
) -> tuple[str, str, str] | None:
    """What keeps it from being decided on at all: no machines, its budget, a pause after it died."""
    if not seen.nodes:
        return "no-machines", "No machine is known to the queue yet.", "Start `macadam up`, or `macadam jobs run`."
    if refused := refusal(sql, desk, job, counted, seen.quotas):
        return "money", refused.why, refused.step
    if job.ready is not None and job.ready > seen.now:
        step = f"macadam jobs log {job.id} --project {job.project}"
        return "pause", f"{_died(job)} and is tried again at {_instant(job.ready)}.", step
    return None


def _died(job: Job) -> str:
    return f"It died ({job.message})" if job.message else "It died"


def _picture(
    sql: sa.Connection, ports: Ports, memory: Memory, job: Job, desk: Desk, counted: dict[str, Counted]
) -> Picture:
    """With those only before it that have the money to start."""
    now = desk.now
    rows, quotas = registry.open_attempts(sql), registry.all_quotas(sql)
    waiting = registry.waiting(sql)
    jobs = registry.by_id(sql, [row.job for row in rows])
    asked_of = () if job.id in jobs else (job,)
    waiting = (*(one for one in waiting if one.id != job.id), *asked_of)
    patience = policy(ports.settings.jobs).patience
    seen = Picture(
        now=now,
        nodes=desk.nodes,
        waiting=(*(one for one in payable(sql, desk, waiting, counted, quotas) if one.id != job.id), *asked_of),
        attempts=rows,
        jobs=jobs,
        bounds=bounds(desk, [*waiting, *(jobs[row.job] for row in rows if row.rate is None)], quotas),
        due=memory.due(quotas, (*waiting, *jobs.values()), now, patience),
        quotas=quotas,
        spent={project: one.spent for project, one in counted.items()},
    )
    return msgspec.structs.replace(seen, markets=Buyer(ports.settings.jobs).bounds(sql, seen, job.id))


def _machines(ports: Ports) -> tuple[Node, ...]:
    """Asked of the executor where the queue has never run."""
    try:
        return ports.executor.nodes()
    except Unavailable:
        return ()


def _running(sql: sa.Connection, ports: Ports, job: Job, desk: Desk) -> Explanation:
    now = desk.now
    row = registry.find_attempt(sql, job.attempt_id)
    began = row.began or row.started
    lasts = history.of(sql, job, max(job.attained, job.standing + max(0.0, (now - began).total_seconds())))
    counted = spending.of_quotas(sql, registry.all_quotas(sql), now)
    words, step = _doing(row, job, clusters.named(ports.settings))
    if job.state == "stopping":
        words = f"It is asked to stop: {job.message or job.wish}. {words}".rstrip()
    elif bound := _picture(sql, ports, Memory(), job, desk, counted).markets.get(job.id):
        words = f"{words} {bound.words}".rstrip()
    left = [None if whole is None else max(0.0, whole - job.standing) for whole in (lasts.likely, lasts.late)]
    return Explanation(
        job=job.ref,
        state=job.state,
        reason={"stopping": "stops", "starting": "starts"}.get(job.state, "runs"),
        words=words,
        start=Span(likely=began, late=began, basis="seen"),
        end=Span(likely=_later(began, left[0]), late=_later(began, left[1]), basis=lasts.basis),
        cost=_price_of(row, job, lasts, desk),
        next_step=step,
    )


def _doing(row: AttemptRow, job: Job, chosen: str) -> tuple[str, str]:
    """What is known of an attempt that has not ended, and what to do if that goes on for too long."""
    look = f"macadam jobs log {job.id} --project {job.project}"
    if row.executor not in ("", chosen):
        words = f"Attempt {row.number} is on the executor {row.executor!r}, and {chosen!r} is chosen: nothing is known of it meanwhile."
        return (
            words,
            f"Choose that one until it has ended; if it is gone: macadam jobs abandon --executor '{row.executor}'.",
        )
    if job.state == "stopping":
        grace = f"What runs on after its grace of {_grace(job):g} s is killed."
        return (grace, f"See what it does: {look}") if row.began else ("", "")
    machines = [place.node for place in row.places]
    where = ", ".join(machines[:_SHOWN]) + (f" and {len(machines) - _SHOWN} more" if len(machines) > _SHOWN else "")
    if row.began is None:
        words = (
            f"Attempt {row.number} was given {where} at {_instant(row.started)}; none of its processes was seen yet."
        )
        return (
            words,
            f"If that lasts, see the queue's own log, then: macadam jobs cancel {job.id} --project {job.project}.",
        )
    return f"Attempt {row.number} runs since {_instant(row.began)} on {where}.", ""


def _grace(job: Job) -> float:
    return job.grace if job.grace >= 0 and job.wish == "cancel" else job.spec.grace


def _ended(sql: sa.Connection, job: Job) -> Explanation:
    rows = registry.attempts_of(sql, job.id)
    began = rows[0].started if rows else None
    how = "It was cancelled" if job.state == "cancelled" else f"It {job.state}"
    if job.exit_code and "code" not in job.message:
        how += f" with code {job.exit_code}"
    return Explanation(
        job=job.ref,
        state=job.state,
        reason="ended",
        words=f"{how}{': ' + job.message if job.message else ''}.",
        start=Span(likely=began, late=began, basis="seen"),
        end=Span(likely=job.ended, late=job.ended, basis="seen"),
        cost=Price(likely=job.spent, most=job.spent, basis=_paid(rows)),
        next_step=f"macadam jobs log {job.id} --project {job.project}" if job.state == "failed" and rows else "",
    )


def _price(job: Job, lasts: Durations, desk: Desk) -> Price:
    """Before it has a place: on each kind of GPU that would do."""
    asked = job.spec.resources
    if not asked.demand:
        rate = desk.most(job.project, asked)
        if isinstance(rate, Unpriced):
            return _unpriced(rate)
        return _costs(rate, rate, lasts, "the cores that it holds, at MACADAM_PRICE_CPU_HOUR")
    kinds, unknown = desk.kinds(job.project, asked)
    if not kinds:
        return _unpriced(*unknown)
    offers = tuple(_offer(kind, lasts) for kind in kinds)
    more = f" or {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
    basis = f"{' or '.join(_said(kind.rate) for kind in kinds[:_SHOWN])}{more}, and cores held"
    found = _costs(kinds[0].rate, kinds[-1].rate, lasts, basis)
    return msgspec.structs.replace(found, offers=offers, unknown=tuple(f"{one.what}. {one.step}" for one in unknown))


def _price_of(row: AttemptRow, job: Job, lasts: Durations, desk: Desk) -> Price:
    """Of what it has been given. What it cost before is not in it."""
    rate = row.rate or desk.at(row.started).held(job.project, row.places)
    if isinstance(rate, Unpriced):
        return _unpriced(rate)
    return _costs(rate, rate, lasts, f"{_said(rate)}, and cores held, as of its start")


def _costs(cheapest: Rate, dearest: Rate, lasts: Durations, basis: str) -> Price:
    likely = None if lasts.likely is None else cheapest.cost(lasts.likely)
    most = None if lasts.late is None else dearest.cost(lasts.late)
    return Price(likely=likely, most=most, basis=f"{basis}; {lasts.basis}")


def _unpriced(*unknown: Unpriced) -> Price:
    said = tuple(f"{one.what}. {one.step}" for one in unknown)
    return Price(likely=None, most=None, basis=" ".join(said[:1]), unknown=said)


def _offer(kind: Kind, lasts: Durations) -> Offer:
    return Offer(
        price=kind.price,
        machines=kind.machines,
        hour=kind.rate.cost(3600),
        likely=None if lasts.likely is None else kind.rate.cost(lasts.likely),
        most=None if lasts.late is None else kind.rate.cost(lasts.late),
    )


def _said(rate: Rate) -> str:
    """Which prices, for a person."""
    return (
        " and ".join(
            f"{one.model or 'a GPU'} at {one.per_gpu_hour} an hour ({_HOW[one.how]}{one.words}"
            f"{f', of {one.dated}' if one.dated else ''}{', which is old' if one.stale else ''})"
            for one in rate.prices
        )
        or "cores"
    )


def _paid(rows: Sequence[AttemptRow]) -> str:
    """What ended attempts were charged at."""
    said = dict.fromkeys(_said(row.rate) for row in rows if row.rate)
    prices = "; ".join(said) or "no price was known when it started"
    return f"what its attempts held, as of their starts: {prices}"


def _later(at: datetime | None, seconds: float | None) -> datetime | None:
    return None if at is None or seconds is None else at + timedelta(seconds=seconds)


def _instant(at: datetime) -> str:
    """As tables print it: to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
