"""Segments: what was appended is read, a torn tail is told from damage, and every changed byte is found."""

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.errors import Busy, IntegrityError, NotFound
from macadam.journal.layout import (
    ANSWERS,
    FRAME,
    MAX_PAYLOAD,
    START,
    SegmentFooter,
    SegmentHeader,
    closing,
    frame,
    opening,
    read_answers,
)
from macadam.journal.segment import SealedSegment, SegmentReader, recover, seal
from macadam.ledger.tree import leaf_hash, root_of
from macadam.values import digest_of

ID = "0193e000-0000-7000-8000-000000000000"
HEADER = SegmentHeader(gateway="gw", worker=0, segment=ID, project="flights", created="2026-11-21T07:00:00.000000Z")
RECORDS = [b'{"at":"2026-11-21T07:00:0%d.000000Z","n":"%s"}' % (n, b"x" * n * 5) for n in range(4)]


def body(records: list[bytes]) -> bytes:
    return opening(HEADER) + b"".join(map(frame, records))


def open_file(folder: Path, data: bytes) -> Path:
    path = folder / f"{ID}.open"
    path.write_bytes(data)
    return path


def closed_file(folder: Path, records: list[bytes]) -> Path:
    data = body(records)
    path = folder / f"{ID}.closed"
    path.write_bytes(data + closing(SegmentFooter(count=len(records), digest=digest_of(data))))
    path.with_suffix(ANSWERS).write_bytes(len(records).to_bytes(8, "little"))
    return path


def payloads(path: Path) -> list[bytes]:
    with SegmentReader(path) as reader:
        return [record.payload for record in reader]


def sealed(path: Path) -> SealedSegment:
    return seal(path, leaf_hash=leaf_hash, root=root_of)


@given(records=st.lists(st.binary(max_size=300).map(lambda b: b + b"}"), max_size=8))
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_read_in_order(tmp_path_factory: pytest.TempPathFactory, records: list[bytes]) -> None:
    path = closed_file(tmp_path_factory.mktemp("segment"), records)
    with SegmentReader(path) as reader:
        read = list(reader)
        assert [record.payload for record in read] == records
        assert [record.index for record in read] == list(range(len(records)))
        assert [reader.record_at(record.offset) for record in read] == records
        assert reader.header == HEADER
        assert reader.footer is not None
        assert reader.footer.count == len(records)


def test_a_segment_torn_at_any_byte_of_its_last_record_is_recovered_without_it(tmp_path: Path) -> None:
    whole, kept = body(RECORDS), body(RECORDS[:-1])
    for cut in range(len(kept), len(whole)):
        path = open_file(tmp_path, whole[:cut])
        found = recover(path)
        assert found.count == len(RECORDS) - 1
        if cut == len(kept):
            assert found.torn is None
        else:
            assert found.torn is not None
            assert (found.torn.offset, found.torn.length) == (len(kept), cut - len(kept))
        assert payloads(found.path) == RECORDS[:-1]
        assert not path.exists()


@pytest.mark.parametrize("length", [1, 11, 12, 13, 4096])
def test_zeros_that_a_power_cut_left_at_the_end_are_a_torn_tail(tmp_path: Path, length: int) -> None:
    found = recover(open_file(tmp_path, body(RECORDS) + bytes(length)))
    assert found.count == len(RECORDS)
    assert found.torn is not None
    assert found.torn.length == length


def test_a_last_record_whose_end_never_reached_the_disk_is_torn(tmp_path: Path) -> None:
    whole = body(RECORDS)
    found = recover(open_file(tmp_path, whole[:-6] + bytes(6)))
    assert found.count == len(RECORDS) - 1


def test_any_changed_byte_of_a_closed_segment_is_found(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    good = path.read_bytes()
    for at in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
            with pytest.raises(IntegrityError):
                sealed(path)


def test_a_changed_byte_in_an_open_segment_is_damage_and_never_a_torn_tail(tmp_path: Path) -> None:
    good = body(RECORDS)
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
        path = open_file(tmp_path, bad)
        with pytest.raises(IntegrityError, match="offset"):
            recover(path)
        assert path.read_bytes() == bad


def test_the_error_names_the_offset_of_the_damaged_record(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    data = bytearray(path.read_bytes())
    offset = len(body(RECORDS[:1]))
    data[offset + FRAME.size + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        payloads(path)
    assert caught.value.details["offset"] == offset


def test_a_closed_segment_cut_anywhere_is_found_even_between_records(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(IntegrityError):
            sealed(path)


def test_two_records_in_another_order_are_found(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    good = path.read_bytes()
    first, second = frame(RECORDS[0]), frame(RECORDS[1])
    path.write_bytes(good.replace(first + second, second + first))
    with pytest.raises(IntegrityError, match="digest"):
        sealed(path)


def test_a_removed_record_is_found(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    path.write_bytes(path.read_bytes().replace(frame(RECORDS[1]), b""))
    with pytest.raises(IntegrityError, match="its footer says 4"):
        sealed(path)


def test_bytes_behind_the_footer_are_found(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    path.write_bytes(path.read_bytes() + frame(RECORDS[0]))
    with pytest.raises(IntegrityError, match="behind the footer"):
        sealed(path)


def test_a_length_over_the_limit_is_damage_even_with_a_right_checksum(tmp_path: Path) -> None:
    crc = int.from_bytes(frame(START.pack(MAX_PAYLOAD + 1, 7))[4:8], "little")
    path = open_file(tmp_path, body(RECORDS) + FRAME.pack(MAX_PAYLOAD + 1, 7, crc))
    with pytest.raises(IntegrityError, match="over the limit"):
        recover(path)


def test_a_segment_under_another_name_is_refused(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    with pytest.raises(IntegrityError, match="header is that of segment"):
        SegmentReader(path.rename(tmp_path / "0193e000-0000-7000-8000-000000000001.closed"))


def test_an_offset_inside_a_record_gives_no_record(tmp_path: Path) -> None:
    path = closed_file(tmp_path, RECORDS)
    with SegmentReader(path) as reader:
        for offset in (0, len(opening(HEADER)) + 1, path.stat().st_size, 10**9, -5):
            with pytest.raises(IntegrityError):
                reader.record_at(offset)


def test_a_segment_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        SegmentReader(tmp_path / f"{ID}.closed")
    with pytest.raises(NotFound):
        recover(tmp_path / f"{ID}.open")


def test_a_segment_that_a_gateway_still_writes_is_not_recovered(tmp_path: Path) -> None:
    path = open_file(tmp_path, body(RECORDS))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            recover(path)
    finally:
        os.close(fd)
    assert recover(path).count == len(RECORDS)


def test_a_crash_between_footer_and_rename_is_finished_by_the_rename(tmp_path: Path) -> None:
    data = body(RECORDS)
    data += closing(SegmentFooter(count=len(RECORDS), digest=digest_of(data)))
    found = recover(open_file(tmp_path, data))
    assert found.path.read_bytes() == data


def test_a_seal_holds_root_count_answers_and_times(tmp_path: Path) -> None:
    seal_ = sealed(closed_file(tmp_path, RECORDS))
    assert seal_.id == ID
    assert seal_.leaf_hashes == tuple(map(leaf_hash, RECORDS))
    assert seal_.root == root_of(map(leaf_hash, RECORDS))
    assert (seal_.count, seal_.answers, seal_.torn) == (4, 4, 0)
    assert (seal_.first_at, seal_.last_at) == ("2026-11-21T07:00:00.000000Z", "2026-11-21T07:00:03.000000Z")


def test_the_seal_of_a_recovered_segment_tells_what_was_dropped(tmp_path: Path) -> None:
    path = open_file(tmp_path, body(RECORDS)[:-3])
    path.with_suffix(ANSWERS).write_bytes((3).to_bytes(8, "little"))
    seal_ = sealed(recover(path).path)
    assert (seal_.count, seal_.answers) == (3, 3)
    assert seal_.torn == len(frame(RECORDS[-1])) - 3


@pytest.mark.parametrize("data", [None, b"", b"\0" * 7, b"\0" * 9])
def test_a_missing_or_cut_answer_counter_is_found(tmp_path: Path, data: bytes | None) -> None:
    path = closed_file(tmp_path, RECORDS)
    path.with_suffix(ANSWERS).unlink()
    if data is not None:
        path.with_suffix(ANSWERS).write_bytes(data)
    with pytest.raises(IntegrityError, match="answer counter"):
        read_answers(path)
