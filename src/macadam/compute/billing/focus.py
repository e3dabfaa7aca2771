"""FOCUS 1.0 to 1.3, Cost and Usage: which columns there are, since when, of what type, and what they may hold.

Facts from the FinOps Open Cost and Usage Specification (CC-BY-4.0), https://focus.finops.org/focus-specification/. A
version is told by the newest column that a file has, or declared.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from macadam.errors import InvalidInput

Version = Literal["1.0", "1.1", "1.2", "1.3"]
VERSIONS: tuple[Version, ...] = ("1.0", "1.1", "1.2", "1.3")
Kind = Literal["text", "decimal", "instant", "json"]

# Without these no amount can be placed in time or told from another, so no excerpt may lack them.
ESSENTIAL = (
    "BilledCost",
    "EffectiveCost",
    "ChargeCategory",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "BillingPeriodStart",
    "BillingPeriodEnd",
)
CURRENCY = "BillingCurrency"


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """since: the version that introduced it; until: the last version that asks for it. strict: a value that is none of
    `values` is refused, as it decides about money; else it is only noted.
    """

    name: str
    kind: Kind = "text"
    since: Version = "1.0"
    until: Version = "1.3"
    mandatory: bool = False
    nullable: bool = True
    values: tuple[str, ...] = ()
    strict: bool = True


_SERVICES = (
    "AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases", "Developer Tools",
    "Multicloud", "Identity", "Integration", "Internet of Things", "Management and Governance", "Media", "Migration",
    "Mobile", "Networking", "Security", "Storage", "Web", "Other",
)  # fmt: skip
_USE = ("Used", "Unused")


def _needed(name: str, kind: Kind = "text", *, nullable: bool = False, since: Version = "1.0",
            until: Version = "1.3", values: tuple[str, ...] = (), strict: bool = True) -> Column:  # fmt: skip
    return Column(
        name=name, kind=kind, mandatory=True, nullable=nullable, since=since, until=until, values=values, strict=strict
    )


def _of(since: Version, kind: Kind, *names: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind=kind, since=since) for name in names)


_ALL: tuple[Column, ...] = (
    _needed("BilledCost", "decimal"),
    _needed("EffectiveCost", "decimal"),
    _needed("ListCost", "decimal"),
    _needed("ContractedCost", "decimal"),
    _needed("BillingAccountId"),
    _needed("BillingAccountName", nullable=True),
    _needed("BillingCurrency"),
    _needed("BillingPeriodStart", "instant"),
    _needed("BillingPeriodEnd", "instant"),
    _needed("ChargePeriodStart", "instant"),
    _needed("ChargePeriodEnd", "instant"),
    _needed("ChargeCategory", values=("Usage", "Purchase", "Tax", "Credit", "Adjustment")),
    _needed("ChargeClass", nullable=True, values=("Correction",)),
    _needed("ChargeDescription", nullable=True),
    _needed("InvoiceIssuerName"),
    _needed("PricingQuantity", "decimal", nullable=True),
    _needed("PricingUnit", nullable=True),
    _needed("ProviderName", until="1.2"),
    _needed("PublisherName", until="1.2"),
    _needed("ServiceCategory", values=_SERVICES, strict=False),
    _needed("ServiceName"),
    _needed("HostProviderName", since="1.3"),
    _needed("ServiceProviderName", since="1.3"),
    Column(name="ChargeFrequency", nullable=False, values=("One-Time", "Recurring", "Usage-Based"), strict=False),
    Column(name="CommitmentDiscountCategory", values=("Spend", "Usage"), strict=False),
    Column(name="CommitmentDiscountStatus", values=_USE),
    Column(name="CapacityReservationStatus", since="1.1", values=_USE),
    Column(name="PricingCategory", values=("Standard", "Dynamic", "Committed", "Other")),
    *_of("1.0", "decimal", "ConsumedQuantity", "ContractedUnitPrice", "ListUnitPrice"),
    *_of("1.0", "json", "Tags"),
    *_of("1.0", "text", "AvailabilityZone", "CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountType",
         "ConsumedUnit", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType", "SkuId", "SkuPriceId",
         "SubAccountId", "SubAccountName"),
    *_of("1.1", "text", "CapacityReservationId", "CommitmentDiscountUnit", "ServiceSubcategory", "SkuMeter"),
    *_of("1.1", "decimal", "CommitmentDiscountQuantity"),
    *_of("1.1", "json", "SkuPriceDetails"),
    *_of("1.2", "text", "BillingAccountType", "SubAccountType", "InvoiceId", "PricingCurrency"),
    *_of("1.2", "decimal", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost",
         "PricingCurrencyListUnitPrice"),
    *_of("1.3", "text", "AllocatedMethodId", "AllocatedResourceId", "AllocatedResourceName"),
    *_of("1.3", "json", "AllocatedMethodDetails", "AllocatedTags", "ContractApplied"),
)  # fmt: skip
COLUMNS: dict[str, Column] = {column.name: column for column in _ALL}
_BY_PLAIN = {name.lower(): name for name in COLUMNS}


def known(header: Iterable[str]) -> dict[str, str]:
    """The specification's name for each column of a file that it knows, however it is capitalised. Raises InvalidInput
    if two columns have one name: nobody can say which of them counts.
    """
    found: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in header:
        plain = name.strip().lower()
        if plain in seen:
            raise InvalidInput(
                f"The columns {seen[plain]!r} and {name!r} have one name.", next_step="Remove or rename one of them."
            )
        seen[plain] = name
        if plain in _BY_PLAIN:
            found[name] = _BY_PLAIN[plain]
    return found


def detect(names: Iterable[str]) -> Version:
    """The version that introduced the newest of these columns."""
    return max((COLUMNS[name].since for name in names), default="1.0")


def missing(names: Iterable[str], version: Version) -> tuple[str, ...]:
    """The mandatory columns of a version that are not there, in the specification's order here."""
    there = set(names)
    return tuple(c.name for c in _ALL if c.mandatory and c.since <= version <= c.until and c.name not in there)
