"""What is remembered of each row of a delivery until the whole of it is read, and what only the whole tells: copies of rows,
the bills and their exact sums, and each charge's micros.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macadam.compute.billing import amounts, normal
from macadam.compute.billing.checking import Checked
from macadam.compute.billing.types import Total
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.parquet as pq

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")
    pq = lazy("pyarrow.parquet")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CATEGORIES = ("usage", "purchase", "tax", "credit", "adjustment")
_BATCH = 131_072


@dataclass(frozen=True, kw_only=True)
class BillTotals:
    """One bill of a delivery. billed, effective, unused: exact; *_micros: rounded half to even."""

    key: str
    issuer: str
    account: str
    period_start: datetime
    period_end: datetime
    currency: str
    charges: int
    billed: Decimal
    effective: Decimal
    unused: Decimal
    by_category: dict[str, Total]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All rows in order, as one array of each. digests: shape (rows, 2); keys: codes of `names`; money: shape (4, rows);
    kept: which rows are charges; final: micros that add up to the bills, shape (2, rows).
    """

    names: list[str]
    digests: "npt.NDArray[np.uint64]"
    keys: "npt.NDArray[np.int32]"
    categories: "npt.NDArray[np.int8]"
    unused: "npt.NDArray[np.bool_]"
    money: "npt.NDArray[np.int64]"
    kept: "npt.NDArray[np.bool_]"
    final: "npt.NDArray[np.int64]"


@dataclass(kw_only=True)
class Rows:
    """Arrays of one batch each, 60 bytes a row. codes: the number of each bill's key."""

    digests: "list[npt.NDArray[np.uint64]]" = field(default_factory=list)
    keys: "list[npt.NDArray[np.int32]]" = field(default_factory=list)
    categories: "list[npt.NDArray[np.int8]]" = field(default_factory=list)
    unused: "list[npt.NDArray[np.bool_]]" = field(default_factory=list)
    money: "list[npt.NDArray[np.int64]]" = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    def remember(self, checked: Checked, found: dict[str, Any]) -> None:
        encoded = normal.keys(checked).dictionary_encode()
        codes = np.array(
            [self.codes.setdefault(key, len(self.codes)) for key in encoded.dictionary.to_pylist()], dtype=np.int32
        )
        self.keys.append(codes[encoded.indices.to_numpy()])
        category = pc.index_in(found["category"], value_set=pa.array(_CATEGORIES)).to_numpy(zero_copy_only=False)
        self.categories.append(category.astype(np.int8))
        status = pc.or_(
            pc.equal(found["commitment"], pa.scalar("unused")), pc.equal(found["capacity"], pa.scalar("unused"))
        )
        # Only usage can be unused: a tax or credit that says so (lenient imports take it) stands in its own line, as it
        # does in the waterfall.
        unused = pc.and_(status, pc.equal(found["category"], pa.scalar("usage")))
        self.unused.append(unused.to_numpy(zero_copy_only=False))
        names = ("billed", "billed_rest", "effective", "effective_rest")
        self.money.append(np.stack([found[name] for name in names]))

    def repeats(self) -> "npt.NDArray[np.int64]":
        """How many rows before each are the same in every column."""
        digests = np.concatenate(self.digests)
        order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
        ordered = digests[order]
        same = np.zeros(len(digests), dtype=bool)
        same[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
        starts = np.maximum.accumulate(np.where(~same, np.arange(len(same)), 0))
        found = np.empty(len(digests), dtype=np.int64)
        found[order] = np.arange(len(same)) - starts
        return found

    def whole(self, kept: "npt.NDArray[np.bool_]") -> Whole:
        keys = np.concatenate(self.keys)
        return Whole(
            names=sorted(self.codes, key=lambda key: self.codes[key]),
            digests=np.concatenate(self.digests),
            keys=keys,
            categories=np.concatenate(self.categories),
            unused=np.concatenate(self.unused),
            money=np.concatenate(self.money, axis=1),
            kept=kept,
            final=np.zeros((2, len(keys)), dtype=np.int64),
        )


def bills(whole: Whole, progress: Callable[[str, int, int], None]) -> list[BillTotals]:
    """Each bill's sums; fills in the charges' micros on the way."""
    found = []
    for code, key in enumerate(whole.names):
        mine = np.flatnonzero((whole.keys == code) & whole.kept)
        for at in (0, 1):
            own = whole.money[2 * at, mine], whole.money[2 * at + 1, mine]
            whole.final[at, mine] = amounts.shared(*own, whole.digests[mine, 0])
        found.append(_totals(whole, key, mine))
        progress("adding up", code, len(whole.names))
    return found


def _totals(whole: Whole, key: str, mine: "npt.NDArray[np.intp]") -> BillTotals:
    issuer, account, opens, closes, currency = key.split(normal.SEPARATOR)
    categories, unused = whole.categories[mine], whole.unused[mine]
    own = whole.money[:, mine]
    by_category = {}
    for code, name in enumerate(_CATEGORIES):
        part = own[:, categories == code]
        if part.shape[1]:
            by_category[name] = Total(
                charges=part.shape[1],
                billed=amounts.written(amounts.total(part[0], part[1])),
                effective=amounts.written(amounts.total(part[2], part[3])),
            )
    idle = own[:, unused]
    return BillTotals(
        key=key,
        issuer=issuer,
        account=account,
        period_start=EPOCH + timedelta(microseconds=int(opens)),
        period_end=EPOCH + timedelta(microseconds=int(closes)),
        currency=currency,
        charges=len(mine),
        billed=amounts.total(own[0], own[1]),
        effective=amounts.total(own[2], own[3]),
        unused=amounts.total(idle[2], idle[3]),
        by_category=by_category,
    )


def write(
    whole: Whole,
    repeats: "npt.NDArray[np.int64]",
    schema: "pa.Schema",
    draft: Path,
    target: Path,
    progress: Callable[[str, int, int], None],
) -> None:
    """The draft with ids, keys and final micros. Raises StorageFull through whoever stores it."""
    values, at = pa.array(whole.names, pa.string()), 0
    with pq.ParquetFile(draft) as drafts, pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in drafts.iter_batches(_BATCH):
            here = slice(at, at + batch.num_rows)
            at += batch.num_rows
            progress("writing charges", at, len(whole.keys))
            found = {name: batch.column(name) for name in batch.schema.names}
            found["id"] = _ids(whole.digests[here], repeats[here])
            found["key"] = pa.DictionaryArray.from_arrays(whole.keys[here], values)
            found["billed"], found["effective"] = pa.array(whole.final[0, here]), pa.array(whole.final[1, here])
            made = pa.RecordBatch.from_arrays([found[f.name].cast(f.type) for f in schema], schema=schema)
            writer.write_batch(made.filter(pa.array(whole.kept[here])))


def _ids(digests: "npt.NDArray[np.uint64]", repeats: "npt.NDArray[np.int64]") -> Any:
    """A charge's id is the digest of its row, so that it is the same in every delivery; copies are numbered."""
    text = digests.astype(">u8").tobytes().hex()
    plain = [text[n : n + 32] for n in range(0, len(text), 32)]
    for row in np.flatnonzero(repeats):
        plain[row] += f"-{int(repeats[row]) + 1}"
    return pa.array(plain, pa.string())
