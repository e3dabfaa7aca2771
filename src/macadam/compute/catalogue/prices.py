"""What a GPU costs by the hour, from dated price lists: on demand, spot, committed, or owned."""

from datetime import date
from typing import Literal

import msgspec

from macadam.values import Money

Kind = Literal["on-demand", "spot", "committed-1y", "committed-3y", "owned"]


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One offer. per_gpu_hour: of one GPU of the machine. gpu: the catalogue's name. gpus: how many the machine has, which is
    the least that can be rented. dated: the day on which the source said so.
    """

    provider: str
    region: str
    instance: str
    gpu: str
    gpus: int
    kind: Kind
    per_gpu_hour: Money
    dated: date
    source: str
