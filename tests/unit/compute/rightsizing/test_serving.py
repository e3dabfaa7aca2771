"""The simulator: the same as one that takes no shortcuts, and never better than physics."""

import math
import random
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.rightsizing import slow_engine

from macadam.compute.catalogue import gpus, llms
from macadam.compute.rightsizing import bounds, roofline, serving, traces
from macadam.compute.rightsizing.types import PHYSICS, Efficiency, Engine, Replica, Slo, Trace
from macadam.errors import InvalidInput

AZURE = Path(__file__).parents[5] / "shared/data/llm/AzureLLMInferenceTrace_conv.csv"
KINDS = ["t4-16gb", "l4-24gb", "a10g-24gb", "a100-sxm-80gb", "h100-sxm-80gb", "mi300x-192gb"]
MODELS = ["llama-3.2-1b", "llama-3.1-8b", "qwen2.5-7b", "mixtral-8x7b"]


def replica(gpu: str, model: str, tp: int) -> Replica:
    return Replica(llm=llms.find(model), gpu=gpus.find(gpu), tp=tp)


def alone(trace: Trace, pace: roofline.Speed, engine: Engine, copies: int = 1) -> serving.Served:
    return serving.serve(trace, [pace] * copies, engine, classes=[0] * len(trace), work=[[1.0] * copies])


@st.composite
def requests(draw: st.DrawFn, most: int = 80) -> Trace:
    """Bursts, pauses, short and long ones. Drawn from a seed, since lists that hypothesis draws item by item stay
    short.
    """
    rng = random.Random(draw(st.integers(0, 2**32)))
    count = rng.randrange(1, most)
    gaps = [rng.choice([0.0, 0.0, rng.random() * 0.2, rng.expovariate(2)]) for _ in range(count)]
    longest = rng.choice([60, 300, 1200])
    prompt = tuple(rng.randrange(1, longest) for _ in gaps)
    output = tuple(rng.choice([1, 2, rng.randrange(1, 120), rng.randrange(1, 400)]) for _ in gaps)
    return Trace(at=tuple(float(x) for x in np.cumsum(gaps)), prompt=prompt, output=output)


@given(
    trace=requests(),
    budget=st.sampled_from([64, 512, 2048]),
    most=st.sampled_from([2, 5, 256]),
    kv=st.sampled_from([1664, 2400, 6400, 200_000]),
)
@settings(max_examples=200, deadline=None)
def test_runs_of_iterations_taken_at_once_are_the_same_as_one_after_another(
    trace: Trace, budget: int, most: int, kv: int
) -> None:
    engine = Engine(budget=budget, most=most)
    pace = msgspec_speed("l4-24gb", "llama-3.1-8b", engine, kv)
    quick, slow = alone(trace, pace, engine), slow_engine.serve(trace, pace, engine)
    assert quick.preempted == slow.preempted
    assert quick.ttft + np.asarray(trace.at) == pytest.approx(slow.first, rel=1e-9, abs=1e-9)
    assert quick.finish == pytest.approx(slow.finish, rel=1e-9, abs=1e-9)
    assert slow.most_blocks <= kv // engine.block


def msgspec_speed(gpu: str, model: str, engine: Engine, kv: int) -> roofline.Speed:
    found = roofline.speed(replica(gpu, model, 1), engine, Efficiency())
    return roofline.Speed(
        **{name: getattr(found, name) for name in found.__slots__ if name != "kv_tokens"}, kv_tokens=kv
    )


def test_a_full_memory_sends_the_newest_back_and_all_still_end() -> None:
    engine = Engine()
    trace = Trace(at=tuple(i * 0.01 for i in range(30)), prompt=(200,) * 30, output=(300,) * 30)
    served = alone(trace, msgspec_speed("l4-24gb", "llama-3.1-8b", engine, 3200), engine)
    assert served.preempted > 0
    assert np.isfinite(served.finish).all()
    assert served.finish[0] == served.finish.min()  # the oldest is never sent back


@given(
    trace=requests(),
    gpu=st.sampled_from(KINDS),
    model=st.sampled_from(MODELS),
    tp=st.sampled_from([1, 2, 4]),
    copies=st.integers(1, 3),
    kv=st.sampled_from(["bf16", "fp16"]),
)
@settings(max_examples=200, deadline=None)
def test_no_replica_is_faster_than_its_data_sheet(
    trace: Trace, gpu: str, model: str, tp: int, copies: int, kv: str
) -> None:
    weights = "fp16"  # what all of them compute in
    engine = Engine(weights=weights, kv=kv)  # type: ignore[arg-type]
    one = replica(gpu, model, tp)
    try:
        pace = roofline.speed(one, engine, PHYSICS)
    except InvalidInput:
        return  # it does not fit
    served = alone(trace, pace, engine, copies)
    for number, busy in enumerate(served.busy):
        mine = [i for i, where in enumerate(served.where) if where == number]
        sizes = [(trace.prompt[i], trace.output[i]) for i in mine]
        assert busy >= bounds.busy(one, engine, sizes) * (1 - 1e-9)
    for i, where in enumerate(served.where):
        if where < 0:
            continue
        assert served.ttft[i] >= bounds.first_token(one, engine, trace.prompt[i]) * (1 - 1e-9)
        if trace.output[i] > 1:
            assert served.tpot[i] >= bounds.next_token(one, engine, trace.prompt[i]) * (1 - 1e-9)


def test_an_engine_at_half_of_the_data_sheet_takes_at_least_twice_as_long() -> None:
    trace = Trace(at=(0.0,) * 20, prompt=(1000,) * 20, output=(200,) * 20)
    one, engine = replica("a100-sxm-80gb", "llama-3.1-8b", 1), Engine()
    half = Efficiency(compute=0.5, bandwidth=0.5, link=0.5, overhead=0.0, latency=0.0)
    physics = alone(trace, roofline.speed(one, engine, PHYSICS), engine).busy[0]
    assert alone(trace, roofline.speed(one, engine, half), engine).busy[0] == pytest.approx(2 * physics, rel=1e-6)


def test_a_request_longer_than_memory_is_refused_and_counts_as_missed() -> None:
    engine = Engine()
    trace = Trace(at=(0.0, 1.0), prompt=(100, 5000), output=(10, 10))
    served = alone(trace, msgspec_speed("l4-24gb", "llama-3.1-8b", engine, 3200), engine)
    assert served.refused == 1
    assert math.inf in served.ttft
    assert math.inf in served.tpot
    assert served.where == (0, -1)
    assert math.isinf(served.ttft[1])
    assert served.attained(Slo(ttft=10, tpot=10)) == 0.5


def test_the_router_sends_long_prompts_only_where_they_may_go() -> None:
    engine = Engine()
    pace = roofline.speed(replica("a10g-24gb", "llama-3.1-8b", 1), engine, Efficiency())
    rng = random.Random(1)
    kinds = [rng.randrange(2) for _ in range(200)]
    trace = Trace(
        at=tuple(i * 0.1 for i in range(200)), prompt=tuple(2000 if k else 100 for k in kinds), output=(20,) * 200
    )
    served = serving.serve(trace, [pace, pace], engine, classes=kinds, work=[[0.1, 0.1], [math.inf, 0.7]])
    assert all(where == 1 for where, kind in zip(served.where, kinds, strict=True) if kind)
    assert {where for where, kind in zip(served.where, kinds, strict=True) if not kind} == {0, 1}


@pytest.mark.skipif(not AZURE.exists(), reason="needs the public Azure trace in ../shared/data/llm")
def test_azures_conversations_are_served_in_seconds_and_every_token_is_made() -> None:
    trace = traces.read(AZURE).trace
    assert len(trace) == 19_366
    engine = Engine()
    pace = roofline.speed(replica("a100-sxm-80gb", "llama-3.1-8b", 1), engine, Efficiency())
    start = time.process_time()
    served = alone(trace, pace, engine, 2)
    assert time.process_time() - start < 10
    assert served.refused == 0
    assert np.isfinite(served.finish).all()
    assert (served.finish > np.asarray(trace.at)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": (), "prompt": (), "output": ()},
        {"at": (1.0, 0.5), "prompt": (1, 1), "output": (1, 1)},
        {"at": (0.0,), "prompt": (0,), "output": (1,)},
        {"at": (0.0, math.nan), "prompt": (1, 1), "output": (1, 1)},
    ],
)
def test_a_trace_that_cannot_be_is_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(InvalidInput):
        Trace(**wrong)  # type: ignore[arg-type]


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Slo(ttft=1, tpot=1).ttft = 2  # type: ignore[misc]
    assert msgspec.structs.replace(Slo(ttft=1, tpot=1), ttft=2.0).ttft == 2.0


def test_a_batch_reads_the_more_experts_the_more_tokens_it_has() -> None:
    pace = roofline.speed(replica("h100-sxm-80gb", "mixtral-8x7b", 2), Engine(), PHYSICS)
    touched = [pace.touched(tokens) for tokens in (1, 2, 8, 64)]
    assert touched[0] == pytest.approx(2)
    assert touched[1] == pytest.approx(2 + 2 * 6 / 8)  # the second token's experts, less those that are read already
    assert touched == sorted(touched)
    assert touched[-1] == pytest.approx(8, rel=1e-6)


def test_more_gpus_than_heads_of_keys_keep_and_read_copies_of_them() -> None:
    # 8 heads of keys over 16 GPUs: each head is kept twice, so that twice the bandwidth reads twice as much.
    eight, sixteen = (roofline.speed(replica("h100-sxm-80gb", "llama-3.1-8b", tp), Engine(), PHYSICS) for tp in (8, 16))
    assert sixteen.kv == pytest.approx(eight.kv)
    assert sixteen.kv_tokens < 1.1 * eight.kv_tokens
    assert sixteen.dense == pytest.approx(eight.dense / 2)
