"""Which fields of an endpoint are a person's: derived from contracts and feature definitions when a version is deployed.

A field is personal if a personal column has any part in it: as the column of an input, in a view's value, as the key that
a view is looked up by, or through another feature. What is decided here stands in the deployment, so that a gateway needs
neither contracts nor SQL.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.data import contracts, personal
from macadam.data import registry as data
from macadam.errors import ContractInvalid, InvalidInput
from macadam.features import expressions, relations
from macadam.features.define import EVENT_TIME, FeatureService, Latest, Lookup, RequestFeature, Table, TableView
from macadam.personal.types import PersonalFields
from macadam.ports import Objects

OUTPUT = "output"


class About(msgspec.Struct, frozen=True):
    """What the contracts say of one table: its personal columns, and those that name the person. Lower case."""

    personal: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()


AboutTable = Callable[[str], About]


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the call that deploys says by itself: it can add to what contracts say, never take away."""

    subject: str = ""
    names: tuple[str, ...] = ()


def about_tables(sql: sa.Connection, objects: Objects, project: str) -> AboutTable:
    """What the contracts of each table's sources say, all of them together."""
    sources = data.sources(sql, project)
    known: dict[str, About] = {}

    def about(table: str) -> About:
        if table not in known:
            found = About()
            for source in sources:
                if source.table == table:
                    version = data.contract(sql, project, source.contract)
                    told = contracts.table(
                        contracts.parse(objects.get(version.text), origin=version.ref), source.schema
                    )
                    found = About(found.personal | personal.columns(told), found.subjects | personal.subjects(told))
            known[table] = found
        return known[table]

    return about


def of_service(spec: dict[str, Any], about: AboutTable, declared: Declared) -> PersonalFields | None:
    """The personal fields of an endpoint that computes its features. Raises ContractInvalid, InvalidInput."""
    service = msgspec.convert(spec, FeatureService)
    _refuse_unknown(declared, service.inputs, service.feature_names)
    spine = about(service.table.name)
    inputs = {name for name in service.inputs if _reads(service.table, relations.name(name), spine.personal)}
    inputs |= {name for name in declared.names if name in service.inputs}
    candidates = _candidates(service, about)
    subject = _chosen(declared, candidates)
    inputs |= {subject} - {""}
    features = _features(service, about, inputs, set(declared.names))
    output = OUTPUT in declared.names or _reads(service.table, service.label, spine.personal)
    return _fields(subject, candidates, service.inputs, inputs, service.feature_names, features, output=output)


def of_signature(names: tuple[str, ...], declared: Declared) -> PersonalFields | None:
    """For an endpoint whose requests bring the features: no contract is known, so it is as declared."""
    _refuse_unknown(declared, names, names)
    chosen = {*declared.names, declared.subject} - {"", OUTPUT}
    output = OUTPUT in declared.names
    return _fields(declared.subject, frozenset(), names, chosen, names, chosen, output=output)


def _candidates(service: FeatureService, about: AboutTable) -> frozenset[str]:
    """Inputs that name the person: columns of the spine that do, and keys of views that do."""
    spine = about(service.table.name).subjects
    found = {name for name in service.inputs if _reads(service.table, relations.name(name), spine)}
    for view in service.table_views:
        named = about(view.table.name).subjects
        found |= {key for key in view.entity.keys if _reads(view.table, relations.name(key), named)}
    return frozenset(found)


def _features(service: FeatureService, about: AboutTable, inputs: set[str], declared: set[str]) -> set[str]:
    """Names of the personal features. Features stand before those that read them."""
    found = declared & set(service.feature_names)
    for feature in service.features:
        if isinstance(feature, RequestFeature):
            if (found | inputs) & (set(feature.arguments) - {EVENT_TIME}):
                found |= set(feature.feature_names)
        else:
            found |= _view_features(feature, about(feature.table.name), inputs)
    return found


def _view_features(view: TableView, told: About, inputs: set[str]) -> set[str]:
    by_person = any(key in inputs or _reads(view.table, relations.name(key), told.personal) for key in view.entity.keys)
    if by_person:
        return set(view.feature_names)
    if isinstance(view, Latest | Lookup):
        return {
            f"{view.name}_{suffix}"
            for suffix, expression in view.columns.items()
            if _reads(view.table, expression, told.personal)
        }
    return set(view.feature_names) if _reads(view.table, view.value, told.personal) else set()


def _reads(table: Table, expression: str, columns: frozenset[str]) -> bool:
    return bool(columns) and bool(expressions.base_columns(table, expression) & columns)


def _chosen(declared: Declared, candidates: frozenset[str]) -> str:
    if declared.subject or len(candidates) != 1:
        return declared.subject
    return next(iter(candidates))


def _fields(
    subject: str,
    candidates: frozenset[str],
    all_inputs: Iterable[str],
    inputs: set[str],
    all_features: Iterable[str],
    features: set[str],
    *,
    output: bool,
) -> PersonalFields | None:
    """In the order of the endpoint. Raises ContractInvalid if fields are personal and nobody knows whose."""
    if not (inputs or features or output):
        return None
    if not subject:
        named = sorted(inputs | features | ({OUTPUT} if output else set()))
        several = f", and {' and '.join(sorted(candidates))} each name a person" if candidates else ""
        raise ContractInvalid(
            f"The fields {', '.join(named)} are personal, and nothing says whose{several}.",
            next_step="Mark the column that names the person in its contract (customProperties: property subject, value"
            " true) or name the input: macadam endpoints deploy … --subject INPUT.",
            details={"personal": list(named), "candidates": sorted(candidates)},
        )
    return PersonalFields(
        subject=subject,
        inputs=tuple(name for name in all_inputs if name in inputs),
        features=tuple(name for name in all_features if name in features),
        output=output,
    )


def _refuse_unknown(declared: Declared, inputs: Iterable[str], features: Iterable[str]) -> None:
    known = {*inputs, *features, OUTPUT}
    unknown = sorted(set(declared.names) - known)
    if declared.subject and declared.subject not in set(inputs):
        unknown.append(declared.subject)
    if unknown:
        raise InvalidInput(
            f"The endpoint has no field {', '.join(map(repr, unknown))}.",
            next_step=f"Its fields are: {', '.join(sorted(known))}; the subject is one of its inputs.",
            details={"unknown": unknown},
        )
