"""Plots as SVG text: waterfall, bars, stacked bars, lines and steps, for reports and for `--plot FILE.svg`.

Each is one self-contained picture: no script, nothing fetched, every text escaped, colours that follow the reader's light or
dark scheme and that colour-blind readers tell apart. The numbers stand in it as text, so that a screen reader finds them.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Literal

import msgspec

from macadam.errors import InvalidInput

# Okabe and Ito (2008), "Color Universal Design": told apart with any of the common colour-vision deficiencies.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f")
# Colours stand in each rule: renderers other than browsers know no custom properties and would draw black on black.
_STYLE = (
    "<style>.macadam-plot{font:13px system-ui,sans-serif;font-variant-numeric:tabular-nums}"
    ".macadam-plot text{fill:#1a1a1a}.macadam-plot .soft{fill:#6b6b6b}"
    ".macadam-plot .grid{stroke:#d9d9d9}.macadam-plot .paper{fill:#fff}.macadam-plot .head{font-size:16px;font-weight:600}"
    "@media (prefers-color-scheme:dark){.macadam-plot text{fill:#eee}.macadam-plot .soft{fill:#a8a8a8}"
    ".macadam-plot .grid{stroke:#444}.macadam-plot .paper{fill:#16181c}}</style>"
)
_WIDTH, _ROW, _TOP, _MARGIN = 860, 28, 58, 16
_LABEL_WIDTH, _VALUE_WIDTH = 250, 150
_PLOT_HEIGHT, _LEFT, _BELOW, _LEGEND_ROW = 300, 76, 46, 18
_MOST = 100_000
"""Points of all series together: more are no picture, and a browser chokes on them."""
_LONGEST = 42  # characters of a label before it is cut

_FIGURE_SPACE = "\u2007"  # as wide as a digit

Scale = Literal["linear", "log"]
Format = Callable[[float], str]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of a waterfall. value: how much this step takes away, or the whole of what is left if `total`.

    text: what stands beside it, '' for the number; color: an index into PALETTE.
    """

    label: str
    value: float
    total: bool = False
    text: str = ""
    color: int = 1


def number(value: float) -> str:
    """Four digits at most, with k, M and G: 1234567 → 1.235M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:.4g}"


def waterfall(bars: Sequence[Bar], *, title: str, about: str = "") -> str:
    """From the first total down to what is left: each bar begins where the one before it ended.

    Raises InvalidInput for no bars, or values that are not finite.
    """
    _check([[bar.value for bar in bars]])
    level, spans = 0.0, []
    for bar in bars:
        spans.append((0.0, bar.value) if bar.total else (level - bar.value, level))
        level = bar.value if bar.total else level - bar.value
    low, high = min(0.0, *(min(s) for s in spans)), max(0.0, *(max(s) for s in spans))
    across = _across(low, high)
    rows = []
    for place, (bar, span) in enumerate(zip(bars, spans, strict=True)):
        rows.append(_bar_row(place, bar.label, bar.text or number(bar.value), [(*span, bar.color)], across))
    return _frame("".join(rows), _TOP + _ROW * len(bars) + _MARGIN, title, about)


def bars(values: Mapping[str, float], *, title: str, about: str = "", text: Format = number) -> str:
    """One horizontal bar for each label. Raises InvalidInput."""
    return stacked({label: {"": value} for label, value in values.items()}, title=title, about=about, text=text)


def stacked(values: Mapping[str, Mapping[str, float]], *, title: str, about: str = "", text: Format = number) -> str:
    """One horizontal bar for each label, in parts: label → part → value (at least 0 where there are several parts).

    Raises InvalidInput.
    """
    _check([list(parts.values()) for parts in values.values()])
    names = list(dict.fromkeys(name for parts in values.values() for name in parts))
    if len(names) > 1 and any(value < 0 for parts in values.values() for value in parts.values()):
        raise InvalidInput("Parts of a bar cannot be negative.", next_step="Show them as bars of their own.")
    totals = {label: sum(parts.values()) for label, parts in values.items()}
    across = _across(min(0.0, *totals.values()), max(0.0, *totals.values()))
    legend, high = _legend(names, _TOP - 6)
    below = _TOP + high
    rows = []
    for place, (label, parts) in enumerate(values.items()):
        at, spans = 0.0, []
        for index, name in enumerate(names):
            if name in parts:
                spans.append((at, at + parts[name], index))
                at += parts[name]
        rows.append(_bar_row(place, label, text(totals[label]), spans, across, top=below))
    return _frame(legend + "".join(rows), below + _ROW * len(values) + _MARGIN, title, about)


def lines(  # noqa: PLR0913 - a picture's own description, each by its name
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    about: str = "",
    x_label: str = "",
    y_label: str = "",
    x_text: Format = number,
    y_text: Format = number,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    step: bool = False,
    marks: bool = False,
) -> str:
    """A line for each series of (x, y), drawn in order of x. step: the value holds until the next point; marks: a dot for
    each point. Raises InvalidInput for no points, too many, values that are not finite, or none above 0 on a log axis.
    """
    _check([[part for point in points for part in point] for points in series.values()])
    found = {name: sorted(points) for name, points in series.items()}
    xs = _axis([x for points in found.values() for x, _ in points], x_scale, zero=False)
    ys = _axis([y for points in found.values() for _, y in points], y_scale, zero=y_scale == "linear")
    legend, high = _legend(list(found), _TOP - 6)
    width, top = _WIDTH - _LEFT - _MARGIN, _TOP + high + (12 if y_label else 0)

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + xs.at(x) * width, top + (1 - ys.at(y)) * _PLOT_HEIGHT

    drawn = [_grid(xs, ys, place, (x_text, y_text), (x_label, y_label), top)]
    for index, points in enumerate(found.values()):
        color = PALETTE[index % len(PALETTE)]
        drawn.append(f'<path d="{_path(points, place, step=step)}" fill="none" stroke="{color}" stroke-width="2"/>')
        if marks or len(points) == 1:
            for x, y in (place(*point) for point in points):
                drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
    return _frame(legend + "".join(drawn), top + _PLOT_HEIGHT + _BELOW, title, about)


# --- axes


class _Axis(msgspec.Struct, frozen=True, kw_only=True):
    """low, high: of what is shown, as logarithms on a log axis."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """0 at the axis's begin, 1 at its end."""
        shown = math.log10(value) if self.log else value
        return (shown - self.low) / (self.high - self.low)


def _axis(values: Sequence[float], scale: Scale, *, zero: bool) -> _Axis:
    if scale == "log":
        if min(values) <= 0:
            raise InvalidInput(f"{min(values):g} has no place on a log axis.", next_step="Use a linear axis.")
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high += low == high
        return _Axis(low=low, high=high, log=True, ticks=tuple(10.0**power for power in range(low, high + 1)))
    least, most = (min(0.0, *values), max(0.0, *values)) if zero else (min(values), max(values))
    if least == most:
        least, most = least - (0 if zero else 0.5), most + 1 - (0 if zero else 0.5)
    ticks = _ticks(least, most, around=zero)
    return _Axis(low=ticks[0] if zero else least, high=ticks[-1] if zero else most, log=False, ticks=ticks)


def _ticks(low: float, high: float, *, around: bool = False) -> tuple[float, ...]:
    """About five round numbers (1, 2 or 5 times a power of ten) between two others. around: the first and the last are not inside."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    down, up = low / width + 1e-9, high / width - 1e-9
    first, last = (math.floor(down), math.ceil(up)) if around else (math.ceil(down - 2e-9), math.floor(up + 2e-9))
    return tuple(number * width for number in range(first, last + 1))


def _grid(
    xs: _Axis,
    ys: _Axis,
    place: Callable[[float, float], tuple[float, float]],
    texts: tuple[Format, Format],
    labels: tuple[str, str],
    top: int,
) -> str:
    drawn, bottom = [], top + _PLOT_HEIGHT
    first_x = 10**xs.low if xs.log else xs.low
    first_y = 10**ys.low if ys.log else ys.low
    for tick in ys.ticks:
        _, y = place(first_x, tick)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(_text(_LEFT - 8, y + 4, texts[1](tick), anchor="end", kind="soft"))
    for tick in xs.ticks:
        x, _ = place(tick, first_y)
        drawn.append(_text(x, bottom + 18, texts[0](tick), anchor="middle", kind="soft"))
    drawn.append(_text(_WIDTH - _MARGIN, bottom + 38, labels[0], anchor="end", kind="soft"))
    drawn.append(_text(_MARGIN, top - 10, labels[1], kind="soft"))
    return "".join(drawn)


def _path(
    points: Sequence[tuple[float, float]], place: Callable[[float, float], tuple[float, float]], *, step: bool
) -> str:
    words: list[str] = []
    for x, y in (place(*point) for point in points):
        if not words:
            words.append(f"M{x:.1f} {y:.1f}")
        else:
            words.append(f"H{x:.1f}V{y:.1f}" if step else f"L{x:.1f} {y:.1f}")
    return "".join(words)


# --- pieces


def _check(groups: Sequence[Sequence[float]]) -> None:
    count = sum(len(group) for group in groups)
    if not count:
        raise InvalidInput("There is nothing to plot.", next_step="Choose a time or a project that has rows.")
    if count > _MOST:
        raise InvalidInput(f"{count} points are too many for a picture.", next_step="Sum them up by hour or day.")
    for group in groups:
        for value in group:
            if not math.isfinite(value):
                raise InvalidInput(f"{value} cannot be plotted.", next_step="Leave out what was not measured.")


def _across(low: float, high: float) -> Callable[[float], float]:
    """Where a value lies between the labels on the left and the figures on the right."""
    width = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH - 2 * _MARGIN
    span = (high - low) or 1.0
    return lambda value: _MARGIN + _LABEL_WIDTH + (value - low) / span * width


def _bar_row(
    place: int,
    label: str,
    figure: str,
    spans: Sequence[tuple[float, float, int]],
    across: Callable[[float], float],
    *,
    top: int = _TOP,
) -> str:
    y = top + place * _ROW
    drawn = [_text(_MARGIN + _LABEL_WIDTH - 10, y + 18, label, anchor="end")]
    for begin, end, color in spans:
        left, right = sorted((across(begin), across(end)))
        fill = PALETTE[color % len(PALETTE)]
        drawn.append(
            f'<rect x="{left:.1f}" y="{y + 4}" width="{max(right - left, 0.5):.1f}" height="{_ROW - 8}" fill="{fill}"/>'
        )
    columns = re.sub(" {2,}", lambda run: _FIGURE_SPACE * len(run[0]), figure)  # a run of spaces would be shown as one
    drawn.append(_text(_WIDTH - _MARGIN, y + 18, columns, anchor="end"))
    return "".join(drawn)


def _legend(names: Sequence[str], y: int) -> tuple[str, int]:
    """The names with their colours, in as many rows as they need, and how high those are; nothing if none has a name."""
    drawn, x, row = [], _MARGIN, 0
    for index, name in enumerate(names):
        if not name:
            continue
        shown = _cut(name)
        width = 34 + 8 * len(shown)  # generous: the reader's font is not ours
        if x > _MARGIN and x + width > _WIDTH:
            x, row = _MARGIN, row + 1
        at = y + row * _LEGEND_ROW
        drawn.append(f'<rect x="{x}" y="{at - 9}" width="11" height="11" fill="{PALETTE[index % len(PALETTE)]}"/>')
        drawn.append(_text(x + 16, at + 1, shown))
        x += width
    return "".join(drawn), (row + 1) * _LEGEND_ROW + 6 if drawn else 0


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    if not text:
        return ""
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{classes}>{_safe(_cut(text))}</text>'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _safe(text: str) -> str:
    """Escaped, and without the control characters that XML 1.0 section 2.2 has no way to write."""
    return escape("".join(c for c in text if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff"))


def _frame(inside: str, height: int, title: str, about: str) -> str:
    # Ids are unique on a page that holds several pictures, and the same for the same picture.
    key = "p" + hashlib.sha256((title + inside).encode(errors="replace")).hexdigest()[:12]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="macadam-plot" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-labelledby="{key}-title {key}-about"><title id="{key}-title">{_safe(title)}</title>'
        f'<desc id="{key}-about">{_safe(about or title)}</desc>{_STYLE}'
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>'
        f'<text class="head" x="{_MARGIN}" y="28">{_safe(title)}</text>{inside}</svg>\n'
    )
