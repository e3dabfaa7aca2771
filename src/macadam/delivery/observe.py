"""Reads both sides of a plan: what a project's files ask for, and what the platform has.

The platform is read through its operations, as any caller reads it. features.py runs in a process of its own.
"""

import difflib
import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from macadam.access import state as access
from macadam.access.policy_types import ListPolicies
from macadam.access.types import ShowProject
from macadam.app.platform import Platform
from macadam.data import contracts, registry
from macadam.data.types import ListContracts, ListSources, ListTables
from macadam.delivery import policy_files
from macadam.delivery.project import FILE, Project, read
from macadam.delivery.types import Actual, Desired, EndpointState, ModelState, SourceState
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.features import define, load
from macadam.features.types import ListOnline, ListTrainingSets, ListViews
from macadam.journal.types import JournalPolicy, JournalStatus
from macadam.models import capture
from macadam.models.types import ListEvaluations, ListModels, ListRuns, Run, ShowModel, ShowThresholds, Thresholds
from macadam.operations import Request
from macadam.serving.types import ListEndpoints
from macadam.values import digest_of

R = TypeVar("R")
_RUNS = 50  # how far back an equal run is looked for
_LIMIT = 1000


def observe(platform: Platform, directory: Path) -> tuple[Desired, Actual]:
    """Raises NotFound, InvalidInput, ContractInvalid, UserCodeFailed for what is wrong with the files."""
    project = read(directory)
    with platform.ports.sql.read() as sql:
        in_force = access.platform_text(sql)
    policy_files.require_sound(project.name, project.policies, project.policy_tables, in_force)
    wanted = desired(project)
    return wanted, actual(platform, wanted.project)


def desired(project: Project) -> Desired:
    """Everything that the files ask for. Raises as `observe`."""
    definitions, views, tables = _features(project)
    code, _ = capture.archive(project.directory)
    return Desired(
        project=project,
        contracts={
            name: contracts.parse(text, origin=project.document.sources[name].contract)
            for name, text in project.contracts.items()
        },
        definitions=definitions,
        views=views,
        tables=tables,
        code=code_digest(code, declarations(project)),
        files={
            source: {name: _file_digest(project.directory / name) for name in names}
            for source, names in project.files.items()
        },
        policies=policy_files.reference(project.name, project.policies),
    )


def _features(project: Project) -> tuple[dict[str, object], str, dict[str, tuple[str, ...]]]:
    """Definitions, their version, and the tables that each service reads."""
    if not project.document.features:
        return {}, "", {}
    definitions = load.definitions_of(project.directory / project.document.features)
    decoded = define.decode(definitions)
    tables = {service.name: tuple(sorted(service.tables)) for service in decoded.services}
    for name, model in project.document.models.items():
        if model.service not in tables:
            near = difflib.get_close_matches(model.service, tables, n=1)
            raise InvalidInput(
                f"{FILE}: model {name!r} uses the feature service {model.service!r}, "
                f"which {project.document.features} does not define.",
                next_step=f"Did you mean {near[0]!r}?" if near else f"It defines: {', '.join(tables) or 'none'}.",
            )
    return definitions, decoded.version, tables


def declarations(project: Project) -> frozenset[str]:
    """The files whose text is registered by itself: a change in them does not change what training does."""
    document = project.document
    named = {source.contract for source in document.sources.values()} | {m.gates for m in document.models.values()}
    return frozenset({FILE, *named, *policy_files.TABLES})


def code_digest(archive: bytes, left_out: Iterable[str]) -> str:
    """Over the names and contents of an archive's files, without those left out."""
    ignored = set(left_out)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name not in ignored]
        listed = [(m.name, hashlib.sha256(_content(tar, m)).hexdigest()) for m in members]
    return digest_of(msgspec.json.encode(sorted(listed)))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def actual(platform: Platform, project: Project) -> Actual:
    """Everything that is registered in the project. Raises NotAuthorised."""
    name = project.name
    if _found(platform, ShowProject(project=name)) is None:
        return Actual()
    views = platform.call(ListViews(project=name, limit=1))
    journal = platform.call(JournalStatus(project=name))
    sets = platform.call(ListTrainingSets(project=name, limit=_LIMIT))
    online = platform.call(ListOnline(project=name))
    return Actual(
        exists=True,
        journal=JournalPolicy(durability=journal.durability, on_journal_failure=journal.on_journal_failure),
        contracts={c.ref: c.digest for c in platform.call(ListContracts(project=name))},
        sources=_sources(platform, name),
        snapshots={t.name: t.snapshot.ref for t in platform.call(ListTables(project=name)) if t.snapshot is not None},
        views=views[0].version if views else "",
        training_sets=tuple(sets),
        models={model: model_state(platform, name, model, declarations(project)) for model in project.document.models},
        other_models=tuple(
            m.name for m in platform.call(ListModels(project=name)) if m.name not in project.document.models
        ),
        endpoints=_endpoints(platform, name),
        online=tuple(online),
        policies=platform.call(ListPolicies(project=name)),
    )


def _sources(platform: Platform, project: str) -> dict[str, SourceState]:
    sources = platform.call(ListSources(project=project))
    with platform.ports.sql.read() as sql:
        return {
            s.name: SourceState(
                directory=s.directory,
                path=s.path,
                format=s.format,
                contract=s.contract,
                table=s.table,
                files=registry.taken(sql, s),
            )
            for s in sources
        }


def model_state(platform: Platform, project: str, model: str, left_out: Iterable[str]) -> ModelState:
    """What there is of one model. left_out: as `declarations`."""
    page = _found(platform, ShowModel(project=project, model=model))
    runs = platform.call(ListRuns(project=project, model=model, limit=_RUNS))
    return ModelState(
        runs=runs,
        code=_run_code(platform, runs, left_out),
        versions=page.versions if page else (),
        thresholds=_thresholds(platform, project, model),
        evaluations=(_found(platform, ListEvaluations(project=project, model=model, limit=_LIMIT)) or ()),
        aliases=page.model.aliases if page else {},
    )


def _thresholds(platform: Platform, project: str, model: str) -> Thresholds | None:
    try:
        return platform.call(ShowThresholds(project=project, model=model))
    except (NotFound, Conflict):  # the latter: none are in force
        return None


def _run_code(platform: Platform, runs: tuple[Run, ...], left_out: Iterable[str]) -> dict[str, str]:
    finished = [run for run in runs if run.state == "finished"]
    archives = {run.code.archive for run in finished}
    digests = {archive: code_digest(platform.ports.objects.get(archive), left_out) for archive in archives}
    return {run.ref: digests[run.code.archive] for run in finished}


def _endpoints(platform: Platform, project: str) -> dict[str, EndpointState]:
    return {e.name: EndpointState(version=e.version) for e in platform.call(ListEndpoints(project=project))}


def _found(platform: Platform, request: Request[R]) -> R | None:
    try:
        return platform.call(request)
    except NotFound:
        return None
