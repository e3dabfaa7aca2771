"""Prefix caching: the same as an engine that counts blocks by hand, no better than physics, no more found than could be."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.rightsizing import slow_engine
from unit.compute.rightsizing.test_serving import alone, msgspec_speed, replica

from macadam.compute.rightsizing import bounds, capacity, prefix, roofline, traces
from macadam.compute.rightsizing.types import PHYSICS, Efficiency, Engine, Slo, Trace
from macadam.errors import InvalidInput


def sessions(seed: int, most: int = 60, unit: int = 64) -> Trace:
    """Turns of a few conversations: each begins with all that was said before, after one of two system prompts."""
    rng = random.Random(seed)
    history: list[list[int]] = [[chat % 2] for chat in range(rng.randrange(1, 6))]
    fresh, at, rows = 10, 0.0, []
    for _ in range(rng.randrange(1, most)):
        said = rng.choice(history)
        for _ in range(rng.randrange(0, 4)):
            said.append(fresh)
            fresh += 1
        if len(said) > 16:
            del said[rng.randrange(1, 8) :]
        short = rng.randrange(0, unit)
        rows.append((at, max(1, len(said) * unit - short), rng.choice([1, 2, rng.randrange(1, 120)]), tuple(said)))
        at += rng.choice([0.0, 0.0, rng.random() * 0.3, rng.expovariate(1)])
    return Trace(
        at=tuple(r[0] for r in rows), prompt=tuple(r[1] for r in rows), output=tuple(r[2] for r in rows),
        ids=tuple(r[3] for r in rows), unit=unit,
    )  # fmt: skip


@given(
    seed=st.integers(0, 2**32),
    budget=st.sampled_from([64, 512, 2048]),
    most=st.sampled_from([2, 5, 256]),
    kv=st.sampled_from([1664, 2400, 6400, 200_000]),
)
@settings(max_examples=150, deadline=None)
def test_what_is_found_again_is_what_counting_by_hand_finds(seed: int, budget: int, most: int, kv: int) -> None:
    trace, engine = sessions(seed), Engine(budget=budget, most=most)
    pace = msgspec_speed("l4-24gb", "llama-3.1-8b", engine, kv)
    quick, slow = alone(trace, pace, engine), slow_engine.serve(trace, pace, engine)
    assert quick.preempted == slow.preempted
    assert quick.finish == pytest.approx(slow.finish, rel=1e-9, abs=1e-9)
    assert quick.reused == pytest.approx(slow.reused / slow.asked)
    assert slow.most_blocks <= kv // engine.block


@given(seed=st.integers(0, 2**32), gpu=st.sampled_from(["l4-24gb", "a100-sxm-80gb"]), share=st.floats(0, 0.99))
@settings(max_examples=150, deadline=None)
def test_no_cache_makes_a_replica_better_than_physics(seed: int, gpu: str, share: float) -> None:
    for trace in (sessions(seed), traces.cached(sessions(seed), share)):
        one, engine = replica(gpu, "llama-3.1-8b", 1), Engine()
        served = alone(trace, roofline.speed(one, engine, PHYSICS), engine)
        least = bounds.busy(
            one, engine, list(zip(trace.prompt, trace.output, strict=True)), prefix.foreseen(trace) or None
        )
        assert served.busy[0] >= least * (1 - 1e-9)
        assert served.reused * sum(trace.prompt) <= sum(prefix.foreseen(trace) or (0,)) * (1 + 1e-9) or served.preempted


def test_prompts_that_share_nothing_are_served_as_without_a_cache() -> None:
    trace = sessions(4)
    apart = Trace(
        at=trace.at, prompt=trace.prompt, output=trace.output, unit=64,
        ids=tuple(tuple(1000 * n + k for k in range(len(ids))) for n, ids in enumerate(trace.ids)),
    )  # fmt: skip
    engine = Engine()
    pace = msgspec_speed("l4-24gb", "llama-3.1-8b", engine, 6400)
    plain = alone(Trace(at=trace.at, prompt=trace.prompt, output=trace.output), pace, engine)
    assert alone(apart, pace, engine).finish == pytest.approx(plain.finish)
    assert alone(apart, pace, engine).reused == 0
    assert alone(trace, pace, engine).reused > 0
    assert alone(trace, pace, engine).busy[0] < plain.busy[0]


def test_two_turns_read_what_was_said_before_once() -> None:
    """By hand: the second prompt of 200 tokens begins with the 128 of the first, two blocks of 64; 72 are computed."""
    trace = Trace(at=(0.0, 60.0), prompt=(128, 200), output=(10, 10), ids=((1, 2), (1, 2, 3, 4)), unit=64)
    engine = Engine()
    one = replica("l4-24gb", "llama-3.1-8b", 1)
    pace = roofline.speed(one, engine, Efficiency())
    served = alone(trace, pace, engine)
    assert served.reused == pytest.approx(128 / 328)
    assert served.ttft[1] == pytest.approx(pace.fixed + pace.matrices(72, 1) + pace.prompt(72, 128))
    # The same prompt again: its last token makes the next one and is computed, and with it the block it is in.
    again = Trace(at=(0.0, 60.0), prompt=(128, 128), output=(10, 10), ids=((1, 2), (1, 2)), unit=64)
    assert alone(again, pace, engine).reused == pytest.approx(64 / 256)


def test_a_smaller_memory_forgets_more() -> None:
    trace, engine = sessions(11, most=200), Engine()
    found = [
        alone(trace, msgspec_speed("l4-24gb", "llama-3.1-8b", engine, kv), engine).reused
        for kv in (1600, 3200, 200_000)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_block_that_two_use_is_kept_once() -> None:
    """Ten requests of 960 common tokens and 64 of their own: 960 + 10 x 64 fit where 10 x 1,024 would not."""
    engine = Engine()
    common = tuple(range(15))
    trace = Trace(
        at=(0.0, *(5.0,) * 10), prompt=(1024,) * 11, output=(60,) * 11,
        ids=tuple((*common, 100 + n) for n in range(11)), unit=64,
    )  # fmt: skip
    pace = msgspec_speed("l4-24gb", "llama-3.1-8b", engine, 3200)
    shared = alone(trace, pace, engine)
    apart = alone(Trace(at=trace.at, prompt=trace.prompt, output=trace.output), pace, engine)
    assert shared.preempted == 0
    assert np.ptp(shared.finish[1:]) < 0.1 * np.ptp(
        apart.finish[1:]
    )  # all at once, where the others wait for each other


def test_a_share_that_is_given_shortens_prompts_and_saves_no_memory() -> None:
    trace = Trace(at=(0.0,) * 4, prompt=(1000,) * 4, output=(50,) * 4)
    engine = Engine()
    pace = msgspec_speed("l4-24gb", "llama-3.1-8b", engine, 2400)  # two at a time
    with_hits = alone(traces.cached(trace, 0.5), pace, engine)
    assert with_hits.reused == pytest.approx(0.5)
    assert with_hits.busy[0] < alone(trace, pace, engine).busy[0]
    assert with_hits.finish[2] > with_hits.finish[1]  # the third waits for memory all the same
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(InvalidInput, match="cannot be cached"):
            traces.cached(trace, share)


def test_what_is_cached_counts_in_the_plan() -> None:
    slo, engine = Slo(ttft=2, tpot=0.1), Engine()
    trace = Trace(at=tuple(n / 4 for n in range(200)), prompt=(1500,) * 200, output=(50,) * 200)
    pace = roofline.speed(replica("l4-24gb", "llama-3.1-8b", 1), engine, Efficiency())
    works = [
        capacity.works(pace, engine, capacity.demand(traces.cached(trace, share), slo), slo)[0]
        for share in (0.0, 0.5, 0.9)
    ]
    assert works == sorted(works, reverse=True)
    assert works[2] < 0.5 * works[0]


def test_ids_that_do_not_go_with_the_engine_are_refused() -> None:
    trace = Trace(at=(0.0,), prompt=(100,), output=(1,), ids=((1,),), unit=100)
    with pytest.raises(InvalidInput, match="not made of blocks of 16"):
        alone(trace, msgspec_speed("l4-24gb", "llama-3.1-8b", Engine(), 3200), Engine())
    with pytest.raises(InvalidInput, match="Ids"):
        Trace(at=(0.0, 1.0), prompt=(1, 1), output=(1, 1), ids=((1,),), unit=64)
    with pytest.raises(InvalidInput, match="More of a prompt"):
        Trace(at=(0.0,), prompt=(10,), output=(1,), hit=(10,))
