"""Whatever byte of a bundle is changed, the verifier refuses it."""

import json
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.verify.chains import SIGNER, WITNESS, Ledger

from macadam.ledger import bundle
from macadam_verify import __main__ as verifier

KEYS = f"# the ledger\n{SIGNER.verifier}\n\n{WITNESS.verifier}\n"
WHOLE = Ledger().bundle()


def refused(data: bytes) -> bool:
    try:
        return verifier.verify(data, KEYS, []).broken is not None
    except verifier.Unreadable:
        return True


def test_the_untouched_bundle_is_proved() -> None:
    assert not refused(WHOLE)
    assert not refused(Ledger(signers=(SIGNER, WITNESS)).bundle())


def test_flipping_one_bit_of_every_byte_is_refused() -> None:
    flips = Random(1)
    for position in range(len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[position] ^= 1 << flips.randrange(8)
        assert refused(bytes(changed)), (position, WHOLE[position - 20 : position + 20])


def test_a_byte_changed_to_a_likely_neighbour_is_refused() -> None:
    swaps = {ord("0"): ord("1"), ord("a"): ord("b"), ord('"'): ord("'"), ord(","): ord(" "), ord("/"): ord("+")}
    for position in Random(2).sample(range(len(WHOLE)), 3000):
        changed = bytearray(WHOLE)
        changed[position] = swaps.get(WHOLE[position], ord("0"))
        assert changed == WHOLE or refused(bytes(changed)), position


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_any_byte_changed_to_any_other_is_refused(position: int, by: int) -> None:
    changed = bytearray(WHOLE)
    changed[position] ^= by
    assert refused(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.binary(max_size=3))
def test_cutting_and_inserting_is_refused(position: int, cut: int, put: bytes) -> None:
    changed = WHOLE[:position] + put + WHOLE[position + cut :]
    assert changed == WHOLE or refused(changed)


def test_a_cosignature_whose_key_is_known_is_covered_too() -> None:
    whole = Ledger(signers=(SIGNER, WITNESS)).bundle()
    start = whole.index(b"witness.example")
    for position in range(start, start + 110):
        changed = bytearray(whole)
        changed[position] ^= 1
        # A witness renamed by the change is an unknown one: the ledger's word still stands, and the report says so.
        assert refused(bytes(changed)) or verifier.verify(bytes(changed), KEYS, []).not_proved


@settings(deadline=None)
@given(st.data())
def test_changing_any_value_of_the_bundle_and_spelling_it_well_is_refused(data: st.DataObject) -> None:
    parsed = json.loads(WHOLE)
    holder, key = data.draw(st.sampled_from(list(places(parsed))))
    old = holder[key]
    new = data.draw(st.sampled_from([None, True, 1.5, "", "x", 0, 1, 2, [], {}, [[]], "prediction:x", "\x1b[2J"]))
    if type(new) is type(old) and new == old:
        return
    holder[key] = new
    assert refused(bundle.encode(parsed))


def places(value):  # type: ignore[no-untyped-def]
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])
