"""Checked rows of a bill in the shape of charges: the columns in which they are stored, whatever the file called them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.billing import amounts, recognise
from macadam.compute.billing.checking import Checked
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

SEPARATOR = "\x1f"  # between the parts of a key: ASCII's own, which is in no name
_PRICING = {"Standard": "standard", "Dynamic": "spot", "Committed": "committed", "Other": "other"}
_HOURS = {"hour", "hours", "hrs", "h", "hr", "gpu-hours", "gpu hours", "1 hour", "hour(s)"}
_RECOGNISED = ("instance", "model", "gpus")


def schema(extra: Sequence[str]) -> "pa.Schema":
    """What is stored of a charge. id: of its text, the same wherever the row stands; key: of its bill. billed and
    effective: micros that add up to the bill; *_rest: what rounding took from or gave to each, so that exact amounts
    can be had: the exact micros are billed - (rounded up) + billed_rest / 10^18. extra: columns that FOCUS does not know,
    as text.
    """
    text, whole = pa.string(), pa.int64()
    fields: list[tuple[str, Any]] = [
        ("id", text),
        ("key", pa.dictionary(pa.int32(), text)),
        ("start", pa.timestamp("us", tz="UTC")),
        ("end", pa.timestamp("us", tz="UTC")),
        ("billed", whole),
        ("billed_rest", whole),
        ("effective", whole),
        ("effective_rest", whole),
        ("listed", amounts.decimal_type()),
        ("category", text),
        ("correction", pa.bool_()),
        ("pricing", text),
        ("commitment", text),
        ("capacity", text),
        ("provider", text),
        ("region", text),
        ("service", text),
        ("resource", text),
        ("node", text),
        ("sku", text),
        ("instance", text),
        ("model", text),
        ("gpus", pa.float64()),
        ("quantity", pa.float64()),
        ("unit", text),
        ("sub_account", text),
        ("tags", text),
        ("description", text),
        *((name, text) for name in extra),
    ]
    return pa.schema([pa.field(name, kind) for name, kind in fields])


def keys(checked: Checked) -> Any:
    """Of each row the bill that it belongs to: issuer, account, start and end of the period, and currency."""
    empty = pa.scalar("", pa.string())
    issuer = pc.coalesce(
        checked.text("InvoiceIssuerName"), checked.text("ServiceProviderName"), checked.text("ProviderName"), empty
    )
    account = pc.fill_null(checked.text("BillingAccountId"), "")
    opens, closes = (
        checked.value(name).cast(pa.int64()).cast(pa.string()) for name in ("BillingPeriodStart", "BillingPeriodEnd")
    )
    currency = pc.fill_null(checked.text("BillingCurrency"), "")
    return pc.binary_join_element_wise(issuer, account, opens, closes, currency, SEPARATOR, null_handling="replace")


def digests(batch: "pa.RecordBatch", names: Sequence[str]) -> "npt.NDArray[np.uint64]":
    """128 bits of each row's text, the columns in the order of `names`; shape (rows, 2)."""
    columns = [pc.fill_null(batch.column(name), "\x00") for name in names]
    joined = pc.binary_join_element_wise(*columns, SEPARATOR) if len(columns) > 1 else columns[0]
    hashed = b"".join(hashlib.blake2b(row.encode(), digest_size=16).digest() for row in joined.to_pylist())
    return np.frombuffer(hashed, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def charges(checked: Checked, batch: "pa.RecordBatch", extra: Mapping[str, str]) -> dict[str, Any]:
    """All columns of `schema` but those that only the whole delivery tells: id, key and the shared micros.

    extra: the file's name of each further column by its name here.
    """
    billed, billed_rest = amounts.split(checked.value("BilledCost"))
    effective, effective_rest = amounts.split(checked.value("EffectiveCost"))
    text = checked.text
    found: dict[str, Any] = {
        "start": checked.value("ChargePeriodStart"),
        "end": checked.value("ChargePeriodEnd"),
        "billed": billed,
        "billed_rest": billed_rest,
        "effective": effective,
        "effective_rest": effective_rest,
        "listed": checked.value("ListCost"),
        "category": pc.utf8_lower(text("ChargeCategory")),
        "correction": pc.fill_null(pc.equal(text("ChargeClass"), pa.scalar("Correction")), False),
        "pricing": _of(text("PricingCategory"), lambda value: _PRICING.get(value, "")),
        "commitment": pc.utf8_lower(_plain(text("CommitmentDiscountStatus"))),
        "capacity": pc.utf8_lower(_plain(text("CapacityReservationStatus"))),
        "provider": _plain(pc.coalesce(text("ServiceProviderName"), text("ProviderName"), text("PublisherName"))),
        "region": _plain(text("RegionId")),
        "service": _plain(text("ServiceName")),
        "resource": _plain(text("ResourceId")),
        "node": _plain(text("ResourceName")),
        "sku": _plain(pc.coalesce(text("SkuId"), text("SkuPriceId"))),
        "unit": _plain(pc.coalesce(text("ConsumedUnit"), text("PricingUnit"))),
        "sub_account": _plain(text("SubAccountId")),
        "tags": pc.fill_null(checked.value("Tags"), "{}"),
        "description": _plain(text("ChargeDescription")),
    }
    quantity = pc.coalesce(checked.value("ConsumedQuantity"), checked.value("PricingQuantity")).cast(pa.float64())
    found["quantity"] = quantity
    found |= _gpus(checked, batch, found)
    found |= {name: batch.column(column) for name, column in extra.items()}
    return found


def _plain(text: Any) -> Any:
    return pc.fill_null(text, "")


def _of(column: Any, change: Callable[[str], str]) -> Any:
    """The column with each of its values changed, null as ''."""
    encoded = column.dictionary_encode()
    values = [change(value or "") for value in encoded.dictionary.to_pylist()]
    return pc.fill_null(pa.array(values, pa.string()).take(encoded.indices), "")


def _gpus(checked: Checked, batch: "pa.RecordBatch", found: Mapping[str, Any]) -> dict[str, Any]:
    """What GPUs each row is for. Rows that say the same of it are asked once."""
    details = checked.value("SkuPriceDetails")
    if not pc.any(pc.is_valid(details)).as_py():  # FOCUS 1.0 has no such column; providers gave it another name
        details = _other_details(batch)
    asked = [details, checked.text("SkuMeter"), checked.text("SkuId"), checked.text("ChargeDescription")]
    joined = pc.binary_join_element_wise(*(pc.fill_null(column, "") for column in asked), SEPARATOR)
    encoded = joined.dictionary_encode()
    rows = [recognise.of(*text.split(SEPARATOR)) for text in encoded.dictionary.to_pylist()]
    columns: dict[str, Any] = {
        name: pa.array([getattr(row, name) for row in rows], pa.float64() if name == "gpus" else pa.string()).take(
            encoded.indices
        )
        for name in _RECOGNISED
    }
    columns["gpus"] = pa.array(_counted(columns, found))
    return columns


def _other_details(batch: "pa.RecordBatch") -> Any:
    for name in batch.schema.names:
        if name.lower() in ("x_skudetails", "x_instancetype"):
            plain = name.lower() == "x_instancetype"
            column = batch.column(name)
            return _of(column, _as_details) if plain else _of(column, _if_object)
    return pa.nulls(batch.num_rows, pa.string())


def _as_details(instance: str) -> str:
    return msgspec.json.encode({"InstanceType": instance}).decode() if instance else ""


def _if_object(text: str) -> str:
    return text if text.startswith("{") and text.endswith("}") else ""


def _counted(columns: Mapping[str, Any], found: Mapping[str, Any]) -> "npt.NDArray[np.float64]":
    """Where a meter is of GPUs by the hour and says no number of them, it is its hours by those of the charge."""
    gpus: npt.NDArray[np.float64] = columns["gpus"].to_numpy(zero_copy_only=False)
    known = np.asarray(pc.not_equal(columns["model"], pa.scalar("")).to_numpy(zero_copy_only=False), dtype=bool)
    units = _of(found["unit"], lambda unit: "h" if unit.strip().lower() in _HOURS else "")
    hourly = np.asarray(pc.equal(units, pa.scalar("h")).to_numpy(zero_copy_only=False), dtype=bool)
    open_ones = known & hourly & (gpus == 0)
    if not open_ones.any():
        return gpus
    start, end = (found[name].cast(pa.int64()).to_numpy(zero_copy_only=False) for name in ("start", "end"))
    hours = np.maximum((end - start) / 3.6e9, 1e-9)
    quantity = np.nan_to_num(found["quantity"].to_numpy(zero_copy_only=False))
    return np.where(open_ones, np.clip(quantity / hours, 0, 100_000), gpus)
