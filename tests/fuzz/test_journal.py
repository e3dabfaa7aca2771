"""Whatever bytes stand where a journal's should: only the declared errors, nothing taken that nobody wrote, little memory."""

import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest
from fuzz.mutate import fuzz, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.errors import IntegrityError
from macadam.journal import gaps, places, record
from macadam.journal.gaps import FORM
from macadam.journal.layout import (
    ANSWERS,
    FRAME,
    MAX_PAYLOAD,
    SegmentFooter,
    SegmentHeader,
    closing,
    frame,
    opening,
    read_answers,
)
from macadam.journal.places import Place, Places
from macadam.journal.record import Prediction, encode
from macadam.journal.sealing import _read
from macadam.journal.segment import Record, SegmentReader, footer_of, recover, seal
from macadam.ledger.tree import leaf_hash, root_from_path, root_of
from macadam.values import digest_of, uuid7

ID = "0193e000-0000-7000-8000-000000000000"
IDS = [f"0193e000-0000-7000-8000-{n:012x}" for n in range(600)]


def prediction(n: int, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "id": IDS[n],
        "at": "2026-11-21T07:00:00.000000Z",
        "project": "flights",
        "endpoint": "delay",
        "variant": "live",
        "version": "model:m@1",
        "model_digest": "sha256:" + "a" * 64,
        "deployment": ID,
        "actor": "service:web",
        "inputs": {"n": n, "text": "ä" * (n % 5)},
        "features": {"n": float(n)},
        "output": {"score": n / 10},
        "outcome": "ok",
        "stages_us": {"predict": 1},
    }
    return encode(Prediction(**{**fields, **changes}))  # type: ignore[arg-type]


PAYLOADS = [prediction(n) for n in range(6)]
OTHERS = [prediction(n, clock="2026-11-20T07:00:00.000000Z") for n in range(3)]
HEADER = SegmentHeader(gateway="gw", worker=0, segment=ID, project="flights", created="2026-11-21T07:00:00.000000Z")
WRITTEN = frozenset({*PAYLOADS, *OTHERS})
WORDS = [b"MCDMJRN1", frame(PAYLOADS[0]), frame(b"{}"), closing(SegmentFooter(count=0, digest="")), opening(HEADER)]


def body(payloads: list[bytes]) -> bytes:
    return opening(HEADER) + b"".join(map(frame, payloads))


def ending(error: IntegrityError) -> str:
    """The kind of damage, without the bytes and numbers that each input has its own of."""
    return re.sub(r"\d+|b['\"].*", "", error.what.partition(": ")[2])[:40]


def closed(payloads: list[bytes]) -> bytes:
    data = body(payloads)
    return data + closing(SegmentFooter(count=len(payloads), digest=digest_of(data)))


def resealed(data: bytes) -> bytes:
    """The bytes as payload of a right frame, as header, record and footer in turn: past the checksums."""
    kind = data[0] % 3 if data else 0
    data = data[1:]
    if kind == 0:
        begin = b"MCDMJRN1" + frame(data)
        return begin + closing(SegmentFooter(count=0, digest=digest_of(begin)))
    if kind == 1:
        begin = opening(HEADER) + frame(data)
        return begin + closing(SegmentFooter(count=1, digest=digest_of(begin)))
    return body(PAYLOADS[:1]) + frame(data, 0x8000_0000)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / f"{ID}.closed"
    path.with_suffix(ANSWERS).write_bytes((6).to_bytes(8, "little"))
    return path


def reading(path: Path) -> Callable[[bytes], str]:
    """Seals a closed file; the ending is the kind of damage."""

    def check(data: bytes) -> str:
        path.write_bytes(data)
        try:
            sealed = seal(path, leaf_hash=leaf_hash, root=root_of)
        except IntegrityError as error:
            return ending(error)
        assert data in VALID, "a changed byte of a closed segment was not found"
        assert footer_of(path).count == sealed.count
        return "whole"

    return check


VALID = [closed(PAYLOADS), closed(OTHERS), closed([]), closed(PAYLOADS[:1])]


def test_a_closed_segment_is_whole_or_damaged_and_nothing_else(place: Path) -> None:
    ran = fuzz(reading(place), VALID, count=inputs(4_000), words=WORDS)
    assert ran.endings["whole"] >= len(VALID)
    assert len(ran.endings) > 4


def test_whole_frames_put_together_in_another_way_are_never_a_closed_segment(place: Path) -> None:
    """Each frame is right by itself: only the digest over all of them tells."""
    check, chance = reading(place), random.Random(0)
    pieces = [opening(HEADER), *map(frame, PAYLOADS), closed(PAYLOADS)[len(body(PAYLOADS)) :]]
    endings = set()
    for _ in range(inputs(400)):
        mixed = list(pieces)
        for _ in range(chance.randint(1, 3)):
            one, other = sorted(chance.sample(range(len(mixed)), 2))
            way = chance.randrange(4)
            if way == 0:
                mixed[one], mixed[other] = mixed[other], mixed[one]
            elif way == 1 and len(mixed) > 3:
                del mixed[one]
            elif way == 2:
                mixed[other] = mixed[one]
            else:
                mixed.insert(other, frame(chance.choice(OTHERS)))
        endings.add(check(b"".join(mixed)))
    assert any("digest" in ending or "its bytes do not" in ending for ending in endings)


def test_what_is_read_of_an_open_segment_was_written(tmp_path: Path) -> None:
    """Whole records of a file that may be torn: each is one that was appended, in its bytes."""
    path = tmp_path / f"{ID}.open"

    def check(data: bytes) -> str:
        path.write_bytes(data)
        try:
            with SegmentReader(path) as reader:
                found = [item.payload for item in reader]
                torn = reader.torn
        except IntegrityError as error:
            return ending(error)
        assert WRITTEN | {b"{}"} >= set(found)
        return f"{len(found)} and {'torn' if torn else 'whole'}"

    ran = fuzz(check, [body(PAYLOADS), body(OTHERS), closed(PAYLOADS)], count=inputs(4_000), words=WORDS)
    assert "6 and whole" in ran.endings
    assert any(ending.endswith("torn") for ending in ran.endings)


def test_recovery_drops_a_torn_tail_or_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    def check(data: bytes) -> str:
        path = tmp_path / f"{ID}.open"
        path.write_bytes(data)
        try:
            found = recover(path)
        except IntegrityError:
            assert path.read_bytes() == data
            path.unlink()
            return "damaged"
        kept = found.path.read_bytes()
        with SegmentReader(found.path, strict=True) as reader:
            assert len(list(reader)) == found.count
        assert kept.startswith(data[: found.torn.offset] if found.torn else data)
        found.path.unlink()
        return "recovered"

    ran = fuzz(check, [body(PAYLOADS), closed(PAYLOADS)], count=inputs(600), words=WORDS)
    assert {"damaged", "recovered"} <= set(ran.endings)


def test_contents_with_right_checksums_raise_only_what_is_declared(place: Path) -> None:
    seeds = [bytes([kind]) + data for kind in range(3) for data in (PAYLOADS[0], opening(HEADER)[20:], b"[" * 5000)]

    def check(data: bytes) -> str:
        place.write_bytes(resealed(data))
        try:
            seal(place, leaf_hash=leaf_hash, root=root_of, each=lambda item: _read(place, item) and None)
        except IntegrityError as error:
            return ending(error)
        return "read"

    fuzz(
        check,
        seeds,
        count=inputs(3_000),
        words=[b'{"at":', b"[" * 3000, b'{"a":' * 3000, b"1e400", b"\xff", b"\\ud800"],
    )


def test_a_record_is_decoded_or_refused() -> None:
    def check(data: bytes) -> str:
        try:
            told = record.decode(data)
        except IntegrityError as error:
            return ending(error)
        assert record.decode(encode(told)) == told
        return "read"

    def sealing(data: bytes) -> str:
        try:
            row, identity = _read(Path("s.closed"), Record(0, 0, data))
        except IntegrityError:
            return "refused"
        assert len(identity) == 16
        assert row["record"] == data.decode()
        return "read"

    words = [b"[" * 3000, b'{"a":' * 3000, b'"v":2', b'"at":', b'"id":', b"\xff", b"\\ud800", b"9" * 400]
    fuzz(check, PAYLOADS[:2], count=inputs(3_000), words=words)
    fuzz(sealing, PAYLOADS[:2], count=inputs(3_000), words=words, seed=1)


COUNT = 600
HASHES = [leaf_hash(b"%d" % n) for n in range(COUNT)]
ROOT = root_of(HASHES)
INDEX = places.build([Place(bytes.fromhex(i.replace("-", "")), 100 + n, n) for n, i in enumerate(IDS)], HASHES)


def test_an_index_leads_to_the_record_that_was_sealed_or_to_an_error() -> None:
    """What it says is believed only if it leads to the root: then it is true whatever bytes it was read from."""

    def check(data: bytes) -> str:
        number = len(data) % COUNT
        try:
            index = Places.whole(data)
            found = index.find(IDS[number])
            if found is None:
                return "absent"
            root = root_from_path(index.hash(found.index), found.index, index.count, index.path(found.index))
            index.at(number)
        except IntegrityError as error:
            return error.what[:30]
        if root != ROOT:
            return "another root"
        assert HASHES[found.index] == index.hash(found.index)
        return "proved"

    ran = fuzz(check, [INDEX], count=inputs(1_500), words=[b"MCDMPLC1", INDEX[16:44], INDEX[-32:]])
    assert {"proved", "another root"} <= set(ran.endings)


@settings(max_examples=60)
@given(count=st.integers(0, 1100), data=st.data())
def test_an_index_of_any_size_finds_every_record_and_proves_it(count: int, data: st.DataObject) -> None:
    ids = sorted({uuid7() for _ in range(count)})
    hashes = [leaf_hash(one.encode()) for one in ids]
    made = places.build([Place(bytes.fromhex(i.replace("-", "")), n, n) for n, i in enumerate(ids)], hashes)
    index, root = Places.whole(made), root_of(hashes)
    assert index.find(ID) is None
    for n in data.draw(st.lists(st.integers(0, max(0, count - 1)), max_size=5)) if count else ():
        found = index.find(ids[n])
        assert found is not None
        assert found.index == n
        assert root_from_path(hashes[n], n, count, index.path(n)) == root


def test_a_part_of_an_archive_is_a_record_or_an_error() -> None:
    archive = closed(PAYLOADS)
    offsets = [len(body(PAYLOADS[:n])) for n in range(7)]

    def check(data: bytes) -> str:
        found = []
        for offset in (*offsets, 0, 8, len(data), -1, 1 << 64):
            try:
                found.append(places.payload_in(lambda start, length: data[start : start + length], offset))
            except IntegrityError:
                continue
        assert {one for one in found if one.startswith(b'{"id"')} <= WRITTEN
        return str(len(found))

    fuzz(check, [archive], count=inputs(1_500), words=WORDS)


def test_a_gap_file_says_a_number_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.gap"
    valid = FORM.pack(b"MCDMGAP1", bytes(16), 1_790_000_000_000_000, 1_790_000_001_000_000, 3, 0, 1)

    def check(data: bytes) -> str:
        path.write_bytes(data)
        found = gaps.read(path)
        assert found is None or (found.answers > 0 and len(found.first_at) == len(found.last_at) == 27)
        return str(found is None)

    fuzz(check, [valid], count=inputs(1_500), words=[b"MCDMGAP1", b"\xff" * 8])


def test_a_counter_has_eight_bytes_or_is_damage(place: Path) -> None:
    for data in (b"", b"1234567", b"123456789", bytes(4096)):
        place.with_suffix(ANSWERS).write_bytes(data)
        with pytest.raises(IntegrityError):
            read_answers(place)


@pytest.mark.parametrize("length", [MAX_PAYLOAD, MAX_PAYLOAD + 1, 0x7FFF_FFFF])
def test_a_length_that_is_not_there_takes_no_memory(place: Path, length: int) -> None:
    start = length.to_bytes(4, "little") + bytes(4)
    header = start + google_crc32c.value(start).to_bytes(4, "little")
    for data in (b"MCDMJRN1" + header, body(PAYLOADS) + header, body(PAYLOADS) + header + bytes(FRAME.size)):
        place.write_bytes(data)
        tracemalloc.start()
        with pytest.raises(IntegrityError):
            seal(place, leaf_hash=leaf_hash, root=root_of)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MAX_PAYLOAD + (1 << 20)
