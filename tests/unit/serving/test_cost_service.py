"""What an accurate answer costs, asked of a home with a trained version and labelled answers."""

import dataclasses

import pytest
from unit.serving import homes
from unit.serving.homes import ENDPOINT, MODEL, PROJECT
from unit.serving.test_gateway import predict, ready
from unit.serving.test_sealing import records, write

from macadam import testing
from macadam.app.platform import Platform
from macadam.compute.waterfall import allocation, metering
from macadam.compute.waterfall.requests import RecordWork, ShowStages
from macadam.errors import InvalidInput, NotAuthorised, NotFound
from macadam.faces import gateway_process
from macadam.faces.gateway_meter import GatewayMeter
from macadam.journal.types import SealClosed
from macadam.ledger.types import ShowLog
from macadam.models.types import ShowModel
from macadam.serving.types import CostAccuracy, Label, RecordFeedback, ShowEndpoint
from macadam.values import utc_now


@pytest.fixture
def answered(deployed: Platform) -> list[str]:
    """Ten sealed answers with scores 0.0 to 0.9."""
    made = records(deployed.call(ShowEndpoint(project=PROJECT, endpoint=ENDPOINT)), 10)
    write(deployed, made)
    deployed.call(SealClosed(project=PROJECT))
    return [record.id for record in made]


def test_the_cost_of_an_accurate_answer_is_training_care_and_serving_over_right_answers(deployed, answered):
    labels = [Label(prediction=id_, label=float(n >= 6), at=utc_now()) for n, id_ in enumerate(answered[:8])]
    deployed.call(RecordFeedback(project=PROJECT, labels=labels))
    deployed.call(RecordWork(project=PROJECT, subject=f"endpoint:{ENDPOINT}", calls=10, wall=20, cpu=4))
    found = deployed.call(CostAccuracy(project=PROJECT, model=MODEL))
    first, second = found.versions
    assert (first.version, first.judged.predictions, first.judged.labelled, first.judged.right) == (
        f"model:{MODEL}@1",
        10,
        8,
        7,
    )
    parts = {part.what: part.cost.value.micros for part in first.parts}
    assert parts["serving"] == round(4 * 48_000 / 3600)
    assert parts["training"] > 0
    assert first.total.value.micros == sum(parts.values())
    assert first.per_accurate.value == pytest.approx(first.total.value.micros / (7 + 2 * 7 / 8))
    assert first.per_accurate.low < first.per_accurate.value < first.per_accurate.high
    assert second.judged.predictions == 0
    assert second.per_accurate.value is None


def test_serving_that_nobody_measured_is_said_to_be_missing(deployed, answered):
    first = deployed.call(CostAccuracy(project=PROJECT, model=MODEL)).versions[0]
    serving = next(part for part in first.parts if part.what == "serving")
    assert serving.cost.value.micros == 0
    assert "not measured" in serving.how
    assert first.per_accurate.note == "no label has arrived"


def test_a_bill_takes_the_place_of_what_was_measured(deployed, answered, monkeypatch):
    run = deployed.call(ShowModel(project=PROJECT, model=MODEL)).versions[-1].run
    bills = {
        run: {"USD": 5_000_000},
        f"endpoint:{ENDPOINT}": {"USD": 2_000_000, "EUR": 7},
        f"model:{MODEL}@1": {"USD": 10},
    }
    monkeypatch.setattr(allocation, "billed", lambda *_: bills)
    deployed.call(RecordWork(project=PROJECT, subject=f"endpoint:{ENDPOINT}", calls=10, wall=20, cpu=4))
    first = deployed.call(CostAccuracy(project=PROJECT, model=MODEL)).versions[0]
    parts = {part.what: (part.cost.value.micros, part.how) for part in first.parts}
    assert parts["training"][0] == 5_000_000
    assert parts["serving"][0] == 2_000_010
    assert "billed for" in parts["training"][1]
    assert "10 of 10 answers" in parts["serving"][1]


def test_training_is_spread_over_the_predictions_that_are_expected(deployed, answered):
    now, later = (
        deployed.call(CostAccuracy(project=PROJECT, model=MODEL, over=over)).versions[0] for over in (0, 1000)
    )
    training = [next(p.cost.value.micros for p in one.parts if p.what == "training") for one in (now, later)]
    assert training[1] == pytest.approx(training[0] / 100, abs=1)


def test_work_of_a_gateway_is_a_stage_and_leaves_a_leaf(deployed):
    deployed.call(RecordWork(project=PROJECT, subject=f"endpoint:{ENDPOINT}", calls=10, wall=20, cpu=3600))
    deployed.keep_work()
    found = deployed.call(ShowStages(project=PROJECT))
    stages = {one.stage: one for one in found.stages}
    assert stages["serve"].cost.low.micros == 48_000
    assert "deploy" in stages
    assert found.total.value.micros == sum(one.cost.value.micros for one in found.stages)
    assert (
        len(deployed.call(ShowLog(project=PROJECT, kind="compute.record_work", text=f"endpoint:{ENDPOINT}")).entries)
        == 1
    )


def test_only_who_runs_things_reports_work_and_a_stranger_sees_no_cost(deployed):
    viewer = testing.token_of(deployed, "principal:vera", {PROJECT: "viewer"})
    stranger = testing.token_of(deployed, "principal:sam", {})
    work = RecordWork(project=PROJECT, subject="endpoint:x", calls=1, wall=1, cpu=1)
    with pytest.raises(NotAuthorised):
        deployed.call(work, token=viewer)
    for request in (ShowStages(project=PROJECT), CostAccuracy(project=PROJECT, model=MODEL)):
        deployed.call(request, token=viewer)
        with pytest.raises(NotAuthorised):
            deployed.call(request, token=stranger)


def test_a_model_that_is_not_there_and_negative_work_are_errors(deployed):
    with pytest.raises(NotFound):
        deployed.call(CostAccuracy(project=PROJECT, model="nobody"))
    with pytest.raises(InvalidInput):
        deployed.call(RecordWork(project=PROJECT, subject="endpoint:x", calls=1, wall=-1, cpu=1))
    with deployed.ports.sql.read() as sql:
        assert all(one.subject != "endpoint:x" for one in metering.measured(sql, PROJECT))
    assert homes.PROJECT == PROJECT


def test_a_real_gateways_time_is_reported_for_the_endpoint_that_it_answered_for(home, deployed, token, monkeypatch):
    with homes.gateway(home) as process, process.client(token) as client:
        ready(client)
        for _ in range(20):
            assert predict(client).status_code == 200
        gateway_process._remember(home, process.process.pid)
        port = int(process.url.rpartition(":")[2])
        settings = dataclasses.replace(deployed.settings.server, gateway_port=port)
        monkeypatch.setattr(deployed, "settings", dataclasses.replace(deployed.settings, server=settings))
        GatewayMeter()(deployed)
    serve = next(one for one in deployed.call(ShowStages(project=PROJECT)).stages if one.stage == "serve")
    assert serve.calls == 20
    assert serve.cpu > 0
    assert serve.wall > 0
