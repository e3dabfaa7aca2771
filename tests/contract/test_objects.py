"""The behaviour of every Objects adapter; what only a local directory promises says so in its name."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macadam.adapters import local_objects
from macadam.adapters.local_objects import LocalObjects
from macadam.errors import IntegrityError, InvalidInput, NotFound, StorageFull
from macadam.ports import Objects
from macadam.values import digest_of


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    (tmp_path / "objects").mkdir()
    return LocalObjects(tmp_path / "objects")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000))
def test_what_is_put_is_got_under_its_sha256(objects: Objects, data: bytes) -> None:
    digest = objects.put(data)
    assert digest == digest_of(data)
    assert objects.get(digest) == data
    assert objects.exists(digest)


def test_a_file_is_stored_under_the_same_digest_as_its_bytes(objects: Objects, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "big").write_bytes(data)
    digest = objects.put_file(tmp_path / "big")
    assert digest == digest_of(data) == objects.put(data)
    objects.fetch(digest, tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == data


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), start=st.integers(0, 400), length=st.integers(0, 400))
def test_a_part_of_an_object_is_its_bytes_as_far_as_they_go(
    objects: Objects, data: bytes, start: int, length: int
) -> None:
    assert objects.get_range(objects.put(data), start, length) == data[start : start + length]


def test_what_is_missing_is_not_found(objects: Objects, tmp_path: Path) -> None:
    never = digest_of(b"never")
    assert not objects.exists(never)
    for reading in (
        lambda: objects.get(never),
        lambda: objects.fetch(never, tmp_path / "x"),
        lambda: objects.get_range(never, 0, 1),
    ):
        with pytest.raises(NotFound):
            reading()
    with pytest.raises(NotFound):
        objects.get_name("never/there")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("digest", ["sha256:12", "../../etc/passwd", "md5:" + "0" * 64, ""])
def test_what_is_no_digest_is_refused(objects: Objects, digest: str) -> None:
    with pytest.raises(InvalidInput, match="not a digest"):
        objects.get(digest)


def content(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "objects" / "sha256" / digest[7:9] / digest[9:]


@pytest.mark.parametrize("damage", ["flip", "shorten", "empty"])
def test_altered_bytes_are_never_handed_out(objects: Objects, tmp_path: Path, damage: str) -> None:
    digest = objects.put(b"evidence" * 100)
    path = content(tmp_path, digest)
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes({"flip": bytes(data), "shorten": bytes(data[:-1]), "empty": b""}[damage])
    with pytest.raises(IntegrityError, match="no longer has the bytes"):
        objects.get(digest)
    with pytest.raises(IntegrityError, match="no longer has the bytes"):
        objects.fetch(digest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_name_shows_its_last_bytes_and_names_lists_by_prefix(objects: Objects) -> None:
    objects.set_name("ledger/tile/0/001", b"a")
    objects.set_name("ledger/tile/0/002", b"b")
    objects.set_name("ledger/checkpoint", b"1")
    objects.set_name("ledger/checkpoint", b"2")
    objects.set_name("serving/state.json", b"{}")
    assert objects.get_name("ledger/checkpoint") == b"2"
    assert list(objects.names("ledger/")) == ["ledger/checkpoint", "ledger/tile/0/001", "ledger/tile/0/002"]
    assert list(objects.names("ledger/tile")) == ["ledger/tile/0/001", "ledger/tile/0/002"]
    assert list(objects.names("ledger/tile/0/00")) == ["ledger/tile/0/001", "ledger/tile/0/002"]
    assert len(list(objects.names(""))) == 4
    assert list(objects.names("nothing")) == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a/.b", "a b"])
def test_a_name_cannot_leave_its_place(objects: Objects, name: str) -> None:
    with pytest.raises(InvalidInput, match="not an object's name"):
        objects.set_name(name, b"x")
    if name:
        with pytest.raises(InvalidInput, match="not an object's name"):
            list(objects.names(name))


def test_concurrent_writers_of_one_name_leave_one_of_their_values_whole(objects: Objects) -> None:
    values = [bytes([n]) * 10_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda v: (objects.set_name("x/y", v), objects.put(v)), values * 4))
    assert objects.get_name("x/y") in values


def test_local_a_full_disk_keeps_the_old_bytes_and_leaves_no_draft(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.set_name("a", b"old")
    before = sorted(p for p in (tmp_path / "objects").rglob("*") if p.is_file())

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local_objects.os, "fsync", full)
    for writing in (lambda: objects.set_name("a", b"new"), lambda: objects.put(b"data")):
        with pytest.raises(StorageFull, match="disk is full"):
            writing()
    assert sorted(p for p in (tmp_path / "objects").rglob("*") if p.is_file()) == before
    assert objects.get_name("a") == b"old"
