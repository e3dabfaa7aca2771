"""What would change under proposed policies: the recorded decisions of the last days asked again, and every role's table.

Who held which role at the time comes from the ledger itself. What a leaf does not say is taken as it most likely was:
the asset, where the subject is another than what was asked for, is the operation's own; a token reached what it did.
Both sets are asked the same, so that such a guess shows in neither or in both. Pure but for `decisions`, which reads.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import msgspec
import sqlalchemy as sa

from macadam import operations
from macadam.access.circumstances import KnownProject
from macadam.access.engine import AccessSnapshot, Engine, KnownPrincipal
from macadam.access.policies import ProjectText, effective_digest
from macadam.access.policy_types import Change, MatrixChange
from macadam.access.types import ROLES
from macadam.ledger.leaf import Leaf, decode
from macadam.ledger.schema import leaves
from macadam.operations import Actor, Declared, Operation
from macadam.values import instant, parse_instant

MOST_CHANGES = 200
"""Kinds of change in a report; the counts are of all."""
_SOMEBODY = Actor(id="principal:somebody", kind="person")
_MONDAY_NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
_PEOPLE = ("access.bootstrap", "access.create_principal", "access.disable_principal", "access.grant_role",
           "access.revoke_role")  # fmt: skip


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, as the ledger has it. who: what was known of the actor at that time."""

    leaf: Leaf
    permission: str
    resource: str
    who: KnownPrincipal


def decisions(sql: sa.Connection, project: str, since: datetime) -> Iterator[Recorded]:
    """The project's decisions in the order of the ledger, each once however many leaves it left."""
    table = operations.table()
    people: dict[str, KnownPrincipal] = {}
    seen: set[str] = set()
    about = sa.or_(leaves.c.kind.in_(_PEOPLE), sa.and_(leaves.c.project == project, leaves.c.at >= instant(since)))
    query = sa.select(leaves.c.leaf).where(about).order_by(leaves.c.seq).execution_options(yield_per=1000)
    for text in sql.execute(query).scalars():
        leaf = decode(bytes(text))
        operation = table.get(leaf.kind)
        decision = str(leaf.decision["id"])
        recent = leaf.project == project and parse_instant(leaf.at) >= since
        if recent and operation is not None and leaf.actor in people and decision not in seen:
            seen.add(decision)
            yield Recorded(
                leaf=leaf,
                permission=operation.permission,
                resource=_resource(operation, leaf, project),
                who=people[leaf.actor],
            )
        _learn(people, leaf)


def count(sql: sa.Connection, project: str, since: datetime) -> int:
    """How many leaves of the project there are since then: what a replay has to read."""
    query = sa.select(sa.func.count()).where(leaves.c.project == project, leaves.c.at >= instant(since))
    return int(sql.execute(query).scalar_one())


def _resource(operation: Operation, leaf: Leaf, project: str) -> str:
    """What the policies were asked about. A refusal names it; otherwise the subject, if it is of the right kind."""
    kind, _, template = operation.resource.partition(":")
    if template == "{project}":
        return f"{kind}:{project}"
    if "{" not in template:
        return operation.resource
    return leaf.subject.partition("@")[0] if leaf.subject.startswith(kind + ":") else f"{kind}:-"


def _learn(people: dict[str, KnownPrincipal], leaf: Leaf) -> None:
    """Folds a leaf about a person or service into what is known of them."""
    if (
        leaf.outcome != "done"
        or leaf.kind not in _PEOPLE
        or leaf.subject.partition(":")[0] not in ("principal", "service")
    ):
        return
    body = leaf.body
    known = people.get(leaf.subject) or KnownPrincipal(
        kind="service" if leaf.subject.startswith("service:") else "person"
    )
    roles = {place: set(held) for place, held in known.roles.items()}
    if leaf.kind == "access.bootstrap":
        roles.setdefault(str(body["in"]), set()).add(str(body["role"]))
    elif leaf.kind == "access.grant_role":
        roles.setdefault(str(body["in"]), set()).add(str(body["granted"]))
    elif leaf.kind == "access.revoke_role":
        roles.setdefault(str(body["in"]), set()).discard(str(body["revoked"]))
    people[leaf.subject] = KnownPrincipal(
        kind=known.kind,
        active=known.active and leaf.kind != "access.disable_principal",
        roles={place: tuple(sorted(held)) for place, held in roles.items() if held},
    )


class Judge:
    """One of the two sets: as the project's policies are, or as they would be."""

    def __init__(self, base: AccessSnapshot, project: str, own: ProjectText | None) -> None:
        """Raises InvalidInput if the text is refused."""
        here = base.projects.get(project) or KnownProject()
        self._project = project
        self._base = msgspec.structs.replace(
            base,
            tokens={},
            projects={
                project: msgspec.structs.replace(
                    here,
                    policies=own,
                    policy_set=effective_digest(base.policy_set, project, own.digest) if own else "",
                )
            },
        )
        self._engines: dict[bytes, Engine] = {}

    def allows(self, one: Recorded) -> bool:
        leaf = one.leaf
        if leaf.outcome == "denied" and "token-scope-limits" in cast("list[str]", leaf.decision["policies"]):
            return False
        actor = Actor(id=leaf.actor, kind=one.who.kind)
        said = leaf.body.get("declared")
        declared = msgspec.convert(said, Declared) if isinstance(said, dict) else Declared()
        engine = self._engine(actor, one.who)
        return engine.decide(
            actor, one.permission, one.resource, self._project, declared=declared, now=parse_instant(leaf.at)
        ).allowed

    def _engine(self, actor: Actor, who: KnownPrincipal) -> Engine:
        """An engine that knows the actor as it was."""
        key = msgspec.json.encode((actor.id, who), order="sorted")
        found = self._engines.get(key)
        if found is None:
            found = self._engines[key] = Engine(msgspec.structs.replace(self._base, principals={actor.id: who}))
        return found

    def role_allows(self, role: str, kind: str, permission: str) -> bool:
        """Whether a role may, on the project as a whole, on a Monday at noon, with nothing declared."""
        actor = msgspec.structs.replace(_SOMEBODY, kind=kind)
        engine = self._engine(actor, KnownPrincipal(kind=kind, roles={self._project: (role,)}))
        resource = f"project:{self._project}"
        return engine.decide(actor, permission, resource, self._project, now=_MONDAY_NOON).allowed


class Tally:
    """Gathers what differs, call by call."""

    def __init__(self, before: Judge, after: Judge) -> None:
        self._before, self._after = before, after
        self.replayed = 0
        self.otherwise = 0
        """Decisions that the present set would make otherwise than the ledger says: the replay's own error."""
        self._changes: dict[tuple[str, str, str], list[Recorded]] = {}

    def add(self, one: Recorded) -> None:
        self.replayed += 1
        before, after = self._before.allows(one), self._after.allows(one)
        self.otherwise += before != (one.leaf.decision["effect"] == "allow")
        if before != after:
            verdict = "newly allowed" if after else "newly denied"
            self._changes.setdefault((verdict, one.leaf.actor, one.permission), []).append(one)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The most frequent first."""
        found = [_change(*key, found) for key, found in self._changes.items()]
        return tuple(sorted(found, key=lambda c: (-c.calls, c.verdict, c.who, c.permission))[:MOST_CHANGES])

    def total(self, verdict: str) -> int:
        return sum(len(found) for (said, _, _), found in self._changes.items() if said == verdict)


def _change(verdict: str, actor: str, permission: str, found: list[Recorded]) -> Change:
    on = Counter(one.resource for one in found)
    return Change(
        verdict=verdict,
        who=actor,
        roles=tuple(sorted({role for held in found[-1].who.roles.values() for role in held})),
        permission=permission,
        calls=len(found),
        examples=tuple(resource for resource, _ in on.most_common(3)),
        first=parse_instant(found[0].leaf.at),
        last=parse_instant(found[-1].leaf.at),
    )


def matrix(before: Judge, after: Judge, permissions: frozenset[str]) -> tuple[MatrixChange, ...]:
    """Every role and permission of which the two sets say different things."""
    found = []
    for kind in ("person", "service"):
        for role in ROLES:
            for permission in sorted(permissions):
                now, then = (judge.role_allows(role, kind, permission) for judge in (before, after))
                if now != then:
                    verdict = "newly allowed" if then else "newly denied"
                    found.append(MatrixChange(role=role, kind=kind, permission=permission, verdict=verdict))
    return tuple(found)


def since(now: datetime, days: int) -> datetime:
    return now - timedelta(days=days)
