"""An endpoint that served several models in turn: its cost is divided between them by when each answered."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.compute.waterfall.clusters import T0, charge, row, table

from macadam.compute.waterfall import allocation, cascade, served
from macadam.compute.waterfall.seen import WHOLE
from macadam.compute.waterfall.served import Answering, Served
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.testing import open_platform
from macadam.values import instant, uuid7

FIRST = date(2026, 10, 1)
LIVE = {"owner": "endpoint:live", "project": "vision"}


def answering(*changes: tuple[float, str]) -> list[Answering]:
    """Hours after the begin of October."""
    return [Answering(since=T0.timestamp() + hours * 3600, model=model) for hours, model in changes]


def weights(found: list[Served]) -> dict[tuple[date, str], int]:
    return {(one.day, one.model): one.weight for one in found}


def test_time_is_divided_where_the_model_changed_and_only_time_that_was_seen_counts():
    seen = table(*(row(start=hour, **LIVE) for hour in (8, 9, 10, 11)))
    found = served.divided("vision", "endpoint:live", answering((0, "model:old"), (9, "model:new")), seen)
    assert weights(found) == {(FIRST, "model:old"): 250_000, (FIRST, "model:new"): 750_000}


def test_a_change_within_an_hour_divides_that_hour():
    found = served.divided(
        "vision", "endpoint:live", answering((0, "model:a"), (8.2, "model:b")), table(row(start=8, **LIVE))
    )
    assert weights(found) == {(FIRST, "model:a"): 200_000, (FIRST, "model:b"): 800_000}


def test_time_before_the_first_deployment_is_of_no_model_and_doubted_time_of_nobody():
    seen = table(row(start=1, **LIVE), row(start=2, **LIVE), row(start=3, suspect="stale", **LIVE))
    found = served.divided("vision", "endpoint:live", answering((2, "model:a")), seen)
    assert weights(found) == {(FIRST, ""): 500_000, (FIRST, "model:a"): 500_000}


def test_each_day_is_divided_by_itself():
    seen = table(row(start=10, **LIVE), row(start=34, **LIVE))
    found = served.divided("vision", "endpoint:live", answering((0, "model:a"), (24, "model:b")), seen)
    assert weights(found) == {(FIRST, "model:a"): WHOLE, (date(2026, 10, 2), "model:b"): WHOLE}


@given(
    st.lists(st.tuples(st.floats(0, 72), st.sampled_from(["model:a", "model:b", "model:c"])), max_size=6),
    st.lists(st.integers(0, 71), min_size=1, max_size=8, unique=True),
    st.integers(1, 10**9),
)
def test_models_sum_to_the_endpoint_and_the_whole_to_the_bill(changes, hours, micros):
    seen = table(*(row(start=hour, **LIVE) for hour in hours))
    spread = cascade.spread([charge(micros, hours=72)], seen)
    parts = served.divided("vision", "endpoint:live", answering(*sorted(changes)), seen)
    divided = cascade.waterfalls(spread, "model", served=parts)
    assert sum(one.bill.micros for one in divided) == micros
    hours_of = {one.key: sum(line.gpu_hours for line in one.lines) for one in cascade.waterfalls(spread, "owner")}
    by_model = sum(line.gpu_hours for one in divided for line in one.lines)
    assert by_model == pytest.approx(sum(hours_of.values()), abs=1e-4)
    totals: dict[date, int] = {}
    for one in parts:
        totals[one.day] = totals.get(one.day, 0) + one.weight
    assert all(abs(total - WHOLE) <= 6 for total in totals.values())


def said(
    kind: str, subject: str, hours: float, uses: tuple[str, ...] = (), project: str = "vision", **body: object
) -> Leaf:
    policies = "sha256:" + "0" * 64
    return Leaf(
        id=uuid7(),
        at=instant(T0 + timedelta(hours=hours)),
        kind=kind,
        outcome="done",
        actor="principal:local",
        project=project,
        subject=subject,
        uses=list(uses),
        request=policies,
        decision={"id": uuid7(), "effect": "allow", "policies": ["p"], "policy_set": policies},
        body=body,
    )


def test_runs_and_endpoints_count_for_the_models_that_their_leaves_name(tmp_path):
    leaves = [
        said("models.train", "run:a", 0, model="detector"),
        said("serving.deploy", "endpoint:live", 0, ("model:detector@1",)),
        said("serving.deploy", "endpoint:live", 2.5, ("model:foreign@1",), project="speech"),
        said("serving.deploy", "endpoint:live", 1, ("model:detector@2",)),
        said("serving.deploy", "endpoint:mixed", 0, ("model:detector@2",)),
        said("serving.deploy", "endpoint:mixed", 3.5, ("model:other@1",)),
        said("serving.rollback", "endpoint:mixed", 3.75, ("model:detector@2",)),
    ]
    owners = ("run:a", "run:b", "endpoint:live", "endpoint:mixed")
    with open_platform(tmp_path) as platform:
        platform.ports.sql.write(lambda sql: [ledger.queue(sql, leaf) for leaf in leaves])
        usage = table(*(row(start=hour, owner=owner) for hour, owner in enumerate(owners)))
        spread = cascade.spread([charge(4000, hours=4)], usage)
        with platform.ports.sql.read() as sql:
            models, parts = allocation._models(sql, spread), served.of_endpoints(sql, spread.rows, usage)
    assert models == {"run:a": "model:detector"}
    assert {(one.project, one.owner, one.model, one.weight) for one in parts} == {
        ("vision", "endpoint:live", "model:detector", WHOLE),
        ("vision", "endpoint:mixed", "model:detector", 750_000),
        ("vision", "endpoint:mixed", "model:other", 250_000),
    }
    found = cascade.waterfalls(spread, "model", models=models, served=parts)
    assert {one.key: one.bill.micros for one in found} == {"model:detector": 2750, "model:other": 250, "": 1000}


def test_a_spread_without_endpoints_asks_no_leaf():
    usage = table(row())
    spread = cascade.spread([charge(10)], usage)
    assert served.of_endpoints(None, spread.rows, usage) == ()  # type: ignore[arg-type]
