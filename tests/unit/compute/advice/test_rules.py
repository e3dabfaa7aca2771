from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.advice.telling import GIB, START, over, told, usage

from macadam.compute.advice import buying, sharing, smaller, stopping, tuning
from macadam.compute.advice.held import hour_of, summarise
from macadam.compute.advice.saving import interval
from macadam.compute.catalogue.gpus import gpus
from macadam.compute.catalogue.prices import Kind, Price
from macadam.values import Money

EURO = Money(micros=4_000_000, currency="EUR")
RATES = {"gpu:a": EURO, "gpu:b": EURO, "gpu:c": EURO}


def price(gpu: str, euros: float, kind: Kind = "on-demand", gpus_of: int = 1) -> Price:
    return Price(
        provider="cloud", region="eu", instance=f"{gpu}.x", gpu=gpu, gpus=gpus_of, kind=kind,
        per_gpu_hour=Money(micros=round(euros * 1e6), currency="EUR"), dated=date(2026, 11, 1), source="https://example.org",
    )  # fmt: skip


NOW = hour_of(START + timedelta(days=4))


def test_what_has_idled_for_days_is_to_be_stopped_now_and_saves_what_stopping_after_two_hours_would_have() -> None:
    held = summarise(usage(told(range(24), "job:1"), told(range(24, 96), "job:1", gpu_active=0.0, sm_active=0.0)))
    (found,) = stopping.stop(held, RATES, over(4), NOW)
    assert found.what == "Stop job:1 now."
    assert "the last 72 h" in found.because
    assert found.saving.hours == pytest.approx((72 - 2) / 4 * 30)
    assert found.saving.expected == Money(micros=round(found.saving.hours * 4_000_000), currency="EUR")
    assert found.saving.low_hours < found.saving.hours <= found.saving.high_hours


def test_what_idled_and_has_ended_is_not_to_be_stopped_now() -> None:
    held = summarise(usage(told(range(24), "job:1", gpu_active=0.0)))
    (found,) = stopping.stop(held, RATES, over(4), NOW)
    assert found.what.startswith("Have job:1 stopped after 2 h")


def test_short_breaks_and_busy_work_ask_for_nothing() -> None:
    busy = told(range(96), "job:1")
    breaks = told([hour for hour in range(96) if hour % 8], "job:2", device="gpu:b")
    pauses = told([hour for hour in range(96) if not hour % 8], "job:2", device="gpu:b", gpu_active=0.0)
    assert stopping.stop(summarise(usage(busy, breaks, pauses)), RATES, over(4), NOW) == []


def test_an_endpoint_that_nobody_asks_at_night_scales_to_zero_and_is_never_just_stopped() -> None:
    night = [hour for hour in range(96) if hour % 24 < 8]
    day = [hour for hour in range(96) if hour % 24 >= 8]
    held = summarise(usage(told(day, "endpoint:e"), told(night, "endpoint:e", gpu_active=0.0)))
    assert stopping.stop(held, RATES, over(4), NOW) == []
    (found,) = stopping.scale_to_zero(held, RATES, over(4))
    assert found.saving.hours == pytest.approx(4 * (8 - 0.25) / 4 * 30)
    assert "4 times" in found.risks


def test_without_a_price_hours_are_said_and_money_is_not() -> None:
    held = summarise(usage(told(range(96), "job:1", gpu_active=0.0)))
    (found,) = stopping.stop(held, {}, over(4), NOW)
    assert found.saving.expected is None
    assert found.saving.hours > 0


def light(owner: str, device: str, gib: float, sm: float, hours: range = range(96)) -> list[dict[str, object]]:
    return told(hours, owner, device=device, memory_bytes=int(gib * GIB), sm_active=sm, gpu_active=sm)


def test_two_that_fit_on_one_gpu_are_put_together() -> None:
    held = summarise(usage(light("job:1", "gpu:a", 20, 0.3), light("job:2", "gpu:b", 30, 0.4)))
    (found,) = sharing.share(held, RATES, over(4))
    assert found.kind == "consolidate"
    assert found.subjects == ("job:1", "job:2")
    assert found.saving.hours == pytest.approx(720)  # one device, all of the time


def test_only_the_hours_in_which_both_were_held_are_saved() -> None:
    held = summarise(usage(light("job:1", "gpu:a", 20, 0.3), light("job:2", "gpu:b", 20, 0.3, range(24))))
    (found,) = sharing.share(held, RATES, over(4))
    assert found.saving.hours == pytest.approx(24 / 4 * 30)


def test_one_owner_of_two_half_empty_gpus_needs_one() -> None:
    held = summarise(usage(light("job:1", "gpu:a", 20, 0.3), light("job:1", "gpu:b", 20, 0.3)))
    (found,) = sharing.share(held, RATES, over(4))
    assert found.kind == "fewer-gpus"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"gib": 40, "sm": 0.1}, {"gib": 40, "sm": 0.1}, id="their memory does not fit"),
        pytest.param({"gib": 4, "sm": 0.5}, {"gib": 4, "sm": 0.5}, id="their load does not fit"),
        pytest.param({"gib": 4, "sm": 0.1, "hours": range(48)}, {"gib": 4, "sm": 0.1, "hours": range(48, 96)}, id="never at once"),
    ],
)  # fmt: skip
def test_what_does_not_fit_stays_apart(first: dict[str, object], second: dict[str, object]) -> None:
    held = summarise(usage(light("job:1", "gpu:a", **first), light("job:2", "gpu:b", **second)))  # type: ignore[arg-type]
    assert sharing.share(held, RATES, over(4)) == []


def test_projects_and_doubted_telemetry_are_kept_apart() -> None:
    other = [row | {"project": "search"} for row in light("job:2", "gpu:b", 4, 0.1)]
    assert sharing.share(summarise(usage(light("job:1", "gpu:a", 4, 0.1), other)), RATES, over(4)) == []
    doubted = [row | {"suspect": "frozen"} for row in light("job:2", "gpu:b", 4, 0.1)]
    assert sharing.share(summarise(usage(light("job:1", "gpu:a", 4, 0.1), doubted)), RATES, over(4)) == []


loads = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.5, 79)), min_size=1, max_size=8)


@settings(max_examples=30)
@given(loads)
def test_no_shared_gpu_is_ever_overfull_and_no_more_is_saved_than_was_held(loads: list[tuple[float, float]]) -> None:
    parts = [light(f"job:{n}", f"gpu:{n}", gib, sm, range(24)) for n, (sm, gib) in enumerate(loads)]
    held = summarise(usage(*parts))
    by_device = {one.device: one for one in held}
    memory = gpus()["h100-sxm-80gb"].memory
    proposals = sharing.share(held, {}, over(1))
    for found in proposals:
        together = [by_device[device] for device in found.devices]
        assert sum(one.load or 0 for one in together) <= sharing.LOAD + 1e-9
        assert sum(one.memory_peak or 0 for one in together) <= memory
    assert sum(found.saving.hours for found in proposals) <= sum(one.hours for one in held) * 30


def test_light_work_moves_to_the_cheapest_gpu_that_has_what_it_used() -> None:
    held = summarise(
        usage(told(range(96), "job:1", sm_active=0.05, tensor_active=0.02, dram_active=0.03, memory_bytes=10 * GIB))
    )
    offers = [price("a100-sxm-80gb", 1.8), price("l4-24gb", 0.7), price("t4-16gb", 0.4)]
    (found,) = smaller.smaller(held, RATES, offers, over(4))
    assert "l4-24gb" in found.what  # the T4 is cheaper and has no bf16
    assert found.saving.expected == Money(micros=720 * 3_300_000, currency="EUR")
    assert found.saving.hours == 0


@pytest.mark.parametrize(
    "facts",
    [
        {"sm_active": 0.9},
        {"dram_active": 0.9},
        {"memory_bytes": 70 * GIB},
        {"tensor_active": None},
        {"model": "unheard of"},
    ],
)
def test_work_that_needs_it_or_was_not_measured_stays_where_it_is(facts: dict[str, object]) -> None:
    used = {"sm_active": 0.05, "tensor_active": 0.02, "dram_active": 0.03, "memory_bytes": 10 * GIB} | facts
    held = summarise(usage(told(range(96), "job:1", **used)))
    assert smaller.smaller(held, RATES, [price("l4-24gb", 0.7)], over(4)) == []


def test_a_machine_is_rented_whole_however_few_of_its_gpus_are_needed() -> None:
    used = {"sm_active": 0.05, "tensor_active": 0.02, "dram_active": 0.03, "memory_bytes": 10 * GIB}
    held = summarise(usage(told(range(96), "job:1", **used)))
    assert smaller.smaller(held, RATES, [price("l4-24gb", 0.7, gpus_of=8)], over(4)) == []  # 5.60 for the one it needs
    (found,) = smaller.smaller(held, RATES, [price("l4-24gb", 0.7, gpus_of=2)], over(4))
    assert found.saving.expected == Money(micros=720 * 2_600_000, currency="EUR")


def test_a_price_in_another_currency_is_not_compared() -> None:
    held = summarise(
        usage(told(range(96), "job:1", sm_active=0.05, tensor_active=0.0, dram_active=0.03, memory_bytes=GIB))
    )
    dollars = {"gpu:a": Money(micros=4_000_000, currency="USD")}
    assert smaller.smaller(held, dollars, [price("l4-24gb", 0.7)], over(4)) == []


@given(st.lists(st.integers(0, 6), min_size=24, max_size=240), st.floats(0.05, 0.95))
def test_no_other_level_of_commitment_would_have_cost_less(demand: list[int], ratio: float) -> None:
    def cost(level: int) -> float:
        return sum(level * ratio + max(0, hour - level) for hour in demand)

    chosen = buying.level([float(hour) for hour in demand], ratio)
    assert cost(chosen) == pytest.approx(min(cost(level) for level in range(8)))


def test_a_year_is_signed_for_on_a_month_of_history_and_not_on_less() -> None:
    steady = told(range(24 * 30), "job:1")
    offer = {"h100-sxm-80gb": price("h100-sxm-80gb", 2.4, "committed-1y")}
    rates = {"h100-sxm-80gb": EURO}
    (found,) = buying.commit(summarise(usage(steady)), rates, offer, over(30))
    assert found.what.startswith("Commit to 1 h100-sxm-80gb for a year")
    assert found.saving.expected == Money(micros=720 * 1_600_000, currency="EUR")
    assert buying.commit(summarise(usage(steady)), rates, offer, over(20)) == []


def test_only_who_said_so_is_moved_to_spot() -> None:
    held = summarise(usage(told(range(96), "job:1"), told(range(96), "job:2", device="gpu:b")))
    spot = {"h100-sxm-80gb": price("h100-sxm-80gb", 1.0, "spot")}
    (found,) = buying.on_spot(held, RATES, spot, frozenset({"job:2"}), over(4))
    assert found.subjects == ("job:2",)
    assert found.saving.expected == Money(micros=720 * 2_900_000, currency="EUR")  # 4.00 - 1.1 x 1.00


def test_busy_work_without_tensor_cores_is_told_of_mixed_precision_and_nothing_is_promised() -> None:
    held = summarise(usage(told(range(96), "job:1", sm_active=0.9, tensor_active=0.0)))
    (found,) = tuning.precision(held, RATES, over(4))
    assert found.saving.low_hours == 0
    assert found.saving.hours == pytest.approx(720 * (1 - 1 / 1.5))
    old = summarise(usage(told(range(96), "job:1", sm_active=0.9, tensor_active=0.0, model="p100-sxm-16gb")))
    assert tuning.precision(old, RATES, over(4)) == []  # it has no tensor cores


def test_thin_kernels_with_room_in_memory_are_told_of_larger_batches() -> None:
    held = summarise(usage(told(range(96), "job:1", gpu_active=0.95, sm_active=0.2, memory_bytes=10 * GIB)))
    (found,) = tuning.batch(held, RATES, over(4))
    assert found.saving.hours == pytest.approx(720 * (1 - 0.2 / 0.7))
    full = summarise(usage(told(range(96), "job:1", gpu_active=0.95, sm_active=0.2, memory_bytes=60 * GIB)))
    assert tuning.batch(full, RATES, over(4)) == []


@given(st.lists(st.floats(0, 24), max_size=40))
def test_an_interval_holds_its_mean_and_stays_within_what_is_possible(daily: list[float]) -> None:
    expected, low, high = interval(daily, 24 * 30)
    assert 0 <= low <= expected <= high <= 24 * 30
