"""What the waterfall says: steps from the bill down to effective work, each with its money, and what could not be told."""

from datetime import date
from typing import Literal

import msgspec

from macadam.values import Money

Step = Literal[
    "tax",
    "credit",
    "adjustment",
    "purchase",
    "other",
    "unused",
    "no_telemetry",
    "not_believed",
    "unallocated",
    "host",
    "not_measured",
    "idle",
    "low_sm",
    "below_peak",
    "effective",
]
"""Where a part of the bill ends up. Every millionth of it is in exactly one of them."""

STEPS: dict[Step, tuple[str, str]] = {
    "tax": ("taxes", "as the bill says"),
    "credit": ("credits and refunds", "as the bill says; negative, they make the bill smaller"),
    "adjustment": ("adjustments", "as the bill says"),
    "purchase": (
        "purchases",
        "bought at once and not written off over its use; a commitment's purchase is nothing here",
    ),
    "other": ("other services", "no machine that was seen or says it has GPUs: storage, network, support"),
    "unused": ("unused commitment", "paid in advance, for machines or reservations, and not used"),
    "no_telemetry": ("unattributed: no telemetry", "machine time that nothing was seen of"),
    "not_believed": ("unattributed: not believed", "machine time whose telemetry is flagged; nobody is charged on it"),
    "unallocated": ("unallocated", "machine time that nobody had"),
    "host": ("machines without GPUs", "machine time that somebody had; no waterfall of GPU work applies"),
    "not_measured": ("allocated, not measured", "somebody had it, and how busy it was is not known"),
    "idle": ("allocated, idle", "somebody had it, and no kernel ran"),
    "low_sm": ("active, low SM", "kernels ran, on part of the streaming multiprocessors"),
    "below_peak": ("SMs busy, below peak", "multiprocessors were busy, below the peak of their matrix units"),
    "effective": ("effective", "the part of the dense peak that was achieved"),
}
"""Every step in the order of the waterfall: its title, and what is in it."""

By = Literal["project", "owner", "model", "run", "endpoint", "job", "gpu", "day"]
Basis = Literal["", "mfu", "tensor", "sm"]
"""What the effective part was taken from: model FLOPs that were counted, activity of the matrix units, or, as an upper
bound, activity of the multiprocessors."""


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """Something in bills or telemetry that was not taken as it came. what: in words; count: of rows or charges;
    example: one of them.
    """

    what: str
    count: int
    example: str = ""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One step. gpu_hours: billed device time in it; 0 for what is no machine time. part: of the bill, None if that is 0."""

    step: Step
    title: str
    amount: Money
    gpu_hours: float
    part: float | None
    about: str


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """From a bill in one currency to effective work. bill: the sum of all effective (amortised) costs, and of all lines,
    exactly. key: what it is of, such as 'project:vision', '' for everything that was asked for.

    bases: how much of the effective part was taken from what, see `Basis`.
    """

    key: str
    bill: Money
    lines: tuple[Line, ...]
    bases: dict[str, Money] = {}

    def amount(self, step: Step) -> int:
        """Micros in a step."""
        return sum(line.amount.micros for line in self.lines if line.step == step)


class DayCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one day (UTC) cost, and how much of it was effective."""

    day: date
    bill: Money
    effective: Money


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """Telemetry that is not believed, with the money that is therefore nobody's. reason: of the check that flagged it."""

    device: str
    reason: str
    gpu_hours: float
    amount: Money


class Uncharged(msgspec.Struct, frozen=True, kw_only=True):
    """Device time that somebody had and that no charge covers."""

    owner: str
    project: str
    gpu_hours: float
