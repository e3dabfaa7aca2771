"""Own measurements: read as vLLM and SGLang write them, fitted within physics, refused where they beat it."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from macadam.compute.catalogue import gpus, llms
from macadam.compute.rightsizing import bounds, measured, planning, report, roofline
from macadam.compute.rightsizing.batching import Machine
from macadam.compute.rightsizing.measured import Row
from macadam.compute.rightsizing.types import PHYSICS, Efficiency, Engine, Offer, Replica, Slo, Trace
from macadam.errors import InvalidInput, SourceInvalid, TooLarge

LLM = llms.find("llama-3.1-8b")
A100 = gpus.find("a100-sxm-80gb")
TRUE = Efficiency(compute=0.4, bandwidth=0.7, overhead=0.006)


def bench(
    limit: int, prompt: int, output: int, count: int, efficiency: Efficiency = TRUE, gpu: Any = A100, tp: int = 1
) -> dict[str, Any]:
    """What the simulator does with `limit` requests at once, as vLLM's benchmark would report it."""
    engine, rng = Engine(), random.Random(limit)
    sizes = [(max(1, int(prompt * rng.uniform(0.8, 1.2))), max(2, int(output * rng.uniform(0.8, 1.2)))) for _ in range(count)]  # fmt: skip
    trace = Trace(at=(0.0,) * count, prompt=tuple(p for p, _ in sizes), output=tuple(o for _, o in sizes))
    first, finish, came = [0.0] * count, [0.0] * count, [0.0] * count
    pace = roofline.speed(Replica(llm=LLM, gpu=gpu, tp=tp), engine, efficiency)
    machine = Machine(pace, engine, trace, first, finish)
    sent = min(limit, count)
    for request in range(sent):
        machine.arrive(request, 0.0)
    done = 0
    while done < count:
        for _ in machine.advance():
            done += 1
            if sent < count:
                came[sent] = machine.now
                machine.arrive(sent, machine.now)
                sent += 1
    tpots = [(finish[n] - first[n]) / (sizes[n][1] - 1) for n in range(count)]
    return {
        "date": "20261120-101500", "endpoint_type": "openai", "model_id": "meta-llama/Llama-3.1-8B-Instruct", "num_prompts": count,
        "request_rate": "inf", "burstiness": 1.0, "max_concurrency": limit, "duration": machine.now, "completed": count,
        "total_input_tokens": sum(trace.prompt), "total_output_tokens": sum(trace.output),
        "request_throughput": count / machine.now, "mean_ttft_ms": 1000 * sum(first[n] - came[n] for n in range(count)) / count,
        "mean_tpot_ms": 1000 * sum(tpots) / count,
    }  # fmt: skip


LOADS = [(1, 1024, 128, 12), (8, 256, 256, 120), (32, 2048, 128, 200), (64, 512, 256, 400)]


def saved(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "result.json"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def fitted(path: Path, gpu: Any = A100, tp: int = 1) -> measured.Fit:
    return measured.fit(gpu, [(row, tp) for row in measured.read(path)], LLM, Engine())


def test_several_loads_give_back_the_efficiencies_that_made_them(tmp_path: Path) -> None:
    found = fitted(saved(tmp_path, *(bench(*load) for load in LOADS)))
    assert found.rows == 4
    assert found.guessed == 0
    assert found.before.typical > 0.15
    assert found.after.typical < 0.06
    assert found.left_out is not None
    assert found.left_out.typical < 0.1
    assert found.efficiency.compute == pytest.approx(0.4, rel=0.15)
    # What reading weights and waiting for the host take is told apart by few rows only; their sum is what counts.
    assert found.efficiency.bandwidth == pytest.approx(0.7, rel=0.2)
    assert found.efficiency.overhead == pytest.approx(0.006, rel=0.5)


def test_one_row_moves_what_it_tells_of_and_says_that_it_cannot_be_judged(tmp_path: Path) -> None:
    found = fitted(saved(tmp_path, bench(8, 256, 256, 120)))
    assert found.left_out is None
    assert found.after.typical < found.before.typical
    assert found.efficiency.bandwidth < Efficiency().bandwidth


def test_no_fit_passes_the_data_sheets_peak(tmp_path: Path) -> None:
    """Rows of an engine at the very peak, without any host: still no more than the peak comes out."""
    found = fitted(saved(tmp_path, *(bench(*load, efficiency=PHYSICS) for load in LOADS))).efficiency
    assert found.compute <= 1.0
    assert found.bandwidth <= 1.0
    assert found.overhead > 0


@pytest.mark.parametrize("gpu", ["a100-pcie-40gb", "l4-24gb"])
def test_rows_of_a_faster_gpu_are_refused_by_the_name_of_the_row_and_the_bound(tmp_path: Path, gpu: str) -> None:
    path = saved(tmp_path, bench(*LOADS[1], gpu=gpus.find("h100-sxm-80gb"), efficiency=PHYSICS))
    with pytest.raises(InvalidInput, match=r"row 1 beats physics: .* on 1 x") as error:
        fitted(path, gpus.find(gpu))
    assert "data sheet" in error.value.what
    assert "--measured GPU:N=FILE" in error.value.next_step


def test_rows_of_two_gpus_are_not_of_one(tmp_path: Path) -> None:
    path = saved(tmp_path, bench(1, 512, 128, 10, tp=4, efficiency=PHYSICS))
    assert fitted(path, tp=4).rows == 1
    with pytest.raises(InvalidInput, match="a first token in"):
        fitted(path)


def test_more_at_once_than_memory_holds_is_refused() -> None:
    row = Row(
        name="r", model="", prompt=8000, output=1000, count=1000, seconds=4000, ttft=5.0, tpot=0.5, limit=256
    )  # fmt: skip
    assert row.together > 100
    with pytest.raises(InvalidInput, match="requests at once"):
        measured.fit(A100, [(row, 1)], LLM, Engine())


def test_how_many_run_beside_follows_from_littles_law() -> None:
    plain = Row(name="r", model="", prompt=100, output=101, count=100, seconds=100, ttft=0.1, tpot=0.04)
    assert plain.together == pytest.approx(1 * 100 * 0.04 + 1)  # one comes and finds four
    limited = msgspec.structs.replace(plain, limit=4)
    assert limited.together == pytest.approx(4.0)  # the limit is what says so
    assert msgspec.structs.replace(plain, limit=1, tpot=0.001).together == 1.0


def test_a_model_under_a_name_of_ones_own_is_taken_to_be_the_one_asked_about(tmp_path: Path) -> None:
    row = bench(8, 256, 256, 60) | {"model_id": "/models/ours"}
    assert fitted(saved(tmp_path, row)).guessed == 1
    path = bench(8, 256, 256, 60) | {"model_id": "/models/Meta-Llama/llama-3.1-8b/"}
    assert fitted(saved(tmp_path, path)).guessed == 0


def test_sglangs_lines_are_read_too(tmp_path: Path) -> None:
    kept = {k: v for k, v in bench(8, 256, 256, 60).items() if k not in ("model_id", "num_prompts", "endpoint_type")}
    line = kept | {
        "backend": "sglang",
        "dataset_name": "random",
        "concurrency": 7.8,
        "accept_length": None,
        "request_rate": 4.0,
    }
    (row,) = measured.read(saved(tmp_path, line | {"server_info": {"model_path": "meta-llama/Llama-3.1-8B"}}))
    assert row.model == "meta-llama/Llama-3.1-8B"
    assert not row.at_once
    assert row.limit == 8
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps(bench(8, 256, 256, 60), indent=2))
    assert len(measured.read(pretty)) == 1


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"mean_tpot_ms": 0.0}, "mean_tpot_ms is 0.0"),
        ({"mean_tpot_ms": "fast"}, "mean_tpot_ms is 'fast'"),
        ({"mean_ttft_ms": -3}, "mean_ttft_ms is -3"),
        ({"completed": None}, "completed is None"),
        ({"completed": 10.5}, "completed is 10.5"),
        ({"duration": 1.0}, "figures of one run"),
        ({"num_prompts": 500}, "of 500 requests were answered"),
        ({"max_concurrency": "8"}, "max_concurrency is '8'"),
        ({"accept_length": 2.7}, "speculation"),
        ({"ramp_up_strategy": "linear"}, "grew during the run"),
    ],
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], word: str) -> None:
    with pytest.raises(SourceInvalid, match="row 2: ") as error:
        measured.read(saved(tmp_path, bench(8, 256, 256, 60), bench(8, 256, 256, 60) | changed))
    assert word in error.value.what


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"completed": 10**400}, "completed is 1000"),
        ({"total_output_tokens": 10**400}, "total_output_tokens is 1000"),
        ({"request_throughput": 10**400}, "requests in"),
        ({"max_concurrency": 10**400}, "max_concurrency is 1000"),
        ({"total_output_tokens": 1e11}, "for each request"),
        ({"total_output_tokens": 1}, "for each request"),
        ({"mean_ttft_ms": 1e6, "mean_tpot_ms": 1e5}, "more than 8 at once"),
    ],
)
def test_figures_that_contradict_each_other_or_have_no_end_are_refused(
    tmp_path: Path, changed: dict[str, Any], word: str
) -> None:
    with pytest.raises(SourceInvalid, match="row 1: ") as error:
        measured.read(saved(tmp_path, bench(8, 256, 256, 60) | changed))
    assert word in error.value.what
    assert len(error.value.what) < 400


def test_a_file_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"a":' * 100_000)
    with pytest.raises(SourceInvalid, match="line 1 is no JSON object"):
        measured.read(path)


def test_the_bound_of_an_answer_without_end_is_computed_at_once() -> None:
    """By its sum in closed form: one token after another, ten billion of them would take an hour."""
    replica = Replica(llm=LLM, gpu=A100, tp=1)
    each = [bounds.run(replica, Engine(), 100, output, 1) for output in (50, 10_000_000_000)]
    assert 0 < each[0] < each[1]
    kv, weights = LLM.kv_bytes(2.0), 50 * bounds.weights_read(replica, Engine())
    moved = (100 + sum(range(100, 149)) + 149) * kv + weights
    assert each[0] == pytest.approx(moved / A100.bandwidth)


def test_what_is_no_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    for text in ("", "{", "[]", "Mean TPOT (ms): 12"):
        path.write_text(text)
        with pytest.raises(SourceInvalid):
            measured.read(path)
    with pytest.raises(SourceInvalid, match="cannot be read"):
        measured.read(tmp_path / "none.json")
    with pytest.raises(SourceInvalid, match="no plain file"):
        measured.read(Path("/dev/zero"))
    monkeypatch.setattr(measured, "_LARGEST", 3)
    path.write_text("{} {}")
    with pytest.raises(TooLarge):
        measured.read(path)


def test_what_was_measured_is_what_the_plan_counts_on(tmp_path: Path) -> None:
    """A GPU that was measured to be slow needs more machines; the others stay as published."""
    slow = Efficiency(compute=0.15, bandwidth=0.25, overhead=0.01)
    fit = fitted(saved(tmp_path, *(bench(*load, efficiency=slow) for load in LOADS[:3])))
    offer = Offer(name="a", gpu=A100.name, gpus=1, hourly=1_000_000)
    trace = Trace(at=tuple(n / 8 for n in range(800)), prompt=(1000,) * 800, output=(100,) * 800)
    slo, engine = Slo(ttft=3, tpot=0.2, attainment=0.99), Engine()
    options = planning.options(LLM, [offer], engine, [1])
    plain, known = (
        planning.problem(trace, slo, engine, options, Efficiency(), own) for own in (None, {A100.name: fit.efficiency})
    )
    assert known.works[0][0] > 1.5 * plain.works[0][0]
    said = report.rightsize(
        trace, LLM, slo, [offer], engine=engine, efficiency=Efficiency(), tps=(1,), fits=[fit], with_sensitivity=True
    )  # fmt: skip
    assert said.fits == (fit,)
    assert said.best.hourly.micros > planning.plan(plain).fleet.hourly
