"""The mutation engine itself: it repeats by its seed, and it finds faults that are planted for it."""

import pytest
from fuzz.mutate import Failed, Mutator, fuzz

VALID = b'MAGIC\x05\x00\x00\x00{"count":12,"name":"some text that is long enough to be cut"}'


def test_the_same_seed_makes_the_same_inputs_and_another_seed_others() -> None:
    def some(seed: int) -> list[bytes]:
        mutator = Mutator([VALID], seed=seed)
        return [mutator() for _ in range(200)]

    assert some(1) == some(1) != some(2)
    assert len(set(some(1))) > 150


def test_an_input_that_a_check_fails_on_is_named() -> None:
    def check(data: bytes) -> str:
        assert data[:5] != b"MAGIC" or data == VALID or b"12" in data
        return ""

    with pytest.raises(Failed, match="of seed 0") as caught:
        fuzz(check, [VALID], count=5_000)
    assert caught.value.data.startswith(b"MAGIC")


def test_inputs_with_new_endings_are_mutated_further() -> None:
    """A fault behind four checks in a row is found, since what passes one of them is kept."""

    def check(data: bytes) -> str:
        passed = 0
        for place, wanted in enumerate(b"\x00\x00\x00\x00"):
            if data[place : place + 1] != bytes([wanted]):
                break
            passed += 1
        assert passed < 4
        return str(passed)

    with pytest.raises(Failed):
        fuzz(check, [b"\x01\x02\x03\x04" * 8], count=100_000)
