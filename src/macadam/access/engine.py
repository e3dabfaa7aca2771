"""Decides, in memory and without SQL, what a caller may do; who they are is for `authentication`.

The control plane builds an Engine per change of the access tables; a gateway builds one from a published
`AccessSnapshot`. Everything here fails closed: an unknown action, a policy that errors, a request that does not
fit the schema are all denials. Reading and changing the tables is for `service`.
"""

import json
import re
import threading
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.access.authentication import Credentials, KnownToken, Reach, covers
from macadam.access.policies import PolicyText
from macadam.access.rates import Limit
from macadam.errors import IntegrityError, InvalidInput
from macadam.lazy import lazy
from macadam.operations import Actor, Decision
from macadam.values import uuid7

if TYPE_CHECKING:
    import cedarpy
else:
    cedarpy = lazy("cedarpy")

_CACHED_DECISIONS = 20_000
"""Decisions kept per engine: some 10 MB. The resource comes from callers, so the cache must not grow freely."""
_LONGEST_CACHED = 500
"""Characters of resource and project: both come from callers before they are validated, megabytes long if they like."""


class KnownPrincipal(msgspec.Struct, frozen=True, kw_only=True):
    """kind: 'person' or 'service'. roles: project (or '*') → roles held there."""

    kind: str
    active: bool = True
    roles: dict[str, tuple[str, ...]] = {}


class AccessSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state of access at one moment: enough to decide without SQL. Holds no secret.

    tokens: by the SHA-256 of their secret, as sha256:<hex>. policy_set: the digest of `policies`. rates: of principals
    whose limit differs from the settings'.
    """

    generation: str
    policy_set: str
    policies: PolicyText
    tokens: dict[str, KnownToken]
    principals: dict[str, KnownPrincipal]
    projects: tuple[str, ...]
    rates: dict[str, Limit] = {}


class CompiledPolicies:
    """A policy set, parsed once. Raises InvalidInput if it does not parse, fit its schema, or name each policy."""

    def __init__(self, text: PolicyText) -> None:
        try:
            self.schema = cedarpy.Schema.from_str(text.schema)
            self.set = cedarpy.PolicySet.from_str(text.policies)
        except ValueError as error:
            raise InvalidInput(
                f"The policies do not parse: {error}.", next_step="Correct the Cedar text and try again."
            ) from error
        self.names = _names(text.policies)
        found = cedarpy.validate_policies(text.policies, self.schema)
        if not found.validation_passed:
            faults = "; ".join(f"{self.names.get(e.policy_id, e.policy_id)}: {e.error}" for e in found.errors)
            raise InvalidInput(
                f"The policies do not fit their schema: {faults}.",
                next_step="Correct the Cedar text and try again.",
            )
        self.actions = _actions(text.schema)


def _names(policies: str) -> dict[str, str]:
    """Positional id ('policy0') → the policy's @id: errors name policies by position only."""
    parsed = json.loads(cedarpy.policies_to_json_str(policies))["staticPolicies"]
    names = {position: str(policy.get("annotations", {}).get("id") or "") for position, policy in parsed.items()}
    if "" in names.values() or len(set(names.values())) != len(names):
        raise InvalidInput(
            f"Each policy needs an @id of its own; got {sorted(names.values())}.",
            next_step='Write @id("name") above each policy.',
        )
    return names


def _actions(schema: str) -> frozenset[str]:
    """The permissions that a schema knows: its actions of the form noun:verb, groups left out."""
    bare = "\n".join(line.partition("//")[0] for line in schema.splitlines())
    return frozenset(re.findall(r'"([a-z_]+:[a-z_]+)"', bare))


@lru_cache(maxsize=8)
def compiled(text: PolicyText) -> CompiledPolicies:
    """Parsing takes milliseconds, and a set changes far more rarely than grants and tokens do."""
    return CompiledPolicies(text)


class Engine:
    """Answers for one snapshot. Safe to share between threads."""

    def __init__(self, snapshot: AccessSnapshot) -> None:
        """Raises IntegrityError if the policies are not those of the recorded digest."""
        if snapshot.policies.digest != snapshot.policy_set:
            raise IntegrityError(
                f"The policies have the digest {snapshot.policies.digest}, recorded was {snapshot.policy_set}.",
                next_step="Stop and find out who changed them; `macadam ledger verify` shows what was recorded.",
            )
        self.snapshot = snapshot
        self._policies = compiled(snapshot.policies)
        self.credentials = Credentials(snapshot.tokens, snapshot.principals)
        self._projects = frozenset(snapshot.projects)
        self._callers: dict[tuple[str, tuple[str, ...]], cedarpy.Entities] = {}
        self._decided: dict[tuple[str, str, str, str, str], Decision] = {}
        self._filling = threading.Lock()

    @property
    def permissions(self) -> frozenset[str]:
        """All that any policy could allow: the schema's actions."""
        return self._policies.actions

    def knows_project(self, name: str) -> bool:
        return name in self._projects

    def authenticate(self, token: str, now: datetime) -> Actor:
        """Who holds `token`. Raises NotAuthenticated, in the same words and time whatever is wrong with it."""
        return self.credentials.authenticate(token, now)

    def expiry(self, token: str) -> datetime | None:
        """When a token that this engine knows ends, if it does."""
        return self.credentials.expiry(token)

    def roles(self, principal: str, project: str) -> tuple[str, ...]:
        """The roles that a principal holds in a project, those held everywhere included; sorted."""
        known = self.snapshot.principals.get(principal)
        if known is None:
            return ()
        return tuple(sorted({*known.roles.get("*", ()), *(known.roles.get(project, ()) if project else ())}))

    def decide(self, actor: Actor, permission: str, resource: str, project: str) -> Decision:
        """Whether `actor` may. resource: a reference; project: '' or '*' counts only roles held everywhere."""
        key = (actor.id, actor.token, permission, resource, project)
        known = self._decided.get(key)
        if known is None:
            known = self._evaluate(actor, permission, resource, project)
            if len(resource) + len(project) <= _LONGEST_CACHED:
                self._keep(key, known)
        # Each use of a cached decision is a decision of its own in the evidence.
        return Decision(
            id=uuid7(),
            allowed=known.allowed,
            policies=known.policies,
            policy_set=known.policy_set,
            reason=known.reason,
        )

    def _keep(self, key: tuple[str, str, str, str, str], decision: Decision) -> None:
        with self._filling:
            if len(self._decided) >= _CACHED_DECISIONS:
                self._decided.clear()
            self._decided[key] = decision

    def _evaluate(self, actor: Actor, permission: str, resource: str, project: str) -> Decision:
        roles = self.roles(actor.id, project)
        reach = self.credentials.reach(actor)
        in_scope = reach is not None and covers(reach, permission, resource, project)
        asset = resource.partition(":")[0]
        circumstances = msgspec.json.encode({"in_scope": in_scope, "project": project, "asset": asset})
        answer = cedarpy.is_authorized(
            {
                "principal": {"type": "Principal", "id": actor.id},
                "action": {"type": "Action", "id": permission},
                "resource": {"type": "Asset", "id": resource},
                "context": circumstances.decode(),
            },
            self._policies.set,
            self._entities(actor, roles),
            self._policies.schema,
        )
        return self._read(answer, permission, roles, reach)

    def _entities(self, actor: Actor, roles: tuple[str, ...]) -> "cedarpy.Entities":
        """The caller with its roles, parsed once: the same for every asset of a project."""
        known = self.snapshot.principals.get(actor.id)
        handle = self._callers.get((actor.id, roles))
        if handle is None:
            caller = {
                "uid": {"type": "Principal", "id": actor.id},
                "attrs": {"kind": known.kind if known else "unknown", "active": bool(known and known.active)},
                "parents": [{"type": "Role", "id": role} for role in roles],
            }
            handle = cedarpy.Entities.from_json_str(json.dumps([caller]), self._policies.schema)
            if known is not None:  # so that strangers cannot fill the cache
                self._callers[actor.id, roles] = handle
        return handle

    def _read(self, answer: Any, permission: str, roles: tuple[str, ...], reach: Reach | None) -> Decision:
        """Cedar skips a policy that errors, so a forbid that errors would allow: any error at all is a denial."""
        names = tuple(self._policies.names[position] for position in answer.diagnostics.reasons)
        errors = [self._named(error) for error in answer.diagnostics.errors]
        allowed = bool(answer.allowed and names and not errors)
        if allowed:
            reason = "allowed by " + ", ".join(names)
        elif permission not in self._policies.actions:
            reason = f"no policy allows it: the policies know no permission {permission!r}"
        elif errors:
            reason = "the policies could not be evaluated, which denies: " + "; ".join(errors)
        elif names:
            reason = "the policy " + ", ".join(f"'{name}'" for name in names) + " forbids it"
            if "token-scope-limits" in names:
                reason += f" (the token's {reach or 'reach: none'})"
        else:
            reason = f"no policy allows it (roles: {', '.join(roles) or 'none'})"
        return Decision(id="", allowed=allowed, policies=names, policy_set=self.snapshot.policy_set, reason=reason)

    def _named(self, error: str) -> str:
        for position, name in self._policies.names.items():
            error = error.replace(f"`{position}`", f"'{name}'")
        return error
