"""Reads the access tables into snapshots and engines, and keeps one engine per database until they change.

Every change goes through `touch`, which renews the generation in the same transaction.
"""

import threading
import weakref
from typing import Any, cast

import sqlalchemy as sa

from macadam.access.authentication import KnownToken
from macadam.access.circumstances import KnownAsset, KnownProject
from macadam.access.engine import AccessSnapshot, Engine, KnownPrincipal
from macadam.access.policies import PolicyText, ProjectText
from macadam.access.rates import Limit
from macadam.access.schema import (
    assets,
    grants,
    policy_activations,
    policy_sets,
    policy_versions,
    principals,
    projects,
    rates,
    state,
    tokens,
)
from macadam.errors import IntegrityError
from macadam.values import uuid7

_GENERATION = "SELECT generation FROM access_state WHERE id = 1"
_engines: "weakref.WeakKeyDictionary[sa.Engine, Engine]" = weakref.WeakKeyDictionary()
_building = threading.Lock()


def generation(sql: sa.Connection) -> str:
    """The id of the present state of access. Raises IntegrityError if the home was never bootstrapped."""
    # Plain text instead of a compiled statement: this runs on each call and takes half as long.
    found = sql.exec_driver_sql(_GENERATION).scalar()
    if found is None:
        raise IntegrityError(
            "The database has no access state.",
            next_step="Open the home with `macadam up`, which creates it.",
        )
    return str(found)


def touch(sql: sa.Connection) -> None:
    """Makes every engine built before this transaction's commit out of date."""
    sql.execute(sa.update(state).where(state.c.id == 1).values(generation=uuid7()))


def engine(sql: sa.Connection) -> Engine:
    """The engine for what this connection sees; built only if that is another generation than the last one built."""
    seen = generation(sql)
    kept = _engines.get(sql.engine)
    if kept is not None and kept.snapshot.generation == seen:
        return kept
    built = Engine(snapshot(sql))
    with _building:
        _engines[sql.engine] = built
    return built


def snapshot(sql: sa.Connection) -> AccessSnapshot:
    """All of access as this connection sees it. Revoked tokens are left out."""
    now = sql.execute(sa.select(state)).one()
    return AccessSnapshot(
        generation=now.generation,
        policy_set=now.policy_set,
        policies=platform_text(sql),
        tokens=_tokens(sql),
        principals=_principals(sql),
        projects=_projects(sql),
        rates={
            row.principal: Limit(per_second=row.per_second, burst=row.burst)
            for row in sql.execute(sa.select(rates).order_by(rates.c.principal))
        },
    )


def platform_text(sql: sa.Connection) -> PolicyText:
    """The platform's own set, as it is in force."""
    in_force = sa.select(policy_sets).join(state, state.c.policy_set == policy_sets.c.digest)
    text = sql.execute(in_force).one()
    return PolicyText(policies=text.policies, schema=text.schema)


def _tokens(sql: sa.Connection) -> dict[str, KnownToken]:
    rows = sql.execute(sa.select(tokens).where(tokens.c.revoked.is_(None)))
    return {
        row.digest: KnownToken(
            id=row.id,
            principal=row.principal,
            expires=row.expires,
            scopes=tuple(row.scopes),
            projects=tuple(row.projects),
            assets=tuple(row.assets),
        )
        for row in rows
    }


def _principals(sql: sa.Connection) -> dict[str, KnownPrincipal]:
    held: dict[str, dict[str, list[str]]] = {}
    for row in sql.execute(sa.select(grants).order_by(grants.c.role)):
        held.setdefault(row.principal, {}).setdefault(row.project, []).append(row.role)
    return {
        row.id: KnownPrincipal(
            kind=row.kind,
            active=row.disabled is None,
            roles={project: tuple(roles) for project, roles in held.get(row.id, {}).items()},
        )
        for row in sql.execute(sa.select(principals))
    }


def active(sql: sa.Connection) -> dict[str, sa.Row[Any]]:
    """Each project's last activation, with the text that it put in force; none for projects without policies."""
    a, newer = policy_activations.c, policy_activations.alias()
    later = sa.exists().where(newer.c.project == a.project, newer.c.number > a.number)
    both = policy_activations.join(
        policy_versions,
        sa.and_(policy_versions.c.project == a.project, policy_versions.c.version == a.version),
    )
    query = sa.select(a.project, a.number, a.version, a.policy_set, policy_versions.c.files).select_from(both)
    return {row.project: cast("sa.Row[Any]", row) for row in sql.execute(query.where(~later))}


def _projects(sql: sa.Connection) -> dict[str, KnownProject]:
    in_force = active(sql)
    described: dict[str, dict[str, KnownAsset]] = {}
    for row in sql.execute(sa.select(assets).order_by(assets.c.project, assets.c.asset)):
        known = KnownAsset(classification=row.classification, location=row.location)
        described.setdefault(row.project, {})[row.asset] = known
    found = {}
    for row in sql.execute(sa.select(projects).order_by(projects.c.name)):
        own = in_force.get(row.name)
        found[row.name] = KnownProject(
            risk=row.risk,
            location=row.location,
            policies=ProjectText.of(row.name, own.files) if own else None,
            policy_set=str(own.policy_set) if own else "",
            assets=described.get(row.name, {}),
        )
    return found


def describe(sql: sa.Connection, project: str, asset: str, *, classification: str = "", location: str = "") -> None:
    """Records what policies may ask of an asset, in the transaction that makes it so. asset: without a version."""
    which = sa.and_(assets.c.project == project, assets.c.asset == asset)
    known = sql.execute(sa.select(assets).where(which)).first()
    now = {"classification": classification, "location": location}
    if known is None:
        if classification or location:
            sql.execute(sa.insert(assets).values(project=project, asset=asset, **now))
            touch(sql)
    elif (known.classification, known.location) != (classification, location):
        sql.execute(sa.update(assets).where(which).values(**now))
        touch(sql)
