"""Everything that the checks look at, as one frozen value, so that a check is a pure function of it.

Leaves stand in ledger order: what comes first was recorded first. Gathering is for `collect`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import msgspec

from macadam.access.engine import AccessSnapshot, Engine
from macadam.access.types import Project
from macadam.ledger.leaf import Leaf
from macadam.models.types import Run
from macadam.operations import Actor

CONTRACT_TEXT = "text_object"
"""The fact of a contract's leaf that names its text as an object."""


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction that was drawn at random. faults: each link of its chain or proof that did not hold."""

    id: str
    faults: tuple[str, ...]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions drawn from the sealed journal. population: how many are sealed."""

    population: int = 0
    drawn: tuple[Traced, ...] = ()


class LedgerState(msgspec.Struct, frozen=True, kw_only=True):
    """What rebuilding the ledger found."""

    size: int = 0
    checkpoints: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """leaves: of this project, refused calls included; policy_leaves: those that put a policy set in force, of the
    whole home. contracts: digest of a contract's text → the document; runs: by reference; unsealed: references of
    the journal segments that wait for their seal.
    """

    now: datetime
    project: Project
    access: AccessSnapshot
    leaves: tuple[Leaf, ...] = ()
    policy_leaves: tuple[Leaf, ...] = ()
    contracts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    predictions: Sample = field(default_factory=Sample)
    unsealed: frozenset[str] = frozenset()
    ledger: LedgerState = field(default_factory=LedgerState)

    @cached_property
    def engine(self) -> Engine:
        """Decides as the home does, without being it: probes leave no trace."""
        return Engine(self.access)

    @cached_property
    def done(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if leaf.outcome == "done")

    @cached_property
    def denied(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if leaf.outcome == "denied")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {leaf.id: place for place, leaf in enumerate(self.leaves)}

    @cached_property
    def _by_subject(self) -> dict[str, list[Leaf]]:
        found: dict[str, list[Leaf]] = {}
        for leaf in self.done:
            found.setdefault(leaf.subject, []).append(leaf)
        return found

    def before(self, first: Leaf, second: Leaf) -> bool:
        """Whether `first` was recorded before `second`: by the ledger's order, which no clock can bend."""
        return self._places[first.id] < self._places[second.id]

    def about(self, subject: str) -> list[Leaf]:
        """What was done about a reference, oldest first."""
        return self._by_subject.get(subject, [])

    def of(self, prefix: str, *, kind: str = "", having: str = "") -> list[Leaf]:
        """What was done about references that begin so. having: only leaves whose body has this fact."""
        return [
            leaf
            for leaf in self.done
            if leaf.subject.startswith(prefix) and leaf.kind.startswith(kind) and (not having or leaf.body.get(having))
        ]

    @cached_property
    def _by_use(self) -> dict[str, list[Leaf]]:
        found: dict[str, list[Leaf]] = {}
        for leaf in self.done:
            for ref in leaf.uses:
                found.setdefault(ref, []).append(leaf)
        return found

    def using(self, ref: str, prefix: str) -> list[Leaf]:
        """What was done with a reference, about subjects that begin with `prefix`, oldest first."""
        return [leaf for leaf in self._by_use.get(ref, []) if leaf.subject.startswith(prefix)]

    @cached_property
    def deployments(self) -> list[Leaf]:
        return self.of("endpoint:", having="artifact")

    @cached_property
    def live(self) -> dict[str, Leaf]:
        """Endpoint → the deployment that answers there now: the last one."""
        return {leaf.subject: leaf for leaf in self.deployments}

    def registration(self, version: str) -> Leaf | None:
        """The leaf that registered `model:NAME@N`."""
        found = [leaf for leaf in self.about(version) if leaf.kind == "models.register_version"]
        return found[0] if found else None

    def may(self, permission: str) -> list[str]:
        """Active people who may do something in this project, by the policies in force."""
        project = self.project.name
        return [
            identity
            for identity, known in sorted(self.access.principals.items())
            if known.kind == "person"
            and known.active
            and self.engine.decide(Actor(id=identity, kind="person"), permission, f"project:{project}", project).allowed
        ]

    def active(self, principal: str) -> bool:
        known = self.access.principals.get(principal)
        return known is not None and known.active


def used(leaf: Leaf, prefix: str) -> list[str]:
    """The references of one kind that a leaf was made from."""
    return [ref for ref in leaf.uses if ref.startswith(prefix)]
