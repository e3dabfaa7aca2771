"""Amounts of bills, exactly: as many digits as bills give, and shares in micros that add up to the bill.

An amount is held as two whole numbers: micros, rounded down, and the rest in 10⁻²⁴ units (0 ≤ rest < 10¹⁸). Sums of both
are exact. Where each charge must be in micros, those with the largest rests are rounded up until the sum is the bill's
own, rounded half to even: the largest remainder method, ties by the charge's id, so that the order of rows is no matter.
"""

import re
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

PLACES = 24
_DIGITS = 37
REST = 10**18
"""Units of rest in one micro."""
MOST = Decimal(10) ** 12
"""No single amount is as large: micros of it would near the end of 64 bits."""
_PLAIN = rf"^-?(\d{{1,12}}(\.\d{{1,{PLACES}}})?|\.\d{{1,{PLACES}}})$"
# FOCUS's numeric format has no '+' before the number, no thousands and no units; exponents came with 1.1.
_GRAMMAR = re.compile(r"-?(\d{1,60}(\.\d{0,60})?|\.\d{1,60})([eE][+-]?\d{1,2})?", re.ASCII)


class Parsed(msgspec.Struct, kw_only=True):
    """values: decimal128(37, 24), null where there is none or it cannot be read. bad: which cannot. rounded: how many had
    more than 24 decimal places, and were rounded there.
    """

    values: Any
    bad: Any
    rounded: int


def decimal_type() -> "pa.Decimal128Type[Any, Any]":
    return pa.decimal128(_DIGITS, PLACES)


def parse(texts: "pa.Array[Any]") -> Parsed:
    """Reads decimal numbers from text; whitespace around them is no matter."""
    trimmed = pc.utf8_trim_whitespace(texts)
    plain = pc.fill_null(pc.match_substring_regex(trimmed, _PLAIN), True)
    nobody = pa.array(np.zeros(len(texts), dtype=bool))
    if pc.all(plain).as_py() is not False:
        return Parsed(values=trimmed.cast(decimal_type()), bad=nobody, rounded=0)
    odd = {text: _odd(text) for text in pc.unique(pc.filter(trimmed, pc.invert(plain))).to_pylist()}
    said: list[str | None] = []
    bad: list[bool] = []
    rounded = 0
    for text, fine in zip(trimmed.to_pylist(), plain.to_pylist(), strict=True):
        read = text if fine else odd[text][0]
        rounded += 0 if fine else odd[text][1]
        said.append(read)
        bad.append(text is not None and read is None)
    return Parsed(
        values=pa.array(said, pa.string()).cast(decimal_type()), bad=pa.array(bad, pa.bool_()), rounded=rounded
    )


def _odd(text: str) -> tuple[str | None, bool]:
    """A number in other notation as plain decimal text, and whether it had to be rounded; None if it is none."""
    if not _GRAMMAR.fullmatch(text):
        return None, False
    value = Decimal(text)
    if abs(value) >= MOST:
        return None, False
    with localcontext(prec=200):
        kept = value.quantize(Decimal(1).scaleb(-PLACES), ROUND_HALF_EVEN)
        return f"{kept:f}", kept != value


def split(values: "pa.Array[Any]") -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """Micros, rounded down, and rests. Nulls count as nothing."""
    filled = pc.fill_null(values, pa.scalar(Decimal(0), decimal_type()))
    floor = pc.round(filled, ndigits=6, round_mode="down")
    rest = pc.subtract(filled, floor)
    return _unscaled(floor.cast(pa.decimal128(_DIGITS, 6))), _unscaled(rest)


def _unscaled(values: "pa.Array[Any]") -> "npt.NDArray[np.int64]":
    """The whole numbers inside decimals that fit 64 bits: the lower word of each, two's complement."""
    buffer: Any = values.buffers()[1]
    words: npt.NDArray[np.int64] = np.frombuffer(buffer, dtype="<i8")[0::2]
    return words[values.offset : values.offset + len(values)].copy()


def total(micros: "npt.NDArray[np.int64]", rest: "npt.NDArray[np.int64]") -> Decimal:
    """The exact sum."""
    units = exact_sum(micros) * REST + exact_sum(rest)
    with localcontext(prec=200):
        return Decimal(units).scaleb(-PLACES)


def exact_sum(numbers: "npt.NDArray[np.int64]") -> int:
    """The sum of 64-bit numbers, which may need more than 64 bits."""
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())


def shared(
    micros: "npt.NDArray[np.int64]", rest: "npt.NDArray[np.int64]", order: "npt.NDArray[Any]"
) -> "npt.NDArray[np.int64]":
    """Micros for each amount, each within one of it, that add up to the sum rounded half to even.

    order: what ties are broken by.
    """
    rests = exact_sum(rest)
    up = _half_even(rests, REST, exact_sum(micros))
    found = micros.copy()
    if up:
        found[np.lexsort((order, -rest))[:up]] += 1
    return found


def _half_even(part: int, whole: int, floor: int) -> int:
    """How many wholes `part` is, rounded so that `floor` plus it is rounded half to even."""
    count, left = divmod(part, whole)
    if 2 * left > whole or (2 * left == whole and (floor + count) % 2):
        return count + 1
    return count


def added(one: Decimal, other: Decimal) -> Decimal:
    """Exactly, whatever the digits of each."""
    with localcontext(prec=200):
        return one + other


def in_micros(amount: Decimal) -> int:
    """Rounded half to even."""
    with localcontext(prec=200):
        return int((amount * 1_000_000).to_integral_value(ROUND_HALF_EVEN))


def written(amount: Decimal) -> str:
    """Exact decimal text without an exponent or needless zeros, at least to the cent."""
    text = f"{amount:f}"
    whole, _, places = text.partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"
