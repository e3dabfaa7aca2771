"""Decides, in memory and without SQL, what an actor may do. Who that is, `authentication` says.

The control plane builds an Engine per change of the access tables; a gateway builds one from a published
`AccessSnapshot`. Everything here fails closed: an unknown action, a policy that errors, a project's set that cannot be
read are all denials. Reading and changing the tables is for `service` and `policy_service`.
"""

import json
import threading
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.access import circumstances
from macadam.access.authentication import Credentials, KnownToken, Reach, covers
from macadam.access.circumstances import KnownProject
from macadam.access.policies import PolicyText, effective_digest
from macadam.access.policies.compiled import CompiledPolicies, Shard, compiled
from macadam.access.rates import Limit
from macadam.errors import IntegrityError, InvalidInput
from macadam.lazy import lazy
from macadam.operations import UNDECLARED, Actor, Decision, Declared
from macadam.values import utc_now, uuid7

if TYPE_CHECKING:
    import cedarpy
else:
    cedarpy = lazy("cedarpy")

_CACHED_DECISIONS = 20_000
"""Decisions kept per engine: some 10 MB. The resource comes from callers, so the cache must not grow freely."""
_CACHED_ENTITIES = 5_000
_LONGEST_CACHED = 500
"""Characters of resource and project: both come from callers before they are validated, megabytes long if they like."""

_Key = tuple[str, ...]


class KnownPrincipal(msgspec.Struct, frozen=True, kw_only=True):
    """kind: 'person' or 'service'. roles: project (or '*') → roles held there."""

    kind: str
    active: bool = True
    roles: dict[str, tuple[str, ...]] = {}


class AccessSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state of access at one moment: enough to decide without SQL. Holds no secret.

    tokens: by the SHA-256 of their secret, as sha256:<hex>. policy_set: the digest of `policies`, the platform's set. rates: of principals
    whose limit differs from the settings'.
    """

    generation: str
    policy_set: str
    policies: PolicyText
    tokens: dict[str, KnownToken]
    principals: dict[str, KnownPrincipal]
    projects: dict[str, KnownProject]
    rates: dict[str, Limit] = {}


class Engine:
    """Answers for one snapshot. Safe to share between threads."""

    def __init__(self, snapshot: AccessSnapshot) -> None:
        """Raises IntegrityError if the policies are not those of the recorded digests."""
        _require_recorded("The policies have", snapshot.policies.digest, snapshot.policy_set)
        for name, project in snapshot.projects.items():
            if project.policies is not None:
                found = effective_digest(snapshot.policy_set, name, project.policies.digest)
                _require_recorded(f"The policies of project {name!r} have", found, project.policy_set)
        self.snapshot = snapshot
        self._platform = compiled(snapshot.policies)
        self._sets: dict[str, CompiledPolicies | InvalidInput] = {}
        self.credentials = Credentials(snapshot.tokens, snapshot.principals)
        self._callers: dict[_Key, cedarpy.Entities] = {}
        self._decided: dict[_Key, Decision] = {}
        self._filling = threading.Lock()

    @property
    def permissions(self) -> frozenset[str]:
        """All that any policy could allow: the schema's actions."""
        return self._platform.actions

    def knows_project(self, name: str) -> bool:
        return name in self.snapshot.projects

    def authenticate(self, token: str, now: datetime, revoked: Collection[str] = frozenset()) -> Actor:
        """Who holds `token`. Raises NotAuthenticated, in the same words and time whatever is wrong with it."""
        return self.credentials.authenticate(token, now, revoked)

    def expiry(self, token: str) -> datetime | None:
        """When a token that this engine knows ends, if it does."""
        return self.credentials.expiry(token)

    def policy_set(self, project: str) -> str:
        """The digest that decisions in a project name."""
        found = self.snapshot.projects.get(project)
        return found.policy_set if found is not None and found.policies is not None else self.snapshot.policy_set

    def roles(self, principal: str, project: str) -> tuple[str, ...]:
        """The roles that a principal holds in a project, those held everywhere included; sorted."""
        known = self.snapshot.principals.get(principal)
        if known is None:
            return ()
        return tuple(sorted({*known.roles.get("*", ()), *(known.roles.get(project, ()) if project else ())}))

    def lasts(self, permission: str, project: str) -> bool:
        """Whether a decision holds as long as the snapshot does: no policy about it looks at the clock."""
        policies = self._policies(permission, project)
        return isinstance(policies, CompiledPolicies) and circumstances.lasts(policies.reads(permission))

    def decide(
        self,
        actor: Actor,
        permission: str,
        resource: str,
        project: str,
        *,
        declared: Declared = UNDECLARED,
        now: datetime | None = None,
    ) -> Decision:
        """Whether `actor` may. resource: a reference; project: '' or '*' counts only roles held everywhere.

        declared: what the caller says of the call. now: UTC; by default the present, and only read if a policy asks.
        """
        policies = self._policies(permission, project)
        if isinstance(policies, InvalidInput):
            reason = f"the project's policies could not be read, which denies: {policies.what}"
            return Decision(id=uuid7(), allowed=False, policies=(), policy_set=self.policy_set(project), reason=reason)
        reads = policies.reads(permission)
        key: _Key = (actor.id, actor.token, permission, resource, project)
        if reads:
            key += circumstances.key(reads, declared)
        known = self._decided.get(key)
        if known is None:
            known = self._evaluate(policies, actor, permission, resource, project, declared, now)
            if len(resource) + len(project) <= _LONGEST_CACHED and circumstances.lasts(reads):
                self._keep(key, known)
        # Each use of a cached decision is a decision of its own in the evidence.
        return Decision(
            id=uuid7(),
            allowed=known.allowed,
            policies=known.policies,
            policy_set=known.policy_set,
            reason=known.reason,
        )

    def _keep(self, key: _Key, decision: Decision) -> None:
        with self._filling:
            if len(self._decided) >= _CACHED_DECISIONS:
                self._decided.clear()
            self._decided[key] = decision

    def _policies(self, permission: str, project: str) -> CompiledPolicies | InvalidInput:
        """The set that decides. Who changes policies and roles is decided by the platform's set alone."""
        found = self._sets.get(project)
        if found is None:
            known = self.snapshot.projects.get(project)
            if known is None or known.policies is None:
                return self._platform
            try:
                found = compiled(self.snapshot.policies, known.policies)
            except InvalidInput as error:  # approved under another release's schema: closed, and said
                found = error
            self._sets[project] = found
        return self._platform if permission in self._platform.words.governing else found

    def _evaluate(
        self,
        policies: CompiledPolicies,
        actor: Actor,
        permission: str,
        resource: str,
        project: str,
        declared: Declared,
        now: datetime | None,
    ) -> Decision:
        roles = self.roles(actor.id, project)
        reach = self.credentials.reach(actor)
        in_scope = reach is not None and covers(reach, permission, resource, project)
        if permission not in policies.actions:
            reason = f"no policy allows it: the policies know no permission {permission!r}"
            return Decision(id="", allowed=False, policies=(), policy_set=policies.digest, reason=reason)
        shard = policies.shard(permission, roles, actor.id, resource)
        place = self.snapshot.projects.get(project)
        answer = self._ask(
            shard,
            actor,
            permission,
            resource,
            self._entities(actor, roles, resource, place if _reads_asset(shard.reads) else None),
            circumstances.gather(
                shard.reads,
                in_scope=in_scope,
                project=project,
                resource=resource,
                place=place,
                declared=declared,
                now=now or utc_now,
            ),
        )
        return _read(answer, policies, roles, reach)

    @staticmethod
    def _ask(
        shard: Shard, actor: Actor, permission: str, resource: str, entities: "cedarpy.Entities", context: str
    ) -> Any:
        # Without the schema: it would check the context's form again at each call, for longer than the policies take.
        # The policies were held against it when they were read, the entities carry its actions and were checked by it,
        # the context is of our making, and whatever could still be absent is an error of a policy, which denies.
        return cedarpy.is_authorized(
            {
                "principal": {"type": "Principal", "id": actor.id},
                "action": {"type": "Action", "id": permission},
                "resource": {"type": "Asset", "id": resource},
                "context": context,
            },
            shard.policies,
            entities,
        )

    def _entities(
        self, actor: Actor, roles: tuple[str, ...], resource: str, place: KnownProject | None
    ) -> "cedarpy.Entities":
        """The caller with its roles, parsed once: the same for every asset of a project, unless policies look at it."""
        known = self.snapshot.principals.get(actor.id)
        key: _Key = (actor.id, *roles)
        handle = self._callers.get(key)
        if handle is None:
            caller = {
                "uid": {"type": "Principal", "id": actor.id},
                "attrs": {"kind": known.kind if known else "unknown", "active": bool(known and known.active)},
                "parents": [{"type": "Role", "id": role} for role in roles],
            }
            handle = cedarpy.Entities.from_json_str(json.dumps([caller]), self._platform.schema)
            if known is not None:  # so that strangers cannot fill the cache
                with self._filling:
                    if len(self._callers) >= _CACHED_ENTITIES:
                        self._callers.clear()
                    self._callers[key] = handle
        if place is None:
            return handle
        asset = {
            "uid": {"type": "Asset", "id": resource},
            "attrs": circumstances.asset_attributes(place, resource),
            "parents": [],
        }
        return handle.with_added_json_str(json.dumps([asset]), self._platform.schema)


def _reads_asset(reads: frozenset[str]) -> bool:
    return any(read.partition(".")[0] == "resource" for read in reads)


def _require_recorded(whose: str, found: str, recorded: str) -> None:
    if found != recorded:
        raise IntegrityError(
            f"{whose} the digest {found}, recorded was {recorded}.",
            next_step="Stop and find out who changed them; `macadam ledger verify` shows what was recorded.",
        )


def _read(answer: Any, policies: CompiledPolicies, roles: tuple[str, ...], reach: Reach | None) -> Decision:
    """Cedar skips a policy that errors, so a forbid that errors would allow: any error at all is a denial."""
    names = tuple(sorted(answer.diagnostics.reasons))
    errors = [error.replace("`", "'") for error in answer.diagnostics.errors]
    allowed = bool(answer.allowed and names and not errors)
    if allowed:
        reason = "allowed by " + ", ".join(names)
    elif errors:
        reason = "the policies could not be evaluated, which denies: " + "; ".join(errors)
    elif names:
        reason = "the policy " + ", ".join(f"'{name}'" for name in names) + " forbids it"
        if "token-scope-limits" in names:
            reason += f" (the token's {reach or 'reach: none'})"
    else:
        reason = f"no policy allows it (roles: {', '.join(roles) or 'none'})"
    return Decision(id="", allowed=allowed, policies=names, policy_set=policies.digest, reason=reason)
