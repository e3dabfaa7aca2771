"""The cheapest fleet: solved, simulated, and only then believed."""

import itertools
import math
import random
from datetime import date
from pathlib import Path

import msgspec
import pytest

from macadam.compute.catalogue import gpus, llms
from macadam.compute.catalogue.prices import Price
from macadam.compute.rightsizing import calibration, capacity, mix, offers, planning, report, roofline, traces
from macadam.compute.rightsizing.types import Efficiency, Engine, Offer, Option, Replica, Slo, Trace
from macadam.errors import InvalidInput, SourceInvalid
from macadam.values import Money

OFFERS = [
    Offer(name="small", gpu="l4-24gb", gpus=1, hourly=700_000),
    Offer(name="middle", gpu="a10g-24gb", gpus=1, hourly=1_010_000),
    Offer(name="large", gpu="a100-sxm-80gb", gpus=1, hourly=3_670_000),
    Offer(name="eight", gpu="h100-sxm-80gb", gpus=8, hourly=60_000_000),
]
SLO = Slo(ttft=2.0, tpot=0.1)


def conversation(rate: float, seconds: float, seed: int = 1) -> Trace:
    rng = random.Random(seed)
    at, rows = 0.0, []
    while at < seconds:
        rows.append((at, min(3000, int(rng.lognormvariate(6, 1)) + 1), min(500, int(rng.expovariate(1 / 150)) + 1)))
        at += rng.expovariate(rate)
    return Trace(at=tuple(r[0] for r in rows), prompt=tuple(r[1] for r in rows), output=tuple(r[2] for r in rows))


def problem(trace: Trace, offered: list[Offer] = OFFERS, slo: Slo = SLO) -> planning.Problem:
    engine = Engine()
    ways = planning.options(llms.find("llama-3.1-8b"), offered, engine, [1, 2])
    return planning.problem(trace, slo, engine, ways, Efficiency())


def option(offer: Offer, tp: int = 1) -> Option:
    return Option(offer=offer, replica=Replica(llm=llms.find("llama-3.1-8b"), gpu=gpus.find(offer.gpu), tp=tp))


def test_the_programme_finds_what_trying_every_fleet_finds() -> None:
    rng = random.Random(7)
    options = [option(offer) for offer in OFFERS[:3]]
    for _ in range(4):
        works = [[rng.uniform(0.1, 2) for _ in range(3)] for _ in options]
        works[0][2] = math.inf  # the smallest cannot take the longest
        rates = [rng.uniform(0.1, 1) for _ in range(3)]
        found = mix.cheapest(options, works, rates)
        every = [
            mix.housed(options, counts).hourly
            for counts in itertools.product(range(6), repeat=3)
            if mix.busiest(works, rates, counts) <= 1 + 1e-9
        ]
        assert found.hourly == min(every)
        assert mix.busiest(works, rates, found.replicas) <= 1 + 1e-6
        assert all(sum(parts) == pytest.approx(1) for parts in found.routes)
        assert found.routes[2][0] == 0


def test_a_machine_is_paid_whole() -> None:
    options = [option(OFFERS[3], 1), option(OFFERS[3], 2)]
    fleet = mix.housed(options, (1, 1))
    assert fleet.machines == {"eight": 1}
    assert fleet.hourly == 60_000_000
    assert mix.housed(options, (1, 4)).machines == {"eight": 2}


def test_what_is_chosen_kept_the_promise_in_the_simulator_and_nothing_of_one_kind_is_cheaper() -> None:
    trace = conversation(6, 240)
    asked = problem(trace, OFFERS[:3])
    said = report.rightsize(
        trace,
        llms.find("llama-3.1-8b"),
        SLO,
        OFFERS[:3],
        engine=Engine(),
        efficiency=Efficiency(),
        with_sensitivity=False,
    )
    assert said.best.attained >= SLO.attainment
    alone = [single.choice for single in said.singles if single.choice]
    assert alone
    assert all(choice.attained >= SLO.attainment for choice in alone)
    assert said.best.hourly.micros <= min(choice.hourly.micros for choice in alone)
    assert 0 <= said.saving < 1
    # what is reported is what the simulator says of that very fleet
    counts = {line.machine: line.replicas for line in said.best.lines}
    fleet = mix.housed(asked.options, [counts.get(o.offer.name, 0) if o.replica.tp == 1 else 0 for o in asked.options])
    assert planning.simulate(asked, fleet).attained(SLO) == said.best.attained
    hours = trace.seconds / 3600
    tokens = sum(trace.prompt) + sum(trace.output)
    assert said.best.per_million.micros == pytest.approx(said.best.hourly.micros * hours / tokens * 1e6, abs=1)


def test_more_load_never_costs_less() -> None:
    trace = conversation(2, 200)
    costs = [
        planning.plan(problem(traces.faster(trace, f), OFFERS[:3]), trials=12).fleet.hourly for f in (0.5, 2.0, 6.0)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_what_a_fifth_changes_is_told_of_each_thing() -> None:
    trace = conversation(2, 60)
    said = report.rightsize(trace, llms.find("llama-3.1-8b"), SLO, OFFERS[:2], engine=Engine(), efficiency=Efficiency())
    told = {change.what: change for change in said.sensitivity}
    assert {"compute -20%", "bandwidth +20%", "load +20%", "promise -20%"} <= set(told)
    assert told["load +20%"].attained <= told["load -20%"].attained + 0.01
    fleets = [told[f"load {sign}20%"].hourly for sign in "-+"]
    assert (told["load -20%"].attained, fleets[0]) != (told["load +20%"].attained, fleets[1])
    priced = [change for change in said.sensitivity if change.what.startswith("price")]
    assert priced
    assert all(change.attained == said.best.attained for change in priced)


def test_a_load_for_more_replicas_than_can_be_simulated_is_refused_with_what_to_ask_instead() -> None:
    asked = problem(traces.faster(conversation(6, 30), 1e7))
    with pytest.raises(InvalidInput, match="replicas would be needed") as error:
        planning.plan(asked)
    assert "--load" in error.value.next_step


def test_a_promise_that_no_gpu_keeps_is_refused() -> None:
    with pytest.raises(InvalidInput, match="keeps the promise for prompts"):
        planning.plan(problem(conversation(1, 30), OFFERS[:1], Slo(ttft=0.01, tpot=0.001)))


def test_a_model_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(InvalidInput, match="fits on none") as error:
        planning.options(llms.find("llama-3.1-70b"), OFFERS[:2], Engine(), [1])
    # By hand: 70.55 G parameters of 2 bytes; 24 GB of an A10G, nine tenths of it, less the reserve of one.
    assert "take 141 GB" in error.value.what
    assert "1 x l4-24gb of small, have 21 GB" in error.value.what
    assert "several machines (pipeline parallelism) are not planned" in error.value.what
    with pytest.raises(InvalidInput, match="none computes in fp8"):
        planning.options(llms.find("llama-3.1-8b"), OFFERS[2:3], Engine(weights="fp8"), [1])
    with pytest.raises(InvalidInput, match="must divide among them"):
        planning.options(llms.find("llama-3.1-8b"), OFFERS, Engine(), [3])


def test_weights_and_keys_are_counted_against_memory() -> None:
    one = Replica(llm=llms.find("llama-3.1-8b"), gpu=gpus.find("a100-sxm-80gb"))
    tokens = roofline.kv_tokens(one, Engine())
    used = tokens * one.llm.kv_bytes(2) + one.llm.parameters * 2 + 1e9
    assert used <= 80e9 * 0.9 < used + 16 * one.llm.kv_bytes(2)


def test_more_together_take_longer_and_serve_more() -> None:
    one = Replica(llm=llms.find("llama-3.1-8b"), gpu=gpus.find("a100-sxm-80gb"))
    pace = roofline.speed(one, Engine(), Efficiency())
    times = [capacity.iteration(pace, n, 1000, 200) for n in (1, 8, 64)]
    assert times == sorted(times)
    assert [n / t for n, t in zip((1, 8, 64), times, strict=True)] == sorted(
        n / t for n, t in zip((1, 8, 64), times, strict=True)
    )


def test_a_long_prompt_with_a_short_answer_does_not_wait_for_itself() -> None:
    """Alone, its prompt is read before the first token and not between the further ones."""
    pace = roofline.speed(
        Replica(llm=llms.find("llama-3.1-8b"), gpu=gpus.find("a100-sxm-80gb")), Engine(), Efficiency()
    )
    bucket = capacity.Bucket(kind=0, prompt=10_000, output=5, rate=1.0)
    slo = Slo(ttft=3.0, tpot=0.1)
    assert capacity.iteration(pace, 1, bucket.prompt, bucket.output) > slo.tpot
    assert capacity.together(pace, Engine(), bucket, slo) == 1
    assert capacity.work(pace, Engine(), bucket, slo) < 2.0


def test_gpus_that_share_a_layer_pay_for_what_they_tell_each_other() -> None:
    engine = Engine()
    llm = llms.find("llama-3.1-8b")

    def step(gpu: str, tp: int) -> float:
        return roofline.speed(Replica(llm=llm, gpu=gpus.find(gpu), tp=tp), engine, Efficiency()).decode(32, 32_000)

    assert step("a100-sxm-80gb", 2) > step("a100-sxm-80gb", 1) / 2
    assert step("a100-sxm-80gb", 2) < step("a100-sxm-80gb", 1)
    with pytest.raises(InvalidInput, match="shared by 3"):
        Replica(llm=llm, gpu=gpus.find("a100-sxm-80gb"), tp=3)


def test_the_model_is_near_measurements_that_it_was_not_fitted_to() -> None:
    error = calibration.error(calibration.ratios(Efficiency(), "test"))
    assert error.rows >= 40
    assert error.typical < 0.1
    assert error.low > 0.7
    assert error.high < 1.6


def test_no_efficiencies_nearby_fit_the_measurements_better() -> None:
    own = Efficiency()
    least = calibration.loss(own)
    for compute in (-0.05, 0.0, 0.05):
        for bandwidth in (-0.05, 0.0, 0.05):
            other = msgspec.structs.replace(own, compute=own.compute + compute, bandwidth=own.bandwidth + bandwidth)
            assert calibration.loss(other) >= least - 1e-12


def test_no_published_measurement_beats_physics() -> None:
    for row in calibration.published():
        best = calibration.predicted(row, calibration.PHYSICS)
        beaten = row.value > best if row.kind in ("static", "load") else row.value < best
        assert not beaten, row


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n", "GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-5,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,nan,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,0,0\n", "no requests"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SourceInvalid, match=word):
        traces.read(tmp_path / "t.csv")


def test_late_rows_are_put_in_their_place_and_empty_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.6805900,10,5\n2023-11-16T18:15:46Z,20,6\n2023-11-16 18:15:47+00:00,0,6\n"
    )
    found = traces.read(tmp_path / "t.csv")
    assert found.trace.prompt == (20, 10)
    assert found.trace.at == (0.0, pytest.approx(4.68059))
    assert (found.late, found.empty) == (1, 1)


def price(**changed: object) -> Price:
    plain: dict[str, object] = {
        "provider": "aws", "region": "us-east-1", "instance": "i", "gpu": "l4-24gb", "gpus": 1, "kind": "on-demand",
        "per_gpu_hour": Money(micros=800_000), "dated": date(2026, 11, 1), "source": "a list",
    }  # fmt: skip
    return Price(**{**plain, **changed})  # type: ignore[arg-type]


def test_the_cheapest_offer_of_each_gpu_and_size_is_considered() -> None:
    found = offers.choose(
        [price(), price(provider="b", per_gpu_hour=Money(micros=700_000)), price(gpus=4), price(kind="spot")]
    )
    assert {(offer.name, offer.gpus, offer.hourly) for offer in found} == {("b i", 1, 700_000), ("aws i", 4, 3_200_000)}


def test_machines_of_two_sizes_under_one_name_are_counted_and_paid_apart() -> None:
    one, four = offers.choose([price(instance="L4"), price(instance="L4", gpus=4, per_gpu_hour=Money(micros=600_000))])
    assert one.name != four.name
    fleet = mix.housed([option(one), option(four)], (1, 2))
    assert fleet.hourly == 800_000 + 4 * 600_000


def test_a_price_list_may_call_a_gpu_as_a_driver_does_and_none_is_left_out_unsaid(tmp_path: Path) -> None:
    listed = tmp_path / "prices.json"
    listed.write_bytes(msgspec.json.encode([price(gpu="NVIDIA H100 80GB HBM3")]))
    assert [one.gpu for one in offers.choose(offers.read(listed))] == ["h100-sxm-80gb"]
    listed.write_bytes(msgspec.json.encode([price(), price(gpu="H100")]))
    with pytest.raises(SourceInvalid, match="price 2: No GPU is known as 'H100'") as error:
        offers.read(listed)
    assert "h100-sxm-80gb" in error.value.next_step


def test_prices_in_two_currencies_are_refused() -> None:
    with pytest.raises(InvalidInput, match="EUR"):
        offers.choose([price(), price(per_gpu_hour=Money(micros=1, currency="EUR"))])
    with pytest.raises(InvalidInput, match="No price"):
        offers.choose([price()], providers=["nobody"])
