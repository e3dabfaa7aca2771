"""Sources are read side by side: one that fails or hangs is said to, and holds nothing up."""

import threading
import time
from datetime import UTC, datetime

import pytest

from macadam.compute.telemetry.collecting import Collector
from macadam.compute.telemetry.types import Sample
from macadam.errors import Unavailable

NOW = datetime(2026, 11, 20, tzinfo=UTC)


class Stub:
    """A source that waits for `free` before it answers, and says how often it was asked."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error = name, error
        self.free = threading.Event()
        self.free.set()
        self.asked = self.closed = 0

    def read(self, now: datetime) -> tuple[list[Sample], list[str]]:
        self.asked += 1
        self.free.wait(20)
        if self.error is not None:
            raise self.error
        return [Sample(device=f"gpu:{self.name}", at=now)], []

    def close(self) -> None:
        self.closed += 1


def test_a_source_that_hangs_is_named_and_holds_nothing_up_and_is_asked_again_once_it_answers() -> None:
    good, stuck = Stub("good"), Stub("stuck")
    stuck.free.clear()
    with Collector([stuck, good], clock=lambda: NOW, patience=0.2) as collector:
        for turn in range(1, 4):
            began = time.monotonic()
            reading = collector.read()
            assert time.monotonic() - began < 5
            assert [s.device for s in reading.samples] == ["gpu:good"]
            assert "has not answered" in reading.problems["stuck"][0]
            assert (good.asked, stuck.asked) == (turn, 1)
        stuck.free.set()
        assert [s.device for s in collector.read().samples] == ["gpu:stuck", "gpu:good"]
        collector.read()
        assert stuck.asked == 2
        stuck.free.clear()
        collector.read()
    assert (good.closed, stuck.closed) == (1, 0)
    stuck.free.set()


def test_a_source_that_fails_is_named_and_the_others_are_read() -> None:
    with Collector([Stub("good"), Stub("away", Unavailable("It is off."))], clock=lambda: NOW) as collector:
        for _ in range(2):
            reading = collector.read()
            assert [s.device for s in reading.samples] == ["gpu:good"]
            assert "off" in reading.problems["away"][0]


def test_a_fault_of_ours_is_not_taken_for_a_sources() -> None:
    with Collector([Stub("odd", ZeroDivisionError())], clock=lambda: NOW) as collector:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                collector.read()
