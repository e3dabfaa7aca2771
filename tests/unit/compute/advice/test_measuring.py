import random
from datetime import timedelta

import pytest
from unit.compute.advice.telling import START, told, usage

from macadam.compute.advice.held import Held, days, summarise
from macadam.compute.advice.measuring import measure, ratio
from macadam.values import Money

EURO = Money(micros=4_000_000, currency="EUR")
RATES = {"gpu:a": EURO, "gpu:b": EURO, "gpu:cheap": Money(micros=1_000_000, currency="EUR")}
BEFORE = days(START, START + timedelta(days=7))
SINCE = days(START + timedelta(days=7), START + timedelta(days=14))
FIRST, SECOND = range(7 * 24), range(7 * 24, 14 * 24)


def held(*parts: list[dict[str, object]]) -> tuple[Held, ...]:
    return summarise(usage(*parts))


def idling(hours: range) -> list[dict[str, object]]:
    return told(hours, "job:idle", device="gpu:b", gpu_active=0.0, sm_active=0.0)


def test_what_idled_and_is_gone_shows_as_its_price() -> None:
    found = measure(held(told(FIRST, "job:1"), idling(FIRST)), BEFORE, held(told(SECOND, "job:1")), SINCE, RATES, RATES)
    assert found.verdict == "saved"
    assert found.saving is not None
    assert found.saving.micros == pytest.approx(720 * 4_000_000)
    assert found.days == (7, 7)


def test_doing_less_is_no_saving() -> None:
    half = told([hour for hour in SECOND if hour % 2], "job:1")
    found = measure(held(told(FIRST, "job:1")), BEFORE, held(half), SINCE, RATES, RATES)
    assert found.verdict == "nothing shown"
    assert found.saving == Money(micros=0, currency="EUR")


def test_the_same_work_on_a_cheaper_gpu_shows() -> None:
    there = told(SECOND, "job:1", device="gpu:cheap", model="a100-sxm-80gb", sm_active=0.8)
    found = measure(held(told(FIRST, "job:1", sm_active=0.2)), BEFORE, held(there), SINCE, RATES, RATES)
    assert found.verdict == "saved"


def test_the_same_work_on_the_same_gpu_at_a_lower_price_shows() -> None:
    half = {device: Money(micros=rate.micros // 2, currency=rate.currency) for device, rate in RATES.items()}
    found = measure(held(told(FIRST, "job:1")), BEFORE, held(told(SECOND, "job:1")), SINCE, RATES, half)
    assert found.verdict == "saved"
    assert found.before is not None
    assert found.after == pytest.approx(found.before / 2)


def test_what_got_dearer_is_said_to_cost_more() -> None:
    more = held(told(SECOND, "job:1"), idling(SECOND))
    assert measure(held(told(FIRST, "job:1")), BEFORE, more, SINCE, RATES, RATES).verdict == "cost more"


def test_a_difference_within_the_noise_of_days_is_not_called_a_saving() -> None:
    def days_of(first: int, *active: float) -> list[list[dict[str, object]]]:
        return [told(range((first + n) * 24, (first + n + 1) * 24), "job:1", sm_active=a) for n, a in enumerate(active)]

    before = held(*days_of(0, 0.4, 0.8, 0.3, 0.9, 0.5, 0.7, 0.4))
    since = held(*days_of(7, 0.9, 0.4, 0.8, 0.3, 0.5, 0.8, 0.4))  # 2.5% more work for the same money
    found = measure(before, BEFORE, since, SINCE, RATES, RATES)
    assert found.saving is not None
    assert found.saving.micros > 0
    assert found.verdict == "nothing shown"


def test_two_days_are_too_early_and_a_device_without_a_price_shows_nothing() -> None:
    mine = held(told(FIRST, "job:1"))
    assert measure(mine, BEFORE, mine, SINCE[:2], RATES, RATES).verdict == "too early"
    assert (
        measure(mine, BEFORE, held(told(SECOND, "job:1", device="gpu:free")), SINCE, RATES, RATES).verdict
        == "nothing shown"
    )


def test_all_work_on_one_day_gives_no_interval_and_no_verdict() -> None:
    once = held(told(range(7 * 24, 7 * 24 + 5), "job:1"))
    found = measure(held(told(FIRST, "job:1")), BEFORE, once, SINCE, RATES, RATES)
    assert found.verdict == "nothing shown"
    assert found.saving is None


def test_noise_alone_is_seldom_taken_for_a_saving() -> None:
    """A 90% interval errs on one side in 5% of the cases; 200 draws stay below 12% with near certainty."""
    chance = random.Random(7)
    wrong = 0
    for _ in range(200):
        old = [(chance.uniform(80, 120), chance.uniform(40, 60)) for _ in range(14)]
        new = [(chance.uniform(80, 120), chance.uniform(40, 60)) for _ in range(14)]
        was, spread = ratio(*zip(*old, strict=True))
        now, other = ratio(*zip(*new, strict=True))
        wrong += was - now > 1.77 * (spread**2 + other**2) ** 0.5
    assert wrong < 24


def test_the_spread_of_a_ratio_is_that_of_many_draws() -> None:
    chance = random.Random(3)
    drawn = [
        ratio([chance.gauss(100, 10) for _ in range(30)], [chance.gauss(50, 5) for _ in range(30)]) for _ in range(400)
    ]
    values = [value for value, _ in drawn]
    middle = sum(values) / len(values)
    real = (sum((value - middle) ** 2 for value in values) / len(values)) ** 0.5
    assert sum(spread for _, spread in drawn) / len(drawn) == pytest.approx(real, rel=0.15)
