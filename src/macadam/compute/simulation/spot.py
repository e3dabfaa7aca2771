"""The study of spot machines: what a job with a deadline would have cost on real availability, zone by zone, policy by policy.

Reads traces of the shape {"metadata": {"gap_seconds": s}, "data": [1, 0, …]}: whether a spot machine could be had at each probe (the
traces of Wu et al., NSDI 2024). It decides with `scheduling.spot`, at each probe, with no look at what comes later.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from macadam.compute.scheduling import spot
from macadam.compute.scheduling.spot import NOWHERE, ON_DEMAND, Job, Market, Policy, Standing
from macadam.errors import InvalidInput, SourceInvalid, TooLarge
from macadam.operations import Progress

_LARGEST = 64 * 2**20  # bytes
_EPSILON = 1e-6  # seconds: what floating point may lose over a run
# How much the rates that are assumed before anything was seen count, in seconds of observation.
_PRIOR = 6 * 3600.0
_PRIOR_LIFE, _PRIOR_WAIT = 4 * 3600.0, 3600.0


class _Metadata(msgspec.Struct, frozen=True):
    gap_seconds: Annotated[float, msgspec.Meta(ge=1, le=86_400)]


class _File(msgspec.Struct, frozen=True):
    metadata: _Metadata
    data: list[Annotated[int, msgspec.Meta(ge=0, le=1)]]


class Zone(msgspec.Struct, frozen=True, kw_only=True):
    """Spot in one zone. gap: seconds between probes. up: whether it could be had from each probe to the next."""

    name: str
    gap: float
    up: tuple[bool, ...]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One job. start: seconds into the traces. cost: in seconds of on-demand machines; savings: against `work` of them. met: whether it
    was done by its deadline. on_demand, on_spot, waited: seconds. interruptions: spot machines lost. changeovers: machines started.
    """

    start: float
    cost: float
    savings: float
    finished: float
    met: bool
    on_demand: float
    on_spot: float
    waited: float
    interruptions: int
    changeovers: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A policy at one deadline over many starts. deadline: seconds. savings: mean; low: that of the worst tenth of the starts."""

    policy: str
    zones: tuple[str, ...]
    deadline: float
    starts: int
    missed: int
    savings: float
    low: float
    on_spot_part: float
    interruptions: float


def read_zone(path: Path) -> Zone:
    """Raises SourceInvalid, TooLarge."""
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise TooLarge(f"{path} has {size} bytes.", next_step=f"Give a trace of at most {_LARGEST} bytes.")
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Give a trace's file.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceInvalid(
            f"{path} is no trace of availability: {error}.",
            next_step='Its shape is {"metadata": {"gap_seconds": 195}, "data": [1, 0, …]}.',
        ) from error
    if not found.data:
        raise SourceInvalid(f"{path} has no probe.", next_step="Give a trace with data.")
    return Zone(name=path.stem, gap=found.metadata.gap_seconds, up=tuple(map(bool, found.data)))


def read_zones(paths: Sequence[Path]) -> tuple[Zone, ...]:
    """Named by their files, with their folders where two files have one name. Raises SourceInvalid, TooLarge."""
    zones = [read_zone(path) for path in paths]
    named = Counter(zone.name for zone in zones)
    return tuple(
        msgspec.structs.replace(zone, name=str(path.resolve())) if named[zone.name] > 1 else zone
        for zone, path in zip(zones, paths, strict=True)
    )


def observe(zones: Sequence[Zone], until: int, price: float = spot.SPOT_PRICE) -> Market:
    """What the probes before number `until` say of losses and waits, with a prior that fades as they add up.

    The prior: a machine lasts 4 hours, spot is back after 1 hour; for one that nobody has watched, and worth 6 hours of watching.
    """
    gap = zones[0].gap
    up = lost = elsewhere = down = back = 0.0
    for at in range(1, until):
        before, after = [zone.up[at - 1] for zone in zones], [zone.up[at] for zone in zones]
        up += gap * sum(before)
        gone = sum(b and not a for b, a in zip(before, after, strict=True))
        lost += gone
        elsewhere += gone * any(after)
        if not any(before):
            down += gap
            back += any(after)
    prior = 0.0 if len(zones) == 1 else 0.5
    return Market(
        price=price,
        loss=_rounded((lost + _PRIOR / _PRIOR_LIFE) / (up + _PRIOR)),
        elsewhere=_rounded((elsewhere + prior) / (lost + 1)),
        comeback=_rounded((back + _PRIOR / _PRIOR_WAIT) / (down + _PRIOR)),
    )


def run(zones: Sequence[Zone], job: Job, policy: Policy, market: Market, *, start: int) -> Outcome:
    """One job that starts at probe number `start`. job.step has to be the traces' gap. The traces begin again when they end.

    Raises InvalidInput.
    """
    if {zone.gap for zone in zones} != {job.step}:
        raise InvalidInput(
            f"Decisions every {job.step:g} s do not fit traces of {[zone.gap for zone in zones]} s.",
            next_step="Give traces with one gap_seconds, and that as the step.",
        )
    attempt = _Attempt(job, _ages(zones, start))
    probe = start
    while attempt.elapsed < 2 * job.deadline and attempt.left > _EPSILON:
        attempt.see(zones, probe)
        choice = spot.decide(job, attempt.standing(), market, policy)
        attempt.go(choice.where)
        attempt.live(market.price)
        probe += 1
    return attempt.outcome(start * job.step)


def study(
    zones: Sequence[Zone],
    policies: Sequence[Policy],
    deadlines: Sequence[float],
    *,
    job: Job,
    starts: int = 50,
    price: float = spot.SPOT_PRICE,
    progress: Progress = lambda _what, _done, _total: None,
) -> tuple[Summary, ...]:
    """Every policy at every deadline (seconds), from the same starts, spread evenly over the traces. What is expected of the market at
    each start is what the traces say until then. Raises InvalidInput.
    """
    if not zones or starts < 1:
        raise InvalidInput("There is no zone or no start.", next_step="Give one trace or more, and starts above 0.")
    if len({zone.name for zone in zones}) < len(zones):
        raise InvalidInput("Two zones have one name.", next_step="Give each trace once.")
    length = min(len(zone.up) for zone in zones)
    starts = min(starts, length)
    probes = sorted({round(length * number / starts) for number in range(starts)})
    markets = [observe(zones, probe, price) for probe in probes]
    found: list[Summary] = []
    for deadline in deadlines:
        due = msgspec.structs.replace(job, deadline=deadline, step=zones[0].gap)
        for policy in policies:
            outcomes = []
            for number, (probe, market) in enumerate(zip(probes, markets, strict=True)):
                outcomes.append(run(zones, due, policy, market, start=probe))
                progress(f"{policy.name}, {deadline / job.work:.2f} times the work", number + 1, len(probes))
            found.append(_summary(policy.name, zones, deadline, outcomes))
    return tuple(found)


def _summary(policy: str, zones: Sequence[Zone], deadline: float, outcomes: Sequence[Outcome]) -> Summary:
    savings = sorted(one.savings for one in outcomes)
    return Summary(
        policy=policy,
        zones=tuple(zone.name for zone in zones),
        deadline=deadline,
        starts=len(outcomes),
        missed=sum(not one.met for one in outcomes),
        savings=math.fsum(savings) / len(savings),
        low=savings[len(savings) // 10],
        on_spot_part=math.fsum(one.on_spot for one in outcomes)
        / math.fsum(one.on_spot + one.on_demand for one in outcomes),
        interruptions=sum(one.interruptions for one in outcomes) / len(outcomes),
    )


class _Attempt:
    """A job on its way through the traces."""

    def __init__(self, job: Job, ages: Mapping[str, float]) -> None:
        self._job = job
        self.elapsed = self._saved = self._unsaved = 0.0
        self._where, self._starting, self._written = NOWHERE, 0.0, 0.0
        self._ages = dict(ages)
        self._available: dict[str, float] = {}
        self._cost = self._on_demand = self._on_spot = self._waited = 0.0
        self._interruptions = self._changeovers = 0

    @property
    def left(self) -> float:
        """Seconds of work."""
        return self._job.work - self._saved - self._unsaved

    def standing(self) -> Standing:
        """As `decide` is told."""
        return Standing(
            elapsed=self.elapsed,
            saved=self._saved,
            unsaved=self._unsaved,
            where=self._where,
            starting=self._starting,
            available=self._available,
        )

    def see(self, zones: Sequence[Zone], probe: int) -> None:
        """A probe: a machine whose zone has no spot any more is lost with what was not saved."""
        for zone in zones:
            up = zone.up[probe % len(zone.up)]
            self._ages[zone.name] = self._ages[zone.name] + zone.gap if up else 0.0
        self._available = {name: age for name, age in self._ages.items() if age > 0}
        if self._where not in (ON_DEMAND, NOWHERE) and self._where not in self._available:
            self._where, self._unsaved, self._starting, self._written = NOWHERE, 0.0, 0.0, 0.0
            self._interruptions += 1

    def go(self, where: str) -> None:
        """Changes the machine, after saving what is worth it."""
        if where == self._where:
            return
        self._starting = self._job.changeover if where else 0.0
        if self._job.worth_saving(self._unsaved):
            self._saved += self._unsaved
            self._starting += self._job.checkpoint_cost
        self._unsaved = self._written = 0.0
        self._changeovers += bool(where)
        self._where = where

    def live(self, price: float) -> None:
        """A step, or less if the work is done before."""
        time = self._job.step
        if self._where == NOWHERE:
            self.elapsed += time
            self._waited += time
            self._starting = max(0.0, self._starting - time)
            return
        spent = min(time, self._starting)
        self._starting -= spent
        spent += self._work(time - spent)
        self.elapsed += spent
        if self._where == ON_DEMAND:
            self._on_demand += spent
            self._cost += spent
        else:
            self._on_spot += spent
            self._cost += price * spent

    def _work(self, time: float) -> float:
        """Works for at most `time` seconds, with checkpoints on spot; returns the seconds that were used."""
        if self._where == ON_DEMAND or not self._job.checkpoint_every:
            used = min(time, self.left)
            self._saved += self._unsaved + used
            self._unsaved = 0.0
            return used
        used = 0.0
        while time - used > _EPSILON and self.left > _EPSILON:
            due = self._job.checkpoint_every - self._unsaved
            piece = min(time - used, self.left, due) if due > _EPSILON else self._write(time - used)
            self._unsaved += piece if due > _EPSILON else 0.0
            used += piece
        return used

    def _write(self, time: float) -> float:
        """Writes at a checkpoint for at most `time` seconds; only when it is whole is the work saved."""
        spent = min(time, self._job.checkpoint_cost - self._written)
        self._written += spent
        if self._written >= self._job.checkpoint_cost - _EPSILON:
            self._saved, self._unsaved, self._written = self._saved + self._unsaved, 0.0, 0.0
        return spent

    def outcome(self, start: float) -> Outcome:
        return Outcome(
            start=start,
            cost=self._cost,
            savings=1 - self._cost / self._job.work,
            finished=self.elapsed,
            met=self.left <= _EPSILON and self.elapsed <= self._job.deadline + _EPSILON,
            on_demand=self._on_demand,
            on_spot=self._on_spot,
            waited=self._waited,
            interruptions=self._interruptions,
            changeovers=self._changeovers,
        )


def _ages(zones: Sequence[Zone], start: int) -> dict[str, float]:
    """For how long each zone has had spot when the job starts."""
    ages = {}
    for zone in zones:
        since = start
        while since > 0 and zone.up[(since - 1) % len(zone.up)]:
            since -= 1
        ages[zone.name] = (start - since) * zone.gap
    return ages


def _rounded(rate: float) -> float:
    """To two digits: what was seen is no more exact, and equal plans are solved once."""
    return float(f"{rate:.2g}")
