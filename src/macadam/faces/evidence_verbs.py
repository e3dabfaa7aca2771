"""`macadam prove` and `macadam inspect`: evidence for people who did not build what it is about."""

import argparse
from pathlib import Path

import msgspec

from macadam import operations
from macadam.errors import ChecksFailed, IntegrityError, InvalidInput
from macadam.faces import printing
from macadam.faces.session import Session, Verb
from macadam.governance.types import Inspect, Inspection
from macadam.operations import Operation
from macadam.serving.types import Proof, Prove

_LINKS = {
    "evaluation": "that the version was measured",
    "thresholds": "that thresholds were set before it was measured",
    "gate": "that a gate let the version pass",
    "approval": "that somebody else approved the version",
}
_MARKS = {"pass": "pass", "fail": "FAIL", "not_applicable": "does not apply", "did_not_run": "did not run"}


def find_operation(group: str, request: type) -> Operation:
    operations.load(group)
    return operations.of_request(request)


def _project(session: Session) -> str:
    found = session.project()
    if not found:
        raise InvalidInput(
            "No project was named.", next_step="Give --project, set MACADAM_PROJECT, or run it where macadam.yaml is."
        )
    return found


def _configure_prove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prediction", help="its id, as the answer's header and body say it")
    parser.add_argument("--out", metavar="FILE", help="where the proof goes; default: prediction-ID.proof.json here")
    parser.add_argument("--key-file", metavar="FILE", help="where the ledger's key goes; default: ledger.key beside it")


def _prove(options: argparse.Namespace, session: Session) -> int:
    arguments = {"project": _project(session), "prediction": options.prediction}
    proof: Proof = session.call(find_operation("predictions", Prove), arguments)
    name = proof.prediction.rpartition(":")[2]
    out = Path(getattr(options, "out", f"prediction-{name}.proof.json"))
    key = Path(getattr(options, "key_file", out.parent / "ledger.key"))
    announced = write_key(key, proof)
    _write(out, proof.bundle)
    if session.json:
        session.show({"prediction": proof.prediction, "file": str(out), "key_file": str(key), "bytes": proof.bytes,
                      "announced_file": str(announced or ""), "leaves": proof.leaves})  # fmt: skip
        return 0
    session.say(f"{out}: {proof.bytes} bytes, {proof.leaves} leaves from the answer to the policies in force.")
    missing = unproved(proof.bundle)
    for role in missing:
        session.say(f"Not proved by it: {_LINKS[role]}. Whoever verifies it has to allow that.")
    allow = "".join(f" --allow-missing {role}" for role in missing)
    if announced:
        session.say(f"The ledger has changed its key since {key} was kept; {announced} leads from that to the new one.")
        allow = f" --announced {announced}{allow}"
    session.say(f"Next: python -m macadam_verify {out} --key {key}{allow}")
    session.say("Who checks it for somebody else compares the key with one that they got by another way.")
    return 0


def unproved(bundle: str) -> tuple[str, ...]:
    """The links that the verifier looks for and the bundle has no leaf of, such as the approval of a version that a
    project's gates let answer without one.
    """
    leaves: list[dict[str, object]] = msgspec.json.decode(bundle)["leaves"]
    there = {leaf["role"] for leaf in leaves}
    return tuple(role for role in _LINKS if role not in there)


def write_key(path: Path, proof: Proof) -> Path | None:
    """Keeps the ledger's keys, or leaves those that were kept as they are. Returns the file that leads from the kept
    ones to the others, None if it is not needed. Raises like `keep_key`.
    """
    if keep_key(path, proof.key):
        return None
    announced = path.with_suffix(".announced")
    _write(announced, proof.announcements)
    return announced


def keep_key(path: Path, key: str) -> bool:
    """Keeps the ledger's keys, or leaves those that were kept as they are. Returns whether all of them are kept now.

    Raises IntegrityError if what was kept there is another ledger's.
    """
    kept = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not kept:
        _write(path, key.strip() + "\n")
    if kept in ("", key.strip()):
        return True
    if not _keys(kept) <= _keys(key):
        raise IntegrityError(
            f"The ledger's key is not the one kept in {path}.",
            next_step="Find out whose ledger this is before you rely on it; --key-file names another file.",
            details={"kept": kept, "got": key.strip()},
        )
    return False


def _keys(text: str) -> set[str]:
    """The verifier keys of a list, without the sizes that they sign."""
    return {line.split(" ")[0] for line in text.splitlines() if line.strip() and not line.startswith("#")}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())  # exactly: another spelling does not verify
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another file.") from error


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="end with an error if a point failed")


def _inspect(options: argparse.Namespace, session: Session) -> int:
    found: Inspection = session.call(find_operation("inspection", Inspect), {"project": _project(session)})
    if session.json:
        session.show(found)
    else:
        _say_inspection(found, session)
    failed = [point.id for point in found.points if point.status == "fail"]
    if failed and getattr(options, "strict", False):
        raise ChecksFailed(
            f"{len(failed)} points failed: {', '.join(failed)}.",
            next_step="Read what each of them found.",
            details={"points": failed},
        )
    return 0


def _say_inspection(found: Inspection, session: Session) -> None:
    rows = [
        {"point": point.id, "status": _MARKS[point.status], "what is checked": point.check, "found": point.detail}
        for point in found.points
    ]
    printing.as_text(rows, title=f"Inspection of {found.project}")
    for point in found.points:
        if point.table:
            population = f"population {point.population}, sample {point.sample}"
            printing.as_text(list(point.table), title=f"Point {point.id} ({population})")
    said = ", ".join(f"{count} {_MARKS[status].lower()}" for status, count in found.counts.items())
    session.say(f"{len(found.points)} points: {said}.")
    session.say(f"Kept as {found.digest}; leaf {found.ref}.")


PROVE = Verb(configure=_configure_prove, run=_prove)
INSPECT = Verb(configure=_configure_inspect, run=_inspect)
