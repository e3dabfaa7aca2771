"""Replicas of an endpoint: Erlang's numbers where they are exact, the trace itself where they are not."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.rightsizing import queueing
from macadam.compute.rightsizing.queueing import Work
from macadam.errors import InvalidInput, SourceInvalid


def poisson(rate: float, mean: float, count: int, seed: int = 1) -> Work:
    rng = random.Random(seed)
    at, arrivals = 0.0, []
    for _ in range(count):
        arrivals.append(at)
        at += rng.expovariate(rate)
    return Work(at=tuple(arrivals), seconds=tuple(rng.expovariate(1 / mean) for _ in range(count)))


def test_erlangs_c_is_what_the_tables_say() -> None:
    assert queueing.erlang_c(1, 0.5) == pytest.approx(0.5)  # with one server, the load itself
    assert queueing.erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert queueing.erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert queueing.erlang_c(500, 450.0) < 0.02  # and does not overflow


def test_the_part_that_waits_is_erlangs() -> None:
    work = poisson(8.0, 1.0, 60_000)
    waits = [t - s for t, s in zip(queueing.latencies(work, 10), work.seconds, strict=True)]
    assert sum(1 for wait in waits if wait > 1e-9) / len(waits) == pytest.approx(queueing.erlang_c(10, 8.0), abs=0.03)


def test_the_fewest_that_keep_the_promise_are_found() -> None:
    work = poisson(20.0, 0.1, 5000)
    found = queueing.size(work, 0.8, 0.99)
    assert found.attained >= 0.99 > found.before
    assert abs(found.foreseen - found.replicas) <= 1


@given(seed=st.integers(0, 1000), rate=st.floats(1, 40), servers=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_another_replica_makes_nobody_wait_longer(seed: int, rate: float, servers: int) -> None:
    work = poisson(rate, 0.2, 200, seed)
    fewer, more = queueing.latencies(work, servers), queueing.latencies(work, servers + 1)
    assert all(m <= f + 1e-9 for m, f in zip(more, fewer, strict=True))
    assert all(m >= s - 1e-9 for m, s in zip(more, work.seconds, strict=True))


def test_gaps_too_short_to_be_squared_are_no_error() -> None:
    work = Work(at=(0.0, 1e-300, 3e-300), seconds=(0.1, 0.1, 0.1))
    assert queueing.size(work, 0.5, 0.99).replicas == 1
    assert queueing.foreseen(work, 0.5, 0.99) == 10_000


def test_what_is_too_slow_alone_is_not_helped_by_replicas() -> None:
    with pytest.raises(InvalidInput, match="without a queue"):
        queueing.size(poisson(1.0, 1.0, 500), 0.1, 0.99)


@pytest.mark.parametrize(
    "line", ["now,1", "2026-01-01T00:00:00Z,-1", "2026-01-01T00:00:00Z,nan", "2026-01-01T00:00:00Z,1e9"]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.csv").write_text(f"TIMESTAMP,SECONDS\n2026-01-01T00:00:00Z,0.1\n{line}\n")
    with pytest.raises(SourceInvalid, match="line 3"):
        queueing.read(tmp_path / "t.csv")
