"""Policies sorted so that a decision looks only at those that could speak to it, each group parsed before it is asked.

Cedar evaluates every policy of the set that it is given, about a microsecond each. What a policy's scope rules out can
be told from the scope alone, so it is left out: the answer, the policies named by it and the errors stay the same (a
test asks both for random requests and policies).
"""

import json
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from macadam.access.policies import PolicyText, ProjectText, effective_digest
from macadam.access.policies.parsing import Policy, Vocabulary, platform_policies, project_policies
from macadam.lazy import lazy

if TYPE_CHECKING:
    import cedarpy
else:
    cedarpy = lazy("cedarpy")

_MOST_SHARDS = 5_000
"""Of one set: permissions by combinations of roles that are held somewhere. Some kilobytes each."""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """The policies that can speak to one kind of call. reads: the circumstances that any of them looks at."""

    policies: "cedarpy.PolicySet"
    names: tuple[str, ...]
    reads: frozenset[str]


class CompiledPolicies:
    """The set that decides in one place: the platform's, and in a project also the project's own.

    Raises InvalidInput if either does not parse, fit the schema or name each policy, or if the project's speaks of what
    only the platform decides.
    """

    def __init__(self, text: PolicyText, own: ProjectText | None = None) -> None:
        self.words = _vocabulary(text.schema)
        self.platform = platform_policies(text.policies, self.words)
        self.own = project_policies(own, self.words) if own is not None else ()
        self.digest = effective_digest(text.digest, own.project, own.digest) if own is not None else text.digest
        self._shards: dict[tuple[str, tuple[str, ...], str, str], Shard] = {}
        self._reads: dict[str, frozenset[str]] = {}
        self._filling = threading.Lock()
        everyone = (*self.platform, *self.own)
        self._principals = frozenset(p.principal for p in everyone) - {""}
        self._assets = frozenset(p.asset for p in everyone) - {""}

    @property
    def schema(self) -> "cedarpy.Schema":
        return self.words.schema

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(policy.name for policy in (*self.platform, *self.own))

    @property
    def actions(self) -> frozenset[str]:
        """The permissions that the schema knows: no others can be allowed."""
        return self.words.permissions

    def about(self, permission: str) -> tuple[Policy, ...]:
        """The policies whose scope has the permission. A project's have no say about who decides."""
        own = () if permission in self.words.governing else self.own
        return tuple(policy for policy in (*self.platform, *own) if policy.is_about(permission))

    def reads(self, permission: str) -> frozenset[str]:
        """The circumstances that any policy about the permission looks at: what a kept decision depends on."""
        known = self._reads.get(permission)
        if known is None:
            known = frozenset().union(*(policy.reads for policy in self.about(permission)))
            if permission in self.actions:  # so that made-up permissions cannot fill it
                self._reads[permission] = known
        return known

    def shard(self, permission: str, roles: tuple[str, ...], principal: str, asset: str) -> Shard:
        """The policies that can speak to a call: by a principal with these roles, on this asset."""
        key = (
            permission,
            roles,
            principal if principal in self._principals else "",
            asset if asset in self._assets else "",
        )
        found = self._shards.get(key)
        if found is None:
            found = _shard(p for p in self.about(permission) if _may_speak(p, roles, key[2], key[3]))
            with self._filling:
                if len(self._shards) >= _MOST_SHARDS:
                    self._shards.clear()
                self._shards[key] = found
        return found

    def whole(self, permission: str) -> Shard:
        """Every policy that holds in this place, unsorted: what a shard must agree with."""
        own = () if permission in self.words.governing else self.own
        return _shard((*self.platform, *own))


def _may_speak(policy: Policy, roles: tuple[str, ...], principal: str, asset: str) -> bool:
    return (
        (not policy.role or policy.role in roles)
        and (not policy.principal or policy.principal == principal)
        and (not policy.asset or policy.asset == asset)
    )


def _shard(policies: Iterable[Policy]) -> Shard:
    chosen = tuple(policies)
    document = {
        "staticPolicies": {policy.name: policy.document for policy in chosen},
        "templates": {},
        "templateLinks": [],
    }
    reads: frozenset[str] = frozenset().union(*(policy.reads for policy in chosen))
    return Shard(
        policies=cedarpy.PolicySet.from_json_str(json.dumps(document)),
        names=tuple(policy.name for policy in chosen),
        reads=reads,
    )


@lru_cache(maxsize=4)
def _vocabulary(schema: str) -> Vocabulary:
    return Vocabulary(schema)


@lru_cache(maxsize=256)
def compiled(text: PolicyText, own: ProjectText | None = None) -> CompiledPolicies:
    """Parsing takes milliseconds, and a set changes far more rarely than grants and tokens do."""
    return CompiledPolicies(text, own)
