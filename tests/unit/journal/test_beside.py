"""The file beside a segment: there when it is used, durable before the records, whole or not at all."""

from pathlib import Path

import pytest

from macadam.errors import StorageFull, Unavailable
from macadam.journal import beside as module
from macadam.journal import writer as writing
from macadam.journal.writer import JournalWriter

FIRST, THEN = b"ciphertext one", b"and two"


@pytest.fixture
def journal(tmp_path: Path) -> JournalWriter:
    return JournalWriter(tmp_path, gateway="g", worker=0, project="p", fsync_every=5.0)


def test_it_is_made_by_the_first_bytes_and_stays_with_its_segment(journal: JournalWriter, tmp_path: Path) -> None:
    with journal:
        journal.append(b"{}")
        assert list(tmp_path.glob("*.personal")) == []
        journal.append_many([b"{}"], beside=FIRST)
        journal.append_many([b"{}", b"{}"], beside=THEN)
        one = journal.path
        journal.rotate()
        journal.append_many([b"{}"], beside=THEN)
        two = journal.path
    assert one.with_suffix(".personal").read_bytes() == FIRST + THEN
    assert two.with_suffix(".personal").read_bytes() == THEN
    assert one.with_suffix(".personal").stat().st_mode & 0o777 == 0o600


def test_it_is_durable_before_the_records_are(
    journal: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().suffix)

    monkeypatch.setattr(module, "sync_data", note)
    monkeypatch.setattr(writing, "sync_data", note)
    with journal:
        journal.append_many([b"{}"], beside=FIRST)
        synced.clear()
        journal.sync()
        assert synced == [".personal", ".open"]
        journal.append(b"{}")
        journal.sync()
        assert synced == [".personal", ".open", ".open"]


def test_without_room_for_it_no_record_is_written(
    journal: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("The disk is full.")

    with journal:
        with monkeypatch.context() as patched:
            patched.setattr(module, "append_whole", full)
            with pytest.raises(StorageFull):
                journal.append_many([b"{}"], beside=FIRST)
        before = journal.path.stat().st_size
        assert journal.append_many([b"{}"], beside=THEN).index == 0
        assert journal.path.stat().st_size > before
        assert journal.path.with_suffix(".personal").read_bytes() == THEN


def test_a_file_that_is_there_already_is_not_written_to(journal: JournalWriter) -> None:
    with journal:
        journal.path.with_suffix(".personal").write_bytes(b"another's")
        with pytest.raises(Unavailable):
            journal.append_many([b"{}"], beside=FIRST)
        assert journal.path.with_suffix(".personal").read_bytes() == b"another's"
