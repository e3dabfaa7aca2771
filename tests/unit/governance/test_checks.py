"""Every check passes a sound project, catches the faults it is there for, and has nothing to say about nothing."""

from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest
from unit.governance.worlds import (
    ALICE,
    BOB,
    CAROL,
    CONTRACT,
    RUN,
    altered,
    last,
    leaf,
    principal,
    saying,
    sound,
    with_,
    without,
)

from macadam.access.engine import KnownPrincipal
from macadam.access.policies import PolicyText, built_in
from macadam.governance.checks import CHECKS, UNCHECKED
from macadam.governance.evidence import Evidence, LedgerState, Sample, Traced
from macadam.governance.frameworks import inspection
from macadam.values import digest_of

Spoil = Callable[[Evidence], Evidence]
ELSE = digest_of(b"something else")
GONE = KnownPrincipal(kind="person", active=False, roles={"flights": ("approver", "developer", "operator")})


def project(**changes: str) -> Spoil:
    return lambda e: with_(e, project=msgspec.structs.replace(e.project, **changes))


def metric(**interval: str) -> Spoil:
    return lambda e: saying(e, "evaluation:1", metrics={"roc_auc": interval})


def policies(text: str) -> Spoil:
    """The home runs under other policies, which it has recorded."""

    def spoil(e: Evidence) -> Evidence:
        changed = PolicyText(policies=text, schema=built_in().schema)
        recorded = leaf(0, "access.bootstrap", f"policy:{changed.digest}", actor="system:bootstrap")
        snapshot = msgspec.structs.replace(e.access, policies=changed, policy_set=changed.digest)
        return with_(e, access=snapshot, policy_leaves=(*e.policy_leaves, recorded))

    return spoil


def contract(document: dict[str, object]) -> Spoil:
    return lambda e: with_(e, contracts={CONTRACT: document})


def decided(**changes: object) -> Spoil:
    return lambda e: altered(e, "run:1", decision={**e.leaves[0].decision, **changes})


GAP = {"id": "1", "first_at": "2026-01-01", "last_at": "2026-01-02", "causes": {"disk-full": 7}}
OPEN = '@id("all") permit (principal, action, resource);'
ANYBODY_APPROVES = built_in().policies.replace('principal.kind == "person"', "true")
PURPOSE = {"purpose": "Foresee delays"}
BASIS = [{"property": "legalBasis", "value": "no personal data"}]

# point, the fault, a word of the finding
FAULTS: list[tuple[str, Spoil, str]] = [
    ("01", project(owner="principal:ghost"), "not an active principal"),
    ("01", lambda e: principal(e, ALICE, GONE), "not an active principal"),
    ("01", project(description=" "), "what it is for"),
    ("01", project(risk=""), "no risk class"),
    ("01", lambda e: without(e, "model:delay@1"), "never registered"),
    ("04", project(owner="principal:ghost"), "owner"),
    ("04", lambda e: principal(e, CAROL, None), "may approve"),
    ("04", lambda e: principal(e, CAROL, GONE), "may approve"),
    ("04", lambda e: principal(e, ALICE, KnownPrincipal(kind="person")), "may stop"),
    ("06", lambda e: with_(e, policy_leaves=()), "not in the ledger"),
    ("06", decided(policy_set=ELSE), "not in the ledger"),
    ("07", lambda e: saying(e, "table:flights@1", digest=None), "no digest"),
    ("07", lambda e: altered(e, "table:flights@1", uses=["contract:flights@1.0.0"]), "where it came from"),
    ("07", lambda e: altered(e, "table:flights@1", uses=["source:flights"]), "names no contract"),
    ("07", lambda e: with_(e, contracts={}), "cannot be read"),
    ("07", contract({"customProperties": BASIS}), "names no purpose"),
    ("07", contract({"description": PURPOSE}), "names no legal basis"),
    ("07", contract({"description": "text", "customProperties": "text"}), "names no legal basis"),
    ("09", lambda e: altered(e, "table:flights@1", uses=["source:flights"]), "no contract"),
    ("09", lambda e: last(e, "contract:flights@1.0.0"), "registered before"),
    ("09", lambda e: saying(e, "table:flights@1", published=95), "95 were published and 10 quarantined"),
    ("09", lambda e: saying(e, "table:flights@1", quarantined=None), "does not say how many rows"),
    ("09", lambda e: without(e, "table:flights__quarantine@1"), "no quarantine has them"),
    ("14", lambda e: saying(e, "run:1", code={"archive": ELSE}), "a commit"),
    ("14", lambda e: saying(e, "run:1", code={"commit": "c0ffee", "diff": ELSE}), "uncommitted"),
    ("14", lambda e: without(e, "environment:lock@1"), "an environment lock"),
    ("14", lambda e: altered(e, "run:1", uses=["environment:lock@1"]), "digests of its data"),
    ("14", lambda e: without(e, "training_set:early@1"), "digests of its data"),
    ("14", lambda e: saying(e, "run:1", params=None), "its parameters"),
    ("14", lambda e: saying(e, "run:1", seed=None), "its seed"),
    ("14", lambda e: saying(e, "run:1", cpu_seconds=None), "its compute"),
    ("14", lambda e: with_(e, runs={"run:1": msgspec.structs.replace(RUN, energy_note="")}), "its energy"),
    ("19", lambda e: last(e, "thresholds:delay@1"), "before any thresholds"),
    ("19", lambda e: without(e, "thresholds:delay@1"), "before any thresholds"),
    ("20", lambda e: saying(e, "evaluation:1", metrics={}), "no metrics"),
    ("20", metric(value="0.9", low="0.7", high="0.8"), "roc_auc has no interval"),
    ("20", metric(value="nan", low="0.7", high="0.8"), "roc_auc has no interval"),
    ("20", metric(value="0.75"), "roc_auc has no interval"),
    ("20", lambda e: saying(e, "evaluation:1", metrics={"roc_auc": "0.8"}), "roc_auc has no interval"),
    ("20", lambda e: saying(e, "evaluation:1", overlap=3), "3 of 100 rows were trained on"),
    ("20", lambda e: saying(e, "evaluation:1", overlap=None), "does not say"),
    ("20", lambda e: altered(e, "evaluation:1", uses=["model:delay@1", "training_set:early@1"]), "which its run had"),
    ("26", lambda e: altered(e, "evaluation:1", actor=ALICE), "who developed it"),
    ("26", lambda e: without(e, "evaluation:1"), "never evaluated"),
    ("26", lambda e: altered(e, "run:1", actor=BOB), "who developed it"),
    ("26", lambda e: without(e, "model:delay@1"), "never registered"),
    ("27", lambda e: without(e, "model:delay@1"), "never registered"),
    ("27", lambda e: without(e, "approval:1"), "before any approval"),
    ("27", lambda e: last(e, "approval:1"), "before any approval"),
    ("27", lambda e: saying(e, "approval:1", artifact=ELSE), "other bytes"),
    ("27", lambda e: saying(e, "endpoint:delay", artifact=ELSE), "other bytes"),
    ("27", lambda e: altered(e, "approval:1", actor=ALICE), "who developed it"),
    ("27", lambda e: altered(e, "approval:1", actor="service:replay"), "who developed it"),
    ("27", policies(OPEN), "a service was allowed to approve"),
    ("27", lambda e: policies(ANYBODY_APPROVES)(principal(e, "service:replay", None)), "a service was allowed to approve"),
    ("34", lambda e: saying(e, "segment:1", answers=6), "5 receipts, the gateway counted 6"),
    ("34", lambda e: saying(e, "segment:1", answers=None), "lacks"),
    ("34", lambda e: saying(e, "segment:1", gaps=[GAP]), "7 answers between"),
    ("34", lambda e: saying(e, "segment:1", gaps="some"), "an unknown number of answers"),
    ("34", lambda e: saying(e, "segment:1", follows="segment:0"), "segment:0, which is gone"),
    ("35", lambda e: with_(e, predictions=Sample(population=5, drawn=(Traced(id="p", faults=("no run",)),))), "no run"),
    ("35", lambda e: with_(e, predictions=Sample()), "5 are sealed, 0 can be found"),
    ("35", lambda e: without(e, "segment:1"), "0 are sealed, 5 can be found"),
    ("40", policies(OPEN), "was allowed"),
    ("40", decided(policies=[]), "without a policy"),
    ("40", decided(policy_set=ELSE), "not in the ledger"),
    ("40", lambda e: altered(e, "run:1", actor="principal:ghost"), "nobody registered"),
    ("42", lambda e: with_(e, ledger=LedgerState(size=1, checkpoints=1, problems=("leaf 0 is missing",))), "missing"),
]  # fmt: skip
# What a check cannot see yet keeps the point from passing, however sound the project is.
PARTIAL = {"06", "42"}
# Nothing can be wrong with it, since nothing can be recorded about it.
FAULTLESS = {"03"}


@pytest.mark.parametrize("point", sorted(CHECKS))
def test_a_sound_project_passes_every_check_that_looks_at_everything(point: str) -> None:
    found = CHECKS[point](sound())
    expected = "not_applicable" if point in FAULTLESS else "did_not_run" if point in PARTIAL else "pass"
    assert found.status == expected, found.detail
    if found.status == "pass":
        assert found.population
        assert found.sample
        assert found.evidence or point == "35"


@pytest.mark.parametrize(("point", "spoil", "word"), FAULTS, ids=[f"{p}-{w}" for p, _, w in FAULTS])
def test_a_seeded_fault_is_caught_and_named(point: str, spoil: Spoil, word: str) -> None:
    found = CHECKS[point](spoil(sound()))
    assert found.status == "fail", found
    assert word.lower() in found.detail.lower()


def test_every_check_has_a_fault_that_it_must_catch() -> None:
    assert {point for point, _, _ in FAULTS} == set(CHECKS) - FAULTLESS


@pytest.mark.parametrize("point", sorted(set(CHECKS) - {"04", "06", "40"}))
def test_nothing_to_look_at_is_not_applicable_and_never_a_pass(point: str) -> None:
    empty = with_(sound(), leaves=(), runs={}, predictions=Sample(), ledger=LedgerState())
    found = CHECKS[point](empty)
    assert found.status == "not_applicable"
    assert (found.population, found.sample) == (0, 0)


def test_every_point_is_either_checked_or_says_why_not() -> None:
    points = {point.id for point in inspection()[0].points}
    assert len(points) == 42
    assert set(CHECKS) | set(UNCHECKED) == points
    assert not set(CHECKS) & set(UNCHECKED)
    assert all(reason.endswith(".") for reason in UNCHECKED.values())


def test_a_high_risk_deployment_without_a_way_to_assess_it_does_not_pass() -> None:
    assert CHECKS["03"](project(risk="high")(sound())).status == "did_not_run"


def test_a_review_of_access_that_is_due_keeps_the_point_from_passing() -> None:
    later = with_(sound(), now=sound().now + timedelta(days=70))
    found = CHECKS["40"](later)
    assert found.status == "did_not_run"
    assert "quarterly review" in found.detail


def test_a_second_approval_by_somebody_else_counts() -> None:
    both = [leaf(9, "models.approve", "approval:0", "model:delay@1", artifact=digest_of(b"onnx"))]
    evidence = sound()
    assert CHECKS["27"](with_(evidence, leaves=(*both, *evidence.leaves))).status == "pass"


def test_many_faults_are_counted_and_only_some_are_spelled_out() -> None:
    deployments = [leaf(20 + i, "serving.deploy", f"endpoint:e{i}", f"model:m@{i}", artifact=ELSE) for i in range(30)]
    found = CHECKS["27"](with_(sound(), leaves=(*sound().leaves, *deployments)))
    assert found.detail.count("before any approval") == 5
    assert "and 25 more" in found.detail


def test_only_leaves_of_what_was_done_count_as_evidence() -> None:
    refused = altered(
        sound(), "approval:1", outcome="denied", decision={**sound().leaves[0].decision, "effect": "deny"}
    )
    assert CHECKS["27"](refused).status == "fail"


def test_a_fault_outside_the_sample_is_not_claimed_to_be_absent() -> None:
    found = CHECKS["35"](sound())
    assert (found.population, found.sample) == (5, 2)
    assert BOB not in found.detail


def test_point_34_is_a_table_with_what_is_missing_first() -> None:
    whole = CHECKS["34"](sound())
    assert [row["counterexample"] for row in whole.table] == [""]
    assert whole.table[0]["answers"] == whole.table[0]["receipts"] == "5"
    broken = CHECKS["34"](saying(sound(), "segment:1", answers=9))
    assert (broken.status, broken.population, broken.sample) == ("fail", 1, 1)
    assert (broken.table[0]["missing"], "4 are missing" in broken.table[0]["counterexample"]) == ("4", True)
    unanswered = CHECKS["34"](saying(sound(), "segment:1", answers=3))
    assert (unanswered.status, unanswered.table[0]["unanswered"]) == ("pass", "2")
