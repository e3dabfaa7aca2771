"""Where the money went: every millionth of every bill is in one step, whoever it is summed by, whatever telemetry says."""

from datetime import timedelta
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.waterfall import clusters
from unit.compute.waterfall.clusters import charge, row, table

from macadam.compute.waterfall import cascade
from macadam.compute.waterfall.types import By
from macadam.errors import InvalidInput

GROUPINGS: tuple[By, ...] = get_args(By)


def steps(charges, *rows, **options) -> dict[str, int]:
    """Micros by step, of bills in one currency."""
    (found,) = cascade.waterfalls(cascade.spread(charges, table(*rows), **options))
    return {line.step: line.amount.micros for line in found.lines}


def flags(charges, *rows, **options) -> set[str]:
    return {flag.what for flag in cascade.spread(charges, table(*rows), **options).flags}


def by_key(charges, *rows, by: By, **options) -> dict[str, int]:
    found = cascade.waterfalls(cascade.spread(charges, table(*rows)), by, **options)
    return {one.key: one.bill.micros for one in found}


# --- laws


@settings(max_examples=250)
@given(clusters.charges(), clusters.usage())
def test_random_bills_and_telemetry_always_sum_to_the_bill(charges, usage):
    found = cascade.spread(charges, table(*usage))
    bill = {}
    for one in charges:
        bill[one.effective.currency] = bill.get(one.effective.currency, 0) + one.effective.micros
    for by in (None, *GROUPINGS):
        summed = dict.fromkeys(bill, 0)
        for waterfall in cascade.waterfalls(found, by):
            assert sum(line.amount.micros for line in waterfall.lines) == waterfall.bill.micros
            summed[waterfall.bill.currency] += waterfall.bill.micros
        assert summed == bill, by
    days = dict.fromkeys(bill, 0)
    for day in cascade.days(found):
        days[day.bill.currency] += day.bill.micros
    assert days == bill


@given(clusters.charges(least=0), clusters.usage())
def test_nobody_is_charged_on_telemetry_that_is_not_believed(charges, usage):
    doubted = [{**one, "suspect": "stuck"} for one in usage]
    for waterfall in cascade.waterfalls(cascade.spread(charges, table(*doubted)), "owner"):
        assert waterfall.key == "" or waterfall.bill.micros == 0
        assert not {"idle", "low_sm", "below_peak", "effective"} & {line.step for line in waterfall.lines}


@given(clusters.charges(least=0), clusters.usage(), st.integers(0, 11), st.floats(0, 1))
def test_more_idle_time_never_makes_the_effective_part_larger(charges, usage, which, less):
    if not usage:
        return
    idler = [dict(one) for one in usage]
    chosen = idler[which % len(usage)]
    before = chosen["gpu_active"]
    if before is None or not 0 <= before <= 1:
        return
    chosen["gpu_active"] = before * less
    for was, now in zip(effective(charges, usage), effective(charges, idler), strict=True):
        assert now[0] == was[0]
        assert now[1] <= was[1] + len(usage) * len(charges) * 4  # a millionth for each part that is rounded


def effective(charges, usage) -> list[tuple[str, int]]:
    found = cascade.waterfalls(cascade.spread(charges, table(*usage)))
    return [(one.bill.currency, one.amount("effective")) for one in found]


@given(clusters.charges(), clusters.usage())
def test_rows_that_are_delivered_twice_change_nothing(charges, usage):
    once, twice = (
        cascade.waterfalls(cascade.spread(charges, table(*rows)), "owner") for rows in (usage, usage + usage)
    )
    assert once == twice


@given(clusters.charges(), clusters.usage(), st.randoms())
def test_the_order_of_charges_and_rows_makes_no_difference(charges, usage, random):
    distinct = list(
        {(one["device"], one["start"], one["owner"] or "", one["project"] or ""): one for one in usage}.values()
    )
    mixed_charges, mixed = charges[:], distinct[:]
    random.shuffle(mixed_charges)
    random.shuffle(mixed)
    first, second = (
        cascade.waterfalls(cascade.spread(c, table(*u)), "project")
        for c, u in ((charges, distinct), (mixed_charges, mixed))
    )
    assert [(w.key, w.bill, [(line.step, line.amount) for line in w.lines]) for w in first] == [
        (w.key, w.bill, [(line.step, line.amount) for line in w.lines]) for w in second
    ]


@given(clusters.usage())
def test_an_owner_never_pays_for_more_than_the_whole_device(usage):
    """However rows overlap: what owners pay for one device and hour is at most that hour's charge."""
    found = cascade.spread([charge(10_000_000, device="gpu:0", start=5)], table(*usage))
    paid = sum(one.bill.micros for one in cascade.waterfalls(found, "owner") if one.key)
    hours = sum(line.gpu_hours for one in cascade.waterfalls(found, "owner") for line in one.lines)
    assert 0 <= paid <= 10_000_000
    assert hours == pytest.approx(1, abs=1e-5)  # each line is rounded to a millionth


# --- each step


def test_a_gpu_hour_goes_down_from_the_bill_to_the_effective_part():
    usage = row(gpu_active=0.8, sm_active=0.5, tensor_active=0.2)
    assert steps([charge(10_000_000)], usage) == {
        "idle": 2_000_000,
        "low_sm": 3_000_000,
        "below_peak": 3_000_000,
        "effective": 2_000_000,
    }


def test_what_nobody_had_what_nobody_saw_and_what_was_paid_in_vain_are_told_apart():
    charges = [charge(20_000_000, id="1", gpus=2), charge(7_000_000, id="2", commitment="unused", node="")]
    usage = [row(share=0.5, seconds=1800, gpu_active=0.0, sm_active=0.0, tensor_active=0.0)]
    # Of two GPU-hours half an hour of one was seen, and half of that was somebody's.
    assert steps(charges, *usage) == {
        "unused": 7_000_000,
        "no_telemetry": 15_000_000,
        "unallocated": 2_500_000,
        "idle": 2_500_000,
    }


def test_suspect_rows_are_nobodys_and_are_listed_with_their_money():
    usage = [row(suspect="the same value on every pod"), row(device="gpu:1", owner="run:b")]
    found = cascade.spread([charge(10_000_000, gpus=2)], table(*usage))
    (doubt,) = cascade.doubts(found)
    assert (doubt.device, doubt.reason, doubt.amount.micros) == ("gpu:0", "the same value on every pod", 5_000_000)
    assert doubt.gpu_hours == pytest.approx(1)
    assert by_key([charge(10_000_000, gpus=2)], *usage, by="run") == {"": 5_000_000, "run:b": 5_000_000}


def test_taxes_credits_and_other_services_stand_in_lines_of_their_own():
    charges = [
        charge(1_900_000, id="1", category="tax"),
        charge(-500_000, id="2", category="credit"),
        charge(3_000_000, id="3", resource="bucket-1"),
        charge(400_000, id="4", category="usage", model="", resource="", node="", gpus=0),
        charge(0, id="5", category="purchase"),
    ]
    assert steps(charges, row()) == {"tax": 1_900_000, "credit": -500_000, "purchase": 0, "other": 3_400_000}


def test_a_commitment_is_paid_once_by_the_usage_that_it_covers():
    bought = charge(0, id="1", hours=720, category="purchase")
    used = charge(4_000_000, id="2", commitment="used")
    assert sum(steps([bought, used], row()).values()) == 4_000_000


def test_a_machine_without_gpus_is_shared_by_its_owners_without_a_waterfall():
    host = row(
        device="host:h1", node="h1", owner="run:a", share=0.25, gpu_active=None, sm_active=None, tensor_active=None
    )
    assert steps([charge(8_000_000, node="h1", gpus=0)], host) == {"host": 2_000_000, "unallocated": 6_000_000}


def test_a_charge_meets_its_device_its_machine_or_its_model():
    for facts in (
        {"device": "gpu:0"},
        {"node": "n0"},
        {"resource": "n0"},
        {"resource": "gpu:0"},
        {"model": "h100-sxm-80gb"},
    ):
        assert steps([charge(10, gpus=1, **facts)], row()) == {"effective": 10}, facts
    for facts in ({"device": "gpu:7"}, {"node": "n7"}, {"model": "a100"}):
        assert steps([charge(10, gpus=1, **facts)], row()) == {"no_telemetry": 10}, facts


def test_a_bill_by_model_pays_for_devices_that_nothing_more_specific_pays_for():
    charges = [charge(10, id="1", device="gpu:0"), charge(30, id="2", model="h100-sxm-80gb", gpus=1)]
    assert by_key(charges, row(), row(device="gpu:1", owner="run:b"), by="run") == {"run:a": 10, "run:b": 30}


def test_charges_of_days_are_cut_at_midnight_and_meet_each_days_usage():
    day = charge(48_000_000, start=-12, hours=48, device="gpu:0")
    usage = [row(start=hour, owner="run:a" if hour < 0 else "run:b") for hour in range(-12, 36)]
    assert by_key([day], *usage, by="run") == {"run:a": 12_000_000, "run:b": 36_000_000}
    assert by_key([day], *usage, by="day") == {
        "2026-09-30": 12_000_000,
        "2026-10-01": 24_000_000,
        "2026-10-02": 12_000_000,
    }


@pytest.mark.parametrize("rows", [[row()], [row(seconds=1800)], []])
def test_an_hour_that_two_charges_pay_for_is_one_hour(rows):
    charges = [charge(4_000_000, id="covered"), charge(6_000_000, id="not covered")]
    (found,) = cascade.waterfalls(cascade.spread(charges, table(*rows)))
    assert found.bill.micros == 10_000_000
    assert sum(line.gpu_hours for line in found.lines) == 1


def test_hours_that_charges_cover_one_after_another_are_counted_each():
    charges = [charge(hours=0.75, id="1"), charge(start=0.5, hours=0.5, id="2")]
    (found,) = cascade.waterfalls(cascade.spread(charges, table(row())))
    assert sum(line.gpu_hours for line in found.lines) == 1


def test_fractional_owners_pay_their_part():
    usage = [row(owner="run:a", share=0.25), row(owner="run:b", share=0.5)]
    assert by_key([charge(8)], *usage, by="run") == {"": 2, "run:a": 2, "run:b": 4}


def test_the_slices_of_a_gpu_share_it_equally_and_one_that_nobody_has_is_unallocated():
    usage = [row(device=f"gpu:0/mig:{n}", owner="run:a" if n < 3 else "") for n in range(7)]
    assert by_key([charge(7_000_000)], *usage, by="run") == pytest.approx({"": 4_000_000, "run:a": 3_000_000}, rel=1e-5)
    assert flags([charge(1)], *usage) == set()


def test_slices_pay_by_their_size_and_what_of_the_gpu_is_in_none_is_unallocated():
    usage = [
        row(device="gpu:0/mig:1", slice=0.5, owner="run:a"),
        row(device="gpu:0/mig:2", slice=0.25, owner="run:b", share=0.5),
    ]
    assert by_key([charge(8_000_000)], *usage, by="run") == {"": 3_000_000, "run:a": 4_000_000, "run:b": 1_000_000}


def test_slices_of_unknown_size_share_what_the_others_leave():
    usage = [row(device="gpu:0/mig:1", slice=0.5, owner="run:a")]
    usage += [row(device=f"gpu:0/mig:{n}", owner="run:b") for n in (2, 3)]
    assert by_key([charge(8_000_000)], *usage, by="run") == {"run:a": 4_000_000, "run:b": 4_000_000}


def test_slices_that_would_take_more_than_the_gpu_have_it_in_proportion():
    usage = [row(device="gpu:0/mig:1", slice=4 / 7, owner="run:a"), row(device="gpu:0/mig:2", slice=0.5, owner="run:b")]
    found = by_key([charge(15_000_000)], *usage, by="run")
    assert (found["run:a"], found["run:b"]) == (pytest.approx(8_000_000, abs=20), pytest.approx(7_000_000, abs=20))
    assert flags([charge(1)], *usage) == set()


def test_owners_who_had_a_device_one_after_another_within_an_hour_pay_for_their_time():
    usage = [row(owner="run:a", seconds=900), row(owner="run:b", seconds=1800), row(owner="", seconds=900)]
    assert by_key([charge(8)], *usage, by="run") == {"": 2, "run:a": 2, "run:b": 4}
    assert flags([charge(8)], *usage) == set()


def test_the_doubted_part_of_an_hour_is_a_row_of_its_own_and_the_rest_is_charged():
    usage = [row(seconds=2700), row(seconds=900, suspect="stuck")]
    assert steps([charge(8)], *usage) == {"effective": 6, "not_believed": 2}
    nobodys = [row(seconds=2700), row(owner="", seconds=900, suspect="stuck")]
    assert steps([charge(8)], *nobodys) == {"effective": 6, "not_believed": 2}


# --- what effective means


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"tensor_active": None}, {"idle": 2, "low_sm": 3, "effective": 5}),
        ({"tensor_active": None, "sm_active": None}, {"idle": 2, "not_measured": 8}),
        ({"sm_active": None}, {"idle": 2, "low_sm": 6, "effective": 2}),
        ({"gpu_active": None}, {"not_measured": 5, "below_peak": 3, "effective": 2}),
        ({"gpu_active": None, "sm_active": None, "tensor_active": None}, {"not_measured": 10}),
        ({"sm_active": 0.9}, {"idle": 2, "below_peak": 6, "effective": 2}),
    ],
)
def test_what_was_not_measured_is_not_made_up(measured, expected):
    usage = row(**{"gpu_active": 0.8, "sm_active": 0.5, "tensor_active": 0.2, **measured})
    assert steps([charge(10)], usage) == expected


def test_counted_model_flops_take_the_place_of_counters_and_it_is_said():
    usage = row(gpu_active=0.8, sm_active=0.5, tensor_active=0.2)
    found = cascade.spread([charge(10)], table(usage), mfu={"run:a": 0.4})
    (waterfall,) = cascade.waterfalls(found)
    assert waterfall.amount("effective") == 4
    assert {basis: amount.micros for basis, amount in waterfall.bases.items()} == {"mfu": 4}
    with pytest.raises(InvalidInput, match=r"MFU of run:a is 1\.5"):
        cascade.spread([charge(10)], table(usage), mfu={"run:a": 1.5})


# --- telemetry and bills that cannot be


def test_two_owners_who_each_claim_the_whole_get_half_each_and_it_is_flagged():
    usage = [row(owner="run:a"), row(owner="run:b")]
    assert by_key([charge(10)], *usage, by="run") == {"run:a": 5, "run:b": 5}
    assert "owners had more than the whole of a device" in flags([charge(10)], *usage)


def test_half_a_gpu_that_is_delivered_twice_stays_half_a_gpu():
    usage = [row(share=0.5), row(share=0.5)]
    assert by_key([charge(10)], *usage, by="run") == {"": 5, "run:a": 5}
    assert "usage delivered more than once" in flags([charge(10)], *usage)


def test_rows_that_overlap_in_time_are_charged_once():
    usage = [row(seconds=3600), row(start=0.5, seconds=1800, owner="run:b")]
    assert by_key([charge(10)], *usage, by="run") == {"run:a": 5, "run:b": 5}
    assert "usage that overlaps in time" in flags([charge(10)], *usage)


def test_a_row_that_is_not_believed_takes_nothing_from_one_that_is():
    usage = [row(owner="run:a", share=0.75), row(owner="run:b", share=1.0, suspect="stuck")]
    assert steps([charge(100)], *usage) == {"effective": 75, "not_believed": 25}


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"seconds": -60.0}, "usage whose seconds are missing, negative or of more than a year"),
        ({"seconds": None}, "usage whose seconds are missing, negative or of more than a year"),
        ({"start": None}, "usage without a time or a device"),
        ({"device": ""}, "usage without a time or a device"),
        ({"gpu_active": 1.5}, "usage whose gpu_active is not between 0 and 1"),
        ({"share": 3.0}, "usage whose share is not between 0 and 1"),
        ({"share": -1.0}, "usage whose share is not between 0 and 1"),
    ],
)
def test_what_cannot_be_is_flagged_and_charged_to_nobody(wrong, flag):
    usage = {**row(), **wrong}
    assert flag in flags([charge(10)], usage)
    assert set(steps([charge(10)], usage)) <= {"no_telemetry", "not_believed"}


def test_usage_from_the_future_is_left_out_and_said():
    usage = [row(), row(start=1, owner="run:b")]
    now = clusters.at(0.5)
    charges = [charge(10, hours=2)]
    assert steps(charges, *usage, now=now) == {"no_telemetry": 5, "effective": 5}
    assert "usage that begins in the future: a clock is wrong" in flags(charges, *usage, now=now)


def test_usage_that_nobody_billed_is_reported_and_costs_nothing():
    found = cascade.spread([charge(10)], table(row(), row(start=3), row(start=4, owner="run:b", share=0.5)))
    assert [(one.owner, round(one.gpu_hours, 6)) for one in found.uncharged] == [("run:a", 1.0), ("run:b", 0.5)]
    assert sum(one.bill.micros for one in cascade.waterfalls(found)) == 10


def test_a_charge_of_no_length_and_one_that_ends_before_it_begins_stay_unattributed():
    charges = [charge(10, id="1", hours=0), charge(5, id="2", hours=-1)]
    assert steps(charges, row()) == {"no_telemetry": 15}
    assert "charges that end before they begin" in flags(charges, row())


def test_currencies_are_never_added_up():
    charges = [charge(10, id="1"), charge(7, id="2", currency="EUR")]
    found = cascade.waterfalls(cascade.spread(charges, table(row())))
    assert {(one.bill.currency, one.bill.micros) for one in found} == {("USD", 10), ("EUR", 7)}


def test_a_charge_that_is_there_twice_and_one_of_a_century_are_refused():
    with pytest.raises(InvalidInput, match="there twice"):
        cascade.spread([charge(1), charge(1)], table())
    with pytest.raises(InvalidInput, match="days"):
        cascade.spread([charge(1, hours=24 * 36_500)], table())


def test_usage_with_other_columns_is_refused_with_their_names():
    with pytest.raises(InvalidInput, match="suspect"):
        cascade.spread([charge(1)], table().drop_columns(["suspect"]))


# --- whose it is


def test_costs_are_summed_by_project_run_model_endpoint_job_and_gpu():
    owners = ["run:a", "model:m@3", "model:m@4", "endpoint:e", "job:j"]
    usage = [
        row(start=hour, owner=owner, project="vision" if hour < 2 else "speech") for hour, owner in enumerate(owners)
    ]
    charges = [charge(10, hours=10, project="shared")]
    assert by_key(charges, *usage, by="model") == {"": 8, "model:m": 2}
    assert by_key(charges, *usage, by="model", models={"run:a": "model:m"}) == {"": 7, "model:m": 3}
    assert by_key(charges, *usage, by="endpoint") == {"": 9, "endpoint:e": 1}
    assert by_key(charges, *usage, by="job") == {"": 9, "job:j": 1}
    assert by_key(charges, *usage, by="project") == {"shared": 5, "speech": 3, "vision": 2}
    assert by_key(charges, *usage, by="gpu") == {"": 5, "h100-sxm-80gb": 5}


def test_a_projects_readers_see_its_own_rows_only():
    charges = [charge(10, hours=2), charge(5, id="2", category="tax", project="speech")]
    usage = [row(), row(start=1, owner="run:b", project="speech"), row(start=9, owner="run:b", project="speech")]
    own = cascade.spread(charges, table(*usage)).of_project("speech")
    assert {one.key: one.bill.micros for one in cascade.waterfalls(own, "owner")} == {"run:b": 5, "": 5}
    assert [one.owner for one in own.uncharged] == ["run:b"]
    assert own.flags == ()


def test_charges_finer_and_coarser_than_usage_give_the_same_answer():
    usage = [row(start=hour, owner=f"run:{hour % 3}", gpu_active=hour / 24) for hour in range(24)]
    fine = [charge(1_000_000, id=str(hour), start=hour) for hour in range(24)]
    coarse = [charge(24_000_000, hours=24)]
    assert steps(fine, *usage) == steps(coarse, *usage)
    assert by_key(fine, *usage, by="run") == by_key(coarse, *usage, by="run")
    assert timedelta(hours=24) == coarse[0].end - coarse[0].start
