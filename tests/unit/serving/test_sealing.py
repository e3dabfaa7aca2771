"""Segments become rows and leaves exactly once, whatever is killed between two steps; then every record proves."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from fuzz.mutate import fuzz, inputs
from unit.serving import homes
from unit.serving.homes import ENDPOINT, MODEL, PROJECT

import macadam_verify
from macadam import testing
from macadam.access.policy_types import ActivatePolicies, ApprovePolicies, ProposePolicies
from macadam.access.types import CreatePrincipal, GrantRole, IssueToken
from macadam.app.platform import Platform
from macadam.errors import Busy, Conflict, GateRefused, IntegrityError, NotAuthorised, NotFound, Unavailable
from macadam.governance.types import Inspect
from macadam.journal import service as journal
from macadam.journal.record import Prediction, encode
from macadam.journal.types import ListSegments, SealClosed
from macadam.journal.writer import JournalWriter
from macadam.ledger.types import VerifyLedger
from macadam.serving import proof
from macadam.serving.types import (
    Deploy,
    Endpoint,
    FetchReceipt,
    Label,
    LiveAccuracy,
    Prove,
    Receipt,
    RecordFeedback,
    Rollback,
    ShowEndpoint,
    ShowPrediction,
)
from macadam.values import instant, utc_now, uuid7
from macadam_verify import __main__ as verifier

WITHOUT = [f"--allow-missing={role}" for role in ("evaluation", "gate", "approval", "thresholds")]


@pytest.fixture
def endpoint(deployed: Platform) -> Endpoint:
    return deployed.call(ShowEndpoint(project=PROJECT, endpoint=ENDPOINT))


def records(endpoint: Endpoint, count: int) -> list[Prediction]:
    return [
        Prediction(
            id=uuid7(),
            at=instant(utc_now()),
            project=PROJECT,
            endpoint=ENDPOINT,
            variant="live",
            version=endpoint.version,
            model_digest=endpoint.artifact,
            deployment=endpoint.deployment,
            actor="principal:local",
            inputs={"n": n},
            features={"n": float(n)},
            output={"score": n / count},
            outcome="ok",
            stages_us={},
        )
        for n in range(count)
    ]


def write(platform: Platform, some: Sequence[Prediction]) -> Path:
    """One closed segment."""
    folder = platform.settings.home / "journal" / PROJECT
    with JournalWriter(folder, gateway="gw", worker=0, project=PROJECT) as writer:
        receipt = writer.append_many([encode(one) for one in some])
        receipt.answered(len(some))
        path = writer.path
    return path.with_suffix(".closed")


def seal(platform: Platform) -> int:
    return platform.call(SealClosed(project=PROJECT)).records


def test_several_segments_are_sealed_as_one_snapshot_and_one_leaf_each(deployed: Platform, endpoint: Endpoint) -> None:
    for _ in range(3):
        write(deployed, records(endpoint, 7))
    sealed = deployed.call(SealClosed(project=PROJECT))
    assert (sealed.records, len(sealed.segments)) == (21, 3)
    assert len({segment.snapshot for segment in sealed.segments}) == 1
    assert [s.answers for s in sealed.segments] == [7, 7, 7]
    assert len(homes.sealed_ids(deployed)) == 21
    assert len(deployed.call(ListSegments(project=PROJECT))) == 3
    assert seal(deployed) == 0
    found = deployed.call(VerifyLedger(deep=True))
    assert found.problems == ()


def test_a_kill_before_the_transaction_leaves_all_to_the_next_call(
    deployed: Platform, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(deployed, records(endpoint, 5))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journal.catalog, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            seal(deployed)
    assert path.exists()
    assert seal(deployed) == 5
    assert len(homes.sealed_ids(deployed)) == 5


def test_a_kill_after_the_transaction_doubles_nothing_and_the_file_goes_at_the_next_call(
    deployed: Platform, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(deployed, records(endpoint, 5))
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_remove", lambda _paths: None)
        assert seal(deployed) == 5
    assert path.exists()
    again = deployed.call(SealClosed(project=PROJECT))
    assert (again.records, again.known) == (0, 1)
    assert not path.exists()
    assert not path.with_suffix(".answers").exists()
    assert len(homes.sealed_ids(deployed)) == 5


def test_two_that_seal_at_once_double_nothing(deployed: Platform, endpoint: Endpoint) -> None:
    for _ in range(4):
        write(deployed, records(endpoint, 50))
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(seal(deployed))
        except (Conflict, Busy) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert sum(count for count in outcomes if isinstance(count, int)) == 200
    assert len(homes.sealed_ids(deployed)) == 200


def test_a_damaged_segment_stays_and_is_said_and_the_others_are_sealed(deployed: Platform, endpoint: Endpoint) -> None:
    good, bad = write(deployed, records(endpoint, 5)), write(deployed, records(endpoint, 4))
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    with pytest.raises(IntegrityError, match=bad.stem):
        seal(deployed)
    assert (good.exists(), bad.exists()) == (False, True)
    assert len(homes.sealed_ids(deployed)) == 5


def test_a_closed_segment_that_is_taken_away_whole_is_missed_by_the_one_after_it(
    deployed: Platform, endpoint: Endpoint
) -> None:
    write(deployed, records(endpoint, 3))
    gone = write(deployed, records(endpoint, 3))
    write(deployed, records(endpoint, 3))
    for path in (gone, gone.with_suffix(".answers")):
        path.unlink()
    with pytest.raises(IntegrityError, match=gone.stem):
        seal(deployed)
    points = {point.id: point for point in deployed.call(Inspect(project=PROJECT)).points}
    assert points["34"].status == "fail"
    assert gone.stem in points["34"].detail
    assert len(deployed.call(ListSegments(project=PROJECT))) == 2


def test_segments_that_are_all_there_follow_each_other(deployed: Platform, endpoint: Endpoint) -> None:
    for _ in range(3):
        write(deployed, records(endpoint, 2))
        seal(deployed)
    assert {point.id: point.status for point in deployed.call(Inspect(project=PROJECT)).points}["34"] == "pass"


def verify(bundle: str, key: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    (folder / "bundle.json").write_text(bundle)
    (folder / "key").write_text(key)
    program = str(Path(macadam_verify.__file__).parent / "__main__.py")
    command = [sys.executable, program, str(folder / "bundle.json"), "--key", str(folder / "key"), *WITHOUT]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sealed_prediction_proves_and_a_changed_byte_breaks_the_proof(
    deployed: Platform, endpoint: Endpoint, tmp_path: Path
) -> None:
    some = records(endpoint, 300)
    write(deployed, some)
    wanted = some[123].id
    with pytest.raises(Unavailable, match="not sealed"):
        deployed.call(Prove(project=PROJECT, prediction=wanted))
    with pytest.raises(NotFound):
        deployed.call(Prove(project=PROJECT, prediction=uuid7()))
    seal(deployed)
    proof = deployed.call(Prove(project=PROJECT, prediction=f"prediction:{wanted}"))
    assert proof.bytes == len(proof.bundle.encode()) < 64 * 1024
    assert json.loads(json.loads(proof.bundle)["record"])["inputs"] == {"n": 123}
    done = verify(proof.bundle, proof.key, tmp_path)
    assert done.returncode == 0, done.stdout
    flipped = proof.bundle.replace('\\"n\\":123', '\\"n\\":124', 1)
    assert flipped != proof.bundle
    done = verify(flipped, proof.key, tmp_path)
    assert done.returncode == 1
    assert "record -> segment" in done.stdout


def test_a_proof_carries_the_project_s_policies_their_approval_and_the_platform_s(
    deployed: Platform, tmp_path: Path
) -> None:
    text = '@id("none") forbid (principal in Role::"viewer", action == Action::"runs:train", resource);'
    made = deployed.call(ProposePolicies(project=PROJECT, files={"policies/a.cedar": text}))
    ann = testing.token_of(deployed, "ann", {PROJECT: "approver"})
    deployed.call(ApprovePolicies(project=PROJECT, version=made.version), token=ann)
    active = deployed.call(ActivatePolicies(project=PROJECT, version=made.version))
    deployed.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="2"))
    some = records(deployed.call(ShowEndpoint(project=PROJECT, endpoint=ENDPOINT)), 3)
    write(deployed, some)
    seal(deployed)
    proof = deployed.call(Prove(project=PROJECT, prediction=some[1].id))
    done = verify(proof.bundle, proof.key, tmp_path)
    assert done.returncode == 0, done.stdout
    assert active.policy_set in done.stdout
    bundle = json.loads(proof.bundle)
    kinds = {json.loads(leaf["leaf"])["kind"] for leaf in bundle["leaves"] if leaf["role"] == "policy"}
    assert kinds == {
        "access.bootstrap", "access.propose_policies", "access.approve_policies", "access.activate_policies",
    }  # fmt: skip
    left = [leaf for leaf in bundle["leaves"] if json.loads(leaf["leaf"])["kind"] != "access.approve_policies"]
    bundle["segment"]["leaf"] = next(n for n, leaf in enumerate(left) if leaf["role"] == "segment")
    shorter = json.dumps({**bundle, "leaves": left}, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    done = verify(shorter, proof.key, tmp_path)
    assert done.returncode == 1
    assert "approval" in done.stdout


def test_an_altered_archive_is_found_when_a_record_is_read(deployed: Platform, endpoint: Endpoint) -> None:
    some = records(endpoint, 3)
    write(deployed, some)
    archive = deployed.call(SealClosed(project=PROJECT)).segments[0].archive
    path = deployed.settings.home / "objects" / "sha256" / archive[7:9] / archive[9:]
    data = bytearray(path.read_bytes())
    data[data.index(some[1].id.encode()) + 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        deployed.call(ShowPrediction(project=PROJECT, prediction=some[1].id))
    assert deployed.call(ShowPrediction(project=PROJECT, prediction=some[2].id)).segment
    assert any("archive" in problem for problem in deployed.call(VerifyLedger(deep=True)).problems)


def test_labels_join_sealed_predictions_and_a_later_one_replaces_an_earlier(
    deployed: Platform, endpoint: Endpoint
) -> None:
    some = records(endpoint, 100)
    write(deployed, some)
    seal(deployed)
    at = datetime(2026, 11, 21, tzinfo=UTC)
    labels = [Label(prediction=one.id, label=float(n >= 50), at=at) for n, one in enumerate(some)]
    first = deployed.call(RecordFeedback(project=PROJECT, labels=labels[:80]))
    assert (first.new, first.changed, first.same) == (80, 0, 0)
    wrong = Label(prediction=some[0].id, label=1.0, at=at + timedelta(days=1))
    second = deployed.call(RecordFeedback(project=PROJECT, labels=[*labels[:90], wrong]))
    assert (second.new, second.changed, second.same) == (10, 1, 79)
    live = deployed.call(LiveAccuracy(project=PROJECT, endpoint=ENDPOINT))
    assert (live.predictions, live.labelled, live.positives) == (100, 90, 41)
    assert live.metrics["accuracy"] == pytest.approx(89 / 90)
    assert live.versions[0].metrics == live.metrics


def test_a_rollback_needs_something_to_go_back_to(deployed: Platform) -> None:
    with pytest.raises(Conflict, match="Nothing answered"):
        deployed.call(Rollback(project=PROJECT, endpoint=ENDPOINT))


def test_a_version_that_is_not_registered_is_not_deployed(platform: Platform) -> None:
    for version in ("9", "champion"):
        with pytest.raises(NotFound):
            platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version=version))


def test_a_high_risk_project_deploys_only_what_was_approved(platform: Platform) -> None:
    platform.ports.sql.write(lambda sql: sql.exec_driver_sql("UPDATE access_projects SET risk = 'high'"))
    with pytest.raises(GateRefused, match="nobody approved"):
        platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))


def token_of(platform: Platform, principal: str) -> str:
    """Of a service that may ask for predictions and nothing else."""
    with contextlib.suppress(Conflict):
        platform.call(CreatePrincipal(principal=principal))
    platform.call(GrantRole(project=PROJECT, principal=principal, role="caller"))
    return platform.call(IssueToken(principal=principal, days=1)).token


def by(actor: str, some: Sequence[Prediction]) -> list[Prediction]:
    return [msgspec.structs.replace(one, actor=actor) for one in some]


def check(folder: Path, receipt: str, key: str, *more: str) -> "subprocess.CompletedProcess[str]":
    (folder / "receipt.json").write_text(receipt)
    (folder / "key").write_text(key)
    program = str(Path(macadam_verify.__file__).parent / "__main__.py")
    command = [sys.executable, program, str(folder / "receipt.json"), "--key", str(folder / "key"), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_caller_fetches_the_receipt_of_its_own_prediction_and_nobody_elses(
    deployed: Platform, endpoint: Endpoint, tmp_path: Path
) -> None:
    mine, other = token_of(deployed, "service:mine"), token_of(deployed, "service:other")
    some = by("service:mine", records(endpoint, 40))
    wanted, unknown = some[17].id, uuid7()

    def fetch(prediction: str, token: str) -> Receipt:
        return deployed.call(FetchReceipt(project=PROJECT, prediction=prediction), token=token)

    write(deployed, some)
    with pytest.raises(Unavailable, match="not sealed yet"):
        fetch(wanted, mine)
    with pytest.raises(NotFound):
        fetch(wanted, other)
    seal(deployed)
    receipt = fetch(f"prediction:{wanted}", mine)
    assert receipt.bytes == len(receipt.receipt.encode()) < 4096
    said = []
    for token, prediction in ((other, wanted), (other, unknown), (mine, unknown)):
        with pytest.raises(NotFound) as caught:
            fetch(prediction, token)
        said.append(str(caught.value).replace(prediction, "ID").replace("service:mine", "service:other"))
    assert len(set(said)) == 1
    with pytest.raises(NotFound):  # who sees everything else has no receipt either: it is the caller's
        deployed.call(FetchReceipt(project=PROJECT, prediction=wanted))
    with pytest.raises(NotAuthorised):
        deployed.call(ShowPrediction(project=PROJECT, prediction=wanted), token=mine)


def test_a_receipt_is_checked_without_macadam_and_against_the_answer_that_was_kept(
    deployed: Platform, endpoint: Endpoint, tmp_path: Path
) -> None:
    token = token_of(deployed, "service:mine")
    some = by("service:mine", records(endpoint, 300))
    write(deployed, some)
    seal(deployed)
    one = some[123]
    receipt = deployed.call(FetchReceipt(project=PROJECT, prediction=one.id), token=token)
    kept = {"prediction": one.id, "version": one.version, "output": one.output}
    (tmp_path / "answer.json").write_text(json.dumps(kept))
    done = check(tmp_path, receipt.receipt, receipt.key, "--answer", str(tmp_path / "answer.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answer -> record" in done.stdout
    assert one.id in done.stdout
    whole = msgspec.json.encode(receipt).decode()  # as the platform answered it
    assert check(tmp_path, whole, receipt.key).returncode == 0
    (tmp_path / "answer.json").write_text(json.dumps({**kept, "output": {"score": 0.99}}))
    done = check(tmp_path, receipt.receipt, receipt.key, "--answer", str(tmp_path / "answer.json"))
    assert (done.returncode, "BROKEN at answer -> record" in done.stdout) == (1, True)


def test_a_receipt_with_any_part_changed_does_not_verify(deployed: Platform, endpoint: Endpoint) -> None:
    token = token_of(deployed, "service:mine")
    write(deployed, by("service:mine", records(endpoint, 20)))
    seal(deployed)
    some = by("service:mine", records(endpoint, 5))
    write(deployed, some)
    seal(deployed)
    receipt = deployed.call(FetchReceipt(project=PROJECT, prediction=some[3].id), token=token)
    assert verifier.verify_receipt(receipt.receipt, receipt.key, None).broken is None

    def accepted(data: bytes) -> str:
        try:
            found = verifier.check(data, receipt.key, [], None)
        except verifier.Unreadable:
            return "unreadable"
        if found.broken is not None:
            return found.broken.link
        assert data.decode() == receipt.receipt
        return "proved"

    words = [b'"index":3', b'"count":5', b'"format"', b"prediction:", b'{"receipt":"x"}', b"sha256:", b"\\u0000"]
    ran = fuzz(accepted, [receipt.receipt.encode()], count=inputs(1_500), words=words)
    assert ran.endings["proved"] >= 1
    assert {"unreadable", "form", "record -> segment"} <= set(ran.endings)


def test_a_prediction_that_is_sealed_while_it_is_looked_for_is_not_called_unknown(
    deployed: Platform, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(deployed, "service:mine")
    (one,) = by("service:mine", records(endpoint, 1))
    write(deployed, [one])
    real = proof.unsealed

    def sealed_meanwhile(*given: object) -> bytes | None:
        seal(deployed)
        return real(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(proof, "unsealed", sealed_meanwhile)
        with pytest.raises(Unavailable):
            deployed.call(FetchReceipt(project=PROJECT, prediction=one.id), token=token)
    assert deployed.call(FetchReceipt(project=PROJECT, prediction=one.id), token=token).receipt
