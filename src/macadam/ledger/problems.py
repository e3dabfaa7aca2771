"""What verification complains about: sentences, of which so many are kept as a person can read."""

from collections.abc import Iterable

MOST = 1000
"""A ledger of millions of leaves that lost its order has a problem at each of them: the rest is counted."""


class Problems:
    """Collects sentences in the order in which they are found."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._more = 0

    def add(self, problem: str) -> None:
        if len(self._kept) < MOST:
            self._kept.append(problem)
        else:
            self._more += 1

    def extend(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self.add(problem)

    def all(self) -> tuple[str, ...]:
        """The sentences; the last one counts what is not among them."""
        return (*self._kept, f"and {self._more} more problems") if self._more else tuple(self._kept)
