"""Authorisation: what a decision costs with 1, 11, 100 and 1000 policies, new and repeated.

The floor is Cedar itself as its first example uses it: the whole set asked at each call, parsed once, with its schema.
"""

import itertools
import time
from collections.abc import Callable

import cedarpy

from benchmarks.report import Figure
from macadam.access import circumstances
from macadam.access.circumstances import KnownProject
from macadam.access.engine import AccessSnapshot, Engine, KnownPrincipal
from macadam.access.policies import ProjectText, built_in, effective_digest
from macadam.access.policies.compiled import compiled
from macadam.access.types import ROLES
from macadam.operations import UNDECLARED, Actor
from macadam.values import utc_now

COUNTS = (1, 11, 100, 1000)
CALLS = 2_000
ROUNDS = 5
BUDGET, CONTRACTED = 60.0, 100
"""µs for a new decision with so many policies."""
ALICE = Actor(id="principal:alice", kind="person")


def run() -> list[Figure]:
    return [figure for count in COUNTS for figure in _measured(count)]


def _text(count: int) -> str:
    """Policies as projects write them: each about one permission, half of them for one role, some with a condition."""
    permissions = sorted(compiled(built_in()).actions - compiled(built_in()).words.governing)
    kinds = itertools.cycle(["permit", "forbid"])
    when = itertools.cycle(["", 'when { context has purpose && context.purpose == "ads" }'])
    return "\n".join(
        f'@id("p{n}") {next(kinds)} ({"principal" if n % 2 else f"principal in Role::{chr(34)}{role}{chr(34)}"}, '
        f'action == Action::"{permission}", resource) {next(when) if n % 2 else ""};'
        for n, (permission, role) in enumerate(
            itertools.islice(zip(itertools.cycle(permissions), itertools.cycle(ROLES), strict=False), count)
        )
    )


def _engine(count: int) -> tuple[Engine, ProjectText]:
    platform = built_in()
    own = ProjectText.of("flights", {"policies/a.cedar": _text(count)})
    here = KnownProject(policies=own, policy_set=effective_digest(platform.digest, "flights", own.digest))
    return Engine(
        AccessSnapshot(
            generation="g",
            policy_set=platform.digest,
            policies=platform,
            tokens={},
            principals={ALICE.id: KnownPrincipal(kind="person", roles={"flights": ("developer", "operator")})},
            projects={"flights": here},
        )
    ), own


def _measured(count: int) -> list[Figure]:
    engine, own = _engine(count)
    names = itertools.count()
    policies = compiled(built_in(), own)
    whole = policies.whole("models:read")
    entities = engine._entities(ALICE, ("developer", "operator"), "model:m", None)  # noqa: SLF001 - the same for both
    everything = frozenset({"*"})

    def naive() -> None:
        context = circumstances.gather(
            everything, in_scope=True, project="flights", resource="model:m", place=None, declared=UNDECLARED,
            now=utc_now,
        )  # fmt: skip
        request = {
            "principal": {"type": "Principal", "id": ALICE.id},
            "action": {"type": "Action", "id": "models:read"},
            "resource": {"type": "Asset", "id": f"model:m{next(names)}"},
            "context": context,
        }
        cedarpy.is_authorized(request, whole.policies, entities, policies.schema)

    new = _best(lambda: engine.decide(ALICE, "models:read", f"model:m{next(names)}", "flights"))
    kept = _best(lambda: engine.decide(ALICE, "models:read", "model:m", "flights"))
    floor = _best(naive)
    said = f"{count} policies of the project beside the platform's 11"
    return [
        Figure(
            name=f"new decision, {count} policies",
            value=new,
            unit="µs",
            at_most=BUDGET if count == CONTRACTED else None,
            note=said,
        ),
        Figure(name=f"repeated decision, {count} policies", value=kept, unit="µs", note=said),
        Figure(
            name=f"whole set at each call, {count} policies", value=floor, unit="µs", note=f"{floor / new:.1f} times"
        ),
    ]


def _best(act: Callable[[], object]) -> float:
    """µs of CPU a call, the best of some rounds: other processes share the cores."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CALLS // ROUNDS):
            act()
        best = min(best, (time.thread_time() - began) / (CALLS // ROUNDS))
    return best * 1e6
