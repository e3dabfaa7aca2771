"""Why a job waits, when it will start and end, what it will cost: in words, from the same decision that the queue takes."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from macadam.compute.jobs import forecast, history, registry, spending
from macadam.compute.jobs.history import Durations, Memory
from macadam.compute.jobs.loop import placing, policy, refusal
from macadam.compute.jobs.picture import Picture
from macadam.compute.jobs.prices import Rate
from macadam.compute.jobs.types import Explanation, Job, Price, Span
from macadam.compute.scheduling.types import Wait
from macadam.errors import Unavailable
from macadam.ports import Node, Ports

_UNKNOWN = Span(likely=None, late=None, basis="")


def explain(sql: sa.Connection, ports: Ports, job: Job, now: datetime, *, seconds: float = 0) -> Explanation:
    """seconds: how long the job is thought to run, 0 = as its like. The job may be one that was not submitted yet."""
    rate = Rate.of(ports.settings.prices)
    if job.ended is not None:
        return _ended(sql, job)
    if job.attempt and job.state != "waiting":
        return _running(sql, job, rate, now)
    said = Durations(likely=seconds, late=seconds, basis="as you say")
    lasts = said if seconds else history.of(sql, job, job.attained)
    memory = Memory()
    memory.update(sql, now)
    seen = _picture(sql, ports, memory, job, now)
    cost = _price(job, lasts, rate)
    why = _other_reason(sql, seen, job, rate, now)
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
    basis = "as the queue stands, with nothing more submitted" if likely.seconds is not None else _unsaid(seen, known)
    start = Span(likely=_later(seen.now, likely.seconds), late=_later(seen.now, late.seconds), basis=basis)
    end = Span(likely=_later(start.likely, lasts.likely), late=_later(start.late, lasts.late), basis=lasts.basis)
    wait = likely.wait or Wait(reason="behind", words="It starts with the queue's next turn.")
    reason = "next" if likely.wait is None else wait.reason if job.spec.resources.demand else "no-processors"
    return Explanation(
        job=job.ref,
        state=job.state,
        reason=reason,
        words=wait.words,
        start=start,
        end=end,
        cost=cost,
        ahead=wait.ahead,
        missing=wait.needs,
        next_step="" if likely.wait else "The queue runs with `macadam up`, or with `macadam jobs run`.",
    )


def _durations(sql: sa.Connection, seen: Picture) -> dict[str, Durations]:
    """By job's id, of those that run given how long they have; those that are alike are read once."""
    began = {row.job: row.began or row.started for row in seen.attempts}
    known: dict[tuple[str, str], list[float]] = {}
    found = {}
    for job in (*seen.waiting, *seen.jobs.values()):
        key = job.project, job.spec.likeness
        if key not in known:
            known[key] = [one.attained for one in registry.finished_like(sql, *key)]
        ran = job.attained + max(0.0, (seen.now - began.get(job.id, seen.now)).total_seconds())
        found[job.id] = history.expected(known[key], job.spec.time_limit, ran)
    return found


def _unsaid(seen: Picture, known: dict[str, Durations]) -> str:
    open_ended = sum(known[row.job].likely is None for row in seen.attempts)
    return f"it cannot be said: of {open_ended} running jobs nobody knows how long they run"


def _other_reason(
    sql: sa.Connection, seen: Picture, job: Job, rate: Rate, now: datetime
) -> tuple[str, str, str] | None:
    """What keeps it from being decided on at all: no machines, its budget, a pause after it died."""
    if not seen.nodes:
        return "no-machines", "No machine is known to the queue yet.", "Start `macadam up`, or `macadam jobs run`."
    if why := refusal(sql, job, rate, now):
        return "money", why, "Raise the project's budget, or wait for its next period: `macadam budgets list`."
    if job.ready is not None and job.ready > now:
        return "pause", f"It died and is tried again at {job.ready.isoformat()}.", f"See `macadam jobs logs {job.id}`."
    return None


def _picture(sql: sa.Connection, ports: Ports, memory: Memory, job: Job, now: datetime) -> Picture:
    rows, quotas = registry.open_attempts(sql), registry.all_quotas(sql)
    waiting = registry.waiting(sql)
    waiting = waiting if any(one.id == job.id for one in waiting) else (*waiting, job)
    jobs = registry.by_id(sql, [row.job for row in rows])
    patience = policy(ports.settings.jobs).patience
    return Picture(
        now=now,
        nodes=registry.known_machines(sql) or _machines(ports),
        waiting=waiting,
        attempts=rows,
        jobs=jobs,
        due=memory.due(quotas, (*waiting, *jobs.values()), now, patience),
        quotas=quotas,
        spent=spending.of_quotas(sql, quotas, now),
        rate=Rate.of(ports.settings.prices),
    )


def _machines(ports: Ports) -> tuple[Node, ...]:
    """Asked of the executor where the queue has never run."""
    try:
        return ports.executor.nodes()
    except Unavailable:
        return ()


def _running(sql: sa.Connection, job: Job, rate: Rate, now: datetime) -> Explanation:
    row = registry.find_attempt(sql, job.attempt_id)
    began = row.began or row.started
    lasts = history.of(sql, job, job.attained + max(0.0, (now - began).total_seconds()))
    words = f"Attempt {job.attempt} runs since {began.isoformat()} on {', '.join(place.node for place in row.places)}."
    if job.state == "stopping":
        words = f"It is asked to stop: {job.message or job.wish}."
    left = [None if whole is None else max(0.0, whole - job.attained) for whole in (lasts.likely, lasts.late)]
    return Explanation(
        job=job.ref,
        state=job.state,
        reason="stops" if job.state == "stopping" else "runs",
        words=words,
        start=Span(likely=began, late=began, basis="seen"),
        end=Span(likely=_later(began, left[0]), late=_later(began, left[1]), basis=lasts.basis),
        cost=_price(job, lasts, rate),
    )


def _ended(sql: sa.Connection, job: Job) -> Explanation:
    rows = registry.attempts_of(sql, job.id)
    began = rows[0].started if rows else None
    how = f"It {job.state}" + (f" with code {job.exit_code}" if job.exit_code else "")
    return Explanation(
        job=job.ref,
        state=job.state,
        reason="ended",
        words=f"{how}{': ' + job.message if job.message else ''}.",
        start=Span(likely=began, late=began, basis="seen"),
        end=Span(likely=job.ended, late=job.ended, basis="seen"),
        cost=Price(likely=job.spent, most=job.spent, basis="what its attempts held, at the settings' prices"),
    )


def _price(job: Job, lasts: Durations, rate: Rate) -> Price:
    asked = job.spec.resources
    if asked.demand and not rate.gpu:
        return Price(likely=None, most=None, basis="no price of a GPU-hour is set: MACADAM_PRICE_GPU_HOUR")
    costs = [
        None if whole is None else rate.cost(asked.demand, asked.cpu_milli, whole)
        for whole in (lasts.likely, lasts.late)
    ]
    return Price(likely=costs[0], most=costs[1], basis=f"GPUs and cores held, at the settings' prices; {lasts.basis}")


def _later(at: datetime | None, seconds: float | None) -> datetime | None:
    return None if at is None or seconds is None else at + timedelta(seconds=seconds)
