"""`macadam rightsize llm` and `macadam decide train`, as they are typed."""

import json
import os
import random
from pathlib import Path

import pytest

from macadam.faces import cli

PRICES = [
    {
        "provider": "p", "region": "r", "instance": name, "gpu": gpu, "gpus": 1, "kind": "on-demand",
        "per_gpu_hour": {"micros": micros}, "dated": "2026-11-01", "source": "a list",
    }
    for name, gpu, micros in [("small", "l4-24gb", 700_000), ("large", "a100-sxm-80gb", 1_600_000)]
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = random.Random(3)
    rows = [
        f"2026-11-01 10:{second // 60:02}:{second % 60:02}.{rng.randrange(10**6):06},{rng.randrange(1, 2000)},{rng.randrange(1, 200)}"
        for second in range(120)
        for _ in range(3)
    ]
    (tmp_path / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    (tmp_path / "prices.json").write_text(json.dumps(PRICES))
    return tmp_path


def rightsize(files: Path, *more: str) -> int:
    words = ["rightsize", "llm", "--trace", str(files / "trace.csv"), "--model", "llama-3.1-8b", "--slo", "2.0,0.1"]
    return cli.main([*words, "--prices", str(files / "prices.json"), "--tp", "1", *more])


def test_the_answer_names_the_fleet_its_cost_and_how_far_the_model_is_off(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rightsize(files, "--no-sensitivity", "--plot", str(files / "cost.svg")) == 0
    said = capsys.readouterr().out
    assert "Cheapest fleet that kept it:" in said
    assert "USD a million tokens" in said
    assert "published measurements" in said
    assert (files / "cost.svg").read_text().startswith("<svg")


def test_json_is_one_document(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rightsize(files, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["best"]["attained"] >= 0.995
    assert said["requests"] == 360
    assert {"load +20%", "promise -20%"} <= {change["what"] for change in said["sensitivity"]}


def test_own_measurements_and_a_log_are_taken_into_account(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "model_id": "meta-llama/Llama-3.1-8B", "num_prompts": 100, "request_rate": "inf", "max_concurrency": 8, "duration": 60.0,
        "completed": 100, "total_input_tokens": 50_000, "total_output_tokens": 20_000, "request_throughput": 100 / 60,
        "mean_ttft_ms": 80.0, "mean_tpot_ms": 22.0,
    }  # fmt: skip
    (files / "bench.json").write_text(json.dumps(row))
    lines = [
        json.dumps({"created": 1795168800 + n, "usage": {"prompt_tokens": 500, "completion_tokens": 40}})
        for n in range(900)
    ]
    (files / "trace.csv").write_text("\n".join(lines))
    given = f"a100-sxm-80gb={files / 'bench.json'}"
    assert rightsize(files, "--no-sensitivity", "--measured", given, "--prefix-hit", "0.5") == 0
    said = capsys.readouterr().out
    assert "Fitted to 1 own measurements of llama-3.1-8b on a100-sxm-80gb" in said
    assert "Blocks of a minute take turns" in said
    assert "on the part held out kept for" in said
    assert "50.0% of the tokens of prompts were found in caches" in said
    assert rightsize(files, "--no-sensitivity", "--holdout", "none", "--json") == 0
    assert json.loads(capsys.readouterr().out)["best"]["judged"] is None
    assert rightsize(files, "--measured", str(files / "bench.json")) == 2
    assert "h100-sxm-80gb:2=result.json" in capsys.readouterr().err
    row["mean_tpot_ms"] = 1.0
    (files / "bench.json").write_text(json.dumps(row))
    assert rightsize(files, "--measured", given) == 2
    assert "beats physics" in capsys.readouterr().err


@pytest.mark.parametrize("slo", ["fast", "1.0", "0,0.1", "nan,1"])
def test_a_promise_that_is_none_is_said_to_be(files: Path, capsys: pytest.CaptureFixture[str], slo: str) -> None:
    words = ["rightsize", "llm", "--trace", str(files / "trace.csv"), "--model", "llama-3.1-8b", "--slo", slo]
    assert cli.main([*words, "--prices", str(files / "prices.json")]) == 2
    assert "1.0,0.05" in capsys.readouterr().err


def test_the_example_question_is_answered_with_its_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["decide", "train", "--example"]) == 0
    (tmp_path / "q.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["decide", "train", "--question", str(tmp_path / "q.yaml"), "--plot", str(tmp_path / "d.svg")]) == 0
    said = capsys.readouterr().out
    assert "What would change it:" in said
    assert "Sources:" in said
    assert (tmp_path / "d.svg").read_text().startswith("<svg")
    assert cli.main(["decide", "train", "--question", str(tmp_path / "q.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["seed"] == 0


@pytest.mark.parametrize("text", ["", "- 1", "task: x", "task: [", "ways: 3\nmonths: 1"])
def test_a_file_that_is_no_question_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "q.yaml").write_text(text)
    assert cli.main(["decide", "train", "--question", str(tmp_path / "q.yaml")]) == 2
    assert "--example" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\n", "refers to a part of itself"),
        ("a: &a\n  b: *a\n", "refers to a part of itself"),
        ("a: " + "[" * 5000 + "]" * 5000, "is no question"),
        ("task: t\nmonths: 1\nmonths: 2\n", "line 3: months is said twice"),
        ("ways:\n- name: a\n  kind: api\n  name: b\n", "line 4: name is said twice"),
    ],
)
def test_a_question_that_unfolds_without_end_or_contradicts_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, word: str
) -> None:
    (tmp_path / "q.yaml").write_text(text)
    assert cli.main(["decide", "train", "--question", str(tmp_path / "q.yaml")]) == 2
    assert word in capsys.readouterr().err


def test_powers_of_ten_are_numbers_in_a_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 takes 7e5 for a word, and nobody else does."""
    text = (
        "task: 1e5 mails\nmonths: 12\nrequests_per_month: {low: 7e5, high: 1.5e6}\nprompt: 6e2\noutput: 20\nways:\n"
        "- {name: 2e3, kind: api, read_usd: 5e-1, made_usd: 2}\n- {name: b, kind: api, read_usd: 1, made_usd: 2, monthly_usd: 1e2}\n"
    )
    (tmp_path / "q.yaml").write_text(text)
    words = ["decide", "train", "--question", str(tmp_path / "q.yaml")]
    assert cli.main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["task"] == "1e5 mails"
    assert said["terms"][0]["name"] == "2e3"
    assert said["terms"][0]["terms"][0]["value"] == pytest.approx(1.1e6 * 12)
    assert cli.main([*words, "--seed", "-1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_what_comes_through_a_pipe_and_prices_without_end_are_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(files / "pipe")
    assert rightsize(files, "--trace", str(files / "pipe")) == 2
    assert "is no plain file" in capsys.readouterr().err
    (files / "prices.json").write_text('[{"a":' * 100_000)
    assert rightsize(files) == 2
    assert "is no price list" in capsys.readouterr().err


def test_measurements_of_a_gpu_that_is_not_offered_are_said_to_change_nothing(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "model_id": "llama-3.1-8b", "num_prompts": 100, "request_rate": "inf", "max_concurrency": 8, "duration": 60.0, "completed": 100,
        "total_input_tokens": 50_000, "total_output_tokens": 20_000, "mean_ttft_ms": 80.0, "mean_tpot_ms": 22.0,
    }  # fmt: skip
    (files / "bench.json").write_text(json.dumps(row))
    assert rightsize(files, "--no-sensitivity", "--measured", f"h100-sxm-80gb={files / 'bench.json'}") == 0
    assert "No machine with h100-sxm-80gb is offered" in capsys.readouterr().out


def test_requests_longer_than_what_the_model_reads_are_refused_as_an_engine_would(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"2026-11-01 10:{n:02}:00,{5000 if n < 3 else 500},10" for n in range(20)]
    (files / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    assert rightsize(files, "--no-sensitivity", "--model", "llama-2-7b") == 2
    assert "3 of 20 requests have more than 4,096 tokens" in capsys.readouterr().err
    wanted = ("--no-sensitivity", "--model", "llama-2-7b", "--attainment", "0.8", "--holdout", "none", "--json")
    assert rightsize(files, *wanted) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert (best["refused"], best["attained"]) == (3, 0.85)


def test_a_chunk_that_no_engine_has_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chunk in ("0", "9" * 400):
        assert rightsize(files, "--chunk", chunk) == 2
        assert "--chunk" in capsys.readouterr().err


def test_replicas_follow_the_load(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rightsize", "elastic", "--trace", str(files / "trace.csv"), "--capacity", "1.5", "--hourly", "2.50"]
    assert cli.main([*words, "--step", "30s", "--up", "0s", "--down", "1m", "--plot", str(files / "e.svg")]) == 0
    assert "Saved:" in capsys.readouterr().out
    assert (files / "e.svg").read_text().startswith("<svg")
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["static"] >= 2
    for price in ("cheap", "1e999999", "nan"):
        assert cli.main([*words[:-1], price]) == 2


def test_an_endpoint_gets_the_fewest_replicas_that_answer_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(5)
    rows = [f"2026-11-01T10:{i // 60:02}:{i % 60:02}Z,{rng.expovariate(2):.6f}" for i in range(600)]
    (tmp_path / "t.csv").write_text("TIMESTAMP,SECONDS\n" + "\n".join(rows) + "\n")
    words = ["rightsize", "endpoint", "--trace", str(tmp_path / "t.csv"), "--latency", "3"]
    assert cli.main(words) == 0
    assert "One less:" in capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 0
    counts = [case["sized"]["replicas"] for case in json.loads(capsys.readouterr().out)["cases"]]
    assert counts == sorted(counts)
