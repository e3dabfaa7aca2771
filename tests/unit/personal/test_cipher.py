"""Laws of encrypting one person's values: what comes back, what must not, and what the commitments bind."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.errors import IntegrityError, InvalidInput
from macadam.personal import cipher
from macadam.personal.cipher import Field, SubjectKey

PREDICTION = "0193e000-0000-7000-8000-000000000000"
paths = st.text(min_size=1, max_size=20)
values = st.lists(st.tuples(paths, st.binary(min_size=1, max_size=200).map(lambda b: b'"' + b.hex().encode() + b'"')))


def key(seed: bytes = b"k") -> SubjectKey:
    return SubjectKey(bytes(16), hashlib.sha256(seed).digest())


@given(values)
def test_what_is_sealed_opens_to_the_same_and_is_nowhere_in_the_ciphertext(some: list[tuple[str, bytes]]) -> None:
    fields = key().seal("shop", PREDICTION, some)
    assert [(f.path, key().open("shop", PREDICTION, f)) for f in fields] == some
    for field, (_, value) in zip(fields, some, strict=True):
        assert value not in field.sealed
        assert (len(field.sealed) - 12 - 16) % 32 == 0  # nonce, tag, padded text: lengths say little


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_byte_another_place_or_another_key_never_opens(value: bytes, data: st.DataObject) -> None:
    field = key().seal("shop", PREDICTION, [("inputs.email", value)])[0]
    at = data.draw(st.integers(0, len(field.sealed) - 1))
    changed = bytearray(field.sealed)
    changed[at] ^= data.draw(st.integers(1, 255))
    for attempt in (
        lambda: key().open("shop", PREDICTION, Field(field.path, bytes(changed))),
        lambda: key().open("shop", PREDICTION, Field("inputs.phone", field.sealed)),
        lambda: key().open("other", PREDICTION, field),
        lambda: key().open("shop", PREDICTION.replace("e", "f"), field),
        lambda: key(b"another").open("shop", PREDICTION, field),
    ):
        with pytest.raises(IntegrityError):
            attempt()


def test_the_same_value_twice_gives_ciphertexts_and_commitments_that_have_nothing_in_common() -> None:
    one, two = (key().seal("shop", PREDICTION, [("inputs.x", b"1")])[0] for _ in range(2))
    assert one.sealed != two.sealed
    assert key().commitments([one]) != key().commitments([two])


def test_a_commitment_fits_one_key_only() -> None:
    field = key().seal("shop", PREDICTION, [("inputs.x", b"1")])[0]
    assert cipher.commitment(key().key_id, field.sealed) != cipher.commitment(key(b"another").key_id, field.sealed)


@given(st.text(min_size=1), st.text(min_size=1), st.binary(min_size=32, max_size=32))
def test_tags_are_the_same_for_the_same_person_and_project_only(one: str, other: str, tag_key: bytes) -> None:
    assert cipher.tag(tag_key, one) == cipher.tag(tag_key, one)
    assert (cipher.tag(tag_key, one) == cipher.tag(tag_key, other)) == (one == other)
    assert cipher.tag(tag_key, one) != cipher.tag(os.urandom(32), one)
    assert cipher.tag(tag_key, one) != hashlib.sha256(one.encode()).digest()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16).filter(any))
def test_a_wrapped_key_opens_for_its_project_tag_and_subject_only(tag: bytes, subject: bytes) -> None:
    kek, data = bytes(32), os.urandom(32)
    wrapped = cipher.wrap(kek, "shop", tag, subject, data)
    assert cipher.unwrap(kek, "shop", tag, subject, wrapped) == data
    assert data not in wrapped
    wrong = bytes(31) + b"\1"
    for arguments in (
        (wrong, "shop", tag, subject),
        (kek, "bank", tag, subject),
        (kek, "shop", hashlib.sha256(tag).digest(), subject),
        (kek, "shop", tag, bytes(16)),
    ):
        with pytest.raises(IntegrityError):
            cipher.unwrap(*arguments, wrapped)


@given(st.integers(-(2**63), 2**63))
def test_a_number_and_its_digits_name_the_same_person(number: int) -> None:
    assert cipher.subject_text(number, "id") == cipher.subject_text(str(number), "id") == str(number)


@pytest.mark.parametrize("value", [None, "", True, 1.5, float("nan"), float("inf"), [1], "x" * 501])
def test_what_names_nobody_is_refused_without_being_repeated(value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        cipher.subject_text(value, "customer")
    assert refused.value.details == {"input": "customer"}
    assert "x" * 20 not in str(refused.value)
