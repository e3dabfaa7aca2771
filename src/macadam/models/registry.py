"""Rows of the models room, read and written: runs, models, versions, aliases, thresholds, evaluations, gates, approvals.

Plain SQL without decisions; what may be done, and its evidence, is in `service` and `gate_service`.
"""

from datetime import datetime
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from macadam.errors import NotFound
from macadam.models import schema
from macadam.models.types import Alias, Approval, Evaluation, GateResult, Model, ModelVersion, Run, Thresholds

S = TypeVar("S", bound=msgspec.Struct)


def _read(document: object, kind: type[S]) -> S:
    return msgspec.convert(document, kind)


def _document(value: msgspec.Struct) -> Any:
    return msgspec.to_builtins(value)


def _all(sql: sa.Connection, query: "sa.Select[Any]", kind: type[S]) -> tuple[S, ...]:
    return tuple(_read(document, kind) for document in sql.execute(query).scalars())


def bare_id(text: str) -> str:
    """The id in `run:ID`, or the text itself."""
    return text.rpartition(":")[2]


# --- runs


def keep_run(sql: sa.Connection, run: Run) -> None:
    sql.execute(
        sa.insert(schema.runs).values(
            id=run.id, project=run.project, model=run.model, state=run.state, at=run.at, document=_document(run)
        )
    )


def run(sql: sa.Connection, project: str, text: str) -> Run:
    """text: id or reference. Raises NotFound."""
    t = schema.runs.c
    found = _all(sql, sa.select(t.document).where(t.project == project, t.id == bare_id(text)), Run)
    if not found:
        raise NotFound(f"Project {project!r} has no run {text!r}.", next_step="List them: macadam runs list.")
    return found[0]


def runs(sql: sa.Connection, project: str, model: str, limit: int) -> tuple[Run, ...]:
    """Newest first. model: '' = of all."""
    t = schema.runs.c
    query = sa.select(t.document).where(t.project == project).order_by(t.id.desc()).limit(limit)
    return _all(sql, query.where(t.model == model) if model else query, Run)


def require_code(sql: sa.Connection, project: str, archive: str) -> None:
    """Raises NotFound unless a run of the project had this code: objects are shared, what they hold is not."""
    t = schema.runs.c
    named = sa.type_coerce(t.document, sa.Text).contains(archive, autoescape=True)  # also where it is a parameter
    found = _all(sql, sa.select(t.document).where(t.project == project, named), Run)
    if not any(one.code.archive == archive for one in found):
        raise NotFound(
            f"Project {project!r} has no run with the code {archive}.",
            next_step="Train from the project's directory, or list the runs: macadam runs list.",
        )


def keep_environment(sql: sa.Connection, project: str, digest: str, at: datetime) -> bool:
    """Whether the environment is new to the project."""
    t = schema.environments.c
    if sql.execute(sa.select(t.digest).where(t.project == project, t.digest == digest)).first():
        return False
    sql.execute(sa.insert(schema.environments).values(project=project, digest=digest, at=at))
    return True


# --- models, versions, aliases


def ensure_model(sql: sa.Connection, project: str, name: str, author: str, at: datetime) -> None:
    t = schema.models.c
    if not sql.execute(sa.select(t.name).where(t.project == project, t.name == name)).first():
        sql.execute(sa.insert(schema.models).values(project=project, name=name, author=author, at=at))


def model(sql: sa.Connection, project: str, name: str) -> Model:
    """Raises NotFound."""
    found = models(sql, project, name)
    if not found:
        raise NotFound(
            f"Project {project!r} has no model {name!r}.",
            next_step="Register a run's model: macadam models register, or list them: macadam models list.",
        )
    return found[0]


def models(sql: sa.Connection, project: str, name: str = "") -> tuple[Model, ...]:
    """By name; name: only that one."""
    m, v, a = schema.models.c, schema.versions.c, schema.aliases.c
    query = sa.select(schema.models).where(m.project == project).order_by(m.name)
    rows = sql.execute(query.where(m.name == name) if name else query).all()
    counts = sa.select(v.model, sa.func.max(v.number)).where(v.project == project).group_by(v.model)
    versions: dict[str, int] = {row[0]: row[1] for row in sql.execute(counts)}
    aliases: dict[str, dict[str, int]] = {}
    for row in sql.execute(sa.select(a.model, a.alias, a.number).where(a.project == project).order_by(a.alias)):
        aliases.setdefault(row.model, {})[row.alias] = row.number
    return tuple(
        Model(
            project=project,
            name=row.name,
            versions=versions.get(row.name, 0),
            aliases=aliases.get(row.name, {}),
            author=row.author,
            at=row.at,
        )
        for row in rows
    )


def keep_version(sql: sa.Connection, version: ModelVersion) -> None:
    sql.execute(
        sa.insert(schema.versions).values(
            project=version.project,
            model=version.model,
            number=version.number,
            run=bare_id(version.run),
            artifact=version.artifact,
            at=version.at,
            document=_document(version),
        )
    )


def versions(sql: sa.Connection, project: str, model_name: str) -> tuple[ModelVersion, ...]:
    """Newest first, with the aliases that point to them now."""
    t = schema.versions.c
    query = sa.select(t.document).where(t.project == project, t.model == model_name).order_by(t.number.desc())
    pointing = _aliases_by_number(sql, project, model_name)
    return tuple(msgspec.structs.replace(v, aliases=pointing.get(v.number, ())) for v in _all(sql, query, ModelVersion))


def version(sql: sa.Connection, project: str, model_name: str, text: str) -> ModelVersion:
    """text: a number or an alias. Raises NotFound."""
    number = int(text) if text.isdecimal() else alias_number(sql, project, model_name, text)
    if not number:
        model(sql, project, model_name)
        raise NotFound(
            f"Model {model_name!r} has no alias {text!r}.",
            next_step="Point it at a version: macadam models alias, or give a version's number.",
        )
    t = schema.versions.c
    where = (t.project == project, t.model == model_name, t.number == number)
    found = _all(sql, sa.select(t.document).where(*where), ModelVersion)
    if not found:
        model(sql, project, model_name)
        raise NotFound(
            f"Model {model_name!r} has no version {text}.", next_step=f"List them: macadam models show {model_name}."
        )
    pointing = _aliases_by_number(sql, project, model_name)
    return msgspec.structs.replace(found[0], aliases=pointing.get(number, ()))


def _aliases_by_number(sql: sa.Connection, project: str, model_name: str) -> dict[int, tuple[str, ...]]:
    t = schema.aliases.c
    query = sa.select(t.alias, t.number).where(t.project == project, t.model == model_name).order_by(t.alias)
    pointing: dict[int, tuple[str, ...]] = {}
    for row in sql.execute(query):
        pointing[row.number] = (*pointing.get(row.number, ()), row.alias)
    return pointing


def alias_number(sql: sa.Connection, project: str, model_name: str, alias: str) -> int:
    """The version that an alias points to, 0 if there is no such alias."""
    t = schema.aliases.c
    where = (t.project == project, t.model == model_name, t.alias == alias)
    return sql.execute(sa.select(t.number).where(*where)).scalar_one_or_none() or 0


def alias(sql: sa.Connection, project: str, model_name: str, name: str) -> Alias | None:
    """An alias with what allowed it: its gate and approvals."""
    t = schema.aliases.c
    where = (t.project == project, t.model == model_name, t.alias == name)
    found = _all(sql, sa.select(t.document).where(*where), Alias)
    return found[0] if found else None


def keep_alias(sql: sa.Connection, new: Alias) -> None:
    t = schema.aliases
    where = (t.c.project == new.project, t.c.model == new.model, t.c.alias == new.alias)
    sql.execute(sa.delete(t).where(*where))
    sql.execute(
        sa.insert(t).values(
            project=new.project,
            model=new.model,
            alias=new.alias,
            number=new.version,
            at=new.at,
            document=_document(new),
        )
    )


# --- thresholds, evaluations, gates, approvals


def keep_thresholds(sql: sa.Connection, declared: Thresholds, row_id: str) -> None:
    sql.execute(
        sa.insert(schema.thresholds).values(
            id=row_id,
            project=declared.project,
            model=declared.model,
            at=declared.at,
            document=_document(declared),
        )
    )


def thresholds(sql: sa.Connection, project: str, model_name: str) -> Thresholds | None:
    """Those in force: the last declared."""
    t = schema.thresholds.c
    query = sa.select(t.document).where(t.project == project, t.model == model_name).order_by(t.id.desc()).limit(1)
    found = _all(sql, query, Thresholds)
    return found[0] if found else None


def keep_evaluation(sql: sa.Connection, new: Evaluation) -> None:
    sql.execute(
        sa.insert(schema.evaluations).values(
            id=new.id, project=new.project, model=new.model, number=new.version, at=new.at, document=_document(new)
        )
    )


def evaluation(sql: sa.Connection, project: str, text: str) -> Evaluation:
    """text: id or reference. Raises NotFound."""
    t = schema.evaluations.c
    found = _all(sql, sa.select(t.document).where(t.project == project, t.id == bare_id(text)), Evaluation)
    if not found:
        raise NotFound(
            f"Project {project!r} has no evaluation {text!r}.", next_step="List them: macadam evaluations list."
        )
    return found[0]


def evaluations(
    sql: sa.Connection, project: str, model_name: str, *, number: int = 0, limit: int = 1000
) -> tuple[Evaluation, ...]:
    """Newest first. number: only of that version."""
    t = schema.evaluations.c
    query = sa.select(t.document).where(t.project == project, t.model == model_name).order_by(t.id.desc()).limit(limit)
    return _all(sql, query.where(t.number == number) if number else query, Evaluation)


def keep_gate(sql: sa.Connection, new: GateResult) -> None:
    sql.execute(
        sa.insert(schema.gates).values(
            id=new.id,
            project=new.project,
            model=new.model,
            number=new.version,
            verdict=new.verdict,
            at=new.at,
            document=_document(new),
        )
    )


def keep_approval(sql: sa.Connection, new: Approval) -> None:
    sql.execute(
        sa.insert(schema.approvals).values(
            id=new.id,
            project=new.project,
            model=new.model,
            number=new.version,
            approver=new.approver,
            artifact=new.artifact,
            at=new.at,
            document=_document(new),
        )
    )


def approvals(sql: sa.Connection, project: str, model_name: str, number: int) -> tuple[Approval, ...]:
    """Newest first."""
    t = schema.approvals.c
    where = (t.project == project, t.model == model_name, t.number == number)
    return _all(sql, sa.select(t.document).where(*where).order_by(t.id.desc()), Approval)
