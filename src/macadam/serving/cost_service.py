"""What each version of a model costs for every accurate answer: measured work and bills, over labels that have arrived."""

from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from macadam import catalog
from macadam.compute.waterfall import allocation, metering, stages
from macadam.compute.waterfall.service import core_price
from macadam.compute.waterfall.stages import CostSpan, Measured, Price
from macadam.data import reading as tables
from macadam.journal.types import TABLE
from macadam.models import registry as models
from macadam.models.types import ModelVersion
from macadam.operations import Context, Transaction, operation
from macadam.serving import accuracy_cost, registry
from macadam.serving.accuracy_cost import Judged, Part, VersionCost
from macadam.serving.schema import feedback
from macadam.serving.types import AccuracyCost, CostAccuracy, Deployment

_YES_OR_NO = (0.0, 1.0)


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    version: str
    endpoint: str
    score: float
    threshold: float


def _read_answers(context: Context, request: CostAccuracy) -> tuple[_Answer, ...]:
    """The sealed answers of the model's versions, at all endpoints where one of them answers now."""
    with context.read() as sql:
        models.model(sql, request.project, request.model)
        location = catalog.location(sql, request.project, TABLE)
        serving = [one for one in registry.all_of(sql, request.project) if one.model == request.model]
    return tuple(answer for one in serving if location for answer in _of_endpoint(context, one, location))


def _of_endpoint(context: Context, one: Deployment, location: str) -> list[_Answer]:
    granted = context.authorise("predictions:read", f"endpoint:{one.endpoint}")
    wanted = ("id", "version", "score")
    rows = tables.predictions(granted, context.ports.tables, one.endpoint, location, columns=wanted)
    columns = (rows.column(name).to_pylist() for name in wanted)
    return [
        _Answer(id=str(id_), version=str(version), endpoint=one.endpoint, score=float(score), threshold=one.threshold)
        for id_, version, score in zip(*columns, strict=True)
        if str(version).partition("@")[0] == f"model:{one.model}"
    ]


@operation(
    CostAccuracy,
    permission="costs:read",
    http="GET /api/v1/projects/{project}/models/{model}/costs",
    cli="cost accuracy",
    resource="model:{model}",
    prepare=_read_answers,
)
def cost_accuracy(tx: Transaction, request: CostAccuracy, answers: tuple[_Answer, ...]) -> AccuracyCost:
    """Raises NotFound."""
    labels = _labels(tx.sql, request.project)
    price = core_price(tx.ports.settings)
    measured = metering.measured(tx.sql, request.project)
    versions = models.versions(tx.sql, request.project, request.model)
    sources = _Sources(
        measured=measured, billed=allocation.billed(tx.sql, tx.ports.objects, request.project), price=price
    )
    made = [_version(tx.sql, one, len(versions), answers, labels, sources, request.over) for one in versions]
    return AccuracyCost(
        project=request.project,
        model=request.model,
        versions=tuple(sorted(made, key=lambda one: one.version)),
        price=price,
        left_out="data, features and other shared work (`macadam cost stages`), storage, network, and people",
    )


def _labels(sql: sa.Connection, project: str) -> dict[str, float]:
    query = sa.select(feedback.c.prediction, feedback.c.label).where(feedback.c.project == project)
    return {row.prediction: row.label for row in sql.execute(query)}


class _Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What costs are taken from. A bill for an owner's machines takes the place of what was measured and priced here."""

    measured: Sequence[Measured]
    billed: Mapping[str, Mapping[str, int]]
    price: Price

    @property
    def currency(self) -> str:
        return self.price.core_hour.currency

    def bill_of(self, owner: str) -> CostSpan | None:
        """In the currency that cores are priced in: currencies are not added up."""
        micros = self.billed.get(owner, {}).get(self.currency)
        return None if micros is None else stages.exactly(micros, self.currency)


def _version(
    sql: sa.Connection,
    version: ModelVersion,
    versions: int,
    answers: Sequence[_Answer],
    labels: Mapping[str, float],
    sources: _Sources,
    over: int,
) -> VersionCost:
    own = [answer for answer in answers if answer.version == version.ref]
    judged = _judged(own, labels)
    run = models.run(sql, version.project, version.run)
    bill = sources.bill_of(run.ref)
    training = bill or stages.priced(run.seconds, run.cpu_seconds, sources.price)
    about = [one for one in sources.measured if one.subject == f"model:{version.model}"]
    care = stages.by_stage([one for one in about if stages.stage_of(one.operation) != "train"], sources.price)
    caring = _part_of(stages.total((one.cost for one in care), sources.currency), 1, versions)
    once = "all of it" if over <= judged.predictions else f"{judged.predictions} of {over} predictions expected"
    serving, how = _serving(version.ref, own, answers, sources)
    parts = (
        Part(
            what="training",
            cost=accuracy_cost.share_of_once(training, judged.predictions, over),
            how=f"{'billed for' if bill else 'measured by'} {run.ref}; {once}",
        ),
        Part(
            what="registration, evaluation, gates",
            cost=accuracy_cost.share_of_once(caring, judged.predictions, over),
            how=f"measured by the dispatcher for the model, one of {versions} versions; {once}",
        ),
        Part(what="serving", cost=serving, how=how),
    )
    return accuracy_cost.of_version(version.ref, judged, parts, over=over, currency=sources.currency)


def _judged(own: Sequence[_Answer], labels: Mapping[str, float]) -> Judged:
    """Right: the score is on the label's side of the threshold. A label that is not yes or no judges nothing."""
    known = [(labels[one.id], one) for one in own if labels.get(one.id) in _YES_OR_NO]
    right = sum((one.score >= one.threshold) == (label == 1) for label, one in known)
    return Judged(predictions=len(own), labelled=len(known), right=right)


def _serving(
    version: str, own: Sequence[_Answer], answers: Sequence[_Answer], sources: _Sources
) -> tuple[CostSpan, str]:
    """The bill for the version's machines, and of each endpoint's bill, or its gateways' work, the version's part of answers."""
    bill = sources.bill_of(version)
    cost = bill or stages.nothing(sources.currency)
    told = ["billed for the version"] if bill else []
    for endpoint in sorted({one.endpoint for one in own}):
        mine, here = (sum(one.endpoint == endpoint for one in some) for some in (own, answers))
        found, how = _of_gateways(endpoint, sources)
        if how:
            cost = cost.plus(_part_of(found, mine, here))
            told.append(f"{how}, {mine} of {here} answers")
    if told:
        return cost, "; ".join(told)
    missing = "no bill and no gateway's work (`macadam cost meter`) is known for its endpoints"
    return cost, f"not measured: {missing}" if own else "it has not answered yet"


def _of_gateways(endpoint: str, sources: _Sources) -> tuple[CostSpan, str]:
    name = f"endpoint:{endpoint}"
    bill = sources.bill_of(name)
    if bill:
        return bill, f"billed for {name}"
    work = [one for one in sources.measured if one.operation == stages.GATEWAY and one.subject == name]
    spans = (stages.priced(one.wall, one.cpu, sources.price) for one in work)
    return stages.total(spans, sources.currency), f"gateways' time for {name}" if work else ""


def _part_of(cost: CostSpan, part: int, whole: int) -> CostSpan:
    if part == whole:
        return cost
    return accuracy_cost.share_of_once(cost, part, whole)
