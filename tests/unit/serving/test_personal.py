"""Personal values end to end: a gateway process and a control plane, on files that are searched byte by byte."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from unit.serving import homes, leave
from unit.serving.homes import ENDPOINT, MODEL, PATH, PROJECT
from unit.serving.test_gateway import ready

from macadam.app.platform import Platform
from macadam.errors import Conflict, NotAuthorised
from macadam.journal.types import SealClosed
from macadam.ledger.service import verifier_keys
from macadam.ledger.types import VerifyLedger
from macadam.personal import store
from macadam.personal.types import EraseSubject, ListErasures
from macadam.personal.vault import Vault
from macadam.serving.types import Deploy, Prove, Rollback, ShowPrediction
from macadam.testing import token_of

PERSON, OTHER = "Zebulon-Quux-4711", "Ottilie-Vraag-0815"
VALUE = 73391.50017


@pytest.fixture
def guarded(platform: Platform) -> Platform:
    platform.call(
        Deploy(
            project=PROJECT,
            endpoint=ENDPOINT,
            model=MODEL,
            version="1",
            subject="carrier",
            personal=("noise",),
        )
    )
    return platform


@pytest.fixture
def client(guarded: Platform, home: Path, token: str) -> Iterator[httpx.Client]:
    with homes.gateway(home) as gateway, gateway.client(token) as opened:
        ready(opened)
        yield opened


def ask(client: httpx.Client, person: str = PERSON) -> str:
    answer = client.post(PATH, json={"inputs": {"distance": 0.5, "carrier": person, "noise": VALUE}})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prediction"])


def sealed(platform: Platform, home: Path) -> None:
    """As soon as no gateway writes any more."""
    platform.call(SealClosed(project=PROJECT))
    assert not list((home / "journal" / PROJECT).glob("*-*"))


def files_with(home: Path, *needles: bytes) -> list[str]:
    """Every file of the home, of whatever kind, that holds one of these."""
    found = [path for path in home.rglob("*") if path.is_file() and any(n in path.read_bytes() for n in needles)]
    return [str(path.relative_to(home)) for path in found]


def traces(person: str) -> list[bytes]:
    """What would give a person away: the id, the value, and plain hashes of either, raw and in hex."""
    plain = [person.encode(), repr(VALUE).encode()]
    hashes = [hashlib.new(name, text).digest() for name in ("sha256", "sha1", "md5") for text in plain]
    return [*plain, *hashes, *(digest.hex().encode() for digest in hashes)]


def test_no_file_of_the_home_holds_a_personal_value_or_its_hash(
    client: httpx.Client, guarded: Platform, home: Path
) -> None:
    prediction = ask(client)
    assert files_with(home, *traces(PERSON)) == []
    assert files_with(home, prediction.encode())  # the search finds what is there
    page = guarded.call(ShowPrediction(project=PROJECT, prediction=prediction))
    assert page.record["inputs"] == {"distance": 0.5}
    assert page.record["features"] == {"distance": 0.5}
    assert set(page.record["personal"]["fields"]) == {
        f"{part}.{name}" for part in ("inputs", "features") for name in ("carrier", "noise")
    }
    assert page.personal is not None
    assert (page.personal.state, page.personal.values["inputs.carrier"]) == ("readable", PERSON)
    assert page.personal.values["features.noise"] == VALUE


def test_who_lacks_the_permission_sees_that_fields_are_personal_and_not_what_they_are(
    client: httpx.Client, guarded: Platform
) -> None:
    prediction = ask(client)
    viewer = token_of(guarded, "ann", {PROJECT: "viewer"})
    page = guarded.call(ShowPrediction(project=PROJECT, prediction=prediction), token=viewer)
    assert page.personal is not None
    assert (page.personal.state, page.personal.values) == ("withheld", {})
    with pytest.raises(NotAuthorised, match="subjects:erase"):
        guarded.call(EraseSubject(project=PROJECT, subject=PERSON), token=viewer)


def test_a_request_that_names_nobody_is_refused_without_a_record(client: httpx.Client) -> None:
    answer = client.post(PATH, json={"inputs": {"distance": 0.5, "carrier": None, "noise": 1}})
    assert (answer.status_code, answer.json()["details"]) == (422, {"input": "carrier"})


def test_an_erased_person_is_gone_from_every_file_and_every_proof_still_holds(
    guarded: Platform, home: Path, token: str, tmp_path: Path
) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        gone, stays = [ask(client) for _ in range(3)], ask(client, OTHER)
    sealed(guarded, home)
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        gone += [ask(client) for _ in range(3)]  # beside an open segment
        secret, wrapped, ciphertext = _kept(guarded, home, gone)
        assert files_with(home, wrapped, *ciphertext)
        before = guarded.call(Prove(project=PROJECT, prediction=gone[0]))
        done = guarded.call(EraseSubject(project=PROJECT, subject=PERSON, request="case 7"))
        assert (done.predictions, len(done.subjects)) == (6, 1)
        assert files_with(home, wrapped, secret, *ciphertext, *traces(PERSON)) == []
        again = guarded.call(EraseSubject(project=PROJECT, subject=PERSON))
        assert (again.id, again.said[:7]) == ("", "Nothing")
        back = ask(client)
        page = guarded.call(ShowPrediction(project=PROJECT, prediction=back))
        assert page.personal is not None
        assert page.personal.state == "readable"
        assert page.personal.subject not in done.subjects
    sealed(guarded, home)
    for prediction in gone:
        personal = guarded.call(ShowPrediction(project=PROJECT, prediction=prediction)).personal
        assert personal is not None
        assert (personal.state, personal.certificate, personal.erased) == ("erased", done.id, done.at)
    for prediction in (stays, back):
        personal = guarded.call(ShowPrediction(project=PROJECT, prediction=prediction)).personal
        assert personal is not None
        assert personal.state == "readable"
    _verifies(guarded, tmp_path, before.bundle)
    _verifies(guarded, tmp_path, guarded.call(Prove(project=PROJECT, prediction=gone[-1])).bundle)
    assert guarded.call(VerifyLedger(deep=True)).problems == ()
    assert [one.id for one in guarded.call(ListErasures(project=PROJECT))] == [done.id]


def _kept(platform: Platform, home: Path, predictions: list[str]) -> tuple[bytes, bytes, list[bytes]]:
    """The secret that wraps, the person's wrapped key, and their ciphertexts, as they lie on the disk."""
    keys = Vault(home, platform.ports.secrets, PROJECT)
    try:
        name = keys.wrapping_key()
        rows = keys._rows("SELECT wrapped FROM keys WHERE tag = ?", (keys.tag(PERSON),))
    finally:
        keys.close()
    found = []
    for prediction in predictions:
        page = platform.call(ShowPrediction(project=PROJECT, prediction=prediction))
        body = store.find(leave.to_see(PROJECT), platform.ports, PROJECT, page.segment, prediction)
        assert body is not None
        found += [field.sealed for field in body.fields]
    return platform.ports.secrets.get(name), rows[0][0], found


def _verifies(platform: Platform, folder: Path, bundle: str) -> None:
    (folder / "bundle.json").write_text(bundle)
    (folder / "key").write_text(f"{verifier_keys(platform.ports)}\n")
    command = [sys.executable, "-m", "macadam_verify", str(folder / "bundle.json"), "--key", str(folder / "key")]
    allowed = [flag for role in ("gate", "evaluation", "approval", "thresholds") for flag in ("--allow-missing", role)]
    done = subprocess.run([*command, *allowed, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["proved"]


def test_a_rollback_to_a_deployment_that_would_show_personal_values_is_refused(deployed: Platform) -> None:
    guarded = Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="2", subject="carrier")
    assert deployed.call(guarded).personal is not None
    with pytest.raises(Conflict, match="before fields of 'delay' were personal"):
        deployed.call(Rollback(project=PROJECT, endpoint=ENDPOINT))
    deployed.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1", subject="carrier"))
    assert deployed.call(Rollback(project=PROJECT, endpoint=ENDPOINT)).version.endswith("@2")
