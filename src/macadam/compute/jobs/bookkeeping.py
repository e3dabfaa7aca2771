"""What the queue writes: starts, stops and ends of attempts, each with its leaf in the same transaction.

The leaves alone tell who held how many GPUs when, in the order of commit: a start is committed before anything runs, an
end after nothing does any more. Budgets are reserved and settled here too.
"""

from datetime import datetime, timedelta
from itertools import takewhile

import msgspec
import sqlalchemy as sa

from macadam.access.schema import state as access_state
from macadam.compute.billing import budgets, exchange
from macadam.compute.catalogue.tariff import GpuPrice
from macadam.compute.jobs import registry, seen_machines, settling
from macadam.compute.jobs.picture import market_of
from macadam.compute.jobs.prices import Desk, Unpriced
from macadam.compute.jobs.types import AttemptRow, Job, Place, Rate, Wish
from macadam.errors import NotFound
from macadam.ledger import service as ledger
from macadam.ledger.leaf import without_call
from macadam.operations import plain
from macadam.ports import Node, Sighting
from macadam.values import Money, digest_of

ACTOR = "system:jobs"
HORIZON = 300.0
"""s; work without a time limit starts if its project's budget has room for so much of it."""
AHEAD = 120.0
"""s; so much, and its grace, it holds ahead while it runs, and is stopped when no more is to be had: two looks of the queue."""
START, STOP, END, SEEN = "jobs.start", "jobs.stop", "jobs.end", "jobs.machines"
ALERT = "budgets.alert"
_MOST_BYTES = 48 << 10  # of lists in one leaf, which holds 64 KiB with everything around


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction's pen. desk: says what hours cost. restart_delay: seconds before the first restart. executor: where what starts runs."""

    sql: sa.Connection
    now: datetime
    desk: Desk
    restart_delay: float
    executor: str = ""

    # --- starting

    def start(self, job: Job, places: tuple[Place, ...], borrowed: int = 0) -> str:
        """Gives a waiting job these places. Returns '' or why its project's budget refuses."""
        number, rate = job.attempt + 1, self.desk.held(job.project, places)
        row = AttemptRow(
            id=f"{job.id}.{number}",
            job=job.id,
            project=job.project,
            number=number,
            places=places,
            started=self.now,
            borrowed=borrowed,
            executor=self.executor,
            rate=rate if isinstance(rate, Rate) else None,
        )
        refusal = self.hold(job, row)
        if refusal:
            return refusal
        registry.keep_attempt(self.sql, row)
        registry.save_job(
            self.sql, msgspec.structs.replace(job, state="starting", attempt=number, ready=None, wish="", message="")
        )
        self._say(
            START,
            row,
            milli=row.milli,
            borrowed=borrowed,
            **_given(places),
            cpu_milli=sum(place.cpus for place in places),
            memory=sum(place.memory for place in places),
            nanos_an_hour=row.rate.nanos if row.rate else None,
            currency=row.rate.currency if row.rate else None,
            prices=[_said(price) for price in row.rate.prices] if row.rate else None,
        )
        return ""

    def hold(self, job: Job, row: AttemptRow) -> str:
        """Reserves what the attempt may cost, or what it costs until a while from now. '' or why the budget refuses."""
        elapsed = max(0.0, (self.now - row.started).total_seconds())  # a clock may have been set back
        limit, grace = job.spec.time_limit, job.spec.grace
        ahead = grace + (max(limit, elapsed) if limit else elapsed + AHEAD if elapsed else HORIZON)
        rate = self._rate(row)
        if isinstance(rate, Unpriced):
            # What runs since there was a price goes on; without one no sum can be compared with a budget.
            return "" if elapsed else budgets.unpriced(self.sql, row.project, rate.what)
        verdict = budgets.reserve(
            self.sql,
            row.project,
            _key(row),
            rate.cost(ahead),
            self.now,
            on_bill=rate.own < rate.nanos,
            # Of a gang on own and rented machines too much is held, once a bill shows a part of it, until it ends.
            until=None if 0 < rate.own < rate.nanos else row.started + timedelta(seconds=ahead),
        )
        return "" if verdict.allowed else verdict.reason

    def _rate(self, row: AttemptRow) -> Rate | Unpriced:
        """As it was when it started; what had no price then may have been given one for that day since."""
        return row.rate or self.desk.at(row.started).held(row.project, row.places)

    # --- while it runs

    def began(self, job: Job, row: AttemptRow, seen: Sighting) -> None:
        """Its processes were seen. No leaf: what it holds it has held since its start."""
        registry.save_attempt(self.sql, msgspec.structs.replace(row, began=seen.started or self.now))
        if job.state == "starting":
            registry.save_job(self.sql, msgspec.structs.replace(job, state="running"))

    def stop(self, job: Job, row: AttemptRow, wish: Wish, *, words: str, by: str = "") -> None:
        """Writes down that an attempt is to stop; nothing changes for one that was asked to before, but for a cancellation."""
        if row.ended is not None or (row.wish and wish != "cancel") or row.wish == wish:
            return
        registry.save_attempt(self.sql, msgspec.structs.replace(row, wish=wish))
        registry.save_job(self.sql, msgspec.structs.replace(job, state="stopping", wish=wish, message=words))
        self._say(STOP, row, wish=wish, by=by or None, words=words)

    def end(self, job: Job, row: AttemptRow, seen: Sighting) -> Job:
        """Closes an attempt whose processes are all gone: its GPUs are free from this commit on."""
        return self._close(job, row, seen, settling.judge(job, row, seen))

    def give_up(self, job: Job, row: AttemptRow, message: str) -> Job:
        """Closes an attempt whose executor is gone for good. It may still run: what is free is free by somebody's word."""
        gone = Sighting(attempt=row.id, state="ended", exit_code=137, why="lost", message=message)
        return self._close(job, row, gone, settling.abandoned(job, row, message))

    def _close(self, job: Job, row: AttemptRow, seen: Sighting, verdict: settling.Verdict) -> Job:
        ended = max(self.now, row.started)
        held = (ended - row.started).total_seconds()
        rate = self._rate(row)
        cost = None if isinstance(rate, Unpriced) else rate.cost(held)
        closed = msgspec.structs.replace(
            row,
            ended=ended,
            ending=verdict.ending,
            exit_code=seen.exit_code,
            message=verdict.message,
            seconds=seen.seconds,
            cpu_seconds=seen.cpu_seconds,
            peak_bytes=seen.peak_bytes,
            cost=cost,
            rate=None if isinstance(rate, Unpriced) else rate,
        )
        registry.save_attempt(self.sql, closed)
        self._settle_budget(closed, held)
        for alert in budgets.new_alerts(self.sql, row.project, self.now):
            self._queue(ALERT, f"budget:{row.project}", row.project, {"alert": budgets.facts(alert)})
        after = self._after(job, closed, verdict)
        registry.save_job(self.sql, after)
        self._say(
            END,
            closed,
            milli=row.milli,
            ending=verdict.ending,
            exit_code=seen.exit_code,
            state=after.state,
            gpu_ms=closed.gpu_ms,
            cpu_ms=round(seen.cpu_seconds * 1000),
            peak_bytes=seen.peak_bytes,
            cost_micros=cost.micros if cost else None,
            currency=cost.currency if cost else None,
            message=verdict.message or None,
        )
        return after

    def _settle_budget(self, row: AttemptRow, held: float) -> None:
        """Prices may have been set, or unset, since it started."""
        ended = row.ended or self.now
        if row.rate is None or row.cost is None:
            budgets.release(self.sql, _key(row), ended)
            return
        own = row.rate.own_cost(held)
        try:
            budgets.settle(self.sql, _key(row), row.cost, ended, own=own)
        except NotFound:  # nothing was reserved, as nothing had a price
            budgets.book(self.sql, row.project, _key(row), row.cost, row.started, ended, own=own)

    def _sum(self, before: Money | None, cost: Money | None) -> Money | None:
        """None where one is not known, or nothing says what it is worth in the other's currency."""
        if before is None or cost is None:
            return None
        if not before.micros:
            return cost
        counted = exchange.Converter(self.sql, before.currency, wanted=True).one(cost, self.now)
        return None if counted is None else Money(micros=before.micros + counted, currency=before.currency)

    def _after(self, job: Job, row: AttemptRow, verdict: settling.Verdict) -> Job:
        restarts = job.restarts + verdict.restart
        return msgspec.structs.replace(
            job,
            state=verdict.state,
            wish="",
            restarts=restarts,
            preemptions=job.preemptions + (verdict.ending == "preempted"),
            attained=max(job.attained, job.standing + row.seconds),
            spent=self._sum(job.spent, row.cost),
            ready=self._ready(row, restarts, verdict),
            ended=None if verdict.state == "waiting" else row.ended,
            exit_code=None if verdict.state == "waiting" else row.exit_code,
            ending=verdict.ending,
            message=verdict.message,
        )

    def _ready(self, row: AttemptRow, restarts: int, verdict: settling.Verdict) -> datetime | None:
        """When it may start again, None = at once: what dies again and again pauses, and so does what never gets as far as to begin."""
        if verdict.restart:
            return settling.ready_after(restarts - 1, self.restart_delay, self.now)
        if verdict.state != "waiting" or not settling.never_began(row):
            return None
        before = reversed([one for one in registry.attempts_of(self.sql, row.job) if one.number < row.number])
        vain = len(list(takewhile(settling.never_began, before)))
        return settling.ready_after(vain - 1, self.restart_delay, self.now) if vain else None

    # --- machines

    def see(self, nodes: tuple[Node, ...]) -> None:
        """Which machines and GPUs there are now, where that has changed. A cluster's machines do not fit into one leaf: only changes are
        said, in as many as it takes.
        """
        before = registry.known_machines(self.sql)
        registry.set_machines(self.sql, nodes, self.now)
        usable = [node for node in nodes if node.spot and node.leaving is None and not node.closed]
        registry.see_markets(self.sql, frozenset(market_of(node) for node in usable), self.now)
        for said in seen_machines.changes(before, nodes):
            self._queue(SEEN, "platform:machines", "", said)

    def _say(self, kind: str, row: AttemptRow, **body: object) -> None:
        self._queue(kind, f"job:{row.job}", row.project, {"attempt": row.number, **body})

    def _queue(self, kind: str, subject: str, project: str, body: dict[str, object]) -> None:
        facts = {key: plain(value) for key, value in body.items() if value is not None}
        leaf = without_call(
            kind,
            at=self.now,
            actor=ACTOR,
            subject=subject,
            project=project,
            rule="queue",
            policy_set=self.sql.execute(sa.select(access_state.c.policy_set)).scalar_one(),
            body=facts,
        )
        ledger.queue(self.sql, leaf)


def _given(places: tuple[Place, ...]) -> dict[str, object]:
    """Where it runs; of a gang that is too large for a leaf, how many machines and devices, and the digest of the list that SQL holds."""
    lists = {
        "nodes": [place.node for place in places],
        "markets": [place.market for place in places],
        "devices": [f"{device}={milli}" for place in places for device, milli in place.devices.items()],
    }
    written = msgspec.json.encode(lists)
    if len(written) <= _MOST_BYTES:
        return dict(lists)
    return {"machines": len(places), "members": len(lists["devices"]), "places": digest_of(written)}


def _said(price: GpuPrice) -> str:
    dated = f", {price.dated.isoformat()}" if price.dated else ""
    return f"{price.model or 'GPU'}: {price.per_gpu_hour} an hour ({price.how}: {price.words}{dated})"


def _key(row: AttemptRow) -> str:
    return f"job:{row.id}"
