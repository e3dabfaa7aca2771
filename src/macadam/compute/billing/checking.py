"""Whether the rows of a bill can be believed: types, nulls, allowed values, and what columns say of each other.

What would make an amount wrong is always refused. What FOCUS forbids without touching a sum is refused too, unless the
caller is lenient: then it is noted. Everything works on whole columns; texts that repeat are judged once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.billing import amounts, focus, reading
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

KEPT = 1000
"""Refused cells of which line and value are kept; all are counted."""
_SHOWN = 80  # characters of a cell in a report
_AHEAD = timedelta(days=1)  # usage later than this after now is a clock's fault, not a time zone's
_NAMES = ("InvoiceIssuerName", "ServiceProviderName", "ProviderName", "BillingAccountId", "SubAccountId", "ResourceId")
"""What rows are sorted and found by."""
_SHOWN_TEXTS = (
    "ResourceName",
    "SkuId",
    "SkuPriceId",
    "RegionId",
    "ServiceName",
    "ConsumedUnit",
    "PricingUnit",
    "ChargeDescription",
)
"""What is printed, where an escape sequence could make a terminal lie."""
_ACCOUNT = "BillingAccountId"
LONGEST = 3700
"""Days of one charge: ten years is the longest that anybody commits to; reports share each out by day."""
_CODE = r"^[A-Z]{3}$"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """row: among the file's rows of the right width, from 0."""

    row: int
    column: str
    got: str
    expected: str


@dataclass(kw_only=True)
class Findings:
    """What was found in one file so far. left_out: rows of a wrong width, which are in no batch and none of `rows`."""

    refusals: list[Refusal] = field(default_factory=list)
    refused: int = 0
    left_out: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    def leave_out(self) -> None:
        self.left_out += 1


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one import holds its files to. account: whose bill it is where no column says it."""

    lenient: bool
    currency: str
    account: str
    now: datetime


class Checked:
    """One batch: the texts of known columns, and what was read from them. A column that the file lacks is all nulls."""

    def __init__(self, batch: "pa.RecordBatch", names: Mapping[str, str], terms: Terms, findings: Findings) -> None:
        self.rows = batch.num_rows
        self.texts: dict[str, Any] = {names[c]: batch.column(c) for c in batch.schema.names if c in names}
        self.values: dict[str, Any] = {}
        self._terms = terms
        self._findings = findings
        self._first = findings.rows
        findings.rows += self.rows
        self._check(batch)

    # Reading

    def text(self, name: str) -> Any:
        """The column's text, nulls if the file lacks it."""
        return self.texts[name] if name in self.texts else pa.nulls(self.rows, pa.string())

    def value(self, name: str) -> Any:
        """What was read of a decimal, instant or JSON column; nulls if the file lacks it."""
        if name in self.values:
            return self.values[name]
        kinds: dict[str, Any] = {"decimal": amounts.decimal_type(), "instant": pa.timestamp("us", tz="UTC")}
        return pa.nulls(self.rows, kinds.get(focus.COLUMNS[name].kind, pa.string()))

    def holds(self, name: str, value: str) -> "npt.NDArray[np.bool_]":
        """Which rows have this value there."""
        return _mask(pc.equal(self.text(name), value))

    def _check(self, batch: "pa.RecordBatch") -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            long = _mask(pc.greater(pc.binary_length(column), reading.MAX_CELL))
            self._refuse(long, name, f"at most {reading.MAX_CELL} bytes", column)
        for names, pattern in ((_NAMES, r"[\x00-\x1f\x7f]"), (_SHOWN_TEXTS, r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")):
            for name in names:
                if name in self.texts:
                    control = _mask(pc.match_substring_regex(self.texts[name], pattern))
                    self._refuse(control, name, "no control characters", self.texts[name])
        if focus.CURRENCY not in self.texts or (self._terms.lenient and self._terms.currency):
            text = self.text(focus.CURRENCY)
            given = pa.scalar(self._terms.currency or None, pa.string())
            self.texts[focus.CURRENCY] = pc.fill_null(text, given)
            self._note(text.null_count, f"amounts without a currency were taken as {self._terms.currency}")
        if _ACCOUNT not in self.texts:
            self.texts[_ACCOUNT] = pa.repeat(pa.scalar(self._terms.account), self.rows)
        for name in list(self.texts):
            self._check_column(focus.COLUMNS[name])
        self._check_money()
        self._check_times()
        self._check_commitments()

    def _check_column(self, column: focus.Column) -> None:
        text = self.texts[column.name]
        if column.kind == "decimal":
            read = amounts.parse(text)
            self.values[column.name] = read.values
            self._refuse(_mask(read.bad), column.name, "a decimal number below 10^12, such as -12.50", text)
            self._note(
                read.rounded, f"{column.name} has more than {amounts.PLACES} decimal places and is rounded there"
            )
        elif column.kind == "instant":
            self._check_parsed(column.name, _instant, pa.timestamp("us", tz="UTC"), "UTC such as 2026-01-31T00:00:00Z")
        elif column.kind == "json":
            self._check_json(column.name)
        if not column.nullable:
            empty = _mask(pc.is_null(text))
            if column.name in focus.ESSENTIAL or column.name == focus.CURRENCY:
                self._refuse(empty, column.name, "a value", text)
            else:
                self._forbid(empty, column.name, "a value", text)
        if column.values:
            known = pa.array(column.values, pa.string())
            other = ~_mask(pc.is_in(text, value_set=known)) & ~_mask(pc.is_null(text))
            expected = "one of " + ", ".join(column.values)
            if column.strict:
                self._refuse(other, column.name, expected, text)
            else:
                self._note(int(other.sum()), f"{column.name} is none of the values that FOCUS lists")

    def _check_parsed(self, name: str, read: Callable[[str], Any], kind: Any, expected: str) -> None:
        encoded = self.texts[name].dictionary_encode()
        values = [None if text is None else read(text) for text in encoded.dictionary.to_pylist()]
        taken = pa.array(values, kind).take(encoded.indices)
        self.values[name] = taken
        self._refuse(_mask(pc.is_null(taken)) & ~_mask(pc.is_null(self.texts[name])), name, expected, self.texts[name])

    def _check_json(self, name: str) -> None:
        """What is no JSON object is refused, or noted and taken as empty: its charge is then nobody's."""
        encoded = self.texts[name].dictionary_encode()
        values = [None if text is None else _object(text) for text in encoded.dictionary.to_pylist()]
        taken = pa.array(values, pa.string()).take(encoded.indices)
        self.values[name] = taken
        bad = _mask(pc.is_null(taken)) & ~_mask(pc.is_null(self.texts[name]))
        self._forbid(bad, name, 'a JSON object, such as {"project": "flights"}', self.texts[name])

    # What columns say of each other

    def _check_money(self) -> None:
        text = self.texts
        code = _mask(pc.match_substring_regex(text[focus.CURRENCY], _CODE)) | _mask(pc.is_null(text[focus.CURRENCY]))
        self._refuse(~code, focus.CURRENCY, "an ISO 4217 code such as USD", text[focus.CURRENCY])
        correction = self.holds("ChargeClass", "Correction")
        metered = self.holds("ChargeCategory", "Usage") | self.holds("ChargeCategory", "Purchase")
        for name in ("BilledCost", "EffectiveCost", "ConsumedQuantity", "PricingQuantity"):
            if name in self.values:
                below = _mask(pc.less(self.values[name], _decimal(0))) & metered & ~correction
                self._forbid(below, name, "nothing below zero outside of credits and corrections", text[name])
        credit = _mask(pc.greater(self.value("BilledCost"), _decimal(0))) & self.holds("ChargeCategory", "Credit")
        self._note(int(credit.sum()), "a Credit is above zero, so that it adds to the bill")
        ahead = ~_mask(pc.is_null(self.text("CommitmentDiscountId"))) | ~_mask(
            pc.is_null(self.text("CapacityReservationId"))
        )
        paid = self.holds("ChargeCategory", "Purchase") & ahead
        twice = paid & _mask(pc.not_equal(self.value("EffectiveCost"), _decimal(0)))
        expected = "0 for a purchase that other charges amortise: else it would count twice"
        self._refuse(twice, "EffectiveCost", expected, self.text("EffectiveCost"))

    def _check_times(self) -> None:
        start, end = self.value("ChargePeriodStart"), self.value("ChargePeriodEnd")
        long = _mask(pc.greater(pc.days_between(start, end), LONGEST))
        self._refuse(long, "ChargePeriodEnd", f"a charge of at most {LONGEST} days", self.text("ChargePeriodEnd"))
        opens, closes = self.value("BillingPeriodStart"), self.value("BillingPeriodEnd")
        text = self.text
        self._refuse(
            _mask(pc.less_equal(end, start)), "ChargePeriodEnd", "later than ChargePeriodStart", text("ChargePeriodEnd")
        )
        self._refuse(
            _mask(pc.less_equal(closes, opens)),
            "BillingPeriodEnd",
            "later than BillingPeriodStart",
            text("BillingPeriodEnd"),
        )
        usage = self.holds("ChargeCategory", "Usage") & ~self.holds("ChargeClass", "Correction")
        apart = _mask(pc.or_kleene(pc.less_equal(end, opens), pc.greater_equal(start, closes)))
        self._refuse(apart & usage, "ChargePeriodStart", "usage within its billing period, unless it is a Correction",
                     text("ChargePeriodStart"))  # fmt: skip
        over = _mask(pc.or_kleene(pc.less(start, opens), pc.greater(end, closes)))
        self._note(int((over & usage & ~apart).sum()), "usage is partly outside of its billing period")
        later = pa.scalar(self._terms.now + _AHEAD, pa.timestamp("us", tz="UTC"))
        self._refuse(_mask(pc.greater(start, later)) & usage, "ChargePeriodStart", "usage that has begun: not in the future",
                     text("ChargePeriodStart"))  # fmt: skip

    def _check_commitments(self) -> None:
        usage = self.holds("ChargeCategory", "Usage")
        for id_name, status in (
            ("CommitmentDiscountId", "CommitmentDiscountStatus"),
            ("CapacityReservationId", "CapacityReservationStatus"),
        ):
            has_id, has_status = ~_mask(pc.is_null(self.text(id_name))), ~_mask(pc.is_null(self.text(status)))
            self._note(int((has_id & ~has_status & usage).sum()), f"usage with a {id_name} lacks its {status}")
            self._forbid(has_status & ~usage, status, "no value outside of usage", self.text(status))
            if id_name in self.texts:
                self._forbid(has_status & ~has_id, id_name, f"a value where {status} has one", self.text(id_name))
        unused = self.holds("CommitmentDiscountStatus", "Unused") | self.holds("CapacityReservationStatus", "Unused")
        consumed = ~_mask(pc.is_null(self.text("ConsumedQuantity")))
        self._note(
            int((unused & consumed).sum()), "what is Unused has a ConsumedQuantity, which FOCUS wants to be null"
        )

    # Findings

    def _forbid(self, mask: "npt.NDArray[np.bool_]", column: str, expected: str, text: Any) -> None:
        """What FOCUS forbids, though every sum stays right."""
        if self._terms.lenient:
            self._note(int(mask.sum()), f"{column} is not {expected}")
        else:
            self._refuse(mask, column, expected, text)

    def _note(self, rows: int, what: str) -> None:
        if rows:
            self._findings.notes[what] += rows

    def _refuse(self, mask: "npt.NDArray[np.bool_]", column: str, expected: str, text: Any) -> None:
        count = int(mask.sum())
        if not count:
            return
        found = self._findings
        found.refused += count
        found.by_rule[f"{column}: {expected}"] += count
        for row in np.flatnonzero(mask)[: KEPT - len(found.refusals)]:
            got = text[int(row)].as_py()
            shown = "(no value)" if got is None else got[:_SHOWN]
            found.refusals.append(Refusal(row=self._first + int(row), column=column, got=shown, expected=expected))


def _mask(values: Any) -> "npt.NDArray[np.bool_]":
    """As numpy; null counts as false."""
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False).astype(bool)  # type: ignore[no-any-return] # numpy's own


def _decimal(value: int) -> Any:
    return pa.scalar(Decimal(value), amounts.decimal_type())


def _instant(text: str) -> datetime | None:
    """RFC 3339 with a zone; None if it is none, or has none."""
    try:
        found = datetime.fromisoformat(text.strip())
        return None if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_decode = msgspec.json.Decoder()


def _object(text: str) -> str | None:
    """A JSON object in one spelling (keys in order), None if it is none."""
    try:
        found = _decode.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return msgspec.json.encode(found, order="sorted").decode() if isinstance(found, dict) else None
