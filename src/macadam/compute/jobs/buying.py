"""What the live queue knows of spot, and for each job in which markets its machines may be bought (`scheduling.markets`).

Spans of time in which a market had machines stand in SQL, beside what attempts held and how they ended; nothing else is remembered
but wishes that are costly to work out, and those only for a while.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeGuard

import msgspec
import sqlalchemy as sa

from macadam.compute.billing import store
from macadam.compute.catalogue.tariff import GpuPrice, Tariff
from macadam.compute.jobs import history, registry
from macadam.compute.jobs.picture import Picture, market_of
from macadam.compute.jobs.types import WHOLE, AttemptRow, Job, MarketSpan, Resources
from macadam.compute.scheduling import markets, spot
from macadam.compute.scheduling.markets import ON_DEMAND, Asker, Bounds, Supply
from macadam.errors import SettingInvalid
from macadam.ports import Node
from macadam.settings import Jobs as Settings

_SEEN = timedelta(days=14)
"""Before that, markets were others."""
_LOOK_EVERY = 600.0  # s; what is expected of spot changes slowly
_PLANS = 1  # costly wishes in one turn; the others wish as they did, or by uniform progress
_QUICK = spot.Policy(name="uniform-progress")
_ASKED = ("preempted", "node", "moved", "money")  # endings of attempts that were asked to save
_KILLED = 137  # their grace was over
_LOST = ("node", "lost")


class Buyer:
    """Kept from turn to turn. Raises SettingInvalid for a policy that there is not."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._policy = msgspec.convert({"name": settings.spot}, spot.Policy)
        except msgspec.ValidationError as error:
            raise SettingInvalid(
                f"MACADAM_JOBS_SPOT is {settings.spot!r}.",
                next_step="Choose expected-cost, uniform-progress, time-sliced, greedy or on-demand.",
            ) from error
        self._step, self._changeover = settings.spot_step, settings.changeover
        self._market: tuple[datetime, spot.Market] | None = None
        self._wishes: dict[str, tuple[tuple[object, ...], datetime, str]] = {}
        self._lasts: dict[tuple[str, str], tuple[datetime, list[float]]] = {}
        self._plans = 0

    def bounds(self, sql: sa.Connection, picture: Picture, first: str = "") -> dict[str, Bounds]:
        """By the id of each job that waits or runs; {} where no spot machine has been seen for weeks: then nothing is bounded.

        first: the job whose wish is to be worked out in any case.
        """
        seen = registry.market_spans(sql, picture.now - _SEEN)
        if not seen:
            return {}
        self._plans = 0
        market = self._expected(sql, seen, picture)
        free = _Free(picture, seen)
        running = {row.job: row for row in picture.attempts}
        jobs = {job.id: job for job in (*picture.waiting, *picture.jobs.values())}
        found = {
            job: self._bounds(sql, jobs[job], running.get(job), free, market, picture.now)
            for job in sorted(jobs, key=lambda job: job != first)
        }
        self._wishes = {job: wish for job, wish in self._wishes.items() if job in jobs}
        self._lasts = {like: kept for like, kept in self._lasts.items() if self._is_fresh(kept[0], picture.now)}
        return found

    def _is_fresh(self, at: datetime, now: datetime) -> bool:
        return 0 <= (now - at).total_seconds() < self._step  # not if the clock was set back

    def _bounds(
        self, sql: sa.Connection, job: Job, row: AttemptRow | None, free: "_Free", market: spot.Market, now: datetime
    ) -> Bounds:
        asker, supply = self._asker(sql, job, row, now), free.supply(job, row)
        chooses = bool(asker.where or supply.available or supply.room)

        def wish(one: spot.Job, standing: spot.Standing) -> str:
            if not chooses:  # there is nothing to be had: what it would wish for is all the same
                return spot.wished(one, standing, market, _QUICK)
            return self._wish(job.id, one, standing, market, now)

        return markets.bounds(asker, supply, wish, step=self._step)

    def _wish(self, job: str, one: spot.Job, standing: spot.Standing, market: spot.Market, now: datetime) -> str:
        """The policy's. It is kept for a step, while what it could choose from is the same: plans take a tenth of a second."""
        key = standing.where, tuple(sorted(standing.available))
        known = self._wishes.get(job)
        same = known is not None and known[0] == key
        if known is not None and same and self._is_fresh(known[1], now):
            return known[2]
        if self._policy.name == "expected-cost":
            if self._plans >= _PLANS:
                return known[2] if known is not None and same else spot.wished(one, standing, market, _QUICK)
            self._plans += 1
        wish = spot.wished(one, standing, market, self._policy)
        self._wishes[job] = key, now, wish
        return wish

    def _asker(self, sql: sa.Connection, job: Job, row: AttemptRow | None, now: datetime) -> Asker:
        spec = job.spec
        plain = Asker(may_stop=spec.preemptible, again=job.restarts < spec.max_restarts, keeps=spec.checkpoint)
        if not spec.deadline:
            return plain
        rows = registry.attempts_of(sql, job.id) if job.attempt else ()
        saved, unsaved, starting = progress(job, rows, now, self._changeover)
        return msgspec.structs.replace(
            plain,
            lasts=self._late(sql, job, saved + unsaved, now),
            left=(spec.deadline - now).total_seconds(),
            elapsed=max(0.0, (now - job.submitted).total_seconds()),
            every=spec.checkpoint_every,
            changeover=self._changeover + spec.grace,
            saved=saved,
            unsaved=unsaved,
            where="" if row is None or row.wish else where(row),
            starting=starting,
        )

    def _late(self, sql: sa.Connection, job: Job, ran: float, now: datetime) -> float | None:
        """So long it runs nine times of ten, else its time limit; to three digits, as plans are made for each length."""
        key = job.project, job.spec.likeness
        known = self._lasts.get(key)
        if known is None or not self._is_fresh(known[0], now):
            like = [one.attained for one in registry.finished_like(sql, *key)]
            known = self._lasts[key] = now, like
        late = history.expected(known[1], job.spec.time_limit, ran).late
        return None if late is None else float(f"{late * 1.005:.2e}")

    def _expected(self, sql: sa.Connection, seen: Sequence[MarketSpan], picture: Picture) -> spot.Market:
        now = picture.now
        if self._market is None or not 0 <= (now - self._market[0]).total_seconds() <= _LOOK_EVERY:
            self._market = now, expected(sql, seen, picture.nodes, now)
        return self._market[1]


def expected(sql: sa.Connection, seen: Sequence[MarketSpan], nodes: Sequence[Node], now: datetime) -> spot.Market:
    """What the queue's own weeks say of spot."""
    rows = registry.between(sql, now - _SEEN, now)
    held = tuple(
        (((row.ended or now) - row.started).total_seconds(), row.ending in _LOST)
        for row in rows
        if markets.is_spot(where(row))
    )
    times = tuple((s.market, s.since.timestamp(), s.until.timestamp() if s.until else None) for s in seen)
    return markets.observed(held, times, now.timestamp(), price=price(nodes, Tariff(now.date(), store.own_prices(sql))))


def price(nodes: Iterable[Node], tariff: Tariff) -> float:
    """Of spot machines, as part of the same on demand, at what jobs are charged there; the cheapest that is there. Else `spot.SPOT_PRICE`."""
    ratios = []
    for node in nodes:
        if not node.spot or tariff.is_own(node):
            continue
        for model in {device.model for device in node.devices}:
            here, instead = tariff.of(model, node), tariff.of(model, msgspec.structs.replace(node, spot=False))
            if _is_said(here) and _is_said(instead) and here.per_gpu_hour.currency == instead.per_gpu_hour.currency:
                ratios.append(here.per_gpu_hour.micros / instead.per_gpu_hour.micros)
    return round(min(ratios), 2) if ratios else spot.SPOT_PRICE


def _is_said(found: GpuPrice | None) -> TypeGuard[GpuPrice]:
    """Whether it is of exactly this offer: an estimate of spot is what the machine costs on demand."""
    return found is not None and found.how in ("own", "listed")


def where(row: AttemptRow) -> str:
    """The market that an attempt runs in: spot if any of its machines is, as it is lost with that one."""
    bought = [place.market for place in row.places]
    return next((market for market in bought if markets.is_spot(market)), ON_DEMAND)


def progress(job: Job, rows: Sequence[AttemptRow], now: datetime, changeover: float) -> tuple[float, float, float]:
    """Seconds of work that no loss undoes, that one would undo, and seconds until it goes on where it was started last.

    What a job does first, after the first time, is no progress: up to a changeover it sets up and reads its checkpoint.
    """
    saved = unsaved = starting = 0.0
    every = job.spec.checkpoint_every
    for row in rows:
        lag = changeover if row.number > 1 else 0.0
        running = row.ended is None
        seconds = (now - row.began).total_seconds() if running and row.began else row.seconds
        worked = max(0.0, seconds - lag)
        kept = worked // every * every if every else 0.0
        if not job.spec.checkpoint:
            kept = 0.0
        elif row.ending in _ASKED and row.exit_code != _KILLED:
            kept = worked
        saved += kept
        if running:
            unsaved, starting = worked - kept, max(0.0, lag - seconds)
    return saved, unsaved, starting


class _Machine(msgspec.Struct, frozen=True):
    """What nobody has of one machine. whole: the models of GPUs of which nobody has a part; part: the most that is left of one, in
    thousandths, by its model.
    """

    cpus: int
    memory: int
    whole: tuple[str, ...]
    part: dict[str, int]

    def gpus(self, asked: Resources) -> int:
        """How many of the whole GPUs that are asked for, each with its part of processors and memory."""
        free = sum(model in asked.models for model in self.whole) if asked.models else len(self.whole)
        return max(0, min(free, self.cpus * asked.gpus // asked.cpu_milli, self.memory * asked.gpus // asked.memory))

    def fits(self, asked: Resources) -> bool:
        """What goes on one machine: processors, and a part of a GPU if it asks for one."""
        parts = [left for model, left in self.part.items() if not asked.models or model in asked.models]
        has_gpu = not asked.milli or max(parts, default=0) >= asked.milli
        return has_gpu and asked.cpu_milli <= self.cpus and asked.memory <= self.memory


class _Free:
    """The GPUs (or processors) that nobody has, by market, for one picture. Each is looked at once, and each way of asking answered
    once: among thousands of jobs on hundreds of machines nothing else in a turn would cost as much.
    """

    def __init__(self, picture: Picture, seen: Sequence[MarketSpan]) -> None:
        nodes = picture.staying()
        self._names = {node.name for node in nodes}
        self._since = {span.market: span.since for span in seen if span.until is None}
        self._spot = tuple(
            dict.fromkeys(span.market for span in sorted(seen, key=lambda s: (s.until is not None, s.since)))
        )
        self._now = picture.now
        taken: Counter[str] = Counter()
        cpus: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        for row in picture.attempts:
            for place in row.places:
                cpus[place.node] += place.cpus
                memory[place.node] += place.memory
                taken.update(place.devices)
        self._machines: dict[str, list[_Machine]] = {}
        for node in nodes:
            part: dict[str, int] = {}
            for one in node.devices:
                part[one.model] = max(part.get(one.model, 0), WHOLE - taken[one.id])
            machine = _Machine(
                cpus=node.cpus - cpus[node.name],
                memory=node.memory - memory[node.name],
                whole=tuple(one.model for one in node.devices if one.id not in taken),
                part=part,
            )
            self._machines.setdefault(market_of(node), []).append(machine)
        self._whole = {market: [one for one in here if one.whole] for market, here in self._machines.items()}
        self._rooms: dict[Resources, dict[str, bool]] = {}

    def supply(self, job: Job, row: AttemptRow | None) -> Supply:
        """For one job, with what it holds itself."""
        mine = where(row) if row is not None and not row.wish else ""
        stays = bool(mine) and row is not None and all(place.node in self._names for place in row.places)
        room = self._room(job.spec.resources)
        available = {
            market: max(0.0, (self._now - self._since.get(market, self._now)).total_seconds())
            for market, free in room.items()
            if markets.is_spot(market) and (free or (stays and market == mine))
        }
        return Supply(spot=self._spot, available=available, room=room.get(ON_DEMAND, False) or mine == ON_DEMAND)

    def _room(self, asked: Resources) -> dict[str, bool]:
        """By market, whether it has what is asked for, on as many machines as are wanted. Where exactly, placing says."""
        if asked not in self._rooms:
            found = {market: self._has_room(asked, market) for market in self._machines}
            self._rooms[asked] = found | {market: False for market in self._spot if market not in found}
        return self._rooms[asked]

    def _has_room(self, asked: Resources, market: str) -> bool:
        if not asked.gpus:
            return any(one.fits(asked) for one in self._machines[market])
        each = [one.gpus(asked) for one in self._whole[market]]
        if not asked.nodes:
            return sum(each) >= asked.gpus
        return sum(one >= asked.gpus // asked.nodes for one in each) >= asked.nodes
