"""The values that planning and applying pass on: what files ask for, what there is, and the steps from one to the other.

Plans are kept by a durable flow, so a field that is added has a default: an apply of an earlier release goes on.
"""

import msgspec

from macadam.access.policy_types import PolicyVersion
from macadam.data.types import Contract
from macadam.delivery.project import Project
from macadam.features.types import Materialisation, TrainingSet
from macadam.journal.types import JournalPolicy
from macadam.models.types import Evaluation, ModelVersion, Run, Thresholds
from macadam.values import digest_of


class From(msgspec.Struct, frozen=True, kw_only=True, tag="from", tag_field="$"):
    """A field of an earlier step's outcome. text: as text, whatever it is."""

    step: str
    field: str = "ref"
    text: bool = True


class StartOf(msgspec.Struct, frozen=True, kw_only=True, tag="start", tag_field="$"):
    """The instant at which the apply began: one value for all its attempts at a step."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. key: unique in its plan; request: the type's name; model: whose gate decides if it is done.
    under_policies: done only if the policies that the files hold are approved.
    """

    key: str
    request: str
    arguments: dict[str, object]
    title: str
    why: str
    model: str = ""
    under_policies: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What apply would do, in order. desired: digest of all that the project's files ask for; approvers: by model, whom
    to ask; left: what there is and the files no longer name, in sentences: apply removes nothing.
    """

    project: str
    directory: str
    desired: str
    steps: tuple[Step, ...]
    approvers: dict[str, str] = {}
    left: tuple[str, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        return not self.steps


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What the files ask for. definitions, views: of features.py and their version, '' without one; tables: by service,
    what it reads; code: digest of the code that trains; files: digest of each source file by source and name;
    policies: reference of the text of the policies, '' without any.
    """

    project: Project
    contracts: dict[str, Contract]
    definitions: dict[str, object]
    views: str
    tables: dict[str, tuple[str, ...]]
    code: str
    files: dict[str, dict[str, str]]
    policies: str = ""

    @property
    def views_ref(self) -> str:
        """The reference of the definitions, as the features room names them."""
        return f"views:{self.project.name}@{self.views}"

    @property
    def digest(self) -> str:
        """Over everything that decides what is done."""
        p = self.project
        parts = (p.document, p.contracts, p.gates, self.views, self.code, self.files, self.policies)
        return digest_of(msgspec.json.encode(parts, order="deterministic"))


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """A registered source. files: name → digest of what was ingested from it."""

    directory: str
    path: str
    format: str
    contract: str
    table: str
    files: dict[str, str]


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a model, newest first. code: run reference → digest of the code that it ran."""

    runs: tuple[Run, ...] = ()
    code: dict[str, str] = {}
    versions: tuple[ModelVersion, ...] = ()
    thresholds: Thresholds | None = None
    evaluations: tuple[Evaluation, ...] = ()
    aliases: dict[str, int] = {}


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint serves. version: reference of the model version."""

    version: str


class Actual(msgspec.Struct, frozen=True, kw_only=True):
    """What is registered. journal: what it asks of its journal; contracts: reference → digest; snapshots: table → reference
    of the published snapshot; models: those that the files name; other_models: names of the others; policies: all
    that was proposed, newest first, without the text.
    """

    exists: bool = False
    journal: JournalPolicy = JournalPolicy()
    contracts: dict[str, str] = {}
    sources: dict[str, SourceState] = {}
    snapshots: dict[str, str] = {}
    views: str = ""
    training_sets: tuple[TrainingSet, ...] = ()
    models: dict[str, ModelState] = {}
    other_models: tuple[str, ...] = ()
    endpoints: dict[str, EndpointState] = {}
    online: tuple[Materialisation, ...] = ()
    policies: tuple[PolicyVersion, ...] = ()


Reference = str | From
