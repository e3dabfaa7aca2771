"""What the models room is asked and what it answers: runs, versions, thresholds, evaluations, gates, approvals, aliases.

Frozen values without I/O. `version` in a request is a version's number or an alias, as text; references in answers
are complete (`model:delay-risk@7`) and can be passed on as they are.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.operations import Request
from macadam.values import Digest, Money, Name, RefText

WholeNumber = Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)]
Parameter = bool | WholeNumber | float | str | None
ParameterName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,62}\Z")]
VersionText = Annotated[
    str, msgspec.Meta(pattern=r"^([1-9][0-9]{0,8}|[a-z][a-z0-9_-]{0,62})\Z", description="a number or an alias")
]
EntryText = Annotated[
    str,
    msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_/]*\.py:[A-Za-z_][A-Za-z0-9_]*\Z", description="FILE.py:FUNCTION"),
]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all answers of this room."""


# --- runs


class Code(Value, frozen=True, kw_only=True):
    """The code that ran. archive: digest of a tar file with exactly the files that the run could see; commit: of the
    git repository around them ('' if there is none); diff: digest of the uncommitted changes ('' if there are none).
    """

    archive: str
    files: int
    commit: str = ""
    diff: str = ""


class Environment(Value, frozen=True, kw_only=True):
    """What the run was executed with. digest: of the lock, a text of `name==version` lines; packages: how many."""

    ref: str
    digest: str
    python: str
    platform: str
    packages: int


class Hardware(Value, frozen=True, kw_only=True):
    """The machine that the run had. memory_bytes: installed."""

    cpu: str
    cores: int
    memory_bytes: int


class Equality(Value, frozen=True, kw_only=True):
    """How far the exported model is from the Python model on the same rows, in the unit of the output."""

    rows: int
    largest_difference: float


class Run(Value, frozen=True, kw_only=True):
    """One training, finished or failed. metrics: the last value logged of each; history: digest of all of them (JSON).

    seconds: wall clock; cpu_seconds: user + system; peak_bytes: resident; energy_joules: of the machine's processors
    while it ran, None where it cannot be read (energy_note says why). artifact and signature: digests, '' if failed.
    """

    ref: str
    id: str
    project: str
    model: str
    state: Literal["finished", "failed"]
    entry: str
    training_sets: dict[str, str]
    snapshots: tuple[str, ...]
    rows: dict[str, int]
    params: dict[str, Parameter]
    seed: int
    code: Code
    environment: Environment | None
    hardware: Hardware
    metrics: dict[str, float]
    history: str
    artifact: str
    artifact_bytes: int
    signature: str
    equality: Equality | None
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    energy_joules: float | None
    energy_note: str
    cost: Money
    author: str
    at: datetime
    error: str = ""
    traceback: str = ""


class Train(Request[Run], frozen=True, kw_only=True):
    """Run a project's training code on training sets and record all that is needed to repeat it.

    source: the project's directory on the platform's machine, or the digest of the archive of an earlier run.
    training_sets: split → reference; `train` is required, and categories are learned from it alone. timeout: seconds,
    0 = none. Code that raises is recorded as a failed run and then raises UserCodeFailed; repeating the call with its
    idempotency key answers with that run (state `failed`).
    """

    project: Name
    model: Name
    source: str
    training_sets: dict[Name, RefText]
    entry: EntryText = "train.py:train"
    params: dict[ParameterName, Parameter] = msgspec.field(default_factory=dict)
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    timeout: Annotated[float, msgspec.Meta(ge=0)] = 0


class ListRuns(Request[tuple[Run, ...]], frozen=True, kw_only=True):
    """List runs, newest first. model: '' = of all models."""

    project: Name
    model: str = ""
    limit: Limit = 100


class ShowRun(Request[Run], frozen=True, kw_only=True):
    """Show one run. run: its id or reference."""

    project: Name
    run: str


# --- the registry


class ModelVersion(Value, frozen=True, kw_only=True):
    """One registered version. artifact: digest of the ONNX bytes; signature: digest of the signature's JSON (what goes
    in and comes out); model_signature and provenance: digests of the bundles that sign the two files and say how they
    came to be; author: who registered it; trainer: who ran it.
    """

    ref: str
    project: str
    model: str
    number: int
    run: str
    artifact: str
    artifact_bytes: int
    signature: str
    author: str
    trainer: str
    at: datetime
    format: Literal["onnx"] = "onnx"
    model_signature: str = ""
    provenance: str = ""
    aliases: tuple[str, ...] = ()


class Model(Value, frozen=True, kw_only=True):
    """A registered model. aliases: alias → version number."""

    project: str
    name: str
    versions: int
    aliases: dict[str, int]
    author: str
    at: datetime


class ModelPage(Value, frozen=True, kw_only=True):
    """A model with its versions, newest first."""

    model: Model
    versions: tuple[ModelVersion, ...]


class RegisterVersion(Request[ModelVersion], frozen=True, kw_only=True):
    """Register a finished run's model as the next version. run: its id or reference."""

    project: Name
    model: Name
    run: str


class ListModels(Request[tuple[Model, ...]], frozen=True, kw_only=True):
    """List the project's models."""

    project: Name


class ShowModel(Request[ModelPage], frozen=True, kw_only=True):
    """Show a model, its versions and aliases."""

    project: Name
    model: Name


class ShowVersion(Request[ModelVersion], frozen=True, kw_only=True):
    """Show one version by number or alias."""

    project: Name
    model: Name
    version: VersionText


# --- signatures and provenance


class SigningKey(Value, frozen=True, kw_only=True):
    """A public key that this platform signs models with. id: SHA-256 of the PEM, as hex; at: since when it is known."""

    number: int
    id: str
    public: str
    at: datetime


class Attestations(Value, frozen=True, kw_only=True):
    """What vouches for a version. files: name → digest; signature: the model-signing bundle; provenance: the bundle of
    the SLSA statement; both as text that has to be kept byte for byte. key: PEM that both are checked with.
    """

    ref: str
    model: str
    number: int
    files: dict[str, str]
    signature: str
    provenance: str
    key: str
    key_id: str


class ShowAttestations(Request[Attestations], frozen=True, kw_only=True):
    """Show what vouches for a version: its signature, its provenance and the key of both."""

    project: Name
    model: Name
    version: VersionText


class FilePart(Value, frozen=True, kw_only=True):
    """A piece of a version's file. part: its number, from 0 on; parts: how many there are."""

    name: str
    digest: str
    size: int
    part: int
    parts: int
    data: bytes


class ReadModelFile(Request[FilePart], frozen=True, kw_only=True):
    """Read a version's file, in parts of at most 8 MiB. file: model.onnx or signature.json."""

    project: Name
    model: Name
    version: VersionText
    file: Literal["model.onnx", "signature.json"]
    part: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0


class ListSigningKeys(Request[tuple[SigningKey, ...]], frozen=True, kw_only=True):
    """List the keys that models are signed with, newest first. All are trusted; the newest one signs."""


class RotateSigningKey(Request[SigningKey], frozen=True, kw_only=True):
    """Sign models with a new key from now on. What the keys before it signed stays valid."""


# --- thresholds and evaluations


class Thresholds(Value, frozen=True, kw_only=True):
    """What a version must show, as declared. text: gates.yaml; digest: of that text."""

    ref: str
    project: str
    model: str
    digest: str
    text: str
    author: str
    at: datetime


class DeclareThresholds(Request[Thresholds], frozen=True, kw_only=True):
    """Declare what versions must show, before they are evaluated. text: the contents of gates.yaml."""

    project: Name
    model: Name
    text: Annotated[str, msgspec.Meta(max_length=20_000)]


class ShowThresholds(Request[Thresholds], frozen=True, kw_only=True):
    """Show the thresholds in force for a model."""

    project: Name
    model: Name


class Interval(Value, frozen=True, kw_only=True):
    """A measured value with the bounds of its 95% interval (bootstrap percentiles)."""

    value: float
    low: float
    high: float


class Slice(Value, frozen=True, kw_only=True):
    """The rows with one value of a category. metrics is empty when there are too few rows or only one outcome;
    note says so.
    """

    column: str
    value: str
    rows: int
    positives: int
    metrics: dict[str, Interval]
    note: str = ""


class Comparison(Value, frozen=True, kw_only=True):
    """The evaluated version minus the champion, on the same rows and resamples. champion: its reference; metrics
    is empty where the champion cannot be measured on these rows, and note says why.
    """

    champion: str
    metrics: dict[str, Interval]
    note: str = ""


class Evaluation(Value, frozen=True, kw_only=True):
    """Measured quality of one version on one set of rows.

    overlap: rows of the set that the version's run has seen in training; seed and resamples: of the bootstrap;
    drawn_by: what it drew, whole days (UTC) or, of rows of fewer than 10 days, single rows; threshold: the probability
    from which on `accuracy` counts a row as positive.
    """

    ref: str
    id: str
    project: str
    model: str
    version: int
    model_ref: str
    thresholds: str
    training_set: str
    rows: int
    positives: int
    overlap: int
    metrics: dict[str, Interval]
    slices: tuple[Slice, ...]
    comparison: Comparison | None
    threshold: float
    resamples: int
    seed: int
    seconds: float
    author: str
    at: datetime
    drawn_by: Literal["row", "day"] = "row"


class Evaluate(Request[Evaluation], frozen=True, kw_only=True):
    """Measure a version on a training set that it has not learned from, under thresholds declared before."""

    project: Name
    model: Name
    version: VersionText
    training_set: RefText
    resamples: Annotated[int, msgspec.Meta(ge=100, le=2000)] = 300
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


class ListEvaluations(Request[tuple[Evaluation, ...]], frozen=True, kw_only=True):
    """List a model's evaluations, newest first."""

    project: Name
    model: Name
    limit: Limit = 100


class ShowEvaluation(Request[Evaluation], frozen=True, kw_only=True):
    """Show one evaluation. evaluation: its id or reference."""

    project: Name
    evaluation: str


# --- gates, approvals, aliases


class Check(Value, frozen=True, kw_only=True):
    """One thing that the gate looked at. criterion: such as metrics.roc_auc; text: the finding in words."""

    criterion: str
    passed: bool
    text: str
    required: str = ""
    found: str = ""


class GateResult(Value, frozen=True, kw_only=True):
    """What the gate says about a version now. reasons: the findings that refuse it; measures_pass: whether only
    approvals are missing; evaluation: '' if there is none.
    """

    ref: str
    id: str
    project: str
    model: str
    version: int
    model_ref: str
    verdict: Literal["pass", "refused"]
    measures_pass: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    thresholds: str
    evaluation: str
    approvals: tuple[str, ...]
    at: datetime


class CheckGate(Request[GateResult], frozen=True, kw_only=True):
    """Ask the gate about a version, and record what it says. A refusal is an answer, not an error."""

    project: Name
    model: Name
    version: VersionText


class Approval(Value, frozen=True, kw_only=True):
    """One person's approval of one artifact."""

    ref: str
    id: str
    project: str
    model: str
    version: int
    model_ref: str
    artifact: Digest
    approver: str
    note: str
    at: datetime


class Approve(Request[Approval], frozen=True, kw_only=True):
    """Approve a version's exact artifact. Refused to whoever registered or trained it."""

    project: Name
    model: Name
    version: VersionText
    note: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class ListApprovals(Request[tuple[Approval, ...]], frozen=True, kw_only=True):
    """List the approvals of a version, newest first."""

    project: Name
    model: Name
    version: VersionText


class Alias(Value, frozen=True, kw_only=True):
    """Where an alias points. gate and approvals: what allowed it ('' and empty for an alias that is not protected);
    previous: the version number it pointed to before, 0 if none.
    """

    ref: str
    project: str
    model: str
    alias: str
    version: int
    model_ref: str
    previous: int
    gate: str
    approvals: tuple[str, ...]
    author: str
    at: datetime


class SetAlias(Request[Alias], frozen=True, kw_only=True):
    """Point an alias at a version. A protected alias (champion) moves only through the gate.

    Raises GateRefused, naming every piece of evidence that is missing or not good enough.
    """

    project: Name
    model: Name
    alias: Name
    version: VersionText
