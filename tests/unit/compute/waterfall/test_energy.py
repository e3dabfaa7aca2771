"""Energy by owner: what was measured counts as it is, what was not lies between nothing and the power limit."""

import pytest
from hypothesis import given
from unit.compute.waterfall import clusters
from unit.compute.waterfall.clusters import row, table

from macadam.compute.catalogue import gpus
from macadam.compute.waterfall import energy
from macadam.compute.waterfall.energy import Span
from macadam.errors import InvalidInput

ONE = Span.exactly(1)
KWH = 3.6e6
POWER = gpus.find("h100-sxm-80gb").power


def test_measured_energy_is_taken_as_it_is_and_grows_by_the_building_and_the_grid():
    (found,) = energy.by_owner(
        table(row(energy_joules=2 * KWH)),
        pue=Span(value=1.5, low=1.2, high=2),
        grams_per_kwh=Span(value=400, low=300, high=500),
    )
    assert found.devices_kwh == Span.exactly(2)
    assert found.facility_kwh == Span(value=3, low=2.4, high=4)
    assert found.co2_kg.value == pytest.approx(1.2)
    assert (found.co2_kg.low, found.co2_kg.high) == (pytest.approx(0.72), pytest.approx(2))
    assert found.measured == 1


def test_time_without_energy_widens_the_interval_up_to_the_power_limit():
    (found,) = energy.by_owner(table(row(energy_joules=0.5 * KWH), row(start=1)), pue=ONE, grams_per_kwh=None)
    assert found.devices_kwh.low == pytest.approx(0.5)
    assert found.devices_kwh.value == pytest.approx(1.0)
    assert found.devices_kwh.high == pytest.approx(0.5 + POWER / 1000)
    assert found.measured == pytest.approx(0.5)
    assert found.co2_kg is None


def test_machines_without_gpus_count_for_no_gpus_energy():
    host = row(device="host:n0", model="", host_cpu=4.0, host_cores=16.0)
    (found,) = energy.by_owner(table(row(energy_joules=KWH), host), pue=ONE, grams_per_kwh=None)
    assert (found.devices_kwh, found.gpu_hours) == (Span.exactly(1), 1)
    assert energy.by_owner(table(host), pue=ONE, grams_per_kwh=None) == ()


def test_what_a_slice_may_have_drawn_unseen_is_its_part_of_the_limit():
    (found,) = energy.by_owner(table(row(device="gpu:0/mig:1", slice=0.25)), pue=ONE, grams_per_kwh=None)
    assert found.devices_kwh.high == pytest.approx(POWER / 4000)
    assert found.gpu_hours == 0.25


def test_suspect_rows_count_as_not_measured():
    (found,) = energy.by_owner(table(row(energy_joules=9 * KWH, suspect="stuck")), pue=ONE, grams_per_kwh=None)
    assert found.devices_kwh.low == 0
    assert found.devices_kwh.high == pytest.approx(POWER / 1000)
    assert found.measured == 0


@given(clusters.usage())
def test_bounds_hold_whatever_was_collected(usage):
    for one in energy.by_owner(table(*usage), pue=Span(value=1.5, low=1.1, high=2), grams_per_kwh=Span.exactly(300)):
        assert 0 <= one.devices_kwh.low <= one.devices_kwh.value <= one.devices_kwh.high
        assert one.owner


def test_a_pue_below_one_and_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(InvalidInput, match="make energy"):
        energy.by_owner(table(row()), pue=Span.exactly(0.9), grams_per_kwh=None)
    with pytest.raises(InvalidInput, match="does not hold"):
        Span(value=1, low=2, high=3)
