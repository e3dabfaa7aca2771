"""Advice over a real home: samples are delivered and sealed, advice is found, taken and measured."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.advice.types import (
    Advice,
    DismissAdvice,
    FindAdvice,
    ListAdvice,
    MeasureAdvice,
    ShowAdvice,
    TakeAdvice,
)
from macadam.compute.billing.types import Charge
from macadam.compute.telemetry import service as telemetry
from macadam.compute.telemetry.requests import SealTelemetry
from macadam.compute.telemetry.types import Claim, Sample, to_table
from macadam.errors import Conflict, NotAuthorised, NotFound
from macadam.ledger.types import ShowLog
from macadam.testing import Clock, open_platform, token_of
from macadam.values import Money

START = datetime(2026, 11, 1, tzinfo=UTC)
EVERY = 120  # seconds between readings
MEMORY = 85_520_809_984


def readings(device: str, owner: str, day: int, days: int, busy: float) -> list[Sample]:
    """What an H100 says that is busy for that part of the time all along: sensors waver, energy follows power."""
    found = []
    energy = 10**9
    first = day * 86_400 // EVERY
    for step in range(first, first + days * 86_400 // EVERY):
        waver = 0.02 * math.sin(step) if busy else 0.0
        power = 72.0 + 600 * (busy + waver) + 0.3 * math.sin(step * 1.7)
        energy += round(power * EVERY * 1000)
        found.append(
            Sample(
                device=device, node="n1", product="NVIDIA H100 80GB HBM3", at=START + timedelta(seconds=step * EVERY),
                gpu_active=busy + waver, gr_active=busy + waver, sm_active=0.9 * (busy + waver),
                tensor_active=0.5 * (busy + waver), dram_active=0.4 * (busy + waver), memory_used=(60 << 30) + step % 1000,
                memory_total=MEMORY, power=power, energy=energy, sm_clock=1700.0 + step % 7, temperature=50.0 + step % 5,
                claims=(Claim(project="ads", owner=owner),),
            )
        )  # fmt: skip
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def platform(clock: Clock) -> Iterator[Platform]:
    with open_platform(clock=clock) as found:
        found.call(CreateProject(project="ads"))
        yield found


def live(platform: Platform, clock: Clock, day: int, *owners: tuple[str, str, float], days: int = 4) -> None:
    """These days pass: (device, owner, how busy)."""
    samples = [one for device, owner, busy in owners for one in readings(device, owner, day, days, busy)]
    telemetry.deliver(platform.ports, to_table(samples), START + timedelta(days=day + days))
    clock.instant = START + timedelta(days=day + days, hours=1)
    platform.call(SealTelemetry())


def find(platform: Platform, days: int = 4) -> dict[str, Advice]:
    return {one.proposal.kind: one for one in platform.call(FindAdvice(project="ads", days=days))}


def test_advice_is_found_taken_and_measured_and_each_step_is_in_the_ledger(platform: Platform, clock: Clock) -> None:
    live(platform, clock, 0, ("gpu:a", "job:busy", 0.9), ("gpu:b", "job:idle", 0.0))
    found = find(platform)["idle"]
    assert found.proposal.subjects == ("job:idle",)
    assert found.proposal.saving.hours > 600
    assert found.proposal.saving.expected is not None  # by the catalogue, as there is no bill
    assert "catalogue" in found.proposal.assumes
    assert found.believed == pytest.approx(1)
    assert platform.call(ShowAdvice(project="ads", advice=found.ref)) == found
    taken = platform.call(TakeAdvice(project="ads", advice=found.ref))
    assert taken.status == "taken"
    live(platform, clock, 4, ("gpu:a", "job:busy", 0.9))
    measured = platform.call(MeasureAdvice(project="ads", advice=found.ref)).measured
    assert measured is not None
    assert measured.verdict == "saved"
    assert measured.scope == "project"
    assert measured.saving is not None
    assert measured.saving.micros == pytest.approx(found.proposal.saving.expected.micros, rel=0.1)
    kinds = [entry.kind for entry in platform.call(ShowLog(limit=1000)).entries if "advice" in entry.kind]
    assert sorted(kinds) == ["compute.find_advice", "compute.measure_advice", "compute.take_advice"]


def bill_of(day: int, days: int, micros: int) -> list[Charge]:
    paid = Money(micros=micros)
    return [
        Charge(
            id=str(n), bill="b", start=START + timedelta(days=n), end=START + timedelta(days=n + 1), billed=paid,
            effective=paid, category="usage", device="gpu:a", gpus=1.0,
        )
        for n in range(day, day + days)
    ]  # fmt: skip


@pytest.mark.parametrize(("later", "verdict"), [(12_000_000, "saved"), (None, "too early")])
def test_a_lower_price_is_measured_once_it_is_on_a_bill(
    platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch, later: int | None, verdict: str
) -> None:
    charges = [*bill_of(0, 4, 48_000_000), *(bill_of(4, 5, later) if later else [])]

    def current(*_asked: object, start: datetime, end: datetime, **_more: object) -> list[Charge]:
        return [one for one in charges if one.start < end and one.end > start]

    monkeypatch.setattr("macadam.compute.billing.store.current", current)
    live(platform, clock, 0, ("gpu:a", "job:busy", 0.9), ("gpu:b", "job:idle", 0.0))
    found = find(platform)["idle"]
    clock.instant = START + timedelta(days=4)
    platform.call(TakeAdvice(project="ads", advice=found.ref))
    live(platform, clock, 4, ("gpu:a", "job:busy", 0.9), ("gpu:b", "job:idle", 0.0))
    measured = platform.call(MeasureAdvice(project="ads", advice=found.ref)).measured
    assert measured is not None
    assert measured.verdict == verdict


def test_dismissed_advice_stays_away_and_what_is_gone_is_put_away(platform: Platform, clock: Clock) -> None:
    live(platform, clock, 0, ("gpu:a", "job:busy", 0.9), ("gpu:b", "job:idle", 0.0))
    first = find(platform)["idle"]
    assert find(platform)["idle"].ref == first.ref  # the same advice, brought up to date
    platform.call(DismissAdvice(project="ads", advice=first.ref, note="kept warm on purpose"))
    assert "idle" not in find(platform)
    live(platform, clock, 4, ("gpu:a", "job:busy", 0.9), ("gpu:b", "job:other", 0.0))
    second = find(platform)["idle"]
    assert second.proposal.subjects == ("job:other",)
    live(platform, clock, 8, ("gpu:a", "job:busy", 0.9))
    assert "idle" not in find(platform)
    known = {one.ref: one.status for one in platform.call(ListAdvice(project="ads"))}
    assert (known[first.ref], known[second.ref]) == ("dismissed", "past")


def test_advice_is_of_its_project_and_only_who_works_there_decides(platform: Platform, clock: Clock) -> None:
    live(platform, clock, 0, ("gpu:b", "job:idle", 0.0), days=2)
    found = find(platform, days=2)["idle"]
    platform.call(CreateProject(project="search"))
    with pytest.raises(NotFound):
        platform.call(TakeAdvice(project="search", advice=found.ref))
    reader = token_of(platform, "rita", {"ads": "viewer"})
    assert platform.call(ListAdvice(project="ads"), token=reader)
    with pytest.raises(NotAuthorised):
        platform.call(TakeAdvice(project="ads", advice=found.ref), token=reader)
    stranger = token_of(platform, "sam", {"search": "developer"})
    with pytest.raises(NotAuthorised):
        platform.call(FindAdvice(project="ads"), token=stranger)


def test_what_was_not_taken_cannot_be_measured_nor_decided_twice(platform: Platform, clock: Clock) -> None:
    live(platform, clock, 0, ("gpu:b", "job:idle", 0.0), days=2)
    found = find(platform, days=2)["idle"]
    with pytest.raises(Conflict, match="only what was taken"):
        platform.call(MeasureAdvice(project="ads", advice=found.ref))
    platform.call(TakeAdvice(project="ads", advice=found.ref))
    with pytest.raises(Conflict, match="taken already"):
        platform.call(DismissAdvice(project="ads", advice=found.ref, note="no"))
    early = platform.call(MeasureAdvice(project="ads", advice=found.ref)).measured
    assert early is not None
    assert early.verdict == "too early"
