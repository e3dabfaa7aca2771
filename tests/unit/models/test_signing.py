"""Ours and the public `model_signing` tool accept each other's signatures, and neither accepts what was changed."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from macadam.errors import IntegrityError, InvalidInput
from macadam.models import signed_folder, signing
from macadam.values import digest_of

FILES = {"model.onnx": b"weights", "signature.json": b"{}", "sub/extra.bin": b"\x00" * 100}


def tool(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The public tool, as its users run it."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def write_model(place: Path) -> Path:
    for name, data in FILES.items():
        (place / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "model" / name).write_bytes(data)
    return place / "model"


def write_keys(place: Path, curve: ec.EllipticCurve) -> str:
    private = ec.generate_private_key(curve).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (place / "private.pem").write_bytes(private)
    (place / "public.pem").write_text(signing.public_key(private))
    return signing.public_key(private)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A model that the public tool has signed: folder, signature, public key."""
    place = tmp_path_factory.mktemp("theirs")
    model, key = write_model(place), write_keys(place, ec.SECP256R1())
    signed = tool("sign", "key", "--private_key", place / "private.pem", "--signature", place / "model.sig", model)
    assert signed.returncode == 0, signed.stderr
    return model, place / "model.sig", key


@pytest.fixture
def copy(theirs, tmp_path):
    """The same, to be spoiled."""
    (tmp_path / "model.sig").write_bytes(theirs[1].read_bytes())
    return write_model(tmp_path), tmp_path / "model.sig", theirs[2]


def sign_ours(place: Path) -> tuple[Path, Path, str]:
    model, private = write_model(place), signing.new_key()
    statement = signing.statement_of("delay", {name: digest_of(data) for name, data in FILES.items()})
    (place / "model.sig").write_bytes(signing.sign(statement, private))
    (place / "public.pem").write_text(signing.public_key(private))
    return model, place / "model.sig", signing.public_key(private)


def test_the_public_tool_verifies_ours_and_refuses_it_once_a_file_changed(tmp_path):
    model, signature, _ = sign_ours(tmp_path)
    arguments = ("verify", "key", "--signature", signature, "--public_key", tmp_path / "public.pem", model)
    accepted = tool(*arguments)
    assert accepted.returncode == 0, accepted.stderr + accepted.stdout
    (model / "model.onnx").write_bytes(b"other weights")
    refused = tool(*arguments)
    assert refused.returncode != 0
    assert "Hash mismatch for 'model.onnx'" in refused.stderr + refused.stdout


def test_ours_verifies_a_folder_that_the_public_tool_signed(theirs):
    found = signed_folder.verify(*theirs)
    assert found.files == tuple(sorted(FILES))
    assert found.key == signing.key_id(theirs[2])
    assert found.not_covered == ()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=["P-384", "P-521"])
def test_ours_verifies_a_single_file_and_other_curves_of_the_public_tool(curve, tmp_path):
    key = write_keys(tmp_path, curve)
    model, signature = tmp_path / "model.onnx", tmp_path / "model.sig"
    model.write_bytes(b"weights")
    done = tool("sign", "key", "--private_key", tmp_path / "private.pem", "--signature", signature, model)
    assert done.returncode == 0, done.stderr
    assert signed_folder.verify(model, signature, key).files == (".",)
    model.write_bytes(b"weightz")
    with pytest.raises(IntegrityError, match="not as it was signed"):
        signed_folder.verify(model, signature, key)


def changed(model: Path) -> str:
    (model / "model.onnx").write_bytes(b"Weights")
    return "model.onnx is not as it was signed"


def added(model: Path) -> str:
    (model / "sub" / "run.py").write_text("import os")
    return "sub/run.py is not among the signed files"


def hidden(model: Path) -> str:
    (model / ".hidden").write_text("x")
    return ".hidden is not among the signed files"


def removed(model: Path) -> str:
    (model / "signature.json").unlink()
    return "signature.json is signed and not there"


def renamed(model: Path) -> str:
    (model / "sub" / "extra.bin").rename(model / "sub" / "other.bin")
    return "sub/extra.bin is signed and not there"


def swapped(model: Path) -> str:
    (model / "model.onnx").write_bytes(FILES["signature.json"])
    (model / "signature.json").write_bytes(FILES["model.onnx"])
    return "model.onnx is not as it was signed"


def linked(model: Path) -> str:
    (model / "model.onnx").unlink()
    (model / "model.onnx").symlink_to(model.parent / "elsewhere")
    (model.parent / "elsewhere").write_bytes(FILES["model.onnx"])
    return "model.onnx is a symbolic link"


def piped(model: Path) -> str:
    os.mkfifo(model / "pipe")
    return "pipe is neither a file nor a folder"


def in_an_ignored_folder(model: Path) -> str:
    (model / ".git").mkdir()
    (model / ".git" / "hook").write_text("x")
    return ".git/hook is there, but the signer left it out"


@pytest.mark.parametrize(
    "spoil", [changed, added, hidden, removed, renamed, swapped, linked, piped, in_an_ignored_folder]
)
def test_a_folder_that_is_not_what_was_signed_is_refused_with_the_files_name(spoil, copy):
    signed_folder.verify(*copy)
    said = spoil(copy[0])
    with pytest.raises(IntegrityError, match=said):
        signed_folder.verify(*copy)


def test_what_the_signer_left_out_is_accepted_only_when_asked_for_and_is_said(copy):
    in_an_ignored_folder(copy[0])
    assert signed_folder.verify(*copy, allow_ignored=True).not_covered == (".git/hook",)


def test_a_signature_that_lies_in_the_model_is_not_held_against_it(copy):
    model, signature, key = copy
    signature.rename(model / "model.sig")
    assert signed_folder.verify(model, model / "model.sig", key).files == tuple(sorted(FILES))


def test_no_changed_byte_of_the_signed_part_is_accepted(theirs):
    """Of the whole bundle: a changed byte is refused, or it changes nothing that is said (spaces, an escape)."""
    bundle = theirs[1].read_bytes()
    wanted = signing.manifest_of(signing.open_bundle(bundle, (theirs[2],)))
    for at in range(len(bundle)):
        for flip in (0x01, 0x20):
            spoiled = bundle[:at] + bytes([bundle[at] ^ flip]) + bundle[at + 1 :]
            try:
                found = signing.manifest_of(signing.open_bundle(spoiled, (theirs[2],)))
            except IntegrityError:
                continue
            assert found == wanted
            assert json.loads(spoiled)["dsseEnvelope"]["payload"] == json.loads(bundle)["dsseEnvelope"]["payload"]


def test_another_key_is_refused_even_under_the_right_ones_name(theirs):
    other = signing.public_key(signing.new_key())
    with pytest.raises(IntegrityError, match="not one that is trusted here"):
        signed_folder.verify(theirs[0], theirs[1], other)
    bundle = json.loads(theirs[1].read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = signing.key_id(other)
    with pytest.raises(IntegrityError, match="is not the key's signature of what it says"):
        signing.open_bundle(json.dumps(bundle).encode(), (other,))


def test_only_keys_that_the_format_takes_are_keys():
    private = ed25519.Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for no_key in (pem.decode(), "", "no pem"):
        with pytest.raises(InvalidInput, match="no public key for model signatures"):
            signing.key_id(no_key)


def resigned(change):
    """A bundle whose signature is right and whose statement was changed before it was made; and its key."""
    private = signing.new_key()
    statement = signing.statement_of("delay", {name: digest_of(data) for name, data in FILES.items()})
    change(statement)
    return signing.sign(statement, private), signing.public_key(private)


def _set(*path):
    *way, last, value = path

    def change(statement):
        for step in way:
            statement = statement[step]
        statement[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("_type", "https://in-toto.io/Statement/v0.1"), "expected https://in-toto.io/Statement/v1"),
        (_set("predicateType", "https://slsa.dev/provenance/v1"), "expected https://model_signing/signature/v1.0"),
        (_set("subject", 0, "digest", {"sha256": "0" * 64}), "about something else"),
        (_set("predicate", "resources", []), "lists no file"),
        (_set("predicate", "resources", 0, "name", "../model.onnx"), "no path inside of a model"),
        (_set("predicate", "resources", 0, "name", "/model.onnx"), "no path inside of a model"),
        (_set("predicate", "resources", 0, "name", "signature.json"), "one of them twice"),
        (_set("predicate", "resources", 0, "digest", "00"), "no sha256 digest"),
        (_set("predicate", "serialization", "method", "shards"), "lists shards by sha256"),
        (_set("predicate", "serialization", "hash_type", "md5"), "lists files by md5"),
    ],
)
def test_a_rightly_signed_statement_that_lists_files_wrongly_is_refused(change, said):
    bundle, key = resigned(change)
    with pytest.raises(IntegrityError, match=said):
        signing.manifest_of(signing.open_bundle(bundle, (key,)))


def test_exactly_the_signed_files_are_required():
    files = {name: digest_of(data) for name, data in FILES.items()}
    bundle, key = resigned(_set("_type", signing.STATEMENT))
    signing.require_files(bundle, (key,), files)
    for wrong in ({**files, "more": digest_of(b"")}, {"model.onnx": files["model.onnx"]}):
        with pytest.raises(IntegrityError, match="is not of this"):
            signing.require_files(bundle, (key,), wrong)


def test_a_bundle_with_what_is_not_known_is_refused():
    bundle, key = resigned(_set("_type", signing.STATEMENT))
    read = json.loads(bundle)
    for path in ((), ("verificationMaterial",), ("dsseEnvelope",)):
        more = json.loads(bundle)
        part = more
        for step in path:
            part = part[step]
        part["certificate"] = {"rawBytes": base64.b64encode(b"x").decode()}
        with pytest.raises(IntegrityError, match="unknown field"):
            signing.open_bundle(json.dumps(more).encode(), (key,))
    read["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(IntegrityError, match="has 2 signatures"):
        signing.open_bundle(json.dumps(read).encode(), (key,))
