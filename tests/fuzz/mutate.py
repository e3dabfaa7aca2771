"""A small mutation engine: valid inputs in, nearly valid ones out, some hundred thousand a minute, repeatable by a seed.

`fuzz` runs a check over many of them. The check says how each input ended (a word or a short sentence); an input whose
ending was not seen before joins those that are mutated further, so that it digs past the first checks without an
instrumented interpreter. What must never happen, the check raises: the failure then carries the input.

    def check(data: bytes) -> str:
        try:
            parse(data)
        except IntegrityError as error:
            return error.what[:40]
        assert is_really_valid(data)      # a false accept fails here
        return "accepted"

    fuzz(check, [VALID, ANOTHER], count=inputs(5_000), words=[b"MAGIC", b"sha256:"])
"""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SOAK = os.environ.get("MACADAM_SOAK") == "1"
SOAK_INPUTS = 1_000_000
_MOST_KEPT = 400
"""Of inputs with endings of their own: a message with an offset in it would otherwise fill the memory."""
_LARGEST = 1 << 20
"""Bytes of an input: what doubles is cut here."""
_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    11,
    12,
    31,
    32,
    127,
    128,
    255,
    256,
    0x7FFF,
    0xFFFF,
    1 << 24,
    (1 << 24) + 1,
    0x7FFFFFFF,
    1 << 31,
)
_NUMBERS += (0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_DIGITS = (
    b"0",
    b"-1",
    b"1e309",
    b"18446744073709551616",
    b"00",
    b"0.5",
    b"9" * 40,
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
)


def inputs(short: int) -> int:
    """How many inputs to try: a million in a soak, else `short`."""
    return SOAK_INPUTS if SOAK else short


@dataclass
class Ran:
    """What a run saw. endings: how often each was met, by the check's own words."""

    count: int = 0
    endings: dict[str, int] = field(default_factory=dict)


class Failed(AssertionError):
    """A check failed. data: the input that did it; the message holds it too, as Python source."""

    def __init__(self, data: bytes, number: int, seed: int, error: BaseException) -> None:
        shown = repr(data) if len(data) <= 4000 else f"{data[:2000]!r} … {len(data)} bytes … {data[-1000:]!r}"
        super().__init__(f"input {number} of seed {seed}: {type(error).__name__}: {error}\n{shown}")
        self.data = data


class Mutator:
    """Makes inputs out of valid ones. words: bytes that mean something in the format."""

    def __init__(self, corpus: Sequence[bytes], *, seed: int = 0, words: Sequence[bytes] = ()) -> None:
        self._dice = random.Random(seed)
        self._corpus = list(corpus) or [b""]
        self._first = len(self._corpus)
        self._words = [*words, *_DIGITS]
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._flip,
            self._set,
            self._remove,
            self._insert,
            self._repeat,
            self._swap,
            self._cut,
            self._number,
            self._word,
            self._splice,
            self._zero,
        )

    def __call__(self) -> bytes:
        """One input: mostly one change, so that it gets far, at times many."""
        dice = self._dice
        # Half of them from the valid ones: what ended in some new way is often far from valid.
        data = bytearray(dice.choice(self._corpus[: self._first] if dice.random() < 0.5 else self._corpus))
        for _ in range(1 if dice.random() < 0.6 else dice.randint(2, 8)):
            dice.choice(self._ways)(data)
        return bytes(data[:_LARGEST])

    def keep(self, data: bytes) -> None:
        """Mutates this input too from now on."""
        if len(self._corpus) < self._first + _MOST_KEPT:
            self._corpus.append(data)
        else:
            self._corpus[self._dice.randrange(self._first, len(self._corpus))] = data

    def _place(self, data: bytearray) -> int:
        return self._dice.randrange(len(data)) if data else 0

    def _range(self, data: bytearray) -> tuple[int, int]:
        start = self._place(data)
        longest = self._dice.choice((1, 4, 16, 64, 1024))
        return start, min(len(data), start + self._dice.randint(1, longest))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] ^= 1 << self._dice.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] = self._dice.choice(
                (0, 9, 10, 13, 32, 34, 48, 57, 92, 123, 125, 127, 128, 195, 255)
            )

    def _remove(self, data: bytearray) -> None:
        start, end = self._range(data)
        del data[start:end]

    def _insert(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._dice.randbytes(self._dice.choice((1, 2, 4, 12, 40)))

    def _repeat(self, data: bytearray) -> None:
        start, end = self._range(data)
        at = self._place(data)
        data[at:at] = data[start:end] * self._dice.choice((1, 1, 2, 16))

    def _swap(self, data: bytearray) -> None:
        """Two neighbouring stretches change places."""
        start, middle = self._range(data)
        end = min(len(data), middle + self._dice.randint(1, 64))
        data[start:end] = data[middle:end] + data[start:middle]

    def _cut(self, data: bytearray) -> None:
        at = self._place(data)
        if self._dice.random() < 0.8:
            del data[at:]
        else:
            del data[:at]

    def _number(self, data: bytearray) -> None:
        width = self._dice.choice((1, 2, 4, 8))
        order = self._dice.choice(("little", "big"))
        value = (self._dice.choice(_NUMBERS) + self._dice.choice((-1, 0, 0, 1))) % (1 << 8 * width)
        at = self._place(data)
        data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]

    def _word(self, data: bytearray) -> None:
        at, word = self._place(data), self._dice.choice(self._words)
        data[at : at + (len(word) if self._dice.random() < 0.5 else 0)] = word

    def _splice(self, data: bytearray) -> None:
        """The beginning of one and the end of another."""
        other = self._dice.choice(self._corpus)
        data[self._place(data) :] = other[self._place(bytearray(other)) :]

    def _zero(self, data: bytearray) -> None:
        start, end = self._range(data)
        data[start:end] = bytes(end - start)


def fuzz(
    check: Callable[[bytes], str], corpus: Sequence[bytes], *, count: int, seed: int = 0, words: Sequence[bytes] = ()
) -> Ran:
    """Checks every valid input, then `count` mutated ones. Raises Failed with the first input that the check fails on."""
    ran, mutator = Ran(), Mutator(corpus, seed=seed, words=words)
    known = len(corpus)
    for number in range(known + count):
        data = corpus[number] if number < known else mutator()
        try:
            ending = check(data)
        except Exception as error:
            raise Failed(data, number, seed, error) from error
        ran.count += 1
        if ending not in ran.endings:
            mutator.keep(data)
        ran.endings[ending] = ran.endings.get(ending, 0) + 1
    return ran
