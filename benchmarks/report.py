"""What a benchmark reports: figures, each beside its budget or peer where it has one."""

import dataclasses
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number. at_most / at_least: its budget, in the same unit; None: reported only."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        under = self.at_most is None or self.value <= self.at_most
        return under and (self.at_least is None or self.value >= self.at_least)

    @property
    def budget(self) -> str:
        if self.at_most is not None:
            return f"budget ≤ {self.at_most:g} {self.unit}"
        if self.at_least is not None:
            return f"budget ≥ {self.at_least:g} {self.unit}"
        return ""

    def facts(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "met": self.met}


def median_of(values: Sequence[float]) -> float:
    """The middle of several runs: one that a busy machine slowed down does not count."""
    return statistics.median(values)


def machine() -> str:
    """What it was measured on: figures of different machines are not to be compared."""
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def show(name: str, figures: Sequence[Figure], seconds: float) -> None:
    """Prints a benchmark's figures as lines."""
    sys.stdout.write(f"\n{name} ({seconds:.1f} s)\n")
    width = max((len(figure.name) for figure in figures), default=0)
    for figure in figures:
        verdict = "" if not figure.budget else f"  {figure.budget}: {'met' if figure.met else 'MISSED'}"
        note = f"  ({figure.note})" if figure.note else ""
        sys.stdout.write(f"  {figure.name:{width}}  {figure.value:>12,.4g} {figure.unit}{verdict}{note}\n")
    sys.stdout.flush()
