"""The engine, from snapshots alone: no SQL, no dispatcher."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.access.authentication import KnownToken, Reach, covers, token_digest
from macadam.access.circumstances import KnownProject
from macadam.access.engine import AccessSnapshot, Engine, KnownPrincipal
from macadam.access.policies import PolicyText, built_in
from macadam.access.policies.compiled import compiled
from macadam.access.types import ROLES
from macadam.errors import IntegrityError, InvalidInput, NotAuthenticated
from macadam.operations import Actor

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEXT = built_in()
PERMISSIONS = sorted(compiled(TEXT).actions)

# The table of roles, written down a second time: a change of the policies must be meant.
READS = {
    "projects:read", "roles:read", "ledger:read", "journal:read", "contracts:read", "sources:read", "tables:read",
    "quarantine:read", "features:read", "training_sets:read", "online:read", "runs:read", "models:read",
    "evaluations:read", "gates:read", "endpoints:read", "predictions:read", "inspection:read", "policies:read",
    "erasures:read",
    "costs:read", "budgets:read", "prices:read", "jobs:read", "jobs:logs", "telemetry:read", "advice:read",
}  # fmt: skip
OWN = {
    "principals:self",
    "projects:list",
    "tokens:issue",
    "tokens:read",
    "tokens:revoke",
    "tokens:rotate",
    "workloads:certify",
    "link:state",
}
MAY = {
    "viewer": READS,
    "developer": READS
    | {"contracts:register", "sources:register", "tables:ingest", "features:register", "training_sets:build",
       "online:write", "runs:train", "models:register", "models:promote", "thresholds:declare", "evaluations:run",
       "gates:check", "predictions:prove", "inspection:run", "policies:propose", "models:export", "journal:declare",
       "jobs:submit", "jobs:cancel", "jobs:prioritise", "advice:find", "advice:decide"},
    "approver": READS | {"approvals:give", "gates:check", "models:export", "predictions:prove", "policies:approve"},
    "operator": READS
    | {"budgets:check", "costs:meter", "costs:allocate", "jobs:cancel", "jobs:prioritise", "telemetry:deliver",
       "telemetry:seal", "advice:find", "advice:decide", "tables:ingest", "online:write", "models:promote", "gates:check", "endpoints:deploy", "endpoints:rollback",
       "journal:seal", "predictions:create", "predictions:replay", "predictions:prove", "feedback:record",
       "inspection:run", "policies:activate", "models:export", "journal:declare", "predictions:receipt"},
    "auditor": READS | {"bills:read", "quotas:read", "principals:read", "rates:read", "keys:read", "models:export", "predictions:prove"},
    "caller": {"predictions:create", "predictions:replay", "predictions:receipt", "feedback:record", "online:write"},
    "gateway": {"link:serve", "link:objects", "link:deliver", "telemetry:deliver", "telemetry:seal"},
    "admin": set(PERMISSIONS),
}  # fmt: skip


def snapshot(text: PolicyText = TEXT, **principals: KnownPrincipal) -> AccessSnapshot:
    known = {f"principal:{name}": value for name, value in principals.items()}
    return AccessSnapshot(
        generation="g",
        policy_set=text.digest,
        policies=text,
        tokens={},
        principals=known,
        projects={"flights": KnownProject()},
    )


def person(*roles: str, project: str = "flights", active: bool = True, kind: str = "person") -> KnownPrincipal:
    return KnownPrincipal(kind=kind, active=active, roles={project: roles} if roles else {})


def reaches(scopes: tuple[str, ...], permission: str) -> bool:
    return covers(Reach(scopes=scopes), permission, "project:p", "p")


ALICE = Actor(id="principal:alice", kind="person")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_its_table_says_and_nothing_else(role: str) -> None:
    engine = Engine(snapshot(alice=person(role)))
    allowed = {p for p in PERMISSIONS if engine.decide(ALICE, p, "project:flights", "flights").allowed}
    assert allowed == MAY[role] | OWN


def test_a_role_in_one_project_is_none_in_another_or_on_the_platform() -> None:
    engine = Engine(snapshot(alice=person("admin")))
    for project in ("elsewhere", "", "*"):
        assert not engine.decide(ALICE, "models:read", "model:m", project).allowed


def test_a_role_everywhere_holds_in_every_project_and_on_the_platform() -> None:
    engine = Engine(snapshot(alice=person("admin", project="*")))
    for project in ("flights", "elsewhere", "", "*"):
        assert engine.decide(ALICE, "models:read", "model:m", project).allowed


def test_a_denial_by_default_names_the_roles_held() -> None:
    engine = Engine(snapshot(alice=person("viewer"), bob=person()))
    decision = engine.decide(ALICE, "models:register", "project:flights", "flights")
    assert decision.reason == "no policy allows it (roles: viewer)"
    assert decision.policies == ()
    bob = Actor(id="principal:bob", kind="person")
    assert engine.decide(bob, "models:read", "model:m", "flights").reason == "no policy allows it (roles: none)"


def test_a_permission_that_no_policy_knows_is_denied_even_to_an_administrator() -> None:
    decision = Engine(snapshot(alice=person("admin"))).decide(ALICE, "rockets:launch", "rocket:1", "flights")
    assert not decision.allowed
    assert "know no permission 'rockets:launch'" in decision.reason


def test_a_service_cannot_approve_even_as_an_administrator() -> None:
    engine = Engine(snapshot(alice=person("admin", kind="service")))
    decision = engine.decide(ALICE, "approvals:give", "model:m@1", "flights")
    assert not decision.allowed
    assert decision.policies == ("only-people-approve",)
    assert decision.reason == "the policy 'only-people-approve' forbids it"


@pytest.mark.parametrize("permission", PERMISSIONS)
def test_a_stranger_and_a_disabled_principal_may_do_nothing_at_all(permission: str) -> None:
    engine = Engine(snapshot(alice=person("admin", project="*", active=False)))
    for actor in (ALICE, Actor(id="principal:nobody", kind="person")):
        decision = engine.decide(actor, permission, "project:flights", "flights")
        assert not decision.allowed
        assert "disabled-principals-do-nothing" in decision.policies


def test_a_token_that_the_snapshot_lacks_reaches_nothing() -> None:
    engine = Engine(snapshot(alice=person("admin", project="*")))
    decision = engine.decide(Actor(id="principal:alice", kind="person", token="gone"), "models:read", "model:m", "")
    assert not decision.allowed
    assert decision.policies == ("token-scope-limits",)


def with_token(secret: str, token: KnownToken, holder: KnownPrincipal) -> Engine:
    base = snapshot(alice=holder)
    return Engine(msgspec.structs.replace(base, tokens={token_digest(secret): token}))


def test_scopes_limit_what_roles_allow_and_add_nothing() -> None:
    token = KnownToken(id="t", principal="principal:alice", scopes=("models:read", "predictions:*", "ledger:read"))
    engine = with_token("mcd_secret", token, person("caller", "viewer"))
    actor = engine.authenticate("mcd_secret", NOON)
    assert engine.decide(actor, "models:read", "model:m", "flights").allowed
    assert engine.decide(actor, "predictions:create", "endpoint:e", "flights").allowed
    refused = engine.decide(actor, "runs:read", "run:1", "flights")
    assert refused.policies == ("token-scope-limits",)
    assert "(the token's scopes: models:read, predictions:*, ledger:read)" in refused.reason
    assert not engine.decide(actor, "predictions:prove", "prediction:1", "flights").allowed


def test_unknown_altered_and_expired_tokens_get_the_same_words() -> None:
    token = KnownToken(id="t", principal="principal:alice", expires=NOON)
    engine = with_token("mcd_secret", token, person("viewer"))
    assert engine.authenticate("mcd_secret", NOON - timedelta(microseconds=1)).id == "principal:alice"
    words = set()
    for secret, now in (
        ("mcd_secret", NOON),
        ("mcd_secreT", NOON - timedelta(hours=1)),
        ("mcd_other", NOON),
        ("x" * 100_000, NOON),
        ("\ud800", NOON),
    ):
        with pytest.raises(NotAuthenticated) as caught:
            engine.authenticate(secret, now)
        words.add(str(caught.value))
    assert len(words) == 1


def test_no_token_says_how_to_send_one() -> None:
    with pytest.raises(NotAuthenticated, match="No token was sent"):
        Engine(snapshot()).authenticate("", NOON)


def test_a_forbid_that_errors_denies() -> None:
    # Without its context Cedar cannot evaluate the forbid and skips it; it must not be read as an allow.
    text = PolicyText(
        policies='@id("all") permit (principal, action, resource);\n'
        '@id("never-overflow") forbid (principal, action, resource) when { principal.n * 2 > 3 };',
        schema="entity Role;\nentity Asset;\nentity Principal in [Role] { kind: String, active: Bool, n?: Long };\n"
        "type C = { in_scope: Bool, project: String, asset: String };\n"
        'action "models:read" appliesTo { principal: Principal, resource: Asset, context: C };',
    )
    with pytest.raises(InvalidInput, match="never-overflow"):
        Engine(snapshot(text, alice=person("viewer")))  # validation already refuses an attribute that may be absent
    guarded = text.policies.replace("principal.n * 2 > 3", "principal has n && principal.n * 2 > 3")
    overflow = guarded.replace(
        "principal has n && principal.n * 2 > 3",
        'context.project == "flights" && 9223372036854775807 + 1 > 0',
    )
    engine = Engine(snapshot(msgspec.structs.replace(text, policies=overflow), alice=person("viewer")))
    decision = engine.decide(ALICE, "models:read", "model:m", "flights")
    assert not decision.allowed
    assert "could not be evaluated, which denies" in decision.reason
    assert "'never-overflow'" in decision.reason
    assert engine.decide(ALICE, "models:read", "model:m", "elsewhere").allowed


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        ("permit (principal, action, resource);", "needs an @id"),
        (
            '@id("a") permit (principal, action, resource);\n@id("a") forbid (principal, action, resource);',
            "@id",
        ),
        (
            '@id("a") permit (principal, action == Action::"models:raed", resource);',
            "does not fit the schema",
        ),
        ("permit (", "does not parse"),
    ],
)
def test_policies_that_cannot_be_named_parsed_or_checked_are_refused(policies: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compiled(PolicyText(policies=policies, schema=TEXT.schema))


def test_policies_other_than_those_recorded_are_refused() -> None:
    changed = msgspec.structs.replace(TEXT, policies=TEXT.policies + "\n// harmless?")
    with pytest.raises(IntegrityError, match="recorded was"):
        Engine(msgspec.structs.replace(snapshot(), policies=changed))


def test_the_digest_covers_the_schema_too() -> None:
    assert msgspec.structs.replace(TEXT, schema=TEXT.schema + " ").digest != TEXT.digest


def test_a_snapshot_survives_its_file() -> None:
    before = snapshot(alice=person("viewer"))
    after = msgspec.json.decode(msgspec.json.encode(before), type=AccessSnapshot)
    assert after == before
    assert Engine(after).decide(ALICE, "models:read", "model:m", "flights").allowed


def test_each_use_of_a_cached_decision_has_an_id_of_its_own() -> None:
    engine = Engine(snapshot(alice=person("viewer")))
    ids = {engine.decide(ALICE, "models:read", "model:m", "flights").id for _ in range(10)}
    assert len(ids) == 10


def test_decisions_about_long_names_are_not_kept() -> None:
    engine = Engine(snapshot(alice=person("viewer")))
    for n in range(20):
        assert not engine.decide(ALICE, "tokens:manage", "platform:home", f"{n}" + "x" * 1_000_000).allowed
    assert sum(len(project) for *_, project in engine._decided) < 1_000_000


NOUNS = st.sampled_from(["models", "runs", "tokens"])
VERBS = st.sampled_from(["read", "train", "issue"])


@given(NOUNS, VERBS, st.lists(st.builds("{}:{}".format, NOUNS, VERBS), min_size=1, max_size=3))
def test_scopes_cover_exactly_what_they_spell(noun: str, verb: str, scopes: list[str]) -> None:
    permission = f"{noun}:{verb}"
    assert reaches(tuple(scopes), permission) == (permission in scopes)
    assert reaches((f"{noun}:*",), permission)
    assert reaches(("*",), permission)
    assert reaches((), permission)
    assert not reaches((f"{noun}s:*",), permission)
