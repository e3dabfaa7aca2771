"""The state at any past date, folded from the ledger, is the one that the database held at that date."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from unit.models import worlds

from macadam import operations
from macadam.access.policy_types import ActivatePolicies, ApprovePolicies, ProposePolicies, RollBackPolicies
from macadam.access.schema import grants, policy_activations, principals, state, tokens
from macadam.access.types import (
    CreatePrincipal,
    CreateProject,
    DisablePrincipal,
    EnrollWorkload,
    GrantRole,
    IssueToken,
    RevokeRole,
    RevokeToken,
    RevokeWorkload,
    RotateToken,
)
from macadam.app.platform import Platform
from macadam.errors import MacadamError, NotAuthorised
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.ledger.sequencer import integrate_all
from macadam.lineage import past
from macadam.lineage.service import changes
from macadam.lineage.types import PastState, StateAt
from macadam.models.schema import aliases
from macadam.models.types import (
    Approve,
    CheckGate,
    DeclareThresholds,
    Evaluate,
    RegisterVersion,
    SetAlias,
    Train,
)
from macadam.operations import Request
from macadam.serving.schema import deployments, endpoints
from macadam.serving.types import Deploy, Rollback
from macadam.settings import Settings
from macadam.testing import open_platform, token_of
from macadam.values import digest_of, instant, utc_now, uuid7

WHERE = {"project": "flights", "model": "late"}
GATES = "metrics: {roc_auc: {at_least: 0.5}}\nholdout: june\n"
CEDAR = '@id("own-{n}")\nforbid (principal, action == Action::"contracts:register", resource);\n'


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two measured versions of one model; the first is approved."""
    place = tmp_path_factory.mktemp("past")
    with open_platform(place / "home") as platform:
        for project in ("flights", "parcels"):
            platform.call(CreateProject(project=project))
        splits = (("train", 300), ("tune", 200), ("june", 300))
        refs = {
            split: worlds.plant(platform, split, worlds.rows(count, seed=n, start=n * 5000))
            for n, (split, count) in enumerate(splits)
        }
        (place / "good").mkdir()
        (place / "good" / "train.py").write_text(worlds.TRAIN)
        platform.call(DeclareThresholds(**WHERE, text=GATES))
        for trees in (5, 9):
            sets = {split: refs[split] for split in ("train", "tune")}
            run = platform.call(Train(**WHERE, source=str(place / "good"), training_sets=sets, params={"trees": trees}))
            version = platform.call(RegisterVersion(**WHERE, run=run.ref))
            platform.call(Evaluate(**WHERE, version=str(version.number), training_set=refs["june"], resamples=100))
        for name in ("maria", "nils"):
            token = token_of(platform, f"principal:{name}", {"flights": "approver"})
            (place / name).write_text(token)
        platform.call(Approve(**WHERE, version="1"), token=(place / "maria").read_text())
    return place


class History:
    """A home on a clock of its own, and what its database held after each step."""

    def __init__(self, furnished: Path, home: Path) -> None:
        shutil.copytree(furnished / "home", home)
        self.now = utc_now() + timedelta(hours=1)
        self.platform = Platform(Settings.load({}, home=home), clock=lambda: self.now)
        self.people = {name: (furnished / name).read_text() for name in ("maria", "nils")}
        self.seen: dict[datetime, dict[str, object]] = {}
        self.issued: list[str] = []
        self.look()

    def do(self, request: Request[Any], who: str = "") -> None:
        """What is refused or impossible changes nothing, and is part of history too."""
        try:
            answer = self.platform.call(request, token=self.people.get(who, ""))
        except MacadamError:
            return
        if isinstance(request, IssueToken | RotateToken):
            self.issued.append(answer.id)

    def wait(self, seconds: float) -> None:
        self.look()
        self.now += timedelta(seconds=seconds)
        self.look()

    def look(self) -> None:
        with self.platform.ports.sql.read() as sql:
            self.seen[self.now] = held(sql, self.now)


def held(sql: sa.Connection, now: datetime) -> dict[str, object]:
    """What the tables say, in the words of the fold."""
    live = sa.and_(tokens.c.revoked.is_(None), sa.or_(tokens.c.expires.is_(None), tokens.c.expires > now))
    active = sa.select(principals.c.id).where(principals.c.disabled.is_(None))
    answering = sa.select(endpoints.c.project, endpoints.c.name, deployments.c.id, deployments.c.document).where(
        deployments.c.id == endpoints.c.deployment
    )
    policies = {"": sql.execute(sa.select(state.c.policy_set)).scalar_one()}
    for row in sql.execute(sa.select(policy_activations).order_by(policy_activations.c.number)):
        policies[row.project] = row.policy_set
    return {
        "principals": {(p.id, p.disabled is None) for p in sql.execute(sa.select(principals))},
        "roles": {(g.project, g.principal, g.role) for g in sql.execute(sa.select(grants))},
        "tokens": {
            (t.id, t.principal, t.expires and instant(t.expires))
            for t in sql.execute(sa.select(tokens).where(live, tokens.c.principal.in_(active)))
        },
        "policies": policies,
        "aliases": {
            (
                a.project,
                a.model,
                a.alias,
                a.document["model_ref"],
                a.document["gate"],
                frozenset(a.document["approvals"]),
            )
            for a in sql.execute(sa.select(aliases))
        },
        "endpoints": {(e.project, e.name, e.id, e.document["version"]) for e in sql.execute(answering)},
    }


def told(found: PastState) -> dict[str, object]:
    return {
        "principals": {(p.id, p.active) for p in found.principals},
        "roles": {(r.project, r.principal, r.role) for r in found.roles},
        "tokens": {(t.id, t.principal, t.expires or None) for t in found.tokens},
        "policies": {p.project: p.policy_set for p in found.policies},
        "aliases": {
            (
                a.project,
                a.model,
                a.alias,
                a.version,
                a.gate.ref if a.gate else "",
                frozenset(x.ref for x in a.approvals),
            )
            for a in found.aliases
        },
        "endpoints": {(e.project, e.endpoint, e.deployment, e.version) for e in found.endpoints},
    }


Step = Callable[[History], None]
NAMES = st.sampled_from(["anna", "bert"])
PLACES = st.sampled_from(["flights", "parcels", "*"])
ROLES = st.sampled_from(["viewer", "admin", "approver"])
VERSIONS = st.sampled_from(["1", "2"])


def step(make: Callable[..., Request[Any]], who: str = "", **drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.fixed_dictionaries(drawn).map(lambda given_: lambda h: h.do(make(**given_), who))


def about_a_token(make: Callable[..., Request[Any]]) -> st.SearchStrategy[Step]:
    def act(h: History, which: int) -> None:
        if h.issued:
            h.do(make(token_id=h.issued[which % len(h.issued)]))

    return st.integers(0, 9).map(lambda which: lambda h: act(h, which))


def enroll(workload: str, projects: tuple[str, ...]) -> EnrollWorkload:
    return EnrollWorkload(workload=workload, projects=projects, minutes=30)


POLICY_FILES = {"own.cedar": CEDAR.format(n=1)}
STEPS: st.SearchStrategy[Step] = st.one_of(
    step(CreatePrincipal, principal=NAMES),
    step(DisablePrincipal, principal=st.sampled_from(["anna", "bert", "maria"])),
    step(GrantRole, project=PLACES, principal=NAMES, role=ROLES),
    step(GrantRole, project=PLACES, principal=NAMES, role=ROLES),
    step(RevokeRole, project=PLACES, principal=NAMES, role=ROLES),
    step(IssueToken, principal=NAMES, hours=st.integers(1, 3)),
    step(IssueToken, "maria", principal=st.just("maria"), hours=st.integers(1, 3)),
    about_a_token(RevokeToken),
    about_a_token(lambda token_id: RotateToken(token_id=token_id, grace=0)),
    about_a_token(lambda token_id: RotateToken(token_id=token_id, grace=600)),
    step(lambda **g: SetAlias(**WHERE, **g), alias=st.sampled_from(["champion", "staging"]), version=VERSIONS),
    step(lambda **g: Approve(**WHERE, **g), "nils", version=VERSIONS),
    step(lambda **g: CheckGate(**WHERE, **g), version=VERSIONS),
    step(lambda **g: Deploy(**WHERE, **g), endpoint=st.sampled_from(["a", "b"]), version=VERSIONS),
    step(lambda **g: Rollback(project="flights", **g), endpoint=st.sampled_from(["a", "b"])),
    step(enroll, workload=NAMES, projects=st.sampled_from([(), ("flights",), ("flights", "parcels")])),
    step(RevokeWorkload, workload=NAMES),
    step(lambda: ProposePolicies(project="flights", files=POLICY_FILES)),
    step(lambda: ApprovePolicies(project="flights", version=1), "maria"),
    step(lambda: ActivatePolicies(project="flights", version=1)),
    step(lambda: RollBackPolicies(project="flights")),
    st.sampled_from([0.5, 300.0, 3600.0]).map(lambda seconds: lambda h: h.wait(seconds)),
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(st.lists(STEPS, min_size=10, max_size=40))
def test_the_state_folded_at_any_time_is_what_the_database_held_then(furnished: Path, steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as place:
        history = History(furnished, Path(place) / "home")
        with history.platform as platform:
            for act in steps:
                history.now += timedelta(seconds=1)
                act(history)
                history.look()
            for at, expected in history.seen.items():
                assert told(platform.call(StateAt(at=at))) == expected


@pytest.fixture
def history(furnished: Path, tmp_path: Path) -> Iterator[History]:
    made = History(furnished, tmp_path / "home")
    with made.platform:
        yield made


def at_once(history: History, *requests: Request[Any]) -> datetime:
    """Carries them out, one second apart; returns the time of the last."""
    for request in requests:
        history.now += timedelta(seconds=1)
        history.platform.call(request)
    return history.now


def test_each_line_names_the_leaf_it_rests_on_and_the_evidence_behind_it(history: History) -> None:
    before = at_once(history, SetAlias(**WHERE, alias="champion", version="1"))
    at = at_once(history, Deploy(**WHERE, endpoint="a", version="1"))
    integrate_all(history.platform.ports)
    found = history.platform.call(StateAt(at=at))
    (alias,), (endpoint,) = found.aliases, found.endpoints
    assert alias.gate is not None
    assert (alias.gate.verdict, alias.gate.by) == ("pass", "principal:local")
    assert [approval.by for approval in alias.approvals] == ["principal:maria"]
    assert (endpoint.gate, endpoint.approvals) == (alias.gate, alias.approvals)
    with history.platform.ports.sql.read() as sql:
        for line in (alias, alias.gate, alias.approvals[0], endpoint, *found.roles, *found.tokens, *found.policies):
            entry = ledger.require(sql, str(line.index), "*")
            assert (entry.leaf.id, entry.leaf.at) == (line.leaf, line.since)
        assert ledger.require(sql, alias.leaf, "*").leaf.subject == "alias:late@champion"
    assert history.platform.call(StateAt(at=before)).endpoints == ()
    long_ago = history.platform.call(StateAt(at=at - timedelta(days=1)))
    assert (long_ago.leaves, long_ago.roles) == (0, ())


def test_a_plain_alias_rests_on_no_gate(history: History) -> None:
    at_once(history, SetAlias(**WHERE, alias="champion", version="1"))
    at = at_once(history, SetAlias(**WHERE, alias="staging", version="1"))
    gates = {alias.alias: alias.gate is not None for alias in history.platform.call(StateAt(at=at)).aliases}
    assert gates == {"champion": True, "staging": False}


def test_a_reader_of_one_project_is_told_about_that_project_only(history: History) -> None:
    now = at_once(
        history,
        GrantRole(project="parcels", principal="nils", role="viewer"),
        GrantRole(project="*", principal="maria", role="viewer"),
        SetAlias(**WHERE, alias="staging", version="1"),
    )
    token = history.people["nils"]
    found = history.platform.call(StateAt(project="parcels", at=now), token=token)
    assert {(r.project, r.principal, r.role) for r in found.roles} == {
        ("*", "principal:local", "admin"),
        ("*", "principal:maria", "viewer"),
        ("parcels", "principal:nils", "viewer"),
    }
    assert {p.id for p in found.principals} == {"principal:local", "principal:maria", "principal:nils"}
    assert (found.tokens, found.aliases, [p.project for p in found.policies]) == ((), (), [""])
    assert history.platform.call(StateAt(project="flights", at=now), token=token).aliases
    with pytest.raises(NotAuthorised):
        history.platform.call(StateAt(at=now), token=token)


def test_every_operation_that_changes_who_may_do_what_or_what_answers_is_known_to_the_fold() -> None:
    # A new one must be folded in, or be named here with the reason.
    elsewhere = {
        "access.create_project",  # who holds a role in it says the rest
        "access.link_identity",  # who a person is at a provider: leaves hold no personal data
        "access.unlink_identity",
        "access.map_group",  # gives roles at the next sign-in, whose leaf lists them
        "access.propose_policies",  # not in force yet
        "access.approve_policies",
        "access.limit_rate",
        "access.record_denials",
        "models.train",  # what answers is a version that was deployed
        "models.register_version",
        "models.declare_thresholds",
        "models.evaluate",
        "models.rotate_signing_key",
        "serving.deliver_segment",
        "serving.report_denials",
        "serving.record_feedback",
        "serving.declare_journal",
        "serving.erase_subject",
    }
    rooms = ("access.", "models.", "serving.")
    changing = {o.name for o in operations.table().values() if o.changes and o.name.startswith(rooms)}
    assert changing - elsewhere - set(past.KINDS) == set()
    assert set(past.KINDS) - {"access.bootstrap", "access.sign_in"} <= set(operations.table())


def test_what_changed_is_found_through_the_index(history: History) -> None:
    plans: list[str] = []
    with history.platform.ports.sql.read() as sql:

        def explain(_c: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
            if not statement.startswith("EXPLAIN"):
                plans.extend(row[3] for row in sql.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))

        sa.event.listen(sql, "before_cursor_execute", explain)
        assert list(changes(sql, instant(history.now), "*"))
    assert any("ix_ledger_leaves_kind_seq" in step_ for step_ in plans)
    assert not any(step_.startswith("SCAN ledger_leaves") for step_ in plans)


def test_a_leaf_whose_cause_a_faster_clock_has_dated_later_is_no_error() -> None:
    def leaf(operation: str, at: str, **body: object) -> Leaf:
        decision = {"id": uuid7(), "effect": "allow", "policies": ["p"], "policy_set": digest_of(b"")}
        return Leaf(id=uuid7(), at=at, kind=operation, outcome="done", actor="principal:root", project="",
                    subject="principal:ada", uses=[], request=digest_of(b""), decision=decision, body=body)  # fmt: skip

    made = leaf("access.create_principal", "2026-11-21T10:05:00.000000Z", kind="person")
    ended = leaf("access.disable_principal", "2026-11-21T10:03:00.000000Z", disabled=True, revoked_tokens=[])
    told = [(0, made), (1, ended)]
    assert past.state(told, "2026-11-21T10:04:00.000000Z").principals == ()
    (ada,) = past.state(told, "2026-11-21T10:06:00.000000Z").principals
    assert not ada.active
