"""Secrets encrypted at rest: what is on the disk says nothing, what was changed is refused, and no kill loses a key."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from macadam.adapters import passphrase_kms, sealed_secrets
from macadam.adapters.local_secrets import LocalSecrets
from macadam.adapters.passphrase_kms import PassphraseKms
from macadam.adapters.sealed_secrets import SealedSecrets
from macadam.errors import IntegrityError, MacadamError, SettingInvalid
from macadam.ledger.types import EncryptKeys, ShowEncryption, ShowLog, VerifyLedger
from macadam.settings import Keys, Settings
from macadam.testing import open_platform

PASSPHRASE = Keys(passphrase="seven words that nobody else knows")
WRONG = Keys(passphrase="seven words that somebody guessed")
VALUES = {"ledger-key": b"PRIVATE+KEY+x", "local-token": b"token", "project-key.shop": b"\x00" * 32}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins like a process of its own, and stretches cheaply."""
    monkeypatch.setattr(passphrase_kms, "COST", 2**14)
    monkeypatch.setattr(passphrase_kms, "PARALLEL", 1)
    sealed_secrets._unwrapped.clear()
    yield
    sealed_secrets._unwrapped.clear()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    for name, value in VALUES.items():
        LocalSecrets(tmp_path).put(name, value)
    return tmp_path


def read(place: Path, keys: Keys = PASSPHRASE) -> dict[str, bytes]:
    store = SealedSecrets(place, keys)
    return {name: store.get(name) for name in store.names()}


def test_a_fresh_home_with_a_passphrase_never_holds_a_plain_secret(tmp_path: Path) -> None:
    store = SealedSecrets(tmp_path, PASSPHRASE)
    store.put("ledger-key", b"PRIVATE+KEY+x")
    assert store.encryption() == "sealed"
    assert all(b"PRIVATE" not in path.read_bytes() for path in tmp_path.iterdir())
    assert read(tmp_path) == {"ledger-key": b"PRIVATE+KEY+x"}


def test_a_plain_home_is_encrypted_once_it_is_asked_for(plain: Path) -> None:
    store = SealedSecrets(plain, PASSPHRASE)
    assert (store.encryption(), read(plain)) == ("none", VALUES)
    (plain / ".left.draft").write_bytes(b"PRIVATE+KEY+x")
    assert store.encrypt() == 3
    assert (store.encryption(), store.encrypt(), read(plain)) == ("sealed", 0, VALUES)
    on_disk = b"".join(path.read_bytes() for path in plain.iterdir())
    assert not any(value in on_disk for value in VALUES.values())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 7))
@pytest.mark.parametrize("step", ["replace", "link", "fsync"])
def test_a_kill_between_any_two_steps_of_encrypting_loses_no_secret_and_can_be_gone_on_from(
    plain: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, *, after: bool
) -> None:
    real, left = getattr(os, step), [call]

    def dying(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        answer = real(*arguments, **options)
        if left[0] == 0:
            raise Killed
        return answer

    try:
        with monkeypatch.context() as dies:
            dies.setattr(os, step, dying)
            SealedSecrets(plain, PASSPHRASE).encrypt()
    except Killed:
        sealed_secrets._unwrapped.clear()
        assert read(plain) == VALUES
    SealedSecrets(plain, PASSPHRASE).encrypt()
    assert (SealedSecrets(plain, PASSPHRASE).encryption(), read(plain)) == ("sealed", VALUES)
    assert all(path.name in (*VALUES, ".sealed") for path in plain.iterdir())


def test_another_passphrase_or_none_is_refused_in_words(plain: Path) -> None:
    SealedSecrets(plain, PASSPHRASE).encrypt()
    sealed_secrets._unwrapped.clear()
    with pytest.raises(SettingInvalid, match="not the one that this home's keys were encrypted with") as refused:
        read(plain, WRONG)
    assert WRONG.passphrase not in str(refused.value)
    with pytest.raises(SettingInvalid, match="nothing says how"):
        read(plain, Keys())
    with pytest.raises(SettingInvalid, match="encrypted by passphrase, and the settings say aws"):
        read(plain, Keys(kms="aws:key"))
    assert read(plain) == VALUES


def test_a_passphrase_that_can_be_guessed_encrypts_nothing(plain: Path) -> None:
    with pytest.raises(SettingInvalid, match="at least 12"):
        SealedSecrets(plain, Keys(passphrase="short")).encrypt()
    assert read(plain, Keys()) == VALUES


def swap(home: Path) -> None:
    one, other = home / "ledger-key", home / "local-token"
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def flip(home: Path) -> None:
    data = bytearray((home / "ledger-key").read_bytes())
    data[-1] ^= 1
    (home / "ledger-key").write_bytes(data)


HARM = {
    "two swapped": swap,
    "a changed one": flip,
    "a plain one in its place": lambda home: (home / "ledger-key").write_bytes(b"PRIVATE+KEY+mine"),
    "a cut one": lambda home: (home / "ledger-key").write_bytes(sealed_secrets.MAGIC),
    "a damaged mark": lambda home: (home / ".sealed").write_bytes(b"{"),
    "a mark that takes all memory": lambda home: greedy(home / ".sealed"),
}


def greedy(mark: Path) -> None:
    stored = json.loads(mark.read_bytes())
    wrapped = json.loads(base64.b64decode(stored["key"])) | {"n": 2**30}
    mark.write_text(json.dumps(stored | {"key": base64.b64encode(json.dumps(wrapped).encode()).decode()}))


@pytest.mark.parametrize("harm", HARM)
def test_a_changed_secret_is_refused(plain: Path, harm: str) -> None:
    SealedSecrets(plain, PASSPHRASE).encrypt()
    assert read(plain) == VALUES
    HARM[harm](plain)
    with pytest.raises(IntegrityError):
        read(plain)


def test_a_sealed_home_is_not_talked_into_taking_plain_secrets(plain: Path) -> None:
    SealedSecrets(plain, PASSPHRASE).encrypt()
    assert read(plain) == VALUES
    mark = plain / ".sealed"
    mark.write_text(mark.read_text().replace('"state":"sealed"', '"state":"sealing"'))
    assert SealedSecrets(plain, PASSPHRASE).encryption() == "sealing"
    LocalSecrets(plain).replace("ledger-key", b"PRIVATE+KEY+planted")
    for forget in (False, True):  # in the process that knows the key, and in another
        if forget:
            sealed_secrets._unwrapped.clear()
        with pytest.raises(SettingInvalid, match="sealed` was changed"):
            SealedSecrets(plain, PASSPHRASE).get("ledger-key")


@pytest.mark.parametrize("from_birth", [False, True])
def test_a_home_whose_keys_are_plain_again_is_told_by_the_ledger(tmp_path: Path, *, from_birth: bool) -> None:
    home, environment = tmp_path / "home", {"MACADAM_KEY_PASSPHRASE": PASSPHRASE.passphrase}
    with open_platform(home, environment=environment if from_birth else {}):
        pass
    with open_platform(home, environment=environment) as platform:
        if not from_birth:
            platform.call(EncryptKeys())
        assert platform.call(VerifyLedger()).problems == ()
        secrets = platform.ports.secrets
        held = {name: secrets.get(name) for name in secrets.names()}
    (home / "keys" / ".sealed").unlink()
    for name, value in held.items():
        LocalSecrets(home / "keys").replace(name, value)
    with open_platform(home, environment=environment) as platform:
        (problem,) = platform.call(VerifyLedger()).problems
        assert "are not any more" in problem


def test_a_passphrase_is_stretched_once_in_a_process(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SealedSecrets(plain, PASSPHRASE).encrypt()
    sealed_secrets._unwrapped.clear()
    calls = []
    real = PassphraseKms.unwrap
    monkeypatch.setattr(PassphraseKms, "unwrap", lambda *a: calls.append(1) or real(*a))
    for _ in range(3):
        assert read(plain) == VALUES
    assert len(calls) == 1


def test_the_passphrase_is_in_no_setting_that_is_printed(tmp_path: Path) -> None:
    settings = Settings.load({"MACADAM_KEY_PASSPHRASE": PASSPHRASE.passphrase}, home=tmp_path)
    assert PASSPHRASE.passphrase not in repr(settings)
    assert settings.keys.secret() == PASSPHRASE.passphrase
    with pytest.raises(SettingInvalid, match="cannot be read"):
        Keys(passphrase_file=str(tmp_path / "none")).secret()


def test_a_platform_is_encrypted_by_its_operation_and_a_leaf_says_so(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE.passphrase}\n")
    with open_platform(home) as platform:
        assert platform.call(ShowEncryption()).state == "none"
        with pytest.raises(SettingInvalid, match="nothing says how"):
            platform.call(EncryptKeys())
    with open_platform(home, environment={"MACADAM_KEY_PASSPHRASE_FILE": str(file)}) as platform:
        done = platform.call(EncryptKeys())
        assert (done.state, done.encrypted, done.keys) == ("sealed", done.keys, done.keys)
        (leaf,) = platform.call(ShowLog(kind="ledger.encrypt_keys")).entries
        assert leaf.body["state"] == "sealed"
    with pytest.raises(MacadamError, match="nothing says how"), open_platform(home):
        pass
    with open_platform(home, environment={"MACADAM_KEY_PASSPHRASE": PASSPHRASE.passphrase}) as platform:
        assert platform.call(ShowEncryption()).state == "sealed"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A key of a KMS that answers as AWS does, over HTTP."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }.items():
        monkeypatch.setenv(name, value)
    yield boto3.client("kms").create_key()["KeyMetadata"]["KeyId"]
    server.stop()


def test_a_kms_wraps_the_key_and_another_key_does_not_open_it(plain: Path, cloud: str) -> None:
    keys = Keys(kms=f"aws:{cloud}")
    assert SealedSecrets(plain, keys).encrypt() == 3
    sealed_secrets._unwrapped.clear()
    assert read(plain, keys) == VALUES
    sealed_secrets._unwrapped.clear()
    with pytest.raises(SettingInvalid, match="AWS KMS refuses to decrypt"):
        read(plain, Keys(kms="aws:alias/none"))


def test_a_child_process_opens_the_home_without_the_passphrase_on_its_command_line(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")}
    environment |= {"MACADAM_KEY_PASSPHRASE": PASSPHRASE.passphrase}
    command = [sys.executable, "-m", "macadam.faces.cli", "keys", "status", "--home", str(home), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(ran.stdout)["state"] == "sealed"
    environment["MACADAM_KEY_PASSPHRASE"] = WRONG.passphrase
    refused = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert refused.returncode != 0
    assert "The passphrase is not the one" in refused.stderr + refused.stdout
    shutil.rmtree(home)
