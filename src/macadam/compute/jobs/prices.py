"""What an hour of a job costs, by the settings' prices: GPUs held and cores held, whether used or not. Pure.

Holding is what keeps others out, so holding is what is charged; exact in micros, rounded up once at the end.
"""

from collections.abc import Sequence

import msgspec

from macadam.compute.jobs.types import WHOLE, Place
from macadam.settings import Prices as Settings
from macadam.values import Money

_HOUR_MS = 3_600_000


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """µ$ per hour of one GPU and of one core. gpu: 0 = not known."""

    gpu: int
    cpu: int

    @classmethod
    def of(cls, settings: Settings) -> "Rate":
        return cls(gpu=settings.gpu_hour_micros, cpu=settings.cpu_hour_micros)

    def cost(self, milli: int, cpu_milli: int, seconds: float) -> Money | None:
        """Of so many thousandths of GPUs and cores for so long; None if GPUs are held and have no price."""
        if milli and not self.gpu:
            return None
        thousandths = (milli * self.gpu + cpu_milli * self.cpu) * round(seconds * WHOLE)
        return Money(micros=-(-thousandths // (WHOLE * _HOUR_MS)))

    def of_places(self, places: Sequence[Place], seconds: float) -> Money | None:
        return self.cost(sum(p.milli for p in places), sum(p.cpus for p in places), seconds)
