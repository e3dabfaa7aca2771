"""What has to be done so that the platform is as a project's files say: a list of steps, each with its reason.

Pure: compares a `Desired` with an `Actual` and touches nothing. Reading both is `observe`'s work, doing the steps is
`flows`'. A step that needs the outcome of an earlier one names it with a `From`.
"""

from collections.abc import Iterator
from datetime import datetime

from macadam.data.types import Contract
from macadam.delivery import policy_steps
from macadam.delivery.project import FILE, ModelSection
from macadam.delivery.types import Actual, Desired, From, ModelState, Plan, Reference, StartOf, Step
from macadam.errors import Conflict, SourceInvalid
from macadam.features.types import TrainingSet
from macadam.journal.types import JournalPolicy
from macadam.models import gates
from macadam.models.gate_service import CHAMPION
from macadam.models.types import Evaluation, ModelVersion, Run


def compare(desired: Desired, actual: Actual) -> Plan:
    """The steps from what is to what is asked for. Raises Conflict for a contract changed under its old version."""
    steps: list[Step] = []
    _project(desired, actual, steps)
    _journal(desired, actual, steps)
    policies = policy_steps.of(desired, actual)  # early: what comes after is decided by them, if they are approved
    steps.extend(policies)
    changing = _data(desired, actual, steps)
    _views(desired, actual, steps)
    served: dict[str, Reference] = {}
    for name, section in desired.project.document.models.items():
        served[name] = _Model(desired, actual, name, section, changing, steps).plan()
    _online(desired, actual, changing, steps)  # before the endpoints, which would answer with features missing
    _endpoints(desired, actual, served, steps, policies_to_come=bool(policies))
    return Plan(
        project=desired.project.name,
        directory=str(desired.project.directory),
        desired=desired.digest,
        steps=tuple(steps),
        approvers={name: model.approver for name, model in desired.project.document.models.items() if model.approver},
        left=tuple(_left(desired, actual)),
    )


def _left(desired: Desired, actual: Actual) -> Iterator[str]:
    document = desired.project.document
    for name, source in sorted(actual.sources.items()):
        if name not in document.sources:
            yield f"Source {name} is not in {FILE}: it stays, and so does its table {source.table}."
    for name in actual.other_models:
        yield f"Model {name} is not in {FILE}: its versions and aliases stay."
    for name, endpoint in sorted(actual.endpoints.items()):
        if name not in document.endpoints:
            yield f"Endpoint {name} is not in {FILE}: it goes on answering with {endpoint.version}."
    yield from policy_steps.left(desired, actual)


def _project(desired: Desired, actual: Actual, steps: list[Step]) -> None:
    if actual.exists:
        return
    asked = desired.project.document.project
    arguments: dict[str, object] = {"owner": asked.owner, "description": asked.description, "risk": asked.risk}
    steps.append(
        Step(
            key="project",
            request="CreateProject",
            arguments={"project": asked.name, **arguments},
            title=f"Create project {asked.name}",
            why="It does not exist.",
        )
    )


def _journal(desired: Desired, actual: Actual, steps: list[Step]) -> None:
    project, now = desired.project.document.project, actual.journal
    asked = JournalPolicy(durability=project.durability, on_journal_failure=project.on_journal_failure)
    if asked == now:
        return
    facts: dict[str, object] = {"durability": asked.durability, "on_journal_failure": asked.on_journal_failure}
    steps.append(
        Step(
            key="journal",
            request="DeclareJournal",
            arguments={"project": project.name, **facts},
            title=f"Declare the journal: {asked.durability}, {asked.on_journal_failure}",
            why=f"It is {now.durability}, {now.on_journal_failure}.",
        )
    )


def _data(desired: Desired, actual: Actual, steps: list[Step]) -> set[str]:
    """Contracts, sources, files. Returns the tables that get new snapshots."""
    _contracts(desired, actual, steps)
    changing: set[str] = set()
    for name in desired.project.document.sources:
        _source(desired, actual, name, steps)
        if _ingest(desired, actual, name, steps):
            changing.add(desired.project.table(name))
    return changing


def _contracts(desired: Desired, actual: Actual, steps: list[Step]) -> None:
    planned: dict[str, str] = {}
    for source, contract in desired.contracts.items():
        ref = contract_ref(contract)
        known = actual.contracts.get(ref) or planned.get(ref)
        if known == contract.digest:
            continue
        if known:
            raise Conflict(
                f"Contract {contract.id} {contract.version} was changed, but keeps its version.",
                next_step="Raise `version` in the contract: what was checked under the old text keeps its meaning.",
                details={"contract": ref, "registered": known, "file": contract.digest},
            )
        planned[ref] = contract.digest
        before = sorted(r for r in actual.contracts if r.startswith(f"contract:{contract.id}@"))
        older = f"; {before[-1].partition('@')[2]} is registered" if before else ""
        steps.append(
            Step(
                key=ref,
                request="RegisterContract",
                arguments={"project": desired.project.name, "text": desired.project.contracts[source]},
                title=f"Register contract {contract.id} {contract.version}",
                why=f"contract {contract.id} {contract.version} is new{older}.",
            )
        )


def contract_ref(contract: Contract) -> str:
    """As the data room names it."""
    return f"contract:{contract.id}@{contract.version}"


def _source(desired: Desired, actual: Actual, name: str, steps: list[Step]) -> None:
    project, asked = desired.project, desired.project.document.sources[name]
    wanted = {
        "directory": str(project.directory),
        "path": asked.files,
        "format": asked.format,
        "contract": contract_ref(desired.contracts[name]),
        "table": project.table(name),
    }
    known = actual.sources.get(name)
    if known is None:
        why = f"source {name} is new."
    else:
        differs = [k for k, v in wanted.items() if getattr(known, k) != v and not (k == "format" and not v)]
        if not differs:
            return
        why = "; ".join(f"its {k} was {getattr(known, k)}" for k in differs) + "."
    steps.append(
        Step(
            key=f"source:{name}",
            request="RegisterSource",
            arguments={"project": project.name, "source": name, **wanted},
            title=f"Register source {name}",
            why=why,
        )
    )


def _ingest(desired: Desired, actual: Actual, name: str, steps: list[Step]) -> bool:
    known = actual.sources[name].files if name in actual.sources else {}
    _require_files(desired, actual, name)
    bytes_taken = set(known.values())
    files = []
    for file, digest in desired.files[name].items():
        # Bytes that were taken are not taken again under another name: ingesting would change nothing.
        if known.get(file, digest) != digest or (file not in known and digest not in bytes_taken):
            files.append(file)
            bytes_taken.add(digest)
    steps.extend(
        Step(
            key=f"ingest:{name}:{file}",
            request="Ingest",
            arguments={"project": desired.project.name, "source": name, "file": file},
            title=f"Ingest {file} into {desired.project.table(name)}",
            why=f"{file} has changed since it was ingested." if file in known else f"{file} is new.",
        )
        for file in files
    )
    return bool(files)


def _require_files(desired: Desired, actual: Actual, name: str) -> None:
    """Raises SourceInvalid where there is nothing to take. Files that were taken may be gone: their rows are kept."""
    asked, before = desired.project.document.sources[name], actual.sources.get(name)
    taken = before is not None and before.path == asked.files and before.files
    if desired.files[name] or taken:
        return
    bound = f" up to {asked.through}" if asked.through else ""
    raise SourceInvalid(
        f"Source {name!r} finds no file: nothing in {desired.project.directory} matches {asked.files}{bound}.",
        next_step="Put the files there, or correct `files` in macadam.yaml.",
        details={"source": name, "files": asked.files},
    )


def _views(desired: Desired, actual: Actual, steps: list[Step]) -> None:
    if not desired.views or desired.views == actual.views:
        return
    steps.append(
        Step(
            key="views",
            request="RegisterViews",
            arguments={"project": desired.project.name, "definitions": desired.definitions},
            title=f"Register the features of {desired.project.document.features}",
            why=f"they have changed since version {actual.views}." if actual.views else "they are new.",
        )
    )


class _Model:
    """The steps of one model: sets, run, version, thresholds, evaluation, gate, alias."""

    def __init__(
        self,
        desired: Desired,
        actual: Actual,
        name: str,
        section: ModelSection,
        changing: set[str],
        steps: list[Step],
    ) -> None:
        self.desired, self.actual, self.name, self.section = desired, actual, name, section
        self.state = actual.models.get(name, ModelState())
        self.changing, self.steps = changing, steps

    def plan(self) -> Reference:
        """Adds the steps and returns the version that the model's alias then names, by reference."""
        sets = {split: self._set(split, *window) for split, window in self.section.splits.windows().items()}
        held_out = sets.pop("holdout", None) or sets.get("tune") or sets["train"]
        run = self._run(sets)
        version = self._version(run)
        thresholds = self._thresholds()
        self._evaluation(version, thresholds, held_out)
        self._alias(version)
        return version if isinstance(version, str) else From(step=version.step, field="ref")

    def _add(self, kind: str, request: str, title: str, why: str, **arguments: object) -> From:
        key = f"{kind}:{self.name}"
        self.steps.append(
            Step(
                key=key,
                request=request,
                arguments={"project": self.desired.project.name, **arguments},
                title=title,
                why=why,
                model=self.name if request == "SetAlias" else "",
            )
        )
        return From(step=key)

    def _set(self, split: str, start: datetime, end: datetime) -> Reference:
        name = f"{self.name}-{split}"
        tables = self.desired.tables[self.section.service]
        known = [s for s in self.actual.training_sets if s.name == name]
        why = self._why_set(known[0] if known else None, start, end, tables)
        if not why:
            return known[0].ref
        return self._add(
            f"training_set:{split}",
            "BuildTrainingSet",
            f"Build training set {name}",
            why,
            name=name,
            service=self.section.service,
            start=start,
            end=end,
            views=self.desired.views,
        )

    def _why_set(self, known: TrainingSet | None, start: datetime, end: datetime, tables: tuple[str, ...]) -> str:
        if known is None:
            return "it does not exist."
        if (known.service, known.views) != (self.section.service, self.desired.views_ref):
            return "its features have changed."
        if (known.start, known.end) != (start, end):
            return f"it covered {known.start:%Y-%m-%d} to {known.end:%Y-%m-%d}."
        stale = [t for t in tables if t in self.changing or self.actual.snapshots.get(t) not in known.snapshots]
        return f"{', '.join(stale)} has a newer snapshot than it was built from." if stale else ""

    def _run(self, sets: dict[str, Reference]) -> Reference:
        resolved = {split: ref for split, ref in sets.items() if isinstance(ref, str)}
        if len(resolved) == len(sets):
            found = find_run(self.state, self.section, resolved, self.desired.code)
            if found is not None:
                return found.ref
        return self._add(
            "run",
            "Train",
            f"Train {self.name} with {self.section.train}",
            self._why_run(sets, resolved),
            model=self.name,
            source=str(self.desired.project.directory),
            entry=self.section.train,
            training_sets=sets,
            params=self.section.params,
            seed=self.section.seed,
            timeout=self.section.timeout,
        )

    def _why_run(self, sets: dict[str, Reference], resolved: dict[str, str]) -> str:
        runs = [run for run in self.state.runs if run.state == "finished"]
        if not runs:
            return "it was never trained."
        last = runs[0]
        if len(resolved) < len(sets):
            return "its training sets are built anew (the run is kept if they turn out the same)."
        reasons = {
            "its training sets have changed": last.training_sets != resolved,
            "its code has changed": self.state.code.get(last.ref) != self.desired.code,
            "its parameters have changed": (last.params, last.seed, last.entry)
            != (self.section.params, self.section.seed, self.section.train),
        }
        return "; ".join(reason for reason, true in reasons.items() if true) + "."

    def _version(self, run: Reference) -> Reference:
        known = find_version(self.state, run) if isinstance(run, str) else None
        if known is not None:
            return known.ref
        why = f"{run} is not registered yet." if isinstance(run, str) else "a run is registered once it is finished."
        title = f"Register the next version of {self.name}"
        return self._add("version", "RegisterVersion", title, why, model=self.name, run=run)

    def _thresholds(self) -> str:
        """The reference of the thresholds in force, '' if they are declared by this plan."""
        text, known = self.desired.project.gates[self.name], self.state.thresholds
        if known is not None and known.text == text:
            return known.ref
        why = f"{self.section.gates} has changed." if known else "they are set before anything is measured."
        self._add(
            "thresholds", "DeclareThresholds", f"Declare thresholds of {self.name}", why, model=self.name, text=text
        )
        return ""

    def _evaluation(self, version: Reference, thresholds: str, held_out: Reference) -> None:
        number = _number(version)
        if isinstance(number, str) and isinstance(held_out, str) and thresholds:
            if find_evaluation(self.state, int(number), held_out, thresholds) is not None:
                return
            against = " against the present champion" if rival(self.state, int(number)) else ""
            why = f"version {number} was not measured on {held_out} under these thresholds{against}."
        else:
            why = "what a version can do is measured on rows that it has not seen."
        self._add(
            "evaluation",
            "Evaluate",
            f"Evaluate {_spoken(self.name, number)}",
            why,
            model=self.name,
            version=number,
            training_set=held_out,
        )

    def _alias(self, version: Reference) -> None:
        number, alias = _number(version), self.section.alias
        current = self.state.aliases.get(alias)
        if isinstance(number, str) and current == int(number):
            return
        spoken = _spoken(self.name, number)
        why = f"{alias} is version {current}." if current else f"{self.name} has no {alias} yet."
        if self.section.approver:
            why += f" {self.section.approver} is asked for approval."
        self._add("gate", "CheckGate", f"Ask the gate about {spoken}", why, model=self.name, version=number)
        self._add(
            "alias",
            "SetAlias",
            f"Make {spoken} the {alias}",
            "if the gate lets it pass.",
            model=self.name,
            alias=alias,
            version=number,
        )


def _number(version: Reference) -> Reference:
    return version.partition("@")[2] if isinstance(version, str) else From(step=version.step, field="number")


def _spoken(model: str, number: Reference) -> str:
    return f"{model} version {number}" if isinstance(number, str) else f"the new version of {model}"


def find_run(state: ModelState, section: ModelSection, sets: dict[str, str], code: str) -> Run | None:
    """The newest finished run that training again would repeat."""
    for run in state.runs:
        same = (run.entry, run.params, run.seed, run.training_sets) == (
            section.train,
            section.params,
            section.seed,
            sets,
        )
        if run.state == "finished" and same and state.code.get(run.ref) == code:
            return run
    return None


def find_version(state: ModelState, run: str) -> ModelVersion | None:
    """The version that a run was registered as."""
    return next((version for version in state.versions if version.run == run), None)


def find_evaluation(state: ModelState, number: int, training_set: str, thresholds: str) -> Evaluation | None:
    """The newest evaluation of a version on these rows under these thresholds, unless the gate would ask for another
    since it compares with a champion of former days.
    """
    wanted, present = (number, training_set, thresholds), rival(state, number)
    same = (e for e in state.evaluations if (e.version, e.training_set, e.thresholds) == wanted)
    found = next(same, None)
    if found is None or not present:
        return found
    return found if found.comparison is not None and found.comparison.champion == present else None


def rival(state: ModelState, number: int) -> str:
    """The champion that the thresholds in force compare a version with, by reference; '' if they don't."""
    champion = state.aliases.get(CHAMPION, number)
    if state.thresholds is None or champion == number or gates.parse(state.thresholds.text).champion is None:
        return ""
    return f"model:{state.thresholds.model}@{champion}"


def _endpoints(
    desired: Desired, actual: Actual, served: dict[str, Reference], steps: list[Step], *, policies_to_come: bool
) -> None:
    for name, asked in desired.project.document.endpoints.items():
        known, moved_here = (
            actual.endpoints.get(name),
            asked.alias == desired.project.document.models[asked.model].alias,
        )
        version = served[asked.model] if moved_here else _aliased(actual, asked.model, asked.alias)
        settled = known is not None and isinstance(version, str) and known.version == version
        if settled:
            continue
        why = f"it serves {known.version}." if known else "it does not exist."
        steps.append(
            Step(
                key=f"endpoint:{name}",
                request="Deploy",
                arguments={
                    "project": desired.project.name,
                    "endpoint": name,
                    "model": asked.model,
                    "version": asked.alias,
                },
                title=f"Deploy the {asked.alias} of {asked.model} at endpoint {name}",
                why=why,
                model=asked.model if moved_here else "",
                under_policies=policies_to_come and known is None,  # what answers already goes on; nothing new opens
            )
        )


def _aliased(actual: Actual, model: str, alias: str) -> str:
    """The version under an alias that no step moves, '' if there is none."""
    number = actual.models.get(model, ModelState()).aliases.get(alias)
    return f"model:{model}@{number}" if number else ""


def _online(desired: Desired, actual: Actual, changing: set[str], steps: list[Step]) -> None:
    document = desired.project.document
    services = {document.models[e.model].service for e in document.endpoints.values()}
    for service in sorted(services):
        why = _why_online(desired, actual, changing, service)
        if why:
            steps.append(
                Step(
                    key=f"online:{service}",
                    request="MaterialiseOnline",
                    arguments={
                        "project": desired.project.name,
                        "service": service,
                        "until": StartOf(),
                        "views": desired.views,
                    },
                    title=f"Load the features of {service} for serving",
                    why=why,
                )
            )


def _why_online(desired: Desired, actual: Actual, changing: set[str], service: str) -> str:
    held = [m for m in actual.online if m.service == service and m.views == desired.views_ref]
    if not held:
        return "the online store does not hold them."
    tables = desired.tables[service]
    stale = [t for t in tables if t in changing or actual.snapshots.get(t) not in held[0].snapshots]
    return f"{', '.join(stale)} has a newer snapshot." if stale else ""
