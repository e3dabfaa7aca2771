"""Pictures that are well-formed, say their numbers as text, and let nobody write markup into them."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam import plots
from macadam.errors import InvalidInput
from macadam.plots import Bar

SVG = "{http://www.w3.org/2000/svg}"
finite = st.floats(-1e12, 1e12)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own output


def rects(svg: str) -> list[tuple[float, float]]:
    """Left and right edge of each bar."""
    nodes = [n for n in ET.fromstring(svg).iter(f"{SVG}rect") if n.get("x")]  # noqa: S314 - our own output
    return [(float(n.get("x")), float(n.get("x")) + float(n.get("width"))) for n in nodes]


def test_each_bar_of_a_waterfall_begins_where_the_one_before_it_ended():
    svg = plots.waterfall(
        [Bar(label="bill", value=100, total=True), Bar(label="idle", value=30), Bar(label="low", value=50)],
        title="Where it went",
    )
    whole, idle, low = rects(svg)
    assert idle[1] == pytest.approx(whole[1], abs=0.2)
    assert low[1] == pytest.approx(idle[0], abs=0.2)
    assert (low[1] - low[0]) / (idle[1] - idle[0]) == pytest.approx(5 / 3, rel=0.01)
    assert {"bill", "idle", "low", "100", "30", "50"} <= set(texts(svg))


def test_the_parts_of_a_stacked_bar_lie_side_by_side_and_its_sum_stands_beside_it():
    svg = plots.stacked({"a": {"used": 1.0, "idle": 3.0}, "b": {"idle": 2.0}}, title="T")
    *_, first, second, other = rects(svg)
    assert first[1] == pytest.approx(second[0], abs=0.2)
    assert other[0] == pytest.approx(first[0], abs=0.2)
    assert "4" in texts(svg)


def test_a_step_holds_its_value_until_the_next_point():
    svg = plots.lines({"spend": [(0, 1), (10, 2)]}, title="T", step=True)
    path = next(n.get("d") for n in ET.fromstring(svg).iter(f"{SVG}path"))  # noqa: S314 - our own output
    assert re.fullmatch(r"M[\d.]+ [\d.]+H[\d.]+V[\d.]+", path)


def test_points_of_ten_times_the_size_are_evenly_apart_on_a_log_axis():
    svg = plots.lines({"": [(1, 1), (10, 10), (100, 100)]}, title="T", x_scale="log", y_scale="log", marks=True)
    xs = [float(n.get("cx")) for n in ET.fromstring(svg).iter(f"{SVG}circle")]  # noqa: S314 - our own output
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_the_figures_beside_bars_stay_under_each_other():
    shown = texts(plots.waterfall([Bar(label="bill", value=1, total=True, text="1.00   10.0%")], title="T"))
    assert "1.00\u2007\u2007\u200710.0%" in shown


def test_a_picture_has_its_colours_also_where_nothing_but_plain_css_is_known():
    assert "var(" not in plots.bars({"a": 1.0}, title="T")


@given(st.text(max_size=80))
def test_no_label_whatever_it_says_becomes_markup(text: str):
    svg = plots.waterfall([Bar(label=text, value=1, total=True, text=text)], title=text, about=text)
    names = {node.tag.removeprefix(SVG) for node in ET.fromstring(svg).iter()}  # noqa: S314 - our own output
    assert names <= {"svg", "title", "desc", "style", "rect", "text"}


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=40), st.booleans())
def test_every_point_of_a_line_lies_within_the_picture(points, step):
    svg = plots.lines({"s": points}, title="T", step=step, marks=True)
    for node in ET.fromstring(svg).iter(f"{SVG}circle"):  # noqa: S314 - our own output
        assert 70 <= float(node.get("cx")) <= 850
        assert 0 <= float(node.get("cy")) <= 400


@given(st.lists(finite, min_size=1, max_size=20))
def test_every_bar_lies_between_the_labels_and_the_figures(values):
    for left, right in rects(plots.bars({str(n): v for n, v in enumerate(values)}, title="T")):
        assert left >= 260
        assert right <= 700


def test_a_picture_names_itself_for_those_who_hear_it_and_fetches_nothing():
    svg = plots.bars({"a": 1.0}, title="Costs", about="One bar of 1.")
    root = ET.fromstring(svg)  # noqa: S314 - our own output
    assert root.get("role") == "img"
    named = root.get("aria-labelledby").split()
    assert [n.text for n in root.iter() if n.get("id") in named] == ["Costs", "One bar of 1."]
    assert "prefers-color-scheme" in svg
    assert not re.search(r"href|url\(|<script|@import", svg)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(InvalidInput, match="cannot be plotted"):
        plots.bars({"a": bad}, title="T")


def test_nothing_and_too_much_are_refused_and_so_is_zero_on_a_log_axis():
    with pytest.raises(InvalidInput, match="nothing to plot"):
        plots.waterfall([], title="T")
    with pytest.raises(InvalidInput, match="too many"):
        plots.lines({"a": [(float(n), 0.0) for n in range(50_001)]}, title="T")
    with pytest.raises(InvalidInput, match="log axis"):
        plots.lines({"a": [(0.0, 1.0)]}, title="T", x_scale="log")


def test_a_legend_takes_as_many_rows_as_it_needs():
    names = [f"a step with a long name {n}" for n in range(8)]
    root = ET.fromstring(plots.stacked({"a": dict.fromkeys(names, 1.0)}, title="T"))  # noqa: S314 - our own output
    legend = {n.text: (float(n.get("x")), float(n.get("y"))) for n in root.iter(f"{SVG}text") if n.text in names}
    assert legend.keys() == set(names)
    assert len({y for _, y in legend.values()}) > 1
    assert all(x + 7 * len(name) < 860 for name, (x, _) in legend.items())


def test_large_numbers_are_written_short():
    assert [plots.number(n) for n in (0, 12.5, 9999, 12345, 2.5e6, -3e9)] == [
        "0",
        "12.5",
        "9999",
        "12.35k",
        "2.5M",
        "-3G",
    ]


def test_values_lie_between_the_first_and_the_last_round_number_of_their_axis() -> None:
    drawn = plots.lines({"a": [(1, -5), (2, 55)]}, title="t", y_label="%")
    assert [text for text in (">-20<", ">0<", ">20<", ">40<", ">60<") if text not in drawn] == []
