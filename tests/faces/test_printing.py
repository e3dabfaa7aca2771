from datetime import UTC, datetime

import msgspec
import pytest

from macadam.faces import printing


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ((), "-"),
        (True, "yes"),
        (0, "0"),
        (0.0, "0"),
        (0.123456789, "0.123457"),
        ("2026-11-21T08:30:33.679460Z", "2026-11-21 08:30:33Z"),
        (["a", "b"], "a, b"),
        ([{"a": 1}, {"a": 2}], "2 of them"),
        ({"value": 0.78474, "low": 0.779, "high": 0.7903}, "0.7847 (0.779 to 0.7903)"),
        ({"rate": 0.5, "depth": 3}, "rate: 0.5\ndepth: 3"),
    ],
)
def test_values_are_said_in_words(value: object, text: str) -> None:
    assert printing.cell(value) == text


def test_a_table_cuts_digests_and_long_texts_that_a_record_shows_whole() -> None:
    digest = "sha256:" + "a" * 64
    assert printing.cell(digest) == digest
    assert printing.cell(digest, short=True) == "sha256:" + "a" * 12 + "…"
    assert len(printing.cell("x" * 500, short=True)) == 120
    assert printing.cell({"ref": "table:a@1", "rows": 5}, short=True) == "table:a@1"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    ref: str
    id: str
    project: str
    empty: str = ""
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_table_leaves_out_what_is_empty_or_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    printing.as_text([Row(ref="run:1", id="1", project="p"), Row(ref="run:2", id="2", project="p")])
    head = capsys.readouterr().out.splitlines()[1].split()
    assert head == ["ref", "at"]


def test_a_wide_table_says_what_it_does_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    row = {f"c{n}": n for n in range(8)} | {"nested": {"a": 1}, "digest": "sha256:" + "a" * 64}
    printing.as_text([row, row])
    out = capsys.readouterr().out
    assert "Not shown: nested, digest. --json has everything." in out
    assert "c7" in out


def test_on_a_narrow_terminal_columns_are_left_out_rather_than_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    identity = "01a1fe85-d8dd-72a1-8390-fceeb1d1340d"
    row = {"id": identity, "state": "waiting", "name": "n" * 20, "note": "some words " * 9, "spent": "1,234.567 USD"}
    printing.as_text([row], ranked=True)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert identity in out
    assert "n" * 20 in out
    assert "Not shown: note, spent. --json has everything." in out
    printing.as_text([row])
    assert "1,234.567 USD" in capsys.readouterr().out, "where no rank is said, the last column tells most"


def test_words_are_folded_before_anything_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    printing.as_text([{"check": "stale", "means": "the same readings again and again " * 3, "count": 12}])
    out = capsys.readouterr().out
    assert "Not shown" not in out
    assert all(len(line) <= 60 for line in out.splitlines())


def test_a_record_shows_its_lists_as_tables_below(capsys: pytest.CaptureFixture[str]) -> None:
    printing.as_text({"name": "gate", "checks": [{"criterion": "roc_auc", "passed": False}]}, title="Gate")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "Gate"
    assert lines[1].split() == ["name", "gate"]
    assert lines[2] == "checks"
    assert "no" in lines[-1].split()
    printing.as_text([])
    assert capsys.readouterr().out == "None.\n"


def test_square_brackets_in_values_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    printing.as_text({"rule": "[bold]x[/bold]"})
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_an_interval_in_a_leaf_is_shown_though_its_numbers_are_text() -> None:
    assert printing.cell({"value": "0.78466", "low": "0.76817", "high": "0.8009"}) == "0.7847 (0.7682 to 0.8009)"
    assert printing.cell({"value": 0.5, "low": 0.25, "high": 1.0}) == "0.5 (0.25 to 1)"


def test_money_is_told_to_the_cent_and_of_less_as_much_as_tells() -> None:
    assert printing.cell({"micros": 1_234_500_000, "currency": "EUR"}) == "1,234.50 EUR"
    assert printing.cell({"micros": -12_345, "currency": "USD"}) == "-0.0123 USD"
    assert printing.cell([{"micros": 1, "currency": "USD"}, {"micros": 2_000_000, "currency": "EUR"}]) == (
        "0.000001 USD, 2.00 EUR"
    )


def test_an_estimate_in_money_has_bounds_in_money() -> None:
    least, most = ({"micros": micros, "currency": "USD"} for micros in (61, 1_230_000))
    assert printing.cell({"value": least, "low": least, "high": most}) == "0.000061 USD (0.000061 USD to 1.23 USD)"
