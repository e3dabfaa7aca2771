"""Reads the access tables into snapshots and engines, and keeps one engine per database until they change.

Every change goes through `touch`, which renews the generation in the same transaction.
"""

import threading
import weakref

import sqlalchemy as sa

from macadam.access.authentication import KnownToken
from macadam.access.engine import AccessSnapshot, Engine, KnownPrincipal
from macadam.access.policies import PolicyText
from macadam.access.rates import Limit
from macadam.access.schema import grants, policy_sets, principals, projects, rates, state, tokens
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
    text = sql.execute(sa.select(policy_sets).where(policy_sets.c.digest == now.policy_set)).one()
    return AccessSnapshot(
        generation=now.generation,
        policy_set=now.policy_set,
        policies=PolicyText(policies=text.policies, schema=text.schema),
        tokens=_tokens(sql),
        principals=_principals(sql),
        projects=tuple(sql.execute(sa.select(projects.c.name).order_by(projects.c.name)).scalars()),
        rates={
            row.principal: Limit(per_second=row.per_second, burst=row.burst)
            for row in sql.execute(sa.select(rates).order_by(rates.c.principal))
        },
    )


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
