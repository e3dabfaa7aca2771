"""A part of the trace is held out: blocks take turns, nothing is lost, and the interval is as wide as bursts make it."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.rightsizing.test_planning import OFFERS, SLO, conversation

from macadam.compute.catalogue import llms
from macadam.compute.rightsizing import capacity, holdout, report, traces
from macadam.compute.rightsizing.holdout import Judged
from macadam.compute.rightsizing.types import Efficiency, Engine, Offer, Slo, Trace
from macadam.errors import InvalidInput

AZURE = Path(__file__).parents[5] / "shared/data/llm/AzureLLMInferenceTrace_conv.csv"
HALF = Slo(ttft=1.0, tpot=1.0, attainment=0.995)


def every(gap: float, count: int) -> Trace:
    return Trace(at=tuple(gap * n for n in range(count)), prompt=tuple(range(1, count + 1)), output=(1,) * count)


@given(seed=st.integers(0, 10_000), seconds=st.floats(1, 20_000), how=st.sampled_from(["auto", "blocks", "later"]))
@settings(max_examples=60, deadline=None)
def test_every_request_is_in_one_part_and_the_load_stays_the_same(seed: int, seconds: float, how: str) -> None:
    trace = conversation(200 / seconds, seconds, seed)
    try:
        parts = holdout.split(trace, how)  # type: ignore[arg-type]
    except InvalidInput:
        assert trace.at[-1] < 480 or len(trace) < 20
        return
    if parts.judged is None:
        assert how == "auto"
        assert parts.sized == trace
        return
    assert sorted(parts.sized.prompt + parts.judged.prompt) == sorted(trace.prompt)
    assert parts.sized.at[0] == parts.judged.at[0] == 0.0
    # Put end to end, the parts' time is the whole's, but for the gaps at their ends.
    assert parts.sized.at[-1] + parts.judged.at[-1] <= trace.at[-1] + 1e-6


def test_blocks_take_turns_and_are_put_end_to_end() -> None:
    """By hand: ten minutes, a request every 15 s. Blocks of a minute: 1, 3, 5 … size, 2, 4, 6 … judge."""
    parts = holdout.split(every(15.0, 40), "auto")
    assert (parts.how, parts.block) == ("blocks", 60.0)
    assert parts.judged is not None
    assert parts.sized.prompt[:5] == (1, 2, 3, 4, 9)
    assert parts.judged.prompt[:5] == (5, 6, 7, 8, 13)
    assert parts.sized.at[:6] == (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)
    assert parts.judged.at[:6] == (0.0, 15.0, 30.0, 45.0, 60.0, 75.0)


def test_longer_traces_are_divided_by_longer_blocks_and_short_ones_not_at_all() -> None:
    assert [
        holdout.split(every(seconds / 999, 1000), "auto").block for seconds in (479, 481, 2401, 8 * 3601, 9 * 86400)
    ] == [0.0, 60.0, 300.0, 3600.0, 86400.0]
    short = holdout.split(every(1.0, 100), "auto")
    assert short.judged is None
    assert "too short" in short.why
    with pytest.raises(InvalidInput, match="too short") as error:
        holdout.split(every(1.0, 100), "blocks")
    assert "--holdout none" in error.value.next_step
    later = holdout.split(every(1.0, 100), "later")
    assert later.judged is not None
    assert later.judged.prompt == tuple(range(51, 101))


def test_sessions_stay_together_where_what_they_said_before_counts() -> None:
    trace = every(1.0, 1000)
    with_ids = Trace(at=trace.at, prompt=trace.prompt, output=trace.output, ids=((1,) * 2,) * 1000, unit=512)
    assert holdout.split(with_ids, "auto").how == "later"
    assert holdout.split(trace, "auto").how == "blocks"


def judged(misses: "np.ndarray[tuple[int], np.dtype[np.float64]]", trace: Trace) -> Judged:
    """misses: of each request, 1 if it was late."""
    spread = np.random.default_rng(1).uniform(0, 0.9, len(trace))
    return holdout.judge(trace, HALF, np.where(misses > 0, 2.0, spread), np.zeros(len(trace)))


def test_without_bursts_a_request_counts_for_one_and_with_them_for_less() -> None:
    rng = np.random.default_rng(3)
    trace = every(0.2, 20_000)
    alone = judged(rng.random(20_000) < 0.02, trace)
    assert alone.worth > 10_000
    burst = np.zeros(20_000)
    for start in rng.integers(0, 19_000, 8):
        burst[start : start + 50] = 1  # as many misses, fifty in a row each
    together = judged(burst, trace)
    assert together.worth < 2000
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Misses come in bad times of 20 s in the mean, in which a tenth is late. Taken for independent draws, the interval would
    miss the truth more than three times as often as it says.
    """
    trace, hits, naive, seeds = every(0.5, 8000), 0, 0, 120
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        bad, states = bool(rng.random() < 0.1), []
        for _ in range(len(trace)):  # stays bad for 40 requests, good for 360, in the mean
            bad = bool(rng.random() >= 1 / 40) if bad else bool(rng.random() < 1 / 360)
            states.append(bad)
        late = rng.random(len(trace)) < np.where(states, 0.1, 0.0)
        found = judged(late, trace)
        hits += found.low <= 0.99 <= found.high
        error = 1.96 * math.sqrt(0.01 * 0.99 / len(trace))
        naive += abs(found.attained - 0.99) <= error
    assert hits >= 0.88 * seeds
    assert naive < 0.85 * seeds


def test_what_is_said_follows_from_the_interval() -> None:
    rng = np.random.default_rng(5)
    trace = every(0.1, 40_000)
    assert judged(np.zeros(40_000), trace).standing == "kept"
    assert judged(np.zeros(40_000), trace).high == 1.0
    assert judged(np.zeros(40_000), trace).low < 1.0  # none missed is not certain that none will
    assert judged(rng.random(40_000) < 0.02, trace).standing == "missed"
    assert judged(rng.random(40_000) < 0.005, trace).standing == "open"
    short = every(0.1, 400)
    assert judged(np.zeros(400), short).standing == "short"
    assert judged(np.ones(40_000), trace).standing in ("missed", "short")
    assert judged(np.zeros(3), every(1.0, 3)).standing == "short"
    assert judged(np.zeros(3), every(0.0, 3)).standing == "short"


def test_a_prompt_of_a_length_that_was_never_seen_goes_as_the_next_longer() -> None:
    seen = Trace(at=(0.0, 1.0), prompt=(300, 3000), output=(1, 1))
    wanted = capacity.demand(seen, SLO)
    other = Trace(at=(0.0,) * 5, prompt=(10, 300, 1000, 3000, 100_000), output=(1,) * 5)
    assert capacity.classes(wanted, other) == (0, 0, 1, 1, 1)
    assert capacity.classes(wanted, seen) == wanted.classes


def test_the_fleet_is_sized_on_one_part_and_judged_on_the_other() -> None:
    trace = conversation(3, 600)
    said = report.rightsize(
        trace, llms.find("llama-3.1-8b"), SLO, OFFERS[:3], engine=Engine(), efficiency=Efficiency(), with_sensitivity=False
    )  # fmt: skip
    parts = holdout.split(trace, "auto")
    assert parts.judged is not None
    assert (said.held.sized, said.held.judged) == (len(parts.sized), len(parts.judged))
    assert said.best.judged is not None
    assert said.best.judged.requests == len(parts.judged)
    assert 0 <= said.best.judged.low <= said.best.judged.attained <= said.best.judged.high <= 1
    all_of_it = report.rightsize(
        trace, llms.find("llama-3.1-8b"), SLO, OFFERS[:3], engine=Engine(), efficiency=Efficiency(), with_sensitivity=False,
        hold="none",
    )  # fmt: skip
    assert all_of_it.best.judged is None
    assert all_of_it.held.why == "Nothing was held out, as asked."


def test_a_fleet_for_calm_hours_is_seen_to_break_its_promise_in_busy_ones() -> None:
    """The later half brings three times as much: the earlier half cannot know, and the answer says that it was broken. Where
    another fleet held, it is the answer, though it costs more.
    """
    calm = conversation(2, 300, 1)
    busy = traces.faster(conversation(2, 900, 2), 3)
    both = Trace(
        at=(*calm.at, *(300.5 + at for at in busy.at)), prompt=calm.prompt + busy.prompt, output=calm.output + busy.output
    )  # fmt: skip
    said = report.rightsize(
        both, llms.find("llama-3.1-8b"), SLO, OFFERS[1:2], engine=Engine(), efficiency=Efficiency(), with_sensitivity=False,
        hold="later",
    )  # fmt: skip
    assert said.best.attained >= SLO.attainment
    assert said.best.judged is not None
    assert said.best.judged.attained < said.best.attained
    assert said.best.judged.standing == "missed"
    dear = msgspec.structs.replace(OFFERS[2], hourly=6_000_000)
    large = report.rightsize(
        both, llms.find("llama-3.1-8b"), SLO, [OFFERS[1], dear], engine=Engine(), efficiency=Efficiency(), with_sensitivity=False,
        hold="later",
    )  # fmt: skip
    assert said.best.hourly.micros < large.best.hourly.micros
    assert large.best.judged is not None
    assert large.best.judged.attained >= SLO.attainment
    assert large.best_single == "a100-sxm-80gb"
    assert {single.gpu for single in large.singles} == {"a10g-24gb", "a100-sxm-80gb"}


@pytest.mark.skipif(not AZURE.exists(), reason="needs the public Azure trace in ../shared/data/llm")
def test_how_much_load_the_part_held_out_brings_is_told() -> None:
    """A promise kept on half of the load is kept on half of the load."""
    at = tuple(float(n) for n in range(1200))
    trace = Trace(at=at, prompt=(400,) * 600 + (200,) * 600, output=(100,) * 600 + (50,) * 600)
    offer = Offer(name="a", gpu="a100-sxm-80gb", gpus=1, hourly=1_000_000)
    found = {
        how: report.rightsize(
            trace, llms.find("llama-3.1-8b"), Slo(ttft=2, tpot=0.1), [offer], engine=Engine(), efficiency=Efficiency(), tps=(1,),
            hold=how, with_sensitivity=False,
        ).held.load
        for how in ("later", "blocks", "none")
    }  # fmt: skip
    assert found == {"later": pytest.approx(0.5, rel=0.01), "blocks": pytest.approx(1.0, rel=0.01), "none": 0.0}


def test_azures_hour_is_divided_by_five_minutes() -> None:
    parts = holdout.split(traces.read(AZURE).trace, "auto")
    assert parts.judged is not None
    assert parts.block == 300.0
    assert len(parts.sized) + len(parts.judged) == 19_366
    assert abs(len(parts.sized) / parts.sized.seconds - len(parts.judged) / parts.judged.seconds) < 0.6
