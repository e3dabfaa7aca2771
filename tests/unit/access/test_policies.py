"""A project's policies as text: what is refused and where, and that sorting them changes no answer."""

from datetime import UTC, datetime

import cedarpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.access.test_engine import ALICE, TEXT, person, snapshot

from macadam.access import circumstances
from macadam.access import engine as engine_module
from macadam.access.circumstances import KnownAsset, KnownProject
from macadam.access.engine import Engine
from macadam.access.policies import PolicyText, ProjectText, effective_digest
from macadam.access.policies.compiled import CompiledPolicies, compiled
from macadam.access.policies.parsing import Vocabulary, statements
from macadam.access.types import ROLES
from macadam.errors import IntegrityError, InvalidInput
from macadam.operations import Actor, Decision, Declared

SATURDAY = datetime(2026, 11, 21, 10, 30, tzinfo=UTC)
MONDAY = datetime(2026, 11, 23, 10, 30, tzinfo=UTC)
EVERYBODY = '@id("all") permit (principal, action, resource);\n'


def engine(policies: str, *, risk: str = "limited", location: str = "", assets: dict[str, KnownAsset] | None = None,
           roles: tuple[str, ...] = ("viewer",), platform: PolicyText = TEXT) -> Engine:  # fmt: skip
    own = ProjectText.of("flights", {"policies/a.cedar": policies})
    here = KnownProject(
        risk=risk,
        location=location,
        policies=own,
        policy_set=effective_digest(platform.digest, "flights", own.digest),
        assets=assets or {},
    )
    base = snapshot(platform, alice=person(*roles, project="*"))
    return Engine(
        type(base)(
            generation="g",
            policy_set=platform.digest,
            policies=platform,
            tokens={},
            principals=base.principals,
            projects={"flights": here, "trains": KnownProject()},
        )
    )


def allowed(asked: Engine, permission: str, resource: str = "model:m", project: str = "flights",
            now: datetime = MONDAY, **declared: str) -> bool:  # fmt: skip
    return asked.decide(ALICE, permission, resource, project, declared=Declared(**declared), now=now).allowed


# --- what a project may say


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('@id("a")\npermit (principal,\n  action == Action::"models:raed", resource);', r"a\.cedar:3: .*models:raed"),
        ('// one\n@id("a")\npermit (', r"a\.cedar:2: it does not parse"),
        (EVERYBODY + "permit (principal, action, resource);", r"a\.cedar:2: a policy needs an @id"),
        (EVERYBODY + EVERYBODY, r'a\.cedar:2: the @id "flights/all" is taken by the policy in policies/a\.cedar:1'),
        (
            '@id("a")\nforbid (principal, action, resource)\nwhen {\n  context.purpose == "x"\n};',
            r"a\.cedar:4: flights/a does not fit the schema: .*purpose",
        ),
        ('@id("a") permit (principal == ?principal, action, resource);', r"a\.cedar:1: templates"),
        (
            '@id("a") permit (principal, action == Action::"policies:approve", resource);',
            "platform's set alone",
        ),
        ('@id("a") forbid (principal, action in Action::"governing", resource);', "platform's set alone"),
        ('@id("a") permit (principal, action in [Action::"reading", Action::"roles:grant"], resource);', "alone"),
        ('@id("../etc") permit (principal, action, resource);', "a policy needs an @id"),
    ],
)  # fmt: skip
def test_what_a_project_may_not_say_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compiled(TEXT, ProjectText.of("flights", {"policies/a.cedar": text}))


def test_a_semicolon_in_a_string_or_comment_ends_no_policy() -> None:
    text = (
        '@id("a") // first; of two\npermit (principal, action, resource)\nwhen { context.project == "a;//b" };\n// end;'
    )
    assert [(line, found[-2:]) for line, found in statements(text)] == [(1, "};")]


def test_every_file_counts_and_none_may_take_another_s_name() -> None:
    files = {"policies/b.cedar": EVERYBODY, "policies/a.cedar": EVERYBODY}
    with pytest.raises(InvalidInput, match=r"policies/b\.cedar:1: .* is taken by the policy in policies/a\.cedar:1"):
        compiled(TEXT, ProjectText.of("flights", files))


# --- how far they reach


def test_a_permit_of_a_project_reaches_no_other_project_and_not_the_platform() -> None:
    asked = engine(EVERYBODY, roles=())
    assert allowed(asked, "models:promote")
    for project in ("trains", "", "*", "elsewhere"):
        assert not allowed(asked, "models:promote", project=project)


def test_a_permit_of_a_project_weakens_no_forbid_of_the_platform() -> None:
    asked = engine(EVERYBODY, roles=())
    robot = Engine(type(asked.snapshot)(**{
        **{f: getattr(asked.snapshot, f) for f in asked.snapshot.__struct_fields__},
        "principals": {"principal:alice": person("admin", kind="service", project="*")},
    }))  # fmt: skip
    refused = robot.decide(ALICE, "approvals:give", "model:m@1", "flights", now=MONDAY)
    assert refused.policies == ("only-people-approve",)
    stranger = asked.decide(Actor(id="principal:nobody", kind="person"), "models:read", "model:m", "flights")
    assert stranger.policies == ("disabled-principals-do-nothing",)


def test_a_project_has_no_say_about_who_decides_neither_permitting_nor_forbidding() -> None:
    governing = sorted(compiled(TEXT).words.governing)
    assert {"policies:approve", "policies:activate", "roles:grant"} <= set(governing)
    open_ = engine(EVERYBODY, roles=())
    shut = engine('@id("none") forbid (principal, action, resource);', roles=("admin",))
    for permission in governing:
        assert not allowed(open_, permission, "policies:flights")
        assert allowed(shut, permission, "policies:flights")
    assert not allowed(shut, "models:read")
    assert allowed(shut, "models:read", project="trains")


def test_decisions_name_the_set_that_made_them() -> None:
    asked = engine(EVERYBODY)
    here = asked.decide(ALICE, "models:promote", "model:m", "flights")
    assert here.policy_set == asked.policy_set("flights") != TEXT.digest
    assert here.policies == ("flights/all",)
    assert asked.decide(ALICE, "models:read", "model:m", "trains").policy_set == TEXT.digest
    assert asked.decide(ALICE, "roles:grant", "project:flights", "flights").policy_set == TEXT.digest


def test_a_set_that_was_swapped_is_refused() -> None:
    own = ProjectText.of("flights", {"a.cedar": EVERYBODY})
    base = snapshot()
    here = KnownProject(policies=own, policy_set=effective_digest(TEXT.digest, "trains", own.digest))
    with pytest.raises(IntegrityError, match="policies of project 'flights'"):
        Engine(type(base)(generation="g", policy_set=TEXT.digest, policies=TEXT, tokens={}, principals={},
                          projects={"flights": here}))  # fmt: skip


def test_a_set_that_this_release_cannot_read_closes_its_project_and_no_other() -> None:
    asked = engine('@id("old") permit (principal, action == Action::"rockets:launch", resource);', roles=("admin",))
    refused = asked.decide(ALICE, "models:read", "model:m", "flights")
    assert not refused.allowed
    assert "could not be read, which denies" in refused.reason
    assert allowed(asked, "models:read", project="trains")
    assert allowed(asked, "policies:activate", "policies:flights"), "or nobody could ever take it back"


# --- what they may ask


def test_a_forbid_that_reads_an_absent_attribute_denies() -> None:
    # The schema says that there is always a purpose, so the policy passes; at the call there is none.
    lying = PolicyText(policies=TEXT.policies, schema=TEXT.schema.replace("purpose?: String", "purpose: String"))
    forbid = (
        '@id("ads") forbid (principal, action == Action::"models:read", resource) when { context.purpose == "ads" };'
    )
    asked = engine(forbid, platform=lying)
    refused = asked.decide(ALICE, "models:read", "model:m", "flights")
    assert not refused.allowed
    assert "could not be evaluated, which denies" in refused.reason
    assert "flights/ads" in refused.reason
    assert allowed(asked, "models:read", purpose="care")
    assert not allowed(asked, "models:read", purpose="ads")
    assert allowed(asked, "runs:read"), "what the policy is not about is as before"


PURPOSE = """
@id("p") forbid (principal, action == Action::"tables:read", resource)
unless { context has purpose && context.purpose == "care" };
"""
RESIDENCY = """
@id("r") forbid (principal, action == Action::"tables:read", resource) when { resource has location }
unless { context has caller_location && context.caller_location == resource.location };
"""
PERSONAL = """
@id("c") forbid (principal, action == Action::"tables:read", resource)
when { resource has classification && resource.classification == "personal" };
"""


def test_policies_ask_for_the_purpose_and_another_purpose_is_another_decision() -> None:
    asked = engine(PURPOSE)
    for _ in range(2):
        assert allowed(asked, "tables:read", purpose="care")
        assert not allowed(asked, "tables:read", purpose="ads")
        assert not allowed(asked, "tables:read")
    assert allowed(asked, "models:read")


def test_policies_ask_where_the_data_lives_and_where_the_caller_is() -> None:
    asked = engine(RESIDENCY, location="eu", assets={"table:us": KnownAsset(location="us")})
    assert allowed(asked, "tables:read", "table:orders", location="eu")
    assert not allowed(asked, "tables:read", "table:orders", location="us")
    assert not allowed(asked, "tables:read", "table:orders")
    assert allowed(asked, "tables:read", "table:us@7", location="us")
    assert allowed(engine(RESIDENCY), "tables:read", "table:orders"), "nobody said where it lives"


def test_policies_ask_for_the_classification_of_the_data_also_of_a_snapshot_of_it() -> None:
    asked = engine(PERSONAL, assets={"table:patients": KnownAsset(classification="personal")})
    assert not allowed(asked, "tables:read", "table:patients")
    assert not allowed(asked, "tables:read", "table:patients@42")
    assert allowed(asked, "tables:read", "table:weather")


def test_policies_ask_for_the_risk_class() -> None:
    text = '@id("h") forbid (principal, action == Action::"models:read", resource) when { context.risk == "high" };'
    assert allowed(engine(text), "models:read")
    assert not allowed(engine(text, risk="high"), "models:read")


@pytest.mark.parametrize(
    ("condition", "open_on"),
    [
        ("context.time.weekday == 6", MONDAY),
        ("context.time.hour == 10 && context.time.weekday == 1", SATURDAY),
        ('context.time.instant >= datetime("2026-11-23T10:30:00Z")', SATURDAY),
    ],
)
def test_a_decision_by_the_clock_is_made_anew_each_time(condition: str, open_on: datetime) -> None:
    text = f'@id("t") forbid (principal, action == Action::"models:read", resource) when {{ {condition} }};'
    asked = engine(text)
    for _ in range(2):
        assert [day for day in (MONDAY, SATURDAY) if allowed(asked, "models:read", now=day)] == [open_on]
    assert not asked.lasts("models:read", "flights")
    assert asked.lasts("runs:read", "flights")
    assert not any("models:read" in key for key in asked._decided)


@pytest.mark.parametrize(
    ("condition", "reads"),
    [
        ("context.purpose == context.project", {"purpose", "project"}),
        ('context has purpose && context.purpose like "a*"', {"purpose"}),
        ("context.time.hour < 6 || [context.time].contains(context.time)", {"time.hour", "time"}),
        ("[context].contains(context)", {"*"}),
        ("if principal.active then resource has location else false", {"resource.location"}),
        ('{a: context.risk}.a == "high"', {"risk"}),
    ],
)  # fmt: skip
def test_what_a_policy_reads_is_told_from_its_text(condition: str, reads: set[str]) -> None:
    text = f'@id("t") forbid (principal, action, resource) when {{ {condition} }};'
    lenient = PolicyText(policies=TEXT.policies, schema=TEXT.schema.replace("purpose?: String", "purpose: String"))
    (policy,) = compiled(lenient, ProjectText.of("flights", {"a.cedar": text})).own
    assert policy.reads == reads


def test_a_policy_that_uses_the_context_as_a_whole_is_given_the_whole() -> None:
    asked = engine(
        '@id("w") forbid (principal, action == Action::"models:read", resource) '
        "when { [context].contains(context) && context.time.weekday == 6 };"
    )
    assert allowed(asked, "models:read", now=MONDAY)
    assert not allowed(asked, "models:read", now=SATURDAY)


# --- sorting


NOUNS = sorted(Vocabulary(TEXT.schema).permissions - Vocabulary(TEXT.schema).governing)
SCOPES = st.one_of(
    st.just("action"),
    st.sampled_from(NOUNS).map(lambda a: f'action == Action::"{a}"'),
    st.lists(st.sampled_from([*NOUNS[:6], "reading", "building", "running", "calling"]), min_size=1, max_size=3).map(
        lambda found: "action in [" + ", ".join(f'Action::"{a}"' for a in found) + "]"
    ),
)
WHO = st.one_of(
    st.just("principal"),
    st.sampled_from(ROLES).map(lambda r: f'principal in Role::"{r}"'),
    st.sampled_from(["alice", "bob"]).map(lambda p: f'principal == Principal::"principal:{p}"'),
    st.just("principal is Principal"),
    st.sampled_from(ROLES).map(lambda r: f'principal is Principal in Role::"{r}"'),
)
WHAT = st.one_of(
    st.just("resource"), st.sampled_from(["model:m", "table:t"]).map(lambda a: f'resource == Asset::"{a}"')
)
WHEN = st.sampled_from([
    "", 'when { context.risk == "high" }', 'unless { context has purpose && context.purpose == "care" }',
    "when { context.time.weekday > 5 }", 'when { resource has classification && resource.classification == "personal" }',
    "when { 9223372036854775807 + context.time.hour > 0 }", 'unless { principal.kind == "person" }',
])  # fmt: skip
POLICY = st.builds(
    lambda effect, who, scope, what, when: f"{effect} ({who}, {scope}, {what}) {when};",
    st.sampled_from(["permit", "permit", "forbid"]), WHO, SCOPES, WHAT, WHEN,
)  # fmt: skip
CALL = st.tuples(
    st.sampled_from(NOUNS), st.sampled_from(["model:m", "table:t", "run:1"]), st.sampled_from(["", "care", "ads"]),
    st.sampled_from([MONDAY, SATURDAY]),
)  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    policies=st.lists(POLICY, min_size=1, max_size=12),
    calls=st.lists(CALL, min_size=1, max_size=12),
    roles=st.lists(st.sampled_from(ROLES), max_size=3, unique=True),
    risk=st.sampled_from(["limited", "high"]),
)
def test_the_sorted_set_answers_as_the_whole_set_does(
    policies: list[str], calls: list[tuple[str, str, str, datetime]], roles: list[str], risk: str
) -> None:
    text = "\n".join(f'@id("p{n}") {policy}' for n, policy in enumerate(policies))
    asked = engine(
        text, risk=risk, assets={"table:t": KnownAsset(classification="personal")}, roles=tuple(sorted(roles))
    )
    naive = Naive(asked)
    for permission, resource, purpose, now in calls:
        declared = Declared(purpose=purpose)
        quick = asked.decide(ALICE, permission, resource, "flights", declared=declared, now=now)
        slow = naive.decide(permission, resource, declared, now)
        assert (quick.allowed, quick.policies, quick.reason) == (slow.allowed, slow.policies, slow.reason)


class Naive:
    """Asks every policy there is, with every circumstance there is, under the schema."""

    def __init__(self, asked: Engine) -> None:
        self._engine = asked
        self._place = asked.snapshot.projects["flights"]
        self._set = CompiledPolicies(asked.snapshot.policies, self._place.policies)

    def decide(self, permission: str, resource: str, declared: Declared, now: datetime) -> Decision:
        everything = frozenset({"*", "resource"})
        roles = self._engine.roles(ALICE.id, "flights")
        answer = cedarpy.is_authorized(
            {
                "principal": {"type": "Principal", "id": ALICE.id},
                "action": {"type": "Action", "id": permission},
                "resource": {"type": "Asset", "id": resource},
                "context": circumstances.gather(
                    everything, in_scope=True, project="flights", resource=resource, place=self._place,
                    declared=declared, now=now,
                ),
            },
            self._set.whole(permission).policies,
            self._engine._entities(ALICE, roles, resource, self._place),
            self._set.schema,
        )  # fmt: skip
        return engine_module._read(answer, self._set, roles, None)
