"""What a bill says, in one shape: charges, whatever file or catalogue they came from."""

from datetime import datetime
from typing import Literal

import msgspec

from macadam.values import Money

Category = Literal["usage", "purchase", "tax", "credit", "adjustment"]
Pricing = Literal["standard", "spot", "committed", "other", ""]
Commitment = Literal["used", "unused", ""]


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
