"""The platform's state at any past date, folded from the ledger's leaves in their order.

Pure: the caller brings the leaves. Nothing else is asked, so that the answer can be given from a copy of the ledger by
someone who has no access to the platform. A leaf's own date counts: it is the one that its change was recorded with.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from macadam.ledger.leaf import Leaf
from macadam.lineage.types import (
    Judgement,
    PastAlias,
    PastEndpoint,
    PastPolicies,
    PastPrincipal,
    PastRole,
    PastState,
    PastToken,
)

_PASS = "pass"  # noqa: S105 - a verdict
_VERSION = "model:"
_CERTIFY = "workloads:certify"


class Fold:
    """Takes leaves one by one, in ledger order; `state` says what stands after them."""

    def __init__(self) -> None:
        self._count = 0
        self._principals: dict[str, PastPrincipal] = {}
        self._roles: dict[tuple[str, str, str], PastRole] = {}
        self._tokens: dict[str, PastToken] = {}
        self._policies: dict[str, PastPolicies] = {}
        self._aliases: dict[tuple[str, str, str], PastAlias] = {}
        self._endpoints: dict[tuple[str, str], PastEndpoint] = {}
        self._passed: dict[tuple[str, str], Judgement] = {}
        self._approved: dict[tuple[str, str], list[Judgement]] = {}

    def add(self, index: int, leaf: Leaf) -> None:
        """index: of the leaf in the ledger, -1 while it waits. A leaf that changes nothing here is passed over."""
        change = self.CHANGES.get(leaf.kind)
        if change is not None and leaf.outcome == "done":
            self._count += 1
            change(self, {"since": leaf.at, "leaf": leaf.id, "index": index}, leaf)

    def state(self, at: str, *, project: str = "*") -> PastState:
        """at: RFC 3339, as leaves write it. project: '*' for everything."""
        everything = project == "*"
        roles = [r for r in self._roles.values() if everything or r.project in (project, "*")]
        holders = {role.principal for role in roles}
        return PastState(
            at=at,
            leaves=self._count,
            roles=tuple(sorted(roles, key=lambda r: (r.project, r.principal, r.role))),
            principals=tuple(
                sorted(
                    (p for p in self._principals.values() if everything or p.id in holders),
                    key=lambda p: p.id,
                )
            ),
            tokens=tuple(sorted(self._live(at), key=lambda t: t.id)) if everything else (),
            policies=tuple(
                sorted(
                    (p for p in self._policies.values() if everything or p.project in ("", project)),
                    key=lambda p: p.project,
                )
            ),
            aliases=tuple(
                sorted(
                    (a for a in self._aliases.values() if everything or a.project == project),
                    key=lambda a: (a.project, a.model, a.alias),
                )
            ),
            endpoints=tuple(
                sorted(
                    (e for e in self._endpoints.values() if everything or e.project == project),
                    key=lambda e: (e.project, e.endpoint),
                )
            ),
        )

    def _live(self, at: str) -> Iterable[PastToken]:
        for token in self._tokens.values():
            holder = self._principals.get(token.principal)
            if (not token.expires or token.expires > at) and holder is not None and holder.active:
                yield token

    # --- access

    def _bootstrap(self, line: dict[str, Any], leaf: Leaf) -> None:
        """The policies of a release, of the platform or renewed for a project; and the first administrator."""
        if leaf.subject.startswith("policy:"):
            self._put_policies(line, leaf, _whole(leaf.body.get("version")))
            return
        self._person(line, leaf)
        self._give(line, leaf.subject, str(leaf.body["in"]), str(leaf.body["role"]))
        self._put_token(line, str(leaf.body["token"]), leaf.subject, leaf.body)

    def _person(self, line: dict[str, Any], leaf: Leaf) -> None:
        self._principals[leaf.subject] = PastPrincipal(
            id=leaf.subject, kind=str(leaf.body["kind"]), active=True, **line
        )

    def _disable(self, line: dict[str, Any], leaf: Leaf) -> None:
        known = self._principals.get(leaf.subject)  # None: of two clocks the faster one dated the leaf that made it
        if known is not None and known.active:
            self._principals[leaf.subject] = PastPrincipal(id=known.id, kind=known.kind, active=False, **line)
        self._dismiss(line, leaf)

    def _grant(self, line: dict[str, Any], leaf: Leaf) -> None:
        self._give(line, leaf.subject, str(leaf.body["in"]), str(leaf.body["granted"]))

    def _revoke(self, _line: dict[str, Any], leaf: Leaf) -> None:
        self._roles.pop((str(leaf.body["in"]), leaf.subject, str(leaf.body["revoked"])), None)

    def _give(self, line: dict[str, Any], principal: str, project: str, role: str) -> None:
        """Granting what is granted changes nothing: the first leaf stays the reason."""
        place = (project, principal, role)
        self._roles.setdefault(place, PastRole(project=project, principal=principal, role=role, **line))

    def _unmap(self, _line: dict[str, Any], leaf: Leaf) -> None:
        for principal in _texts(leaf.body.get("losing")):
            self._roles.pop((str(leaf.body["in"]), principal, str(leaf.body["revoked"])), None)

    def _unlink(self, _line: dict[str, Any], leaf: Leaf) -> None:
        for said in _texts(leaf.body.get("revoked")):
            project, role = _place(said)
            self._roles.pop((project, leaf.subject, role), None)

    def _sign_in(self, line: dict[str, Any], leaf: Leaf) -> None:
        """A person's first sign-in makes them known; the provider's groups give and take roles."""
        self._principals.setdefault(leaf.actor, PastPrincipal(id=leaf.actor, kind="person", active=True, **line))
        for said in _texts(leaf.body.get("granted")):
            self._give(line, leaf.actor, *_place(said))
        for said in _texts(leaf.body.get("revoked")):
            project, role = _place(said)
            self._roles.pop((project, leaf.actor, role), None)
        self._put_token(line, _after(leaf.subject), leaf.actor, leaf.body)

    def _issue(self, line: dict[str, Any], leaf: Leaf) -> None:
        old = self._tokens.get(str(leaf.body.get("rotated", "")))
        if old is not None:
            ends = str(leaf.body["old_ends"])
            self._put_token(
                {"since": old.since, "leaf": old.leaf, "index": old.index},
                old.id,
                old.principal,
                {"scopes": old.scopes, "projects": old.projects, "assets": old.assets, "expires": ends},
            )
        self._put_token(line, _after(leaf.subject), leaf.uses[0], leaf.body)

    def _put_token(self, line: dict[str, Any], token: str, principal: str, body: dict[str, Any]) -> None:
        self._tokens[token] = PastToken(
            id=token,
            principal=principal,
            scopes=_texts(body.get("scopes")),
            projects=_texts(body.get("projects")),
            assets=_texts(body.get("assets")),
            expires=str(body.get("expires", "")),
            **line,
        )

    def _end(self, _line: dict[str, Any], leaf: Leaf) -> None:
        self._tokens.pop(_after(leaf.subject), None)

    def _enroll(self, line: dict[str, Any], leaf: Leaf) -> None:
        """A workload is a service, with a role in some projects and a token that asks for its first certificate."""
        principal = leaf.uses[0]
        self._principals.setdefault(principal, PastPrincipal(id=principal, kind="service", active=True, **line))
        for project in _texts(leaf.body.get("projects")):
            self._give(line, principal, project, str(leaf.body["role"]))
        if "join_token" in leaf.body:
            body = {"scopes": [_CERTIFY], "expires": leaf.body["join_expires"]}
            self._put_token(line, str(leaf.body["join_token"]), principal, body)

    def _certify(self, _line: dict[str, Any], leaf: Leaf) -> None:
        self._tokens.pop(str(leaf.body.get("spent_token", "")), None)

    def _dismiss(self, _line: dict[str, Any], leaf: Leaf) -> None:
        for token in _texts(leaf.body.get("revoked_tokens")):
            self._tokens.pop(token, None)

    def _activate(self, line: dict[str, Any], leaf: Leaf) -> None:
        if "in_force" in leaf.body:  # otherwise it was in force already
            self._put_policies(line, leaf, _whole(leaf.body["in_force"]))

    def _put_policies(self, line: dict[str, Any], leaf: Leaf, version: int) -> None:
        self._policies[leaf.project] = PastPolicies(
            project=leaf.project, policy_set=_after(leaf.subject), version=version, **line
        )

    # --- models and endpoints

    def _gate(self, line: dict[str, Any], leaf: Leaf) -> None:
        if leaf.body.get("verdict") != _PASS:
            return
        for version in [ref for ref in leaf.uses if ref.startswith(_VERSION)]:
            self._passed[leaf.project, version] = Judgement(ref=leaf.subject, by=leaf.actor, verdict=_PASS, **line)

    def _approve(self, line: dict[str, Any], leaf: Leaf) -> None:
        given = Judgement(ref=leaf.subject, by=leaf.actor, verdict="approved", **line)
        self._approved.setdefault((leaf.project, leaf.uses[0]), []).append(given)

    def _alias(self, line: dict[str, Any], leaf: Leaf) -> None:
        """Moving a protected alias writes two leaves: the gate's verdict, then the move that rests on it."""
        if not leaf.subject.startswith("alias:"):
            self._gate(line, leaf)
            return
        model, _, alias = _after(leaf.subject).rpartition("@")
        version = leaf.uses[0]
        gate = self._passed.get((leaf.project, version))
        self._aliases[leaf.project, model, alias] = PastAlias(
            project=leaf.project,
            model=model,
            alias=alias,
            version=version,
            gate=gate if gate is not None and gate.ref in leaf.uses else None,
            approvals=tuple(a for a in self._approved.get((leaf.project, version), ()) if a.ref in leaf.uses),
            **line,
        )

    def _deploy(self, line: dict[str, Any], leaf: Leaf) -> None:
        """A deployment is named after its leaf; going back to an earlier one names that."""
        endpoint, version = _after(leaf.subject), leaf.uses[0]
        self._endpoints[leaf.project, endpoint] = PastEndpoint(
            project=leaf.project,
            endpoint=endpoint,
            deployment=str(leaf.body.get("deployment", leaf.id)),
            version=version,
            gate=self._passed.get((leaf.project, version)),
            approvals=tuple(self._approved.get((leaf.project, version), ())),
            **line,
        )

    CHANGES: ClassVar[dict[str, "Callable[[Fold, dict[str, Any], Leaf], None]"]] = {
        "access.bootstrap": _bootstrap,
        "access.create_principal": _person,
        "access.disable_principal": _disable,
        "access.grant_role": _grant,
        "access.revoke_role": _revoke,
        "access.unmap_group": _unmap,
        "access.unlink_identity": _unlink,
        "access.sign_in": _sign_in,
        "access.issue_token": _issue,
        "access.rotate_token": _issue,
        "access.revoke_token": _end,
        "access.enroll_workload": _enroll,
        "access.certify_workload": _certify,
        "access.revoke_workload": _dismiss,
        "access.activate_policies": _activate,
        "access.roll_back_policies": _activate,
        "models.check_gate": _gate,
        "models.approve": _approve,
        "models.set_alias": _alias,
        "serving.deploy": _deploy,
        "serving.rollback": _deploy,
    }


def _after(ref: str) -> str:
    """What a reference names: 'token:ID' → ID."""
    return ref.partition(":")[2]


def _place(said: str) -> tuple[str, str]:
    """'PROJECT: ROLE', as a sign-in's leaf writes it."""
    project, _, role = said.partition(": ")
    return project, role


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


KINDS = tuple(Fold.CHANGES)
"""The operations that change what `Fold` knows: all other leaves may be left out."""


def state(leaves: Iterable[tuple[int, Leaf]], at: str, *, project: str = "*") -> PastState:
    """leaves: (index, leaf) in ledger order; those dated after `at` are passed over."""
    fold = Fold()
    for index, leaf in leaves:
        if leaf.at <= at:
            fold.add(index, leaf)
    return fold.state(at, project=project)
