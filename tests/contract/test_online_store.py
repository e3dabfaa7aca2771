"""The behaviour of every OnlineStore adapter."""

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from macadam.adapters.lmdb import LmdbStore
from macadam.errors import IntegrityError, InvalidInput
from macadam.ports import OnlineStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OnlineStore]:
    opened = LmdbStore(tmp_path / "online")
    yield opened
    opened.close()


def test_what_is_put_is_got_and_what_is_missing_is_none(store: OnlineStore) -> None:
    store.put([(b"a", b"1"), (b"b", b"")])
    assert store.get([b"b", b"a", b"c"]) == [b"", b"1", None]


def test_a_later_put_replaces_and_delete_removes(store: OnlineStore) -> None:
    store.put([(b"a", b"1"), (b"b", b"2")])
    store.put([(b"a", b"3")])
    store.delete([b"b", b"never-there"])
    assert store.get([b"a", b"b"]) == [b"3", None]


def test_a_scan_is_in_key_order_within_its_prefix(store: OnlineStore) -> None:
    store.put([(b"p/%02d" % i, b"%d" % i) for i in range(20)] + [(b"o", b"x"), (b"q", b"y")])
    assert [k for k, _ in store.scan(b"p/")] == [b"p/%02d" % i for i in range(20)]
    assert store.scan(b"p/", start=b"p/17") == [(b"p/17", b"17"), (b"p/18", b"18"), (b"p/19", b"19")]
    assert store.scan(b"p/", start=b"p/05", limit=1) == [(b"p/05", b"5")]
    assert len(store.scan(b"")) == 22
    assert store.scan(b"r") == []


@pytest.mark.parametrize("key", [b"", b"k" * 512])
def test_a_key_that_does_not_fit_is_refused_and_nothing_of_its_put_is_written(store: OnlineStore, key: bytes) -> None:
    with pytest.raises(InvalidInput, match="key of"):
        store.put([(b"a", b"1"), (key, b"2")])
    assert store.get([b"a"]) == [None]


def test_a_closed_store_opens_again_with_its_rows(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "online")
    store.put([(b"a", b"1")])
    store.close()
    store.close()
    assert LmdbStore(tmp_path / "online").get([b"a"]) == [b"1"]


def test_two_stores_of_one_process_share_one_directory(tmp_path: Path) -> None:
    one, two = LmdbStore(tmp_path / "online"), LmdbStore(tmp_path / "online")
    one.put([(b"a", b"1")])
    assert two.get([b"a"]) == [b"1"]
    one.close()
    assert two.get([b"a"]) == [b"1"]
    two.close()


def test_lmdb_grows_its_map_while_threads_read_and_write(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "online", first_size=256 << 10)
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for part in range(8):
                store.put([(b"%d/%d/%d" % (writer, part, i), b"x" * 500) for i in range(100)])
                store.get([b"%d/%d/1" % (writer, part)])
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.scan(b"")) == 3200
    store.close()


def _fill(directory: str, first: int, count: int) -> None:
    store = LmdbStore(Path(directory), first_size=256 << 10)
    for start in range(first, first + count, 100):
        store.put([(b"%06d" % i, b"y" * 500) for i in range(start, start + 100)])
    store.close()


def test_lmdb_follows_when_another_process_has_grown_the_map(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "online", first_size=256 << 10)
    store.put([(b"000000", b"first")])
    child = multiprocessing.get_context("spawn").Process(target=_fill, args=(str(tmp_path / "online"), 1, 5000))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert store.get([b"000000", b"005000"]) == [b"first", b"y" * 500]
    store.put([(b"z", b"1")])
    assert len(store.scan(b"")) == 5002
    store.close()


def test_lmdb_says_so_when_its_file_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(IntegrityError, match="damaged"):
        LmdbStore(tmp_path).get([b"a"])
