"""`macadam models signature | provenance | verify`: what vouches for a model, for people with or without Macadam."""

import argparse
import base64
import hashlib
from pathlib import Path

import msgspec

from macadam import operations
from macadam.errors import IntegrityError, InvalidInput
from macadam.faces.session import Session, Verb
from macadam.models import signed_folder, signing
from macadam.models.types import Attestations, FilePart, ReadModelFile, ShowAttestations

_MODEL_FOLDER, _SIGNATURE, _PROVENANCE, _KEY = "model", "model.sig", "provenance.sigstore.json", "signing-key.pem"


def _configure_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="its name")
    parser.add_argument("version", help="a number or an alias")


def _configure_signature(parser: argparse.ArgumentParser) -> None:
    _configure_version(parser)
    parser.add_argument("--out", metavar="DIR", help="where the files go; default: only say what is signed")


def _where(options: argparse.Namespace, session: Session) -> dict[str, object]:
    project = session.project()
    if not project:
        raise InvalidInput(
            "No project was named.", next_step="Give --project, set MACADAM_PROJECT, or run it where macadam.yaml is."
        )
    return {"project": project, "model": options.model, "version": options.version}


def _attestations(where: dict[str, object], session: Session) -> Attestations:
    operations.load("models")
    found: Attestations = session.call(operations.of_request(ShowAttestations), where)
    return found


def _signature(options: argparse.Namespace, session: Session) -> int:
    where = _where(options, session)
    found = _attestations(where, session)
    if not hasattr(options, "out"):
        session.show({"version": found.ref, "files": found.files, "key": found.key_id})
        return 0
    folder = Path(options.out)
    for name, digest in found.files.items():
        _fetch(where, name, digest, folder / _MODEL_FOLDER / name, session)
    _write(folder / _SIGNATURE, found.signature.encode())
    _write(folder / _PROVENANCE, found.provenance.encode())
    _write(folder / _KEY, found.key.encode())
    signed_folder.verify(folder / _MODEL_FOLDER, folder / _SIGNATURE, found.key)
    if session.json:
        session.show({"version": found.ref, "folder": str(folder), "files": found.files, "key": found.key_id})
        return 0
    command = f"--signature {folder / _SIGNATURE} --{{}} {folder / _KEY} {folder / _MODEL_FOLDER}"
    session.say(f"{found.ref} is in {folder / _MODEL_FOLDER}, signed with the key {found.key_id[:16]}.")
    session.say(f"Next: model_signing verify key {command.format('public_key')}")
    session.say(f"or:   macadam models verify {command.format('key')}")
    session.say("Who checks it for somebody else compares the key with one that they got by another way.")
    return 0


def _fetch(where: dict[str, object], name: str, digest: str, to: Path, session: Session) -> None:
    """Raises IntegrityError if what came is not what was asked for."""
    reading = operations.of_request(ReadModelFile)
    state, part, parts = hashlib.sha256(), 0, 1
    _write(to, b"")
    with to.open("ab") as file:
        while part < parts:
            piece: FilePart = session.call(reading, {**where, "file": name, "part": part})
            file.write(piece.data)
            state.update(piece.data)
            part, parts = part + 1, piece.parts
    if f"sha256:{state.hexdigest()}" != digest:
        raise IntegrityError(f"{name} is not what was registered.", next_step="Run macadam ledger verify --deep.")


def _provenance(options: argparse.Namespace, session: Session) -> int:
    found = _attestations(_where(options, session), session)
    statement = signing.open_bundle(found.provenance.encode(), (found.key,))
    if hasattr(options, "out"):
        _write(Path(options.out), found.provenance.encode())
        session.say(f"{options.out}: the signed statement, {len(found.provenance)} bytes; key {found.key_id[:16]}.")
        return 0
    payload = base64.b64decode(msgspec.json.decode(found.provenance)["dsseEnvelope"]["payload"])
    if session.json:
        session.show(msgspec.json.decode(payload))
        return 0
    session.say(f"# {statement.predicate_type}, signed with the key {found.key_id[:16]}")
    session.say(msgspec.json.format(payload, indent=2).decode())
    return 0


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="MODEL", help="the folder or the file that was signed")
    parser.add_argument("--signature", metavar="FILE", required=True, help="the signature, such as model.sig")
    parser.add_argument("--key", metavar="FILE", required=True, help="the signer's public key, as PEM")
    parser.add_argument("--allow-ignored", action="store_true", help="accept files that the signer left out")


def _verify(options: argparse.Namespace, session: Session) -> int:
    try:
        key = Path(options.key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{options.key} cannot be read: {error}.", next_step="Give the key's PEM file.") from error
    allowed = bool(getattr(options, "allow_ignored", False))
    found = signed_folder.verify(Path(options.folder), Path(options.signature), key, allow_ignored=allowed)
    if session.json:
        session.show(found)
        return 0
    session.say(f"{len(found.files)} files are as they were signed with the key {found.key[:16]}.")
    for name in found.not_covered:
        session.say(f"Not covered by the signature: {name}")
    return 0


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another place.") from error


SIGNATURE = Verb(configure=_configure_signature, run=_signature)
PROVENANCE = Verb(configure=_configure_signature, run=_provenance)
VERIFY = Verb(configure=_configure_verify, run=_verify)
