"""docs/reference/journal.md is enough to read a journal: this reader follows the page and uses nothing of Macadam."""

import hashlib
import json
import re
import struct
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from google_crc32c import value as crc32c

import macadam
from macadam.journal import places, record
from macadam.journal.gaps import FORM, GapCounter
from macadam.journal.layout import SegmentFooter, SegmentHeader
from macadam.journal.places import Place
from macadam.journal.writer import JournalWriter
from macadam.ledger.tree import leaf_hash

PAGE = (Path(macadam.__file__).parents[2] / "docs/reference/journal.md").read_text(encoding="utf-8")
NOW = datetime(2026, 11, 21, 7, tzinfo=UTC)


def frames(data: bytes):  # type: ignore[no-untyped-def]
    """(is the footer, payload, offset) of each frame, as the page's second table says."""
    assert data[:8] == b"MCDMJRN1"
    at = 8
    while at < len(data):
        length, crc, check = struct.unpack("<III", data[at : at + 12])
        assert check == crc32c(data[at : at + 8])
        payload = data[at + 12 : at + 12 + (length & 0x7FFFFFFF)]
        assert crc == crc32c(payload)
        yield bool(length >> 31), json.loads(payload), at
        at += 12 + len(payload)
    assert at == len(data)


def table(heading: str) -> set[str]:
    """The names in the first column of the table below a heading or a bold word."""
    part = PAGE.split(heading, 1)[1].split("\n\n")[1]
    return {name for line in part.splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_a_segment_is_read_by_the_page_alone(tmp_path: Path) -> None:
    gap = GapCounter(tmp_path)
    gap.add("disk-full", 3, NOW)
    with JournalWriter(tmp_path, gateway="gw", worker=2, project="flights", gap=gap) as writer:
        for n in range(5):
            writer.append(b'{"id":"%d","at":"2026-11-21T07:00:00.000000Z"}' % n).answered()
        path = writer.path.with_suffix(".closed")
    data = path.read_bytes()
    (_, header, _), *records, (is_footer, footer, end) = frames(data)
    assert (header["segment"], header["gateway"], header["worker"], header["follows"]) == (path.stem, "gw", 2, "")
    assert [sum(one["causes"].values()) for one in header["gaps"]] == [3]
    assert [one["id"] for _, one, _ in records] == ["0", "1", "2", "3", "4"]
    assert is_footer
    assert footer == {"count": 5, "digest": "sha256:" + hashlib.sha256(data[:end]).hexdigest(), "torn": 0}
    assert struct.unpack("<Q", path.with_suffix(".answers").read_bytes()) == (5,)
    assert (tmp_path / "newest").read_text() == path.stem


def test_a_gap_file_is_read_by_the_page_alone(tmp_path: Path) -> None:
    gap = GapCounter(tmp_path)
    gap.prepare()
    gap.add("back-pressure", 2, NOW)
    gap.add("disk-full", 1, NOW)
    (path,) = tmp_path.glob("*.gap")
    data = path.read_bytes()
    assert len(data) == FORM.size == 64
    magic, _, first, last, full, unavailable, behind = struct.unpack("<8s16sQQQQQ", data)
    assert (magic, full, unavailable, behind) == (b"MCDMGAP1", 1, 0, 2)
    assert first == last == NOW.timestamp() * 1e6
    gap.close()


def test_an_index_is_read_by_the_page_alone() -> None:
    hashes = [leaf_hash(b"%d" % n) for n in range(300)]
    data = places.build([Place(bytes([255 - n % 256, n // 256]) + bytes(14), n * 9, n) for n in range(300)], hashes)
    magic, count = struct.unpack("<8sQ", data[:16])
    assert (magic, count) == (b"MCDMPLC1", 300)
    rows = [struct.unpack("<16sQI", data[16 + 28 * n : 44 + 28 * n]) for n in range(count)]
    assert rows == sorted(rows)
    assert all(offset == number * 9 for _, offset, number in rows)
    leaves = 16 + 28 * count
    assert data[leaves : leaves + 32 * count] == b"".join(hashes)
    level = hashes[:256]
    while len(level) > 1:
        level = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=True)]
    assert data[leaves + 32 * count :] == level[0]


@pytest.mark.parametrize(
    ("heading", "kind"), [("**Header**", SegmentHeader), ("**Record**", record.Prediction)], ids=["header", "record"]
)
def test_every_field_is_on_the_page_and_no_other(heading: str, kind: type[msgspec.Struct]) -> None:
    assert table(heading) == set(kind.__struct_fields__)


def test_the_footers_fields_are_on_the_page() -> None:
    part = PAGE.split("**Footer**", 1)[1].split("\n\n")[0]
    assert set(SegmentFooter.__struct_fields__) <= set(re.findall(r"`(\w+)`", part))


def test_every_kind_of_file_is_on_the_page() -> None:
    assert {"<id>.open", "<id>.closed", "<id>.answers", "<id>.new", "newest", "<uuid>.gap"} <= table(
        "## Files\n\nThey lie"
    )
