"""What operations cost, by stage: what was used at least, the whole machine for as long at most."""

from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam import operations
from macadam.compute.waterfall import stages
from macadam.compute.waterfall.stages import Measured, Price
from macadam.errors import InvalidInput
from macadam.values import Money

PRICE = Price(core_hour=Money(micros=36_000), cores=2, source="test")


def measured(operation: str, *, wall: float, cpu: float, calls: int = 1) -> Measured:
    return Measured(
        project="p", operation=operation, subject="s", day=date(2026, 10, 1), calls=calls, wall=wall, cpu=cpu
    )


def test_a_stage_costs_its_processor_time_at_least_and_the_whole_machine_at_most():
    (train,) = stages.by_stage([measured("models.train", wall=100, cpu=150)], PRICE)
    assert train.stage == "train"
    assert (train.cost.value.micros, train.cost.low.micros, train.cost.high.micros) == (1500, 1500, 2000)


def test_stages_come_in_the_order_of_the_road_with_their_sums():
    found = stages.by_stage(
        [
            measured("serving.gateway", wall=5, cpu=1, calls=9),
            measured("data.ingest", wall=1, cpu=1),
            measured("data.register_source", wall=1, cpu=1),
            measured("models.evaluate", wall=1, cpu=1),
            measured("nobody.knows", wall=1, cpu=1),
        ],
        PRICE,
    )
    assert [(one.stage, one.calls) for one in found] == [("ingest", 2), ("evaluate", 1), ("serve", 9), ("other", 1)]


def test_every_operation_has_a_stage_that_is_printed():
    assert {stages.stage_of(name) for name in operations.table()} <= set(stages.ORDER)


def test_what_was_done_for_no_project_is_the_platforms_own():
    found = stages.by_stage(
        [
            measured("models.train", wall=1, cpu=1),
            msgspec.structs.replace(measured("data.ingest", wall=1, cpu=2), project=""),
            msgspec.structs.replace(measured("compute.show_stages", wall=1, cpu=4), project="*"),
        ],
        PRICE,
    )
    assert [(one.stage, one.calls, one.cpu) for one in found] == [("train", 1, 1), ("platform", 2, 6)]


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_bounds_hold_for_whatever_was_measured(wall, cpu):
    cost = stages.priced(wall, cpu, PRICE)
    assert 0 <= cost.low.micros <= cost.value.micros <= cost.high.micros


def test_currencies_are_not_added_up_and_impossible_prices_are_refused():
    with pytest.raises(InvalidInput, match="added up"):
        stages.nothing("USD").plus(stages.nothing("EUR"))
    with pytest.raises(InvalidInput, match="cores"):
        Price(core_hour=Money(micros=1), cores=0, source="")
