"""What is registered is signed and says what it was made from; what is not as it was signed does not answer."""

import base64
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement as in_toto
from in_toto_attestation.v1 import statement_pb2
from unit.models import worlds
from unit.serving import homes

from macadam.access.types import CreatePrincipal, GrantRole, IssueToken
from macadam.errors import IntegrityError, InvalidInput, NotAuthorised, UserCodeFailed
from macadam.faces import cli
from macadam.ledger import service as ledger
from macadam.models import registry, schema, signing
from macadam.models.types import (
    DeclareThresholds,
    Evaluate,
    ListSigningKeys,
    ReadModelFile,
    RegisterVersion,
    RotateSigningKey,
    ShowAttestations,
    ShowRun,
    ShowVersion,
    Train,
)
from macadam.serving import publishing, state
from macadam.serving.runtime import Runtime
from macadam.serving.types import Deploy

WHERE = {"project": homes.PROJECT, "model": homes.MODEL}
KEY = (homes.PROJECT, homes.ENDPOINT)


def macadam(home, *words):
    return cli.main([*words, "--home", str(home), "--project", homes.PROJECT])


def attested(platform, version="1"):
    return platform.call(ShowAttestations(**WHERE, version=version))


def payload(bundle: str) -> dict:
    return json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))


# --- what vouches for a version


def test_the_public_tool_verifies_an_exported_version(home, tmp_path, capsys):
    assert macadam(home, "models", "signature", homes.MODEL, "1", "--out", str(tmp_path / "out")) == 0
    files = ("--signature", tmp_path / "out" / "model.sig", "--public_key", tmp_path / "out" / "signing-key.pem")
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        *map(str, files),
        str(tmp_path / "out" / "model"),
    ]
    accepted = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert accepted.returncode == 0, accepted.stderr
    assert "model_signing verify key" in capsys.readouterr().out


def test_our_own_command_verifies_an_exported_version_without_a_platform_and_names_what_changed(
    home, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    assert macadam(home, "models", "signature", homes.MODEL, "1", "--out", str(out)) == 0
    monkeypatch.chdir(tmp_path)
    verify = ["models", "verify", "out/model", "--signature", "out/model.sig", "--key", "out/signing-key.pem"]
    assert cli.main(verify) == 0
    assert "2 files are as they were signed" in capsys.readouterr().out
    assert not (tmp_path / ".macadam").exists()
    (out / "model" / "signature.json").write_bytes(b"{}")
    assert cli.main(verify) == IntegrityError.exit_code
    assert "signature.json is not as it was signed" in capsys.readouterr().err


def test_a_versions_leaf_carries_its_signature_provenance_and_key(platform):
    version = platform.call(ShowVersion(**WHERE, version="1"))
    with platform.ports.sql.read() as sql:
        (leaf,) = [e.leaf for e in ledger.find(sql, subject=version.ref, kind="models.register_version")]
        (key,) = [e.leaf for e in ledger.find(sql, subject=f"signing_key:{leaf.body['signing_key']}")]
    assert leaf.body["model_signature"] == version.model_signature
    assert leaf.body["provenance"] == version.provenance
    assert signing.key_id(str(key.body["public"])) == leaf.body["signing_key"] == attested(platform).key_id
    assert "PRIVATE" not in str(key.body)


def test_provenance_is_an_in_toto_statement_of_slsa_that_binds_run_data_and_code(platform):
    found = attested(platform)
    signing.open_bundle(found.provenance.encode(), (found.key,))
    said = payload(found.provenance)
    in_toto.Statement.copy_from_pb(json_format.ParseDict(said, statement_pb2.Statement())).validate()
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {s["name"]: f"sha256:{s['digest']['sha256']}" for s in said["subject"]} == found.files
    run = platform.call(ShowRun(project=homes.PROJECT, run=platform.call(ShowVersion(**WHERE, version="1")).run))
    definition, details = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert definition["externalParameters"]["entryPoint"] == "train.py:train"
    assert definition["externalParameters"]["parameters"] == {"trees": 5}
    made_from = {d["name"]: d.get("digest", {}) for d in definition["resolvedDependencies"]}
    training_set = run.training_sets["train"]
    assert made_from[training_set]["sha256"].startswith(training_set.rpartition("@")[2])
    assert {"table:flights@42", "views:flights@0123456789ab", "contract:flights@1"} < set(made_from)
    assert made_from["source"] == {"sha256": run.code.archive[7:]}
    assert made_from[run.environment.ref] == {"sha256": run.environment.digest[7:]}
    assert details["metadata"]["invocationId"].endswith(run.ref)
    assert details["metadata"]["startedOn"] < details["metadata"]["finishedOn"]
    assert details["builder"]["id"].startswith("urn:macadam:platform:")
    _require_slsa(said["predicate"])


def _require_slsa(predicate: dict) -> None:
    """The published protobuf of SLSA Provenance v1 takes it without a field left over, and what it requires is there."""
    parsed = json_format.ParseDict(predicate, provenance_pb2.Provenance())
    assert parsed.build_definition.build_type == "urn:macadam:build-type:train:v1"
    assert parsed.build_definition.external_parameters
    assert parsed.run_details.builder.id
    assert parsed.run_details.metadata.started_on.seconds
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    for resource in (*definition["resolvedDependencies"], *details["byproducts"]):
        assert resource.get("uri") or resource.get("digest")
        assert all(set(value) <= set("0123456789abcdef") for value in resource.get("digest", {}).values())


def test_a_git_commit_and_what_was_not_committed_stand_in_the_provenance(platform, tmp_path):
    source = tmp_path / "repository"
    source.mkdir()
    (source / "train.py").write_text(worlds.TRAIN)

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", source, *identity, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    (source / "train.py").write_text(worlds.TRAIN + "\n# changed\n")
    run = platform.call(Train(**WHERE, source=str(source), training_sets={"train": homes.plant(platform)}))
    version = platform.call(RegisterVersion(**WHERE, run=run.ref))
    said = payload(attested(platform, str(version.number)).provenance)
    (commit,) = [d for d in said["predicate"]["buildDefinition"]["resolvedDependencies"] if d["uri"].startswith("git+")]
    assert commit["digest"] == {"gitCommit": git("rev-parse", "HEAD")}
    assert commit["annotations"] == {"uncommittedChanges": run.code.diff}
    assert run.code.diff


def test_the_provenance_command_prints_the_statement_and_writes_its_bundle(home, tmp_path, capsys):
    assert macadam(home, "models", "provenance", homes.MODEL, "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["predicateType"] == "https://slsa.dev/provenance/v1"
    assert macadam(home, "models", "provenance", homes.MODEL, "1", "--out", str(tmp_path / "p.json")) == 0
    assert signing.MEDIA_TYPE in (tmp_path / "p.json").read_text()


def test_files_are_handed_out_only_to_who_may_export_models(platform):
    platform.call(CreatePrincipal(principal="principal:vera"))
    platform.call(GrantRole(project=homes.PROJECT, principal="principal:vera", role="viewer"))
    token = platform.call(IssueToken(principal="principal:vera")).token
    wanted = ReadModelFile(**WHERE, version="1", file="model.onnx")
    assert platform.call(ShowAttestations(**WHERE, version="1"), token=token).number == 1
    with pytest.raises(NotAuthorised):
        platform.call(wanted, token=token)
    part = platform.call(wanted)
    assert (part.parts, len(part.data)) == (1, part.size)
    with pytest.raises(InvalidInput, match="has 1 parts"):
        platform.call(msgspec.structs.replace(wanted, part=1))


# --- keys


def test_a_rotated_key_signs_from_then_on_and_what_the_old_one_signed_stays_valid(platform, tmp_path):
    old = attested(platform).key_id
    new = platform.call(RotateSigningKey())
    assert new.id != old
    assert [key.id for key in platform.call(ListSigningKeys())] == [new.id, old]
    platform.call(Deploy(**WHERE, endpoint=homes.ENDPOINT, version="1"))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.py").write_text(worlds.TRAIN)
    run = platform.call(
        Train(**WHERE, source=str(tmp_path / "source"), training_sets={"train": homes.plant(platform)}, seed=7)
    )
    version = platform.call(RegisterVersion(**WHERE, run=run.ref))
    assert attested(platform, str(version.number)).key_id == new.id
    platform.call(Deploy(**WHERE, endpoint=homes.ENDPOINT, version=str(version.number)))


def test_callers_that_rotate_at_once_get_keys_that_are_all_known(platform):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: platform.call(RotateSigningKey()), range(4)))
    known = platform.call(ListSigningKeys())
    assert {key.id for key in made} <= {key.id for key in known}
    assert len({key.number for key in known}) == len({key.id for key in known}) == len(known)


# --- what is loaded


def published(platform):
    publishing.publish(platform.ports)
    return state.decode(platform.ports.objects.get_name(state.NAME))


def with_deployment(found: state.ServingState, **changes) -> state.ServingState:
    one = msgspec.structs.replace(found.endpoints[homes.PROJECT][homes.ENDPOINT], **{"id": "later", **changes})
    return msgspec.structs.replace(found, endpoints={homes.PROJECT: {homes.ENDPOINT: one}}, generation="later")


def forged(platform, found: state.ServingState) -> str:
    """A signature of the right files by a key that is not the platform's."""
    one = found.endpoints[homes.PROJECT][homes.ENDPOINT]
    files = {"model.onnx": one.artifact, "signature.json": one.signature}
    return platform.ports.objects.put(signing.sign(signing.statement_of("x", files), signing.new_key()))


SPOILED = {
    "no signature": (lambda _, s: with_deployment(s, model_signature=""), "is not signed"),
    "another version's signature": (
        lambda p, s: with_deployment(s, model_signature=p.call(ShowVersion(**WHERE, version="2")).model_signature),
        "is not of this model.onnx",
    ),
    "another version's file": (
        lambda p, s: with_deployment(s, artifact=p.call(ShowVersion(**WHERE, version="2")).artifact),
        "is not of this model.onnx",
    ),
    "its provenance for its signature": (
        lambda p, s: with_deployment(s, model_signature=p.call(ShowVersion(**WHERE, version="1")).provenance),
        "expected https://model_signing/signature/v1.0",
    ),
    "a stranger's signature": (
        lambda p, s: with_deployment(s, model_signature=forged(p, s)),
        "not one that is trusted here",
    ),
    "no keys": (
        lambda p, s: msgspec.structs.replace(with_deployment(s, model_signature=forged(p, s)), model_keys=()),
        "not one that is trusted here",
    ),
    "a signature that is gone": (
        lambda _, s: with_deployment(s, model_signature="sha256:" + "0" * 64),
        "no object",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_gateway_goes_on_with_the_version_before_when_the_next_is_not_as_signed(deployed, how, caplog):
    good = published(deployed)
    runtime = Runtime(deployed.ports.objects)
    runtime.apply(good, None)
    runtime.load(runtime.slots[KEY], lambda _: None)
    before = runtime.slots[KEY].serving
    assert before is not None, runtime.slots[KEY].problem
    spoil, said = SPOILED[how]
    runtime.apply(spoil(deployed, good), None)
    runtime.load(runtime.slots[KEY], lambda _: None)
    slot = runtime.slots[KEY]
    assert slot.serving is before
    assert slot.problem is not None
    assert said.lower() in slot.problem.what.lower()
    assert "cannot be loaded" in caplog.text


def test_a_running_gateway_shows_what_it_refused_in_health_and_metrics_and_still_answers(deployed, home, token):
    with homes.gateway(home) as running, running.client(token) as client:
        wait_for(client, lambda: client.get("/health/ready").status_code == 200)
        spoiled = with_deployment(published(deployed), model_signature="")
        deployed.ports.objects.set_name(state.NAME, state.encode(spoiled))
        wait_for(client, lambda: b"endpoints_refused 1" in client.get("/metrics").content)
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert "is not signed" in ready.json()["models"][f"{homes.PROJECT}/{homes.ENDPOINT}"]
        answer = client.post(homes.PATH, json={"inputs": homes.INPUTS})
        assert answer.status_code == 200, answer.text


def wait_for(client: httpx.Client, condition) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def spoil_version(platform, number: int, **changes) -> None:
    """As if somebody had written into the database."""
    t = schema.versions

    def work(sql):
        found = registry.version(sql, homes.PROJECT, homes.MODEL, str(number))
        document = msgspec.to_builtins(msgspec.structs.replace(found, **changes))
        sql.execute(sa.update(t).where(t.c.number == number).values(document=document))

    platform.ports.sql.write(work)


def test_a_version_whose_signature_is_not_its_own_is_neither_deployed_nor_evaluated(platform):
    other = platform.call(ShowVersion(**WHERE, version="2"))
    platform.call(DeclareThresholds(**WHERE, text="metrics: {roc_auc: {at_least: 0.5}}\n"))
    june = worlds.plant(platform, "june", worlds.rows(200, seed=3, start=9000), project=homes.PROJECT)
    for changes, said in (
        ({"model_signature": other.model_signature}, "is not of this model.onnx"),
        ({"artifact": other.artifact}, "is not of this model.onnx"),
        ({"model_signature": ""}, "is not signed"),
    ):
        original = platform.call(ShowVersion(**WHERE, version="1"))
        spoil_version(platform, 1, **changes)
        with pytest.raises(IntegrityError, match=said):
            platform.call(Deploy(**WHERE, endpoint=homes.ENDPOINT, version="1"))
        with pytest.raises(IntegrityError, match=said):
            platform.call(Evaluate(**WHERE, version="1", training_set=june, resamples=100))
        spoil_version(platform, 1, **{name: getattr(original, name) for name in changes})
    platform.call(Deploy(**WHERE, endpoint=homes.ENDPOINT, version="1"))


def test_a_run_whose_process_leaves_a_pickle_for_its_model_is_a_failed_run(platform, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.py").write_text(
        worlds.TRAIN
        + """
import atexit, pathlib, pickle

train_well = train

def train(run):
    train_well(run)
    atexit.register(lambda: pathlib.Path("../out/model.onnx").write_bytes(pickle.dumps({"weights": [1.0]})))
"""
    )
    with pytest.raises(UserCodeFailed, match=r"model\.onnx is a pickle") as error:
        platform.call(Train(**WHERE, source=str(tmp_path / "source"), training_sets={"train": homes.plant(platform)}))
    failed = platform.call(ShowRun(project=homes.PROJECT, run=str(error.value.details["run"])))
    assert (failed.state, failed.artifact) == ("failed", "")
