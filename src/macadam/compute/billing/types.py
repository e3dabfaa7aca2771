"""What a bill says, in one shape: charges, whatever file or catalogue they came from; and what is asked about them."""

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec

from macadam.compute.billing import amounts
from macadam.compute.billing.focus import Version
from macadam.compute.catalogue.lists.found import Source
from macadam.compute.catalogue.prices import Kind, Price
from macadam.errors import InvalidInput
from macadam.operations import Request
from macadam.values import Money, Name, Somewhere

Category = Literal["usage", "purchase", "tax", "credit", "adjustment"]
Pricing = Literal["standard", "spot", "committed", "other", ""]
Commitment = Literal["used", "unused", ""]
Copies = Literal["refuse", "keep", "drop"]
CurrencyText = Annotated[str, msgspec.Meta(pattern=r"^([A-Z]{3})?\Z", description="ISO 4217")]
Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}\Z")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a bill. start, end: UTC, end excluded.

    billed: what the invoice says. effective: the amortised cost, which is what the waterfall shares out; a purchase has
    an effective cost of nothing, so it is never added to the usage that it pays for. resource: the provider's id, such as
    of the machine; device: 'gpu:<uuid>' or '' if the resource is the whole machine. gpus: how many it has. model: the
    catalogue's name, '' if unknown. commitment, capacity: whether what was paid in advance was used. project: from tags
    or the mapping of accounts, '' if nobody's. sku, region, provider: as the bill writes them.
    """

    id: str
    bill: str
    start: datetime
    end: datetime
    billed: Money
    effective: Money
    category: Category
    pricing: Pricing = ""
    commitment: Commitment = ""
    capacity: Commitment = ""
    provider: str = ""
    region: str = ""
    resource: str = ""
    device: str = ""
    node: str = ""
    sku: str = ""
    model: str = ""
    gpus: float = 0
    quantity: float | None = None
    unit: str = ""
    project: str = ""
    tags: dict[str, str] = {}


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The base of what is answered about bills."""


class Problem(Value, frozen=True, kw_only=True):
    """Why a row is refused. line: of the file, from 1 (of Parquet: the row). got: what stands there, shortened."""

    file: str
    line: int
    column: str
    got: str
    expected: str


class Note(Value, frozen=True, kw_only=True):
    """What is odd but makes no number wrong. rows: how many; 0 if it is of the file."""

    what: str
    rows: int = 0


class Total(Value, frozen=True, kw_only=True):
    """Exact decimal sums, as text, in the bill's currency."""

    charges: int
    billed: str
    effective: str


class Bill(Value, frozen=True, kw_only=True):
    """The charges of one issuer to one account in one billing period and currency. billed, effective: exact sums, decimal
    text. unused: of the effective cost, what was paid in advance and not used. replaced_by: the delivery that says this
    bill anew, '' if none does. withdrawn: when it was said to be a mistake, and why. Only what is neither is counted.
    restored: when it last began to count again.
    """

    id: str
    account: str
    period_start: datetime
    billed: str
    effective: str
    issuer: str
    period_end: datetime
    by_category: dict[str, Total]
    delivery: str
    at: datetime
    currency: str
    charges: int
    unused: str
    replaced_by: str = ""
    withdrawn: datetime | None = None
    why: str = ""
    restored: datetime | None = None

    @property
    def billed_micros(self) -> int:
        """Rounded half to even; what the micros of its charges add up to."""
        return amounts.in_micros(Decimal(self.billed))

    @property
    def effective_micros(self) -> int:
        """The same of the effective cost."""
        return amounts.in_micros(Decimal(self.effective))


class Delivery(Value, frozen=True, kw_only=True):
    """What one import took. missing: columns that the version asks for and the files lack; unknown: further columns, kept
    with the charges; originals: the files' digests by name. replaced: the bills that it says anew. repeated: it had been
    taken before, and nothing changed but that the bills in `restored` count again.
    """

    id: str
    version: Version
    files: str
    content: str
    originals: dict[str, str]
    rows: int
    dropped: int
    bills: tuple[Bill, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[Note, ...]
    at: datetime
    by: str
    replaced: tuple[str, ...] = ()
    repeated: bool = False
    restored: tuple[str, ...] = ()


class Withdrawn(Value, frozen=True, kw_only=True):
    """A bill that no longer counts. uncovered: bills that its delivery had replaced and that nothing says now; importing
    their files again brings them back, as it does with this one. projects: whose costs fell; cleared: alerts of budgets
    that what is left does not call for any more.
    """

    bill: Bill
    uncovered: tuple[str, ...]
    projects: tuple[str, ...]
    cleared: int


class CheckReport(Value, frozen=True, kw_only=True):
    """What importing would say. problems: the first ones, with their lines; refused: how many there are."""

    version: Version
    rows: int
    refused: int
    problems: tuple[Problem, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[Note, ...]


class BillPage(Value, frozen=True, kw_only=True):
    """A bill and whose it is, by effective cost. unattributed: what is nobody's. mapping: the version of the rules."""

    bill: Bill
    by_project: dict[str, Money]
    unattributed: Money
    mapping: int


class ChargePage(Value, frozen=True, kw_only=True):
    """charges: the first of `count`. effective, billed: of all of them, one amount for each currency."""

    count: int
    effective: tuple[Money, ...]
    billed: tuple[Money, ...]
    charges: tuple[Charge, ...]


# --- mapping


class Rule(Value, frozen=True, kw_only=True):
    """Charges whose sub-account and resource match these patterns (`*` for any text) and that carry these tags are the
    project's. A pattern or tag that is not given is no condition, but one must be.
    """

    project: Name
    sub_account: str = "*"
    resource: str = "*"
    tags: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.sub_account == self.resource == "*" and not self.tags:
            raise InvalidInput(
                f"A rule gives everything to {self.project}.", next_step="Name a sub_account, a resource or tags in it."
            )


class Mapping(Value, frozen=True, kw_only=True):
    """Whose charges are. The first rule that matches counts; else the first of `tag_keys` that a charge carries, if its
    value is a project's name; else the charge is nobody's. version: 0 if none was ever set.
    """

    version: int
    rules: tuple[Rule, ...] = ()
    tag_keys: tuple[str, ...] = ("project",)
    at: datetime | None = None
    by: str = ""


# --- requests


class ImportBill(Request[Delivery], frozen=True, kw_only=True):
    """Import a bill in FOCUS format: all of it, or nothing if a row is refused.

    path: a CSV (also gzipped) or Parquet file, or a folder whose files are one delivery, where the control plane runs
    version: of FOCUS; empty: by the columns that are there
    currency: of files without BillingCurrency, such as excerpts
    lenient: take files that lack columns, and note what FOCUS forbids but makes no sum wrong
    copies: what to do with rows that are the same in every column
    split: make one bill for each currency where an account was billed in several
    """

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    version: Literal["", "1.0", "1.1", "1.2", "1.3"] = ""
    currency: CurrencyText = ""
    lenient: bool = False
    copies: Copies = "refuse"
    split: bool = False


class CheckBill(Request[CheckReport], frozen=True, kw_only=True):
    """Say what importing a bill would refuse and note, without taking it.

    path, version, currency, lenient, copies, split: as of `cost import`
    """

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    version: Literal["", "1.0", "1.1", "1.2", "1.3"] = ""
    currency: CurrencyText = ""
    lenient: bool = False
    copies: Copies = "refuse"
    split: bool = False


class ListBills(Request[tuple[Bill, ...]], frozen=True, kw_only=True):
    """List bills, newest period first.

    all: also those that a later delivery replaced, or that were withdrawn
    """

    all: bool = False
    limit: Limit = 100


class ShowBill(Request[BillPage], frozen=True, kw_only=True):
    """Show a bill, and what of it is charged to whom."""

    bill: Id


class WithdrawBill(Request[Withdrawn], frozen=True, kw_only=True):
    """Withdraw a bill that was imported by mistake: its charges leave every total, its files stay as evidence.

    reason: why, for the ledger
    """

    bill: Id
    reason: Annotated[str, msgspec.Meta(min_length=3, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*\Z")]


class ListCharges(Request[ChargePage], frozen=True, kw_only=True):
    """List what current bills charge to a project, dearest first.

    start, end: of the charges, UTC; end excluded
    """

    project: Name
    start: datetime | None = None
    end: datetime | None = None
    limit: Limit = 100


class ListUnattributed(Request[ChargePage], frozen=True, kw_only=True):
    """List what current bills charge to nobody, dearest first.

    start, end: of the charges, UTC; end excluded
    """

    start: datetime | None = None
    end: datetime | None = None
    limit: Limit = 100


class MapCharges(Request[Mapping], frozen=True, kw_only=True):
    """Set whose charges are, by tags, accounts and resources, for all bills that are current.

    rules: in order; the first that matches counts
    tag_keys: tags whose value is a project's name, in order
    """

    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=2000)] = ()
    tag_keys: Annotated[tuple[str, ...], msgspec.Meta(max_length=20)] = ("project",)


class ShowMapping(Request[Mapping], frozen=True, kw_only=True):
    """Show the rules by which charges become projects'."""


# --- prices


class OfferedPrice(Value, frozen=True, kw_only=True):
    """What one GPU of a machine costs by the hour. gpus: how many the machine has, which is the least that can be rented.
    zone: where the price is of one zone of the region. listed: imported from the provider's own list. dated: when its source said so; age: days since then; stale: whether
    that is long ago (two weeks for a spot price, else 90 days).
    """

    provider: str
    region: str
    instance: str
    kind: Kind
    per_gpu_hour: Money
    gpu: str
    gpus: int
    source: str
    dated: date
    age: int
    stale: bool
    zone: str = ""
    listed: bool = False


class ListPrices(Request[tuple[OfferedPrice, ...]], frozen=True, kw_only=True):
    """List what a GPU costs by the hour, cheapest first, with sources and their age: those of this release and your own.

    project: whose reader asks; '*' for who may read all projects
    gpu: any name of it; empty: all
    provider, region, kind: empty: all
    at: the newest prices of this day or before; empty: today
    """

    project: Somewhere
    gpu: str = ""
    provider: str = ""
    region: str = ""
    kind: Literal["", Kind] = ""
    at: date | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100


class PriceList(Value, frozen=True, kw_only=True):
    """A list of prices that was imported. version: from 1."""

    version: int
    digest: str
    prices: int
    at: datetime
    repeated: bool = False


class ImportPrices(Request[PriceList], frozen=True, kw_only=True):
    """Add prices of your own; where they speak of an offer that is known, the one with the later date counts.

    prices: each with provider, region, instance, gpu, gpus, kind, per_gpu_hour, dated and source
    """

    prices: Annotated[tuple[Price, ...], msgspec.Meta(min_length=1, max_length=20_000)]


class PriceFile(Value, frozen=True, kw_only=True):
    """What was taken of a provider's price list. version: of the list of own prices that it became; file: its SHA-256. first,
    last: the days of its prices. rows: how many were looked at; skipped: how many were left out, by reason.
    """

    version: int
    digest: str
    prices: int
    at: datetime
    file: str
    first: date
    last: date
    rows: int
    skipped: dict[str, int]
    by_kind: dict[str, int]
    notes: tuple[str, ...] = ()
    repeated: bool = False


class ImportPriceFile(Request[PriceFile], frozen=True, kw_only=True):
    """Take today's prices from a provider's own price list, or from a CSV: all of what it says of GPUs, or nothing.

    path: the file, where the control plane runs
    from_: what it is: AWS's spot price history or price list (CSV or JSON), pages of Azure's retail prices, pages of Google
    Cloud's SKUs, or CSV with the columns that the guide names
    dated: the day on which it was fetched, where the file does not say so
    regions: only these; empty: all
    """

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    from_: Source = msgspec.field(name="from")
    dated: date | None = None
    regions: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(max_length=200)] = ()


class ExchangeRate(Value, frozen=True, kw_only=True):
    """One of `base` was worth `rate` of `quote` on the day."""

    base: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")]
    quote: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")]
    day: date
    rate: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,12})?\Z")]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class ImportRates(Request[tuple[ExchangeRate, ...]], frozen=True, kw_only=True):
    """Add dated exchange rates, with which budgets that ask for it count other currencies.

    rates: each with base, quote, day, rate and source
    """

    rates: Annotated[tuple[ExchangeRate, ...], msgspec.Meta(min_length=1, max_length=20_000)]


class ListRates(Request[tuple[ExchangeRate, ...]], frozen=True, kw_only=True):
    """List imported exchange rates, newest first."""

    project: Name
    base: CurrencyText = ""
    quote: CurrencyText = ""
    limit: Limit = 100
