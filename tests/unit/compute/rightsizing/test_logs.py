"""Traces in JSON lines: access logs of OpenAI-compatible servers, and Mooncake's. What is wrong is named with its line."""

import gzip
import json
from pathlib import Path

import pytest

from macadam.compute.rightsizing import arrivals, traces
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
    monkeypatch.setattr(arrivals, "MOST_ROWS", 2)
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


NEVER_ENDS = "9" * 400


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"timestamp": ' + NEVER_ENDS + ', "input_length": 5, "output_length": 5}', "timestamp is 9999"),
        ('{"timestamp": 1e308, "input_length": 5, "output_length": 5}', "timestamp is 1e+308"),
        ('{"ts": ' + NEVER_ENDS + ', "usage": {"prompt_tokens": 5, "completion_tokens": 5}}', "the time is 9999"),
        ('{"ts": -' + NEVER_ENDS + ', "usage": {"prompt_tokens": 5, "completion_tokens": 5}}', "the time is -9999"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1 is no JSON object"),
        ({"timestamp": 5, "input_length": 1500, "output_length": 1, "hash_ids": [1, 2, 1]}, "stands there twice"),
        (answer(at="x" * 900_000), "the time is 'xxxx"),
    ],
)  # fmt: skip
def test_what_no_float_holds_and_no_reader_can_read_is_refused_in_few_words(
    tmp_path: Path, line: object, word: str
) -> None:
    with pytest.raises(SourceInvalid, match="line 1") as error:
        traces.read(log(tmp_path, line))
    assert word in error.value.what
    assert len(error.value.what) < 400


def test_a_file_of_two_forms_has_times_of_two_kinds_and_is_refused(tmp_path: Path) -> None:
    mooncake = {"timestamp": 0, "input_length": 10, "output_length": 5}
    for lines in ((mooncake, answer()), (answer(), mooncake)):
        with pytest.raises(SourceInvalid, match="line 2: it is of another form"):
            traces.read(log(tmp_path, *lines))


def test_a_number_in_quotes_is_a_time_and_no_day_of_the_middle_ages(tmp_path: Path) -> None:
    """As ISO 8601's shortest form, 1712110112000 would be 1 November 1712."""
    table = tmp_path / "t.csv"
    table.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n1712110112000,9,5\n1712110113.5,9,5\n2024-04-03T02:08:34Z,9,5\n"
    )
    for path in (log(tmp_path, *(answer(at=at) for at in ("1712110112000", "1712110113.5", 1712110114))), table):
        assert traces.read(path).trace.at == pytest.approx((0.0, 1.5, 2.0))


def test_times_of_two_kinds_make_no_trace_of_decades(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="days lie between"):
        traces.read(log(tmp_path, answer(at="1970-01-01T00:00:00Z"), answer()))


def test_an_answer_after_a_failure_of_the_same_id_was_served(tmp_path: Path) -> None:
    failed = {"id": "a", "timestamp": "2026-11-20T10:00:00Z", "status": 503}
    said = answer()
    inside = {"response": {"id": "b", **said}}
    found = traces.read(log(tmp_path, failed, answer(id="a"), inside, inside))
    assert (len(found.trace), found.twice, found.empty) == (2, 1, 1)


def test_what_was_cached_of_requests_that_are_left_out_does_not_count(tmp_path: Path) -> None:
    left_out, kept = (
        {"timestamp": 1795168800, "usage": {"prompt_tokens": 100, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": hit}}}
        for made, hit in ((0, 100), (5, 30))
    )  # fmt: skip
    assert traces.read(log(tmp_path, left_out, kept)).cached == pytest.approx(0.3)


def test_a_compressed_trace_is_refused_with_what_unpacks_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"TIMESTAMP,ContextTokens,GeneratedTokens\n"))
    with pytest.raises(SourceInvalid, match="is compressed") as error:
        traces.read(path)
    assert error.value.next_step.endswith(f"gunzip -k {path}")


def test_a_table_without_lines_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "x" * 1_000_001)
    with pytest.raises(TooLarge, match="line 2 has more than"):
        traces.read(path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("2026-01-01 00:00:00,10", "2 cells under 3 columns"),
        ("2026-01-01 00:00:00,10,5,7", "4 cells under 3 columns"),
        ("2026-01-01 00:00:00,1_0,5", "ContextTokens: '1_0'"),
        ("2026-01-01 00:00:00,10,nan", "GeneratedTokens: 'nan'"),
        ("yesterday,10,5", "TIMESTAMP: Invalid isoformat"),
    ],
)
def test_a_malformed_row_is_named_with_its_line_and_column(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00,10,5\n{text}\n")
    with pytest.raises(SourceInvalid, match="line 3") as error:
        traces.read(path)
    assert word in error.value.what


def test_a_column_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n2026-01-01 00:00:00,10,5,7\n")
    with pytest.raises(SourceInvalid, match="has 2 columns ContextTokens"):
        traces.read(path)
