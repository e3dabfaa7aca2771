"""Traces in JSON lines: access logs of OpenAI-compatible servers, and Mooncake's. What is wrong is named with its line."""

import json
from pathlib import Path

import pytest

from macadam.compute.rightsizing import logs, traces
from macadam.errors import SourceInvalid, TooLarge


def answer(
    at: object = "2026-11-20T10:00:00Z", read: object = 100, made: object = 20, **more: object
) -> dict[str, object]:
    return {"timestamp": at, "usage": {"prompt_tokens": read, "completion_tokens": made}, **more}


def log(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "access.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_an_access_log_is_read_as_it_is_written(tmp_path: Path) -> None:
    found = traces.read(
        log(
            tmp_path,
            answer(at=1795168800.25, id="chatcmpl-1", model="m"),
            "",
            answer(at=1795168801250, read=50),  # in milliseconds
            {"response": {"created": 1795168799, "usage": {"input_tokens": 7, "output_tokens": 3}}},
            answer(at="2026-11-20T10:00:02+00:00"),
            {"timestamp": "2026-11-20T10:00:03Z", "status": 500, "error": {"message": "overloaded"}},
            answer(at="2026-11-20 10:00:04", made=0),
        )
    )
    assert found.trace.prompt == (7, 100, 50, 100)
    assert found.trace.at == pytest.approx((0.0, 1.25, 2.25, 3.0))
    assert (found.late, found.empty, found.twice, found.cached) == (1, 2, 0, None)


def test_an_answer_that_was_logged_twice_was_served_once(tmp_path: Path) -> None:
    found = traces.read(log(tmp_path, answer(id="a"), answer(id="a"), answer(id="b"), answer(), answer()))
    assert (len(found.trace), found.twice) == (4, 1)


def test_what_the_server_had_cached_is_told(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 60}}
    found = traces.read(log(tmp_path, answer(usage=usage) | {"usage": usage}, answer(read=20)))
    assert found.cached == pytest.approx(0.5)


def test_a_log_without_usage_is_refused_rather_than_counted_too_small(tmp_path: Path) -> None:
    lines = [answer() for _ in range(15)] + [{"timestamp": 1795168800, "path": "/v1/chat/completions"}]
    with pytest.raises(SourceInvalid, match="1 of 16 lines") as error:
        traces.read(log(tmp_path, *lines))
    assert "include_usage" in error.value.next_step
    few = traces.read(log(tmp_path, *([answer()] * 30), {"path": "/health"}))
    assert (len(few.trace), few.empty) == (30, 1)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "line 2 is no JSON object"),
        ("[1]", "line 2 is no JSON object"),
        (answer(read=-1), "line 2: prompt_tokens is -1"),
        (answer(read=1.5), "line 2: prompt_tokens is 1.5"),
        (answer(made=True), "line 2: completion_tokens is True"),
        (answer(read=10**9), "line 2: prompt_tokens is 1000000000"),
        (answer(at="yesterday"), "line 2: the time is 'yesterday'"),
        (answer(at=12), "line 2: the time is 12"),
        (answer(at=None), "line 2: the time is None"),
        (answer(at=1e25), "line 2: the time is"),
        ('{"timestamp": NaN}', "line 2 is no JSON object"),
        (
            {"timestamp": 1795168800, "usage": {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}},
            "9 tokens of 5",
        ),
        ({"timestamp": -5, "input_length": 10, "output_length": 1}, "timestamp is -5"),
        ({"timestamp": 5, "input_length": 1000, "output_length": 1, "hash_ids": [1]}, "1 hash_ids for 1000 tokens"),
        ({"timestamp": 5, "input_length": 100, "output_length": 1, "hash_ids": ["a"]}, "no list of whole numbers"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(tmp_path: Path, line: object, word: str) -> None:
    with pytest.raises(SourceInvalid) as error:
        traces.read(log(tmp_path, answer(), line))
    assert word in error.value.what


def test_limits_hold_for_lines_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLarge, match="line 2 has more than"):
        traces.read(log(tmp_path, answer(), answer(prompt="x" * 1_000_001)))
    monkeypatch.setattr(logs, "MOST_ROWS", 2)
    with pytest.raises(TooLarge, match="more than 2 lines"):
        traces.read(log(tmp_path, answer(), answer(), answer()))


def test_a_missing_file_and_one_that_is_neither_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="cannot be read"):
        traces.read(tmp_path / "none.jsonl")
    with pytest.raises(SourceInvalid, match="no column TIMESTAMP"):
        traces.read(log(tmp_path, "[1, 2]"))
    with pytest.raises(SourceInvalid, match="no requests"):
        traces.read(log(tmp_path, answer(read=0)))


def test_mooncakes_form_keeps_its_ids(tmp_path: Path) -> None:
    """The first rows of its published tool and agent trace, ids shortened to what their lengths ask for."""
    rows = [
        {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": list(range(14))},
        {"timestamp": 3052, "input_length": 2290, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]},
    ]
    found = traces.read(log(tmp_path, *rows)).trace
    assert found.at == (0.0, 3.052)
    assert found.unit == 512
    assert found.ids[1] == (0, 42, 43, 44, 45)
    plain = traces.read(log(tmp_path, *({k: v for k, v in row.items() if k != "hash_ids"} for row in rows))).trace
    assert plain.ids == ()
    with pytest.raises(SourceInvalid, match="some lines have ids"):
        traces.read(log(tmp_path, rows[0], {k: v for k, v in rows[1].items() if k != "hash_ids"}))
