"""The behaviour of every Secrets adapter."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from macadam.adapters import passphrase_kms
from macadam.adapters.local_secrets import LocalSecrets
from macadam.adapters.sealed_secrets import SealedSecrets
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.ports import Secrets
from macadam.settings import Keys

PASSPHRASE = Keys(passphrase="seven words that nobody else knows")


@pytest.fixture(params=["plain files", "files that may be encrypted", "encrypted files"])
def secrets(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Secrets:
    monkeypatch.setattr(passphrase_kms, "COST", 2**14)
    if request.param == "plain files":
        return LocalSecrets(tmp_path)
    return SealedSecrets(tmp_path, PASSPHRASE if request.param == "encrypted files" else Keys())


def test_a_secret_is_got_as_it_was_put_and_never_replaced(secrets: Secrets) -> None:
    secrets.put("ledger-key", b"\x00\x01")
    with pytest.raises(Conflict, match="exists"):
        secrets.put("ledger-key", b"other")
    assert secrets.get("ledger-key") == b"\x00\x01"


def test_a_missing_secret_is_not_found(secrets: Secrets) -> None:
    with pytest.raises(NotFound, match="no secret 'ledger-key'"):
        secrets.get("ledger-key")


@pytest.mark.parametrize("name", ["", "../x", "A", ".x", "a/b", "x" * 102, "a\n"])
def test_a_name_that_could_leave_its_place_is_refused(secrets: Secrets, name: str) -> None:
    with pytest.raises(InvalidInput, match="not a secret's name"):
        secrets.put(name, b"x")


def test_of_many_that_put_one_name_one_wins_and_all_read_its_value(secrets: Secrets) -> None:
    def put(number: int) -> bytes | None:
        value = b"%d" % number * 1000
        try:
            secrets.put("key", value)
        except Conflict:
            return None
        return value

    with ThreadPoolExecutor(8) as pool:
        winners = [value for value in pool.map(put, range(40)) if value is not None]
    assert [secrets.get("key")] == winners


def test_a_removed_secret_is_gone_its_name_is_free_and_the_others_stay(secrets: Secrets) -> None:
    secrets.put("project-key.a", b"one")
    secrets.put("project-key.b", b"two")
    secrets.remove("project-key.a")
    with pytest.raises(NotFound):
        secrets.get("project-key.a")
    secrets.put("project-key.a", b"three")
    assert (secrets.get("project-key.a"), secrets.get("project-key.b")) == (b"three", b"two")


def test_removing_a_secret_that_is_not_there_is_no_error(secrets: Secrets) -> None:
    secrets.remove("project-key.a")
    with pytest.raises(InvalidInput, match="not a secret's name"):
        secrets.remove("../x")


def test_names_are_listed_in_order_by_how_they_begin(secrets: Secrets) -> None:
    for name in ("project-key.b", "ledger-key", "project-key.a"):
        secrets.put(name, b"x")
    assert secrets.names("project-key.") == ["project-key.a", "project-key.b"]
    assert secrets.names() == ["ledger-key", "project-key.a", "project-key.b"]
    assert secrets.names("x") == []


def test_local_only_the_owner_can_read_and_no_draft_stays(secrets: Secrets, tmp_path: Path) -> None:
    secrets.put("key", b"x")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert {p.name for p in tmp_path.iterdir()} <= {"key", ".sealed"}


def test_local_removing_a_secret_removes_the_draft_that_a_kill_has_left(secrets: Secrets, tmp_path: Path) -> None:
    secrets.put("a-key", b"\x00")
    draft = tmp_path / ".a-key.0193e000-0000-7000-8000-000000000000.draft"
    draft.write_bytes(b"\x00")
    other = tmp_path / ".a-key-2.0193e000-0000-7000-8000-000000000000.draft"
    other.write_bytes(b"\x00")
    secrets.remove("a-key")
    assert (draft.exists(), other.exists()) == (False, True)
