"""Erasing a person: complete wherever it is stopped, once however many ask, never half beside traffic."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from unit.serving import leave, people
from unit.serving.people import PROJECT, files_with

from macadam import operations
from macadam.access.types import CreateProject, RevokeRole
from macadam.adapters.lmdb import LmdbStore
from macadam.adapters.local_objects import LocalObjects
from macadam.adapters.local_secrets import LocalSecrets
from macadam.adapters.sqlite import Sqlite
from macadam.app.platform import Platform
from macadam.errors import Conflict, IntegrityError, NotAuthorised, StorageFull
from macadam.ledger.note import SignerKey
from macadam.ledger.service import verifier_keys
from macadam.ledger.types import ShowCheckpoint, ShowLog
from macadam.personal import certificate, sidecar, store
from macadam.personal.types import EraseSubject, Erasure, ListErasures, ShowErasure
from macadam.personal.vault import Vault
from macadam.serving import erasure
from macadam.serving.types import PersonalValues, ShowPrediction
from macadam.settings import Settings
from macadam.testing import local_token, open_platform, token_of
from macadam.values import utc_now
from macadam_verify.__main__ import verify_certificate

ANN, BOB = "ann-b7e1-shirley", "bob-91cc-builder"
ERASE = EraseSubject(project=PROJECT, subject=ANN, request="case 12")


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it, and files are as they were left."""


class Town(msgspec.Struct, frozen=True):
    """A home, how it was at first, and the predictions about two people in it."""

    home: Path
    saved: Path
    ann: list[str]
    bob: list[str]

    def restored(self) -> Path:
        """The home as at first, at its place: tables know their absolute paths."""
        shutil.rmtree(self.home)
        shutil.copytree(self.saved, self.home)
        return self.home


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Ann's and Bob's predictions in a sealed segment and in two closed ones."""
    folder = tmp_path_factory.mktemp("town")
    made = Town(folder / "home", folder / "saved", [], [])
    with open_platform(made.home) as platform:
        platform.call(CreateProject(project=PROJECT))
        people.prepare(platform)
        for sealed in (True, False, False):
            with people.gateway(platform) as writing:
                ids = writing.predict([ANN, BOB, ANN])
                made.ann.extend((ids[0], ids[2]))
                made.bob.append(ids[1])
            if sealed:
                people.seal(platform)
    shutil.copytree(made.home, made.saved)
    return made


@pytest.fixture
def home(town: Town) -> Path:
    return town.restored()


@pytest.fixture
def platform(home: Path) -> Iterator[Platform]:
    with open_platform(home) as opened:
        yield opened


def shown(platform: Platform, prediction: str) -> PersonalValues:
    found = platform.call(ShowPrediction(project=PROJECT, prediction=prediction)).personal
    assert found is not None
    return found


def ciphertext(platform: Platform, predictions: list[str]) -> list[bytes]:
    found = []
    for prediction in predictions:
        page = platform.call(ShowPrediction(project=PROJECT, prediction=prediction))
        body = store.find(leave.to_see(PROJECT), platform.ports, PROJECT, page.segment, prediction)
        assert body is not None
        found += [field.sealed for field in body.fields]
    return found


def wrapped(platform: Platform) -> bytes:
    keys = Vault(platform.ports.settings.home, platform.ports.secrets, PROJECT)
    try:
        return bytes(keys._rows("SELECT wrapped FROM keys WHERE tag = ?", (keys.tag(ANN),))[0][0])
    finally:
        keys.close()


def is_complete(platform: Platform, town: Town, needles: list[bytes]) -> None:
    ann, bob, home = town.ann, town.bob, town.home
    assert files_with(home, *needles, ANN.encode(), BOB.encode()) == []
    done = platform.call(ListErasures(project=PROJECT))
    assert len(done) == 1
    assert done[0].predictions == len(ann)
    assert {(p.state, p.certificate) for p in (shown(platform, one) for one in ann)} == {("erased", done[0].id)}
    assert {p.values["inputs.c"] for p in (shown(platform, one) for one in bob)} == {BOB}
    keys = Vault(home, platform.ports.secrets, PROJECT)
    assert keys.under_way() == []
    assert platform.ports.secrets.names("subject-keys.") == [keys.wrapping_key()]
    keys.close()
    people.seal(platform)
    assert {shown(platform, one).state for one in ann} == {"erased"}
    assert {p.values["inputs.c"] for p in (shown(platform, one) for one in bob)} == {BOB}
    assert files_with(home, *needles) == []
    assert platform.call(ERASE).said.startswith("Nothing was left")


# --- stopped anywhere


STEPS: list[tuple[Any, str]] = [
    (Vault, "_truncate"),
    (Vault, "settle"),
    (Vault, "forget_places"),
    (Vault, "begin_wrapping_key"),
    (Vault, "finish"),
    (sidecar, "overwrite"),
    (LocalObjects, "set_name"),
    (LmdbStore, "delete"),
    (LocalSecrets, "remove"),
    (certificate, "sign"),
    (Sqlite, "write"),
]


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int, end: Callable[[], None]) -> list[str]:
    """Has `end` called at the given one of all moments before and after each step. Returns what came by."""
    seen: list[str] = []

    def moment(name: str) -> None:
        if threading.current_thread().name in {"ledger-sequencer", "serving-state"}:
            return  # they do their own work beside it
        seen.append(name)
        if len(seen) - 1 == stop_at:
            end()

    def around(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            moment(f"before {name}")
            found = real(*arguments, **named)
            moment(f"after {name}")
            return found

        return call

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, around(name, getattr(owner, name)))
    return seen


def killed() -> None:
    raise Killed


def test_wherever_it_is_stopped_the_same_call_again_completes_it(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_platform(town.restored()) as platform, monkeypatch.context() as patched:
        moments = counted(patched, -1, killed)
        platform.call(ERASE)
        many = len(moments)
    assert {name.partition(" ")[2] for name in moments} == {name for _, name in STEPS}
    for at in range(0, many, 1 if os.environ.get("MACADAM_SOAK") else 5):
        with open_platform(town.restored()) as platform:
            needles = [wrapped(platform), *ciphertext(platform, town.ann)]
            with monkeypatch.context() as patched:
                counted(patched, at, killed)
                with pytest.raises(Killed):
                    platform.call(ERASE)
            platform.call(ERASE)
            is_complete(platform, town, needles)


@pytest.mark.parametrize("at", [2, 11, 20] if os.environ.get("MACADAM_SOAK") else [11])
def test_kill_9_in_the_middle_leaves_what_the_same_call_completes(home: Path, town: Town, at: int) -> None:
    with open_platform(home) as platform:
        needles = [wrapped(platform), *ciphertext(platform, town.ann)]
    program = f"""
import os, signal
from pathlib import Path
import msgspec
import pytest
from unit.serving import test_erasure
from macadam.testing import open_platform
with open_platform(Path({str(home)!r})) as platform, pytest.MonkeyPatch.context() as patched:
    test_erasure.counted(patched, {at}, lambda: os.kill(os.getpid(), signal.SIGKILL))
    platform.call(test_erasure.ERASE)
"""
    path = os.pathsep.join(["tests", *sys.path])
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert ended.returncode == -signal.SIGKILL
    with open_platform(home) as platform:
        platform.call(ERASE)
        is_complete(platform, town, needles)


def test_an_erasure_that_was_stopped_is_listed_as_under_way(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        counted(patched, 8, killed)
        with pytest.raises(Killed):
            platform.call(ERASE)
    stopped = platform.call(ListErasures(project=PROJECT))
    assert [one.said[:9] for one in stopped] == ["Under way"]
    assert abs((utc_now() - stopped[0].at).total_seconds()) < 60
    done = platform.call(ERASE)
    assert done.id == stopped[0].id
    assert platform.call(ListErasures(project=PROJECT)) == (done,)


def test_an_object_that_a_power_cut_brings_back_holds_no_ciphertext(
    platform: Platform, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.seal(platform)
    needles = ciphertext(platform, [*town.ann, *town.bob])
    with monkeypatch.context() as patched:
        patched.setattr(LocalObjects, "remove_name", lambda *_: None)
        platform.call(ERASE)
        platform.call(EraseSubject(project=PROJECT, subject=BOB))
    assert files_with(town.home, *needles) == []


def test_a_call_that_finds_nothing_leaves_nothing_under_way_wherever_it_ends(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(erasure, "_find", stopped)
        with pytest.raises(Killed):
            platform.call(EraseSubject(project=PROJECT, subject="nobody"))
    assert platform.call(ListErasures(project=PROJECT)) == ()


# --- whose leave ends meanwhile


def revoked_at(platform: Platform, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> tuple[str, list[str]]:
    """A token whose holder loses the role when this function is called for the first time."""
    token = token_of(platform, "eve", {PROJECT: "admin"})
    admin, real, done = local_token(platform), getattr(owner, name), list[str]()

    def call(*arguments: Any, **named: Any) -> Any:
        if not done:
            done.append(name)
            platform.call(RevokeRole(project=PROJECT, principal="eve", role="admin"), token=admin)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)
    return token, done


def leaves_of(platform: Platform) -> list[tuple[str, str, bool]]:
    found = platform.call(ShowLog(kind="serving.erase_subject")).entries
    return [(one.outcome, one.actor, "begun" in one.body) for one in reversed(found)]


def test_who_loses_the_role_after_beginning_ends_the_erasure_with_its_certificate(
    platform: Platform, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    needles = [wrapped(platform), *ciphertext(platform, town.ann)]
    with monkeypatch.context() as patched:
        token, done = revoked_at(platform, patched, sidecar, "overwrite")
        made = platform.call(ERASE, token=token)
    assert done
    assert (made.by, made.predictions) == ("principal:eve", 6)
    assert made.certificate
    assert leaves_of(platform) == [("done", "principal:eve", True), ("done", "principal:eve", False)]
    is_complete(platform, town, needles)


def test_who_loses_the_role_before_beginning_destroys_nothing(
    platform: Platform, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        token, done = revoked_at(platform, patched, Vault, "files")
        with pytest.raises(NotAuthorised):
            platform.call(ERASE, token=token)
    assert done
    assert leaves_of(platform) == [("denied", "principal:eve", False)]
    assert {shown(platform, one).state for one in town.ann} == {"readable"}
    assert platform.call(ListErasures(project=PROJECT)) == ()


def test_without_a_leaf_nothing_is_destroyed(platform: Platform, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageFull("The disk is full.", next_step="Free space.")

    with monkeypatch.context() as patched:
        patched.setattr(Sqlite, "write", full)
        with pytest.raises(StorageFull):
            platform.call(ERASE)
    assert {shown(platform, one).state for one in town.ann} == {"readable"}


# --- several at once


def test_two_who_erase_the_same_person_at_once_make_one_erasure(platform: Platform, town: Town) -> None:
    needles = [wrapped(platform), *ciphertext(platform, town.ann)]
    tokens = [local_token(platform), token_of(platform, "eve", {PROJECT: "admin"})]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: platform.call(ERASE, token=tokens[n % 2]), range(4)))
    assert len({answer.id for answer in answers} - {""}) == 1
    is_complete(platform, town, needles)


def test_beside_traffic_each_prediction_is_erased_or_under_a_new_name_and_never_half(platform: Platform) -> None:
    written: list[list[str]] = [[], []]
    stop = threading.Event()
    begun = [threading.Event(), threading.Event()]

    def traffic(number: int) -> None:
        with people.gateway(platform) as writing:
            while not stop.is_set():
                written[number] += writing.predict([ANN, BOB])
                begun[number].set()
                stop.wait(0.002)

    threads = [threading.Thread(target=traffic, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    erasures: list[Erasure] = []
    for _ in range(3):
        for one in begun:
            one.clear()
            assert one.wait(20)
        erasures.append(platform.call(ERASE))
        people.seal(platform)
    stop.set()
    for thread in threads:
        thread.join()
    people.seal(platform)
    erased = {name for one in erasures for name in one.subjects}
    found = [shown(platform, one) for ids in written for one in ids[::2]]
    assert {page.state for page in found} <= {"erased", "readable"}
    for page in found:
        assert (page.state == "erased") == (page.subject in erased)
        assert page.state == "erased" or page.values["inputs.c"] == ANN
    assert sum(one.predictions for one in erasures) == sum(page.state == "erased" for page in found) + 6
    assert {shown(platform, one).values["inputs.c"] for ids in written for one in ids[1::40]} == {BOB}


# --- what it says


def test_the_certificate_says_what_was_destroyed_and_what_was_not(platform: Platform) -> None:
    done = platform.call(ERASE)
    text = done.certificate.partition("\n\n")[0]
    for line in (
        "macadam-erasure/1",
        f"erasure: {done.id}",
        "request: case 12",
        "predictions: 6",
        f"leaf: {done.leaf}",
    ):
        assert line in text.splitlines()
    assert "not covered: snapshots of tables and rows in quarantine" in text
    assert platform.call(ShowErasure(project=PROJECT, erasure=done.id)) == done
    leaf = platform.call(ShowLog(kind="serving.erase_subject")).entries[0]
    assert leaf.body["subjects"] == list(done.subjects)
    assert ANN not in str(leaf)


def test_a_leaf_never_holds_a_digest_that_could_be_guessed(platform: Platform) -> None:
    platform.call(ERASE)
    guess = msgspec.json.encode({"project": PROJECT, "request": "case 12", "subject": ANN}, order="sorted")
    with platform.ports.sql.read() as sql:
        rows = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves").scalars().all()
    assert not [row for row in rows if hashlib.sha256(guess).hexdigest() in bytes(row).decode()]
    about_people = {name for name, operation in operations.table().items() if operation.private}
    assert about_people == {"serving.erase_subject", "features.push_rows"}


def test_a_person_nobody_knows_leaves_nothing_to_erase(platform: Platform) -> None:
    answer = platform.call(EraseSubject(project=PROJECT, subject="nobody"))
    assert (answer.id, answer.certificate) == ("", "")
    assert platform.call(ListErasures(project=PROJECT)) == ()


@pytest.mark.parametrize("role", ["viewer", "developer", "approver", "operator", "auditor", "caller"])
def test_only_an_administrator_erases_or_sees_values(platform: Platform, town: Town, role: Any) -> None:
    token = token_of(platform, "ann", {PROJECT: role})
    with pytest.raises(NotAuthorised, match="subjects:erase"):
        platform.call(ERASE, token=token)
    assert shown(platform, town.ann[0]).state == "readable"
    if role != "caller":
        page = platform.call(ShowPrediction(project=PROJECT, prediction=town.ann[0]), token=token)
        assert page.personal is not None
        assert page.personal.state == "withheld"


def test_a_retried_call_gets_the_first_answer(platform: Platform) -> None:
    first = platform.call(ERASE, idempotency_key="k")
    assert platform.call(ERASE, idempotency_key="k") == first
    with pytest.raises(Conflict, match="another request"):
        platform.call(EraseSubject(project=PROJECT, subject=BOB), idempotency_key="k")


def test_settings_of_a_platform_in_another_process_see_the_same(home: Path) -> None:
    with Platform(Settings.load({}, home=home)) as platform:
        assert platform.call(ERASE).predictions == 6


def test_a_changed_or_vanished_ciphertext_is_said_and_never_shown(platform: Platform, town: Town) -> None:
    path = min((town.home / "journal" / PROJECT).glob("*.personal"))
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    held = town.ann[2:4]  # of the first closed segment
    with pytest.raises(IntegrityError, match="not what the record commits to"):
        [shown(platform, one) for one in held]
    path.unlink()
    with pytest.raises(IntegrityError, match="nobody erased it"):
        [shown(platform, one) for one in held]


def test_ciphertext_is_found_with_leave_for_its_project_only(platform: Platform, town: Town) -> None:
    with pytest.raises(NotAuthorised):
        store.find(leave.to_see("another"), platform.ports, PROJECT, "", town.ann[-1])
    with pytest.raises(NotAuthorised):
        store.find(leave.to_ask("delay"), platform.ports, PROJECT, "", town.ann[-1])


# --- the certificate, read by the verifier


def verified(folder: Path, text: str, key: str) -> "subprocess.CompletedProcess[str]":
    (folder / "certificate").write_text(text)
    (folder / "key").write_text(f"{key}\n")
    files = ["--certificate", str(folder / "certificate"), "--key", str(folder / "key")]
    command = [sys.executable, "-m", "macadam_verify", *files]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verifier_reads_a_certificate_without_macadam(platform: Platform, tmp_path: Path) -> None:
    done = platform.call(ERASE)
    found = verified(tmp_path, done.certificate, str(verifier_keys(platform.ports)))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "PROVED" in found.stdout
    assert "Not covered: snapshots of tables" in found.stdout
    assert done.leaf in found.stdout


def test_a_changed_certificate_is_broken(platform: Platform, tmp_path: Path) -> None:
    text, key = platform.call(ERASE).certificate, str(verifier_keys(platform.ports))
    assert not verify_certificate(text.encode(), key).broken
    lines = text.splitlines(keepends=True)
    for number in range(1, len(lines)):
        if lines[number].strip():
            without = "".join(lines[:number] + lines[number + 1 :])
            assert verify_certificate(without.encode(), key).broken, lines[number]
    for number in range(len(text) // 7):
        at = 18 + 7 * number % (len(text) - 18)
        changed = text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :]
        assert verify_certificate(changed.encode(), key).broken, (at, text[at - 10 : at + 10])
    other = str(SignerKey("macadam.local/other", bytes(32)).verifier)
    assert verify_certificate(text.encode(), other).broken
    checkpoint = platform.call(ShowCheckpoint()).note
    assert verified(tmp_path, checkpoint, key).returncode == 2
