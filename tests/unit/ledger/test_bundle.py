"""Bundles are only built if they add up; that they prove something is for the verifier's own tests."""

import json

import pytest
from unit.verify.chains import RECORD, Ledger

from macadam.errors import IntegrityError, InvalidInput
from macadam.ledger import bundle


def test_a_bundle_holds_the_exact_bytes_and_stays_small() -> None:
    ledger = Ledger()
    parts = ledger.parts()
    data = bundle.build(**parts)
    read = json.loads(data)
    assert read["format"] == "macadam-proof/1"
    assert read["claim"] == f"prediction:{RECORD['id']}"
    assert read["record"].encode() == parts["record"]
    assert [entry["leaf"].encode() for entry in read["leaves"]] == [chained.data for chained in parts["leaves"]]
    assert read["leaves"][read["segment"]["leaf"]]["role"] == "segment"
    assert data == bundle.encode(read)
    assert len(data) < 65_536


def test_a_leaf_that_is_not_in_the_ledger_is_not_bundled() -> None:
    parts = Ledger().parts()
    moved = [bundle.ChainLeaf(role=c.role, index=c.index - (c.role == "run"), data=c.data) for c in parts["leaves"]]
    with pytest.raises(IntegrityError, match="does not lead to the root"):
        bundle.build(**(parts | {"leaves": moved}))


def test_a_record_that_is_not_in_the_segment_is_not_bundled() -> None:
    parts = Ledger().parts()
    with pytest.raises(IntegrityError, match="sealed segment"):
        bundle.build(**(parts | {"record": parts["record"].replace(b"UA", b"AA")}))


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff", b"1"])
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(InvalidInput, match="no prediction record"):
        bundle.build(**(Ledger().parts() | {"record": record}))


def test_a_bundle_needs_its_segment() -> None:
    parts = Ledger().parts()
    without = [chained for chained in parts["leaves"] if chained.role != "segment"]
    with pytest.raises(InvalidInput, match="role segment"):
        bundle.build(**(parts | {"leaves": without}))


def test_a_malformed_checkpoint_is_refused() -> None:
    with pytest.raises(InvalidInput):
        bundle.build(**(Ledger().parts() | {"checkpoint": "none"}))
