"""Keys of people: made once however many ask, destroyed for good, wrapped anew, by several processes at once."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from macadam.adapters.local_secrets import LocalSecrets
from macadam.errors import MacadamError, Unavailable
from macadam.personal import vault
from macadam.personal.cloak import MOST_KEYS, ProjectCloak
from macadam.personal.vault import Vault

PROJECT = "shop"


@pytest.fixture
def secrets(tmp_path: Path) -> LocalSecrets:
    (tmp_path / "keys").mkdir()
    return LocalSecrets(tmp_path / "keys")


@pytest.fixture
def keys(tmp_path: Path, secrets: LocalSecrets) -> Iterator[Vault]:
    vault.prepare(tmp_path, secrets, PROJECT)
    opened = Vault(tmp_path, secrets, PROJECT)
    yield opened
    opened.close()


def another(keys: Vault) -> Vault:
    return Vault(keys._folder.parent.parent, keys._secrets, PROJECT)


def row(keys: Vault, person: str) -> bytes:
    found = keys._rows("SELECT wrapped FROM keys WHERE tag = ?", (keys.tag(person),))
    return bytes(found[0][0])


def on_disk(keys: Vault, needle: bytes) -> list[str]:
    return [path.name for path in keys._folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_a_person_has_one_key_for_all_who_ask_at_once(keys: Vault) -> None:
    def ask(_: int) -> set[tuple[str, bytes]]:
        own = another(keys)
        try:
            with own.using():
                return {(name, key.subject + key.key_id) for name, key in own.require(["ann", "bob"]).items()}
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert all(answer == answers[0] for answer in answers)
    assert keys.count() == 2


def test_nothing_in_the_folder_names_anybody(keys: Vault) -> None:
    keys.require(["ann-of-green-gables"])
    assert on_disk(keys, b"ann-of-green-gables") == []


def test_a_destroyed_key_is_in_no_file_and_a_person_who_comes_back_is_somebody_else(keys: Vault) -> None:
    first = keys.require(["ann", "bob"])
    wrapped = row(keys, "ann")
    assert on_disk(keys, wrapped)
    pending = keys.destroy("ann", "1")
    assert pending.subjects == {first["ann"].subject}
    assert on_disk(keys, wrapped) == []
    assert keys.of_subject(first["ann"].subject) is None
    assert keys.of_subject(first["bob"].subject) is not None
    keys.finish(pending)
    assert keys.under_way() == []
    assert keys.require(["ann"])["ann"].subject != first["ann"].subject


def test_destroyed_keys_leave_nothing_among_hundreds(keys: Vault) -> None:
    people = [f"person-{n}" for n in range(600)]
    keys.require(people)
    gone = people[::7]
    wrapped = [row(keys, name) for name in gone]
    for name in gone:
        keys.finish(keys.destroy(name, name))
    assert [w for w in wrapped if on_disk(keys, w)] == []
    assert keys.count() == 600 - len(gone)


def test_a_new_project_key_wraps_what_is_left_and_the_old_one_is_gone(keys: Vault, secrets: LocalSecrets) -> None:
    before = keys.require([f"person-{n}" for n in range(30)])
    old, wrapped = keys.wrapping_key(), row(keys, "person-3")
    keys.begin_wrapping_key()
    assert keys.rewrap() == 30
    assert secrets.names("subject-keys.") == [keys.wrapping_key()]
    assert keys.wrapping_key() != old
    assert on_disk(keys, wrapped) == []
    other = another(keys)
    assert {n: k.key_id for n, k in other.require(list(before)).items()} == {n: k.key_id for n, k in before.items()}
    other.close()


def test_a_gateway_that_read_a_key_before_it_was_wrapped_anew_reads_it_again(keys: Vault) -> None:
    before = keys.require(["ann"])["ann"]
    other = another(keys)  # has seen no project key yet
    read = other._rows("SELECT tag, subject, kek, wrapped FROM keys")[0]
    keys.begin_wrapping_key()
    keys.rewrap()
    assert other._key(*read).key_id == before.key_id
    other.close()


@pytest.mark.parametrize("wraps", [0, 12, 30, 35])
def test_wrapping_anew_can_be_stopped_anywhere_and_goes_on(
    keys: Vault, secrets: LocalSecrets, monkeypatch: pytest.MonkeyPatch, wraps: int
) -> None:
    """An interrupt after so many keys, or before the old project key goes: what a kill leaves too."""
    before = keys.require([f"person-{n}" for n in range(35)])
    keys.begin_wrapping_key()
    left, real = wraps, vault.cipher.wrap

    def wrap(*arguments: object) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    def remove(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(vault, "_REWRAP", 10)
        patched.setattr(vault.cipher, "wrap", wrap)
        patched.setattr(secrets, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            keys.rewrap()
    keys.begin_wrapping_key()
    keys.rewrap()
    assert secrets.names("subject-keys.") == [keys.wrapping_key()]
    other = another(keys)
    assert {n: k.key_id for n, k in other.require(list(before)).items()} == {n: k.key_id for n, k in before.items()}
    other.close()


def test_whoever_uses_a_key_holds_off_its_destruction_and_then_forgets_it(keys: Vault) -> None:
    cloak = ProjectCloak(another(keys))
    with ThreadPoolExecutor(1) as pool:
        with cloak.using(["ann"]) as found:
            first = found["ann"]
            erasing = pool.submit(keys.destroy, "ann", "1")
            time.sleep(0.05)
            assert not erasing.done()
        assert erasing.result(5).subjects == {first.subject}
    with cloak.using(["ann"]) as found:
        assert found["ann"].subject != first.subject
    cloak.close()


def test_the_keys_in_memory_are_bounded(keys: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macadam.personal.cloak.MOST_KEYS", 5)
    assert MOST_KEYS == 10_000
    cloak = ProjectCloak(another(keys))
    people = [f"person-{n}" for n in range(12)]
    with cloak.using(people) as found:
        assert len(found) == 12
    assert len(cloak._known) == 5
    with cloak.using(people) as again:
        assert {n: k.subject for n, k in again.items()} == {n: k.subject for n, k in found.items()}
    cloak.close()


def test_a_process_killed_while_it_makes_keys_loses_none_it_has_used(keys: Vault, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from macadam.adapters.local_secrets import LocalSecrets
from macadam.personal.vault import Vault
home = Path({str(tmp_path)!r})
keys = Vault(home, LocalSecrets(home / "keys"), {PROJECT!r})
for n in range(100_000):
    with keys.using():
        key = keys.require([f"person-{{n}}"])[f"person-{{n}}"]
        print(n, key.text, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    used = [process.stdout.readline().split() for _ in range(40)]
    process.kill()
    used += [line.split() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    for n, subject in (one for one in used if len(one) == 2):
        key = keys.of_subject(bytes.fromhex(subject))
        assert key is not None
        assert keys.require([f"person-{n}"])[f"person-{n}"].text == subject


def test_a_project_that_was_never_prepared_has_no_keys(tmp_path: Path, secrets: LocalSecrets) -> None:
    with pytest.raises(Unavailable, match="deploy"):
        Vault(tmp_path, secrets, "nowhere")


def test_a_damaged_database_is_said(keys: Vault) -> None:
    keys.require(["ann"])
    keys.close()
    (keys._folder / "keys.sqlite").write_bytes(os.urandom(8192))
    for suffix in ("-wal", "-shm"):
        (keys._folder / f"keys.sqlite{suffix}").unlink(missing_ok=True)
    with pytest.raises(MacadamError):
        another(keys)


def files_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_vault_that_cannot_be_opened_keeps_no_file_open(keys: Vault) -> None:
    (keys._folder / "keys.sqlite").write_bytes(b"no database" * 1000)
    before = files_open()
    for _ in range(20):
        with pytest.raises(Unavailable, match="cannot be opened"):
            another(keys)
    assert files_open() < before + 10


def test_after_an_erasure_no_wrapping_key_from_before_it_stays_in_memory(keys: Vault) -> None:
    cloak = ProjectCloak(another(keys))
    with cloak.using(["ann"]):
        old = keys.wrapping_key()
    assert set(cloak._vault._keks) == {old}
    keys.destroy("ann", "1")
    keys.begin_wrapping_key()
    keys.rewrap()
    with cloak.using(["ann"]):
        assert set(cloak._vault._keks) == {keys.wrapping_key()} != {old}
    cloak.close()


def test_two_who_destroy_at_once_wait_for_each_other(keys: Vault) -> None:
    people = [f"p{number}" for number in range(24)]
    keys.require(people)

    def erase(person: str) -> None:
        own = another(keys)
        try:
            own.finish(own.destroy(person, person))
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(erase, people))
    assert (keys.count(), keys.under_way()) == (0, [])


def test_a_wrapping_key_that_nothing_names_is_destroyed_with_the_others(keys: Vault, secrets: LocalSecrets) -> None:
    keys.require(["ann"])
    secrets.put(f"subject-keys.{PROJECT}.0123456789abcdef", bytes(32))
    secrets.put("subject-keys.shop-2.0123456789abcdef", bytes(32))
    keys.begin_wrapping_key()
    keys.rewrap()
    assert secrets.names("subject-keys.") == sorted([keys.wrapping_key(), "subject-keys.shop-2.0123456789abcdef"])
    assert keys.require(["ann"])
