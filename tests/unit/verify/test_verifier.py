"""Each link of the chain, broken on its own in an otherwise well-signed ledger, is found and named."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.verify import chains
from unit.verify.chains import SIGNED, SIGNER, WITNESS, Ledger, fields, uuid

from macadam.ledger import bundle, note
from macadam_verify import __main__ as verifier
from macadam_verify import signed
from macadam_witness.notes import WitnessKey

KEY = str(SIGNER.verifier)


def check(ledger: Ledger, *allowed: str) -> verifier.Report:
    return verifier.verify(ledger.bundle(), KEY, list(allowed))


def test_a_whole_chain_is_proved_and_told_in_words() -> None:
    report = check(Ledger())
    assert report.broken is None
    assert report.not_proved == []
    story = "\n".join(report.story)
    for said in (uuid(77), "model:delay-risk@7", "run:r1", "table:flights@42", "contract:flights@1", "principal:bob"):
        assert said in story


def test_a_version_that_names_no_signature_is_said_to_be_not_proved_signed() -> None:
    ledger = Ledger()
    assert ("version -> signature", SIGNED["signing_key"]) in [
        (link, what.partition("the key ")[2][:64]) for link, what in check(ledger).links
    ]
    ledger.of("version")["body"].pop("provenance")
    report = check(ledger)
    assert report.broken is None
    assert report.not_proved == ["version -> signature: version leaf 6 names no signature of the model's files"]


def _set(role: str, **changes: Any) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.of(role).update(changes)


def _body(role: str, **changes: Any) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.of(role)["body"].update(changes)


def _drop(role: str) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.drop(role)


def _swap(one: str, other: str) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.swap(one, other)


def _record(**changes: Any) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.record.update(changes)


def _twice(role: str) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.leaves.append((role, ledger.of(role)))


def _decision(role: str, **changes: Any) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.of(role)["decision"].update(changes)


BROKEN: list[tuple[str, Callable[[Ledger], None], str]] = [
    ("a version of another name", _record(version="model:delay-risk@8"), "record -> version"),
    ("another model file", _record(model_digest="sha256:" + "b" * 64), "record -> version"),
    ("no version", _drop("version"), "record -> version"),
    ("a version made by another run", _set("version", uses=["run:r2"]), "version -> run"),
    ("no run", _drop("run"), "version -> run"),
    ("a run recorded after its version", _swap("run", "version"), "version -> run"),
    ("a run without data", _set("run", uses=["environment:py311@1"]), "run -> snapshots"),
    ("a training set that is not here", _drop("training_set"), "run -> snapshots"),
    ("a training set made after the run", _swap("training_set", "run"), "run -> snapshots"),
    ("a snapshot that is not here", _drop("snapshot"), "run -> snapshots"),
    ("one of two snapshots that is not here", _set("run", uses=["table:flights@42", "table:x@1"]), "run -> snapshots"),
    ("a snapshot made after its training set", _swap("snapshot", "training_set"), "run -> snapshots"),
    ("no contract", _drop("contract"), "snapshot -> contract (table:flights@42)"),
    ("a contract made after the data", _swap("contract", "snapshot"), "snapshot -> contract (table:flights@42)"),
    ("no evaluation", _drop("evaluation"), "evaluation -> version"),
    ("an evaluation of another version", _set("evaluation", uses=["model:delay-risk@6"]), "evaluation -> version"),
    ("no thresholds", _drop("thresholds"), "thresholds -> evaluation"),
    ("thresholds set after evaluating", _swap("thresholds", "evaluation"), "thresholds -> evaluation"),
    ("thresholds of something else", _set("thresholds", subject="thresholds:x@1"), "thresholds -> evaluation"),
    ("no gate", _drop("gate"), "gate -> evaluation"),
    ("a gate for another evaluation", _set("gate", uses=["evaluation:e2"]), "gate -> evaluation"),
    ("a gate that refused", _body("gate", verdict="fail"), "gate -> evaluation"),
    ("a gate without verdict", _set("gate", body={}), "gate -> evaluation"),
    ("a gate before the evaluation", _swap("gate", "evaluation"), "evaluation -> version"),
    ("no approval", _drop("approval"), "approval -> version"),
    ("approval of another version", _set("approval", subject="model:delay-risk@6"), "approval -> version"),
    ("approval by the author", _set("approval", actor="principal:alice"), "approval -> version"),
    ("an evaluation before the version", _swap("evaluation", "version"), "evaluation -> version"),
    ("approval and gate before the version", _swap("approval", "version"), "gate -> evaluation"),
    ("approval after deployment", _swap("approval", "deployment"), "approval -> version"),
    ("no deployment", _drop("deployment"), "record -> deployment"),
    ("another deployment", _record(deployment=uuid(500)), "record -> deployment"),
    ("an empty deployment", _record(deployment=""), "record -> deployment"),
    ("another endpoint", _record(endpoint="other"), "record -> deployment"),
    ("a deployment of another version", _set("deployment", uses=["model:delay-risk@6"]), "deployment -> version"),
    ("a deployment of another signature", _set("deployment", body={"model_signature": "x"}), "deployment -> signature"),
    ("a deployment of no signature", _set("deployment", body={}), "deployment -> signature"),
    ("deployed after the segment was sealed", _swap("deployment", "segment"), "record -> deployment"),
    ("a segment with another root", _body("segment", root="sha256:" + "0" * 64), "record -> segment"),
    ("a segment with another count", _body("segment", count=4), "record -> segment"),
    ("no policy", _drop("policy"), "contract leaf 1 -> policy"),
    ("a decision under other policies", _decision("run", policy_set="sha256:" + "6" * 64), "run leaf 5 -> policy"),
    ("policies set after the decision", _swap("policy", "contract"), "contract leaf 0 -> policy"),
    ("a denied approval", _set("approval", outcome="denied"), "role of approval leaf 10"),
    ("a denied decision", _decision("gate", effect="deny"), "role of gate leaf 9"),
    ("an approval that is something else", _set("approval", kind="models.log"), "role of approval leaf 10"),
    ("a run that is something else", _set("run", subject="model:x@1"), "role of run leaf 5"),
    ("a version of another project", _set("version", project="other"), "project of version leaf 6"),
    ("a run of no project", _set("run", project=""), "project of run leaf 5"),
    ("two segments", _twice("segment"), "form"),
]


@pytest.mark.parametrize(("change", "link"), [(c, link) for _, c, link in BROKEN], ids=[name for name, _, _ in BROKEN])
def test_a_broken_link_is_named(change: Callable[[Ledger], None], link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cheating platform would not check itself while it builds the bundle.
    monkeypatch.setattr(bundle.leaves_, "decode", lambda data: _Loose(json.loads(data)["body"]))
    monkeypatch.setattr(bundle, "_sealed_in", lambda leaves, *_: next(_segments(leaves)))
    ledger = Ledger()
    change(ledger)
    report = check(ledger)
    assert report.broken is not None
    assert report.broken.link == link
    assert report.story == []


class _Loose:
    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


def _segments(leaves: Any) -> Any:
    return (position for position, chained in enumerate(leaves) if chained.role == "segment")


@pytest.mark.parametrize("role", verifier.MAY_BE_ALLOWED_MISSING)
def test_what_is_allowed_to_be_missing_is_said_to_be_not_proved(role: str) -> None:
    ledger = Ledger()
    ledger.drop(role)
    assert check(ledger).broken is not None
    report = check(ledger, role)
    assert report.broken is None
    assert any(f"no {role} leaf" in line for line in report.not_proved)


def test_a_version_without_any_gate_is_told_as_such() -> None:
    ledger = Ledger()
    for role in ("evaluation", "thresholds", "gate", "approval"):
        ledger.drop(role)
    report = check(ledger, "evaluation", "thresholds", "gate", "approval")
    assert report.broken is None
    assert "approved" not in "\n".join(report.story)


@pytest.mark.parametrize("role", ["environment", "contract"])
def test_what_a_leaf_does_not_name_is_not_proved(role: str) -> None:
    ledger = Ledger()
    ledger.of("run")["uses"].remove("environment:py311@1")
    ledger.of("snapshot")["uses"].clear()
    report = check(ledger)
    assert report.broken is None
    assert any(role in line for line in report.not_proved)


def test_other_leaves_do_not_stand_in_for_the_segment() -> None:
    parsed = json.loads(Ledger().bundle())
    parsed["segment"]["leaf"] = 0
    report = verifier.verify(bundle.encode(parsed), KEY, [])
    assert str(report.broken) == "record -> segment: leaf 0 of the bundle is not the segment's"


def test_relabelling_any_leaf_is_refused() -> None:
    parsed = json.loads(Ledger().bundle())
    for entry in parsed["leaves"]:
        was = entry["role"]
        for role in set(verifier.ROLES) - {was}:
            entry["role"] = role
            report = verifier.verify(bundle.encode(parsed), KEY, [])
            # Only what no link rests on may be called something else: then the report no longer claims it.
            assert report.broken or (was == "environment" and report.not_proved), (was, role)
        entry["role"] = was


def test_a_checkpoint_of_another_ledger_or_key_is_refused() -> None:
    other = str(note.SignerKey(SIGNER.name, bytes(32)).verifier)
    report = verifier.verify(Ledger().bundle(), other, [])
    assert report.broken is not None
    assert report.broken.link == "checkpoint signature"
    only_witness = verifier.verify(Ledger(signers=(WITNESS,)).bundle(), str(WITNESS.verifier), [])
    assert only_witness.broken is not None
    assert "has not signed it" in only_witness.broken.why


def test_a_witness_cannot_stand_in_for_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "ORIGIN", WITNESS.name)  # a whole ledger of the witness's own making
    forged = Ledger(signers=(WITNESS,)).bundle()
    report = verifier.verify(forged, f"{SIGNER.verifier}\n{WITNESS.verifier}\n", [])
    assert report.broken is not None
    assert report.broken.link == "checkpoint signature"


def test_a_cosignature_of_an_unknown_key_is_carried_and_reported() -> None:
    report = check(Ledger(signers=(SIGNER, WITNESS)))
    assert report.broken is None
    assert report.not_proved == ["the signature of witness.example on the checkpoint (its key was not given)"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"checkpoint"', b'{ "checkpoint"'),
        (b'"format":"macadam-proof/1"', b'"format":"macadam-proof/2"'),
        (b'"format":"macadam-proof/1"', b'"format":"macadam-proof/1","g":1'),
        (b'"format":"macadam-proof/1",', b""),
        (b'"role":"run"', b'"role":"walk"'),
        (b'{\\"actor\\":', b'{ \\"actor\\":'),
        (b'"count":5', b'"count":5.0'),
        (b'"count":5', b'"count":true'),
    ],
)
def test_a_bundle_of_another_form_is_refused(old: bytes, new: bytes) -> None:
    whole = Ledger().bundle()
    assert old in whole
    report = verifier.verify(whole.replace(old, new, 1), KEY, [])
    assert report.broken is not None
    assert report.broken.link == "form"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"{}{}", b'{"a":1,"a":1}', b"NaN", b"[" * 100_000, b'{"a":"\\ud800"}', b"9" * 5000],
)
def test_what_is_no_json_is_unreadable(data: bytes) -> None:
    with pytest.raises(verifier.Unreadable):
        verifier.verify(data, KEY, [])


@pytest.mark.parametrize("data", [b"1\n", b"[]\n", b"{}\n", b"null\n", b'{"a":1}\n'])
def test_json_that_is_no_bundle_breaks_the_form(data: bytes) -> None:
    report = verifier.verify(data, KEY, [])
    assert report.broken is not None
    assert report.broken.link == "form"


@pytest.mark.parametrize("key", ["", "# none\n", "x", "a+b+c", KEY[:-2], KEY.replace("A", "B"), "a+00000000+AQ=="])
def test_a_file_without_a_key_is_unreadable(key: str) -> None:
    with pytest.raises(verifier.Unreadable):
        verifier.verify(Ledger().bundle(), key, [])


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    ledger.record["actor"] = "\x1b[2J\nPROVED"
    verifier.show(check(ledger))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\nPROVED") == 1


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    whole, key = tmp_path / "bundle.json", tmp_path / "key"
    whole.write_bytes(Ledger().bundle())
    key.write_text(KEY + "\n")
    return whole, key


def test_the_command_says_what_is_proved(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    whole, key = files
    assert verifier.main([str(whole), "--key", str(key)]) == 0
    assert "It was approved by principal:bob" in capsys.readouterr().out
    assert verifier.main([str(whole), "--key", str(key), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proved"] is True
    assert found["broken"] is None
    assert {"link": "checkpoint signature", "holds": f"{SIGNER.name} signed a ledger of 15 leaves"} in found["links"]


def test_the_command_exits_with_1_and_names_the_broken_link(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, key = files
    whole.write_bytes(whole.read_bytes().replace(b"delay_rate_7d", b"delay_rate_8d"))
    assert verifier.main([str(whole), "--key", str(key)]) == 1
    assert "BROKEN at record -> segment: the record is not in the sealed segment" in capsys.readouterr().out
    assert verifier.main([str(whole), "--key", str(key), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["broken"]["link"] == "record -> segment"


def test_the_command_exits_with_2_for_what_it_cannot_read(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, key = files
    assert verifier.main([str(whole.parent / "none"), "--key", str(key)]) == 2
    assert verifier.main([str(whole), "--key", str(whole)]) == 2
    assert verifier.main([str(key), "--key", str(key)]) == 2
    assert "macadam_verify:" in capsys.readouterr().err


def test_it_runs_as_a_module_without_macadam(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole, key = files
    alone = tmp_path / "alone" / "macadam_verify"
    alone.mkdir(parents=True)
    source = Path(verifier.__file__)
    for path in source.parent.glob("*.py"):
        (alone / path.name).write_bytes(path.read_bytes())
    program = f"import sys, runpy; sys.path.insert(0, {str(alone.parent)!r}); sys.modules['macadam'] = None; "
    program += f"sys.argv = ['v', {str(whole)!r}, '--key', {str(key)!r}]; runpy.run_module('macadam_verify', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "PROVED" in ran.stdout


def test_it_imports_only_the_standard_library_and_cryptography() -> None:
    imported = set()
    for path in Path(verifier.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography", "macadam_verify"}


def test_a_bundle_with_a_denied_or_foreign_leaf_of_no_role_is_still_proved() -> None:
    ledger = Ledger()
    ledger.leaves.append(("", fields(20, "models.approve", "model:x@1", outcome="denied", actor="anonymous")))
    assert check(ledger).broken is None


def _add(ledger: Ledger, role: str, leaf: dict[str, Any]) -> None:
    ledger.leaves.insert(11, (role, leaf))


def test_the_evaluation_of_a_later_version_against_this_one_does_not_speak_for_it() -> None:
    version, later = "model:delay-risk@7", "model:delay-risk@8"
    ledger = Ledger()
    _add(ledger, "evaluation", fields(20, "models.evaluate", "evaluation:e2", uses=[later, version]))
    _add(ledger, "gate", fields(21, "models.check_gate", later, uses=["evaluation:e2"], body={"verdict": "pass"}))
    _add(ledger, "approval", fields(22, "models.approve", later, uses=[version], actor="principal:carol"))
    assert check(ledger).broken is None
    for role, link in (("approval", "approval -> version"), ("gate", "gate -> evaluation")):
        ledger.leaves[[name for name, _ in ledger.leaves].index(role)] = ("", ledger.of(role))
        report = check(ledger)
        assert report.broken is not None
        assert report.broken.link == link


def test_a_version_that_was_refused_and_then_passed_is_proved() -> None:
    ledger = Ledger()
    refused = fields(20, "models.check_gate", "model:delay-risk@7", uses=["evaluation:e1"], body={"verdict": "refused"})
    _add(ledger, "gate", refused)
    assert check(ledger).broken is None


def test_a_second_approval_and_a_later_leaf_about_the_snapshot_change_nothing() -> None:
    ledger = Ledger()
    ledger.leaves.append(("approval", fields(20, "models.approve", "model:delay-risk@7", actor="principal:carol")))
    ledger.leaves.append(("snapshot", fields(21, "data.expire", "table:flights@42")))
    report = check(ledger)
    assert report.broken is None
    assert any("principal:bob approved" in what for _, what in report.links)


IGNORED = {
    "a kept checkpoint beside a bundle": (["BUNDLE", "--since", "EMPTY"], "--since goes with --ledger"),
    "an answer beside a copy of the ledger": (["--ledger", "BUNDLE", "--answer", "EMPTY"], "--answer goes with"),
    "an answer beside a certificate": (["--certificate", "BUNDLE", "--answer", "EMPTY"], "--answer goes with"),
    "witnesses of a certificate": (["--certificate", "BUNDLE", "--witness", "EMPTY"], "cosign checkpoints, not"),
    "a file of witnesses that names none": (["BUNDLE", "--witness", "EMPTY"], "holds no verifier key"),
    "a quorum of no witnesses": (["BUNDLE", "--quorum", "1"], "the keys of 0 were given"),
}


@pytest.mark.parametrize("what", IGNORED)
def test_a_check_that_was_asked_for_and_cannot_be_made_is_not_passed_over(
    files: tuple[Path, Path], tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, key = files
    assert verifier.main([str(whole), "--key", str(key)]) == 0
    empty = tmp_path / "empty"
    empty.write_text("")
    words, said = IGNORED[what]
    named = {"BUNDLE": str(whole), "EMPTY": str(empty)}
    assert verifier.main([*(named.get(word, word) for word in words), "--key", str(key)]) == 2
    assert said in capsys.readouterr().err


def test_the_command_says_what_nobody_asked_for(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    whole, key = files
    assert verifier.main([str(whole), "--key", str(key)]) == 0
    assert "not proved  that others are shown this same ledger" in capsys.readouterr().out


def test_a_number_that_only_infinity_stands_for_is_no_json() -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        signed.read_json('{"output":1e999}', "the answer")
    assert signed.read_json('{"output":1e99}', "the answer") == {"output": 1e99}


def test_a_checkpoint_with_more_signatures_than_anybody_needs_is_refused() -> None:
    trust = signed.trusted(KEY)
    text = str(note.Checkpoint(origin=SIGNER.name, size=1, root=bytes(32)))
    whole = str(note.sign(text, SIGNER))
    other = str(note.sign(text, WITNESS)).rpartition("\n\n")[2]
    assert signed.checkpoint(whole + other * 99, trust, signed.Report())
    with pytest.raises(signed.Broken, match="at most 100 signatures"):
        signed.checkpoint(whole + other * 100, trust, signed.Report())


def test_a_cosignature_of_a_time_that_cannot_be_is_refused() -> None:
    witness = WitnessKey("witness.example", bytes(32))
    trust = signed.trusted(KEY, witness.verifier)
    text = str(note.Checkpoint(origin=SIGNER.name, size=1, root=bytes(32)))
    whole = str(note.sign(text, SIGNER))
    assert signed.checkpoint(whole + witness.cosign(text, 2**63 - 1), trust, signed.Report())
    with pytest.raises(signed.Broken, match="a time that cannot be"):
        signed.checkpoint(whole + witness.cosign(text, 2**63), trust, signed.Report())
