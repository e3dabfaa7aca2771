"""Requests and values of the serving room: endpoints, deployments, predictions and their labels."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from macadam.compute.waterfall.stages import Price
from macadam.operations import Request
from macadam.personal.types import PersonalFields
from macadam.serving.accuracy_cost import VersionCost
from macadam.values import Name

PredictionId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(prediction:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", description="a prediction's id"
    ),
]
VersionText = Annotated[
    str, msgspec.Meta(pattern=r"^([1-9][0-9]{0,8}|[a-z][a-z0-9_-]{0,62})\Z", description="a number or an alias")
]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One version at one endpoint, as it was decided. id: of the ledger leaf.

    version: the model's reference; artifact, signature and model_signature: digests ('' = was never signed, and is not
    loaded); service: the feature service's definition, None
    where requests bring the features themselves; threshold: the score from which on the label is 1; replaced: the
    deployment that answered before, '' if none; personal: which fields are a person's, None if none is.
    """

    id: str
    project: str
    endpoint: str
    model: str
    number: int
    version: str
    artifact: str
    signature: str
    service: dict[str, Any] | None
    threshold: float
    replaced: str
    actor: str
    at: datetime
    personal: PersonalFields | None = None
    model_signature: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and what answers there now. deployment: id of the ledger leaf; previous: where a rollback leads."""

    project: str
    name: str
    model: str
    number: int
    version: str
    artifact: str
    deployment: str
    previous: str
    features: str
    """Name of the feature service, '' where requests bring the features."""
    path: str
    """Where the gateway answers."""
    at: datetime
    personal: PersonalFields | None = None


class Deploy(Request[Endpoint], frozen=True, kw_only=True):
    """Let a registered version answer at an endpoint; a new endpoint is made.

    version: its number or an alias. In a high-risk project it must be the champion or have been approved.
    subject: the input that names the person a prediction is about, where contracts do not say. personal: further inputs
    and features (or `output`) that are personal, beside those that contracts classify so.
    """

    project: Name
    endpoint: Name
    model: Name
    version: VersionText = "champion"
    subject: str = ""
    personal: tuple[str, ...] = ()


class Rollback(Request[Endpoint], frozen=True, kw_only=True):
    """Let the deployment before the present one answer again."""

    project: Name
    endpoint: Name


class ListEndpoints(Request[tuple[Endpoint, ...]], frozen=True, kw_only=True):
    """List the project's endpoints."""

    project: Name


class ShowEndpoint(Request[Endpoint], frozen=True, kw_only=True):
    """Show one endpoint."""

    project: Name
    endpoint: Name


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came true. prediction: its id; at: when it became known."""

    prediction: PredictionId
    label: float
    at: datetime


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded. changed: labels that replaced another; same: repeated ones; digest: of the batch."""

    id: str
    labels: int
    new: int
    changed: int
    same: int
    digest: str


class RecordFeedback(Request[Feedback], frozen=True, kw_only=True):
    """Record what came true for predictions, in one batch. A later label of a prediction replaces the earlier."""

    project: Name
    labels: Annotated[list[Label], msgspec.Meta(min_length=1, max_length=50_000)]


class PersonalValues(msgspec.Struct, frozen=True, kw_only=True):
    """Personal values of a prediction, and whether the caller sees them. fields: paths; values: by path, if readable.

    said: in words. erased: when; certificate: of the erasure, '' if there was none.
    """

    state: Literal["readable", "withheld", "erased"]
    said: str
    subject: str
    fields: tuple[str, ...]
    values: dict[str, Any] = {}
    erased: datetime | None = None
    certificate: str = ""


class PredictionPage(msgspec.Struct, frozen=True, kw_only=True):
    """A journaled prediction. record: as it was journaled; segment: '' while it is not sealed; label: None if none;
    personal: what became of the values that are not in the record, None if it has none.
    """

    id: str
    record: dict[str, Any]
    segment: str
    label: float | None = None
    label_at: datetime | None = None
    personal: PersonalValues | None = None


class ShowPrediction(Request[PredictionPage], frozen=True, kw_only=True):
    """Show one prediction: its record, segment and label."""

    project: Name
    prediction: PredictionId


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A proof bundle. bundle: the file's exact text; key: the ledger's verifier keys, for comparison with the one
    that the verifier got by another way; announcements: what leads from an older key to the newest, '' if there is one.
    """

    prediction: str
    bundle: str
    bytes: int
    leaves: int
    key: str
    announcements: str


class Prove(Request[Proof], frozen=True, kw_only=True):
    """Prove one prediction with one small file that is verified without Macadam."""

    project: Name
    prediction: PredictionId


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller keeps of one prediction. receipt: the file's exact text; key: the ledger's verifier key, for
    comparison with the one that was got by another way.
    """

    prediction: str
    receipt: str
    bytes: int
    key: str


class FetchReceipt(Request[Receipt], frozen=True, kw_only=True):
    """Fetch the receipt of a prediction that the caller asked for: it is checked without Macadam (`macadam_verify`)."""

    project: Name
    prediction: PredictionId


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How right the sealed predictions of one version were. metrics is empty while one outcome is all there is."""

    version: str
    predictions: int
    labelled: int
    positives: int
    metrics: dict[str, float]


class LiveQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Live quality of an endpoint. Records that are not sealed are not counted yet; metrics: over all versions."""

    project: str
    endpoint: str
    predictions: int
    labelled: int
    positives: int
    metrics: dict[str, float]
    versions: tuple[Accuracy, ...]


class LiveAccuracy(Request[LiveQuality], frozen=True, kw_only=True):
    """Compare an endpoint's sealed predictions with the labels that have arrived."""

    project: Name
    endpoint: Name


class AccuracyCost(msgspec.Struct, frozen=True, kw_only=True):
    """What accurate answers of a model cost, by version. left_out: what is in none of the figures."""

    project: str
    model: str
    versions: tuple[VersionCost, ...]
    price: Price
    left_out: str


class CostAccuracy(Request[AccuracyCost], frozen=True, kw_only=True):
    """Show what each version of a model costs for every accurate prediction, with intervals.

    over: predictions that training and evaluation are spread over; 0: those that there were
    """

    project: Name
    model: Name
    over: Annotated[int, msgspec.Meta(ge=0, le=10**15)] = 0
