"""A month's costs as one page that needs nothing else: pictures inside, no script, nothing fetched, light and dark.

Everything that came from bills, telemetry or people is escaped; tables say what the pictures show.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape

from macadam import plots
from macadam.compute.billing import sharing
from macadam.compute.waterfall.requests import Breakdown
from macadam.compute.waterfall.types import STEPS, DayCost, Step, Waterfall
from macadam.plots import Bar

_MOST_BARS = 20
_STYLE = """
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--soft:#5d5d5d;--line:#d9d9d9}
@media (prefers-color-scheme:dark){:root{--ink:#eee;--paper:#16181c;--soft:#a8a8a8;--line:#444}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:920px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.4rem}svg{max-width:100%;height:auto}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}p.soft,caption{color:var(--soft);text-align:left}
"""
_STEPS_SHOWN: tuple[Step, ...] = ("unallocated", "idle", "low_sm", "below_peak", "effective")


def page(found: Breakdown, owners: Breakdown, pictures: Sequence[tuple[Waterfall, Sequence[Bar]]]) -> str:
    """found: by project; owners: by owner, of the same allocation; pictures: the bars of each currency's waterfall."""
    whose = "all projects" if found.project == "*" else found.project
    title = f"Where the money went: {whose}, {found.month}"
    parts = [_waterfall(whole, bars) for whole, bars in pictures]
    parts += [_parts(found, whole.bill.currency, "project") for whole in found.whole]
    parts += [_parts(owners, whole.bill.currency, "run, job, endpoint or model") for whole in found.whole]
    parts += [_trend(found.days, whole.bill.currency) for whole in found.whole]
    parts += [_doubts(found), _uncharged(found), _flags(found)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<p class="soft">Allocation {escape(found.allocation)}. All lines of a waterfall sum exactly to its bill.</p>'
        f"{_outdated(found)}{''.join(parts)}</main></body></html>\n"
    )


def _outdated(found: Breakdown) -> str:
    return f"<p><b>Since then somebody changed {escape(found.outdated)}.</b></p>" if found.outdated else ""


def _waterfall(whole: Waterfall, bars: Sequence[Bar]) -> str:
    currency = whole.bill.currency
    drawn = plots.waterfall(bars, title=f"From the bill to effective work, {currency}")
    cents = sharing.in_cents([line.amount.micros for line in whole.lines])
    rows = [
        (line.title, f"{cent / 100:,.2f}", _percent(line.part), f"{line.gpu_hours:,.1f}", line.about)
        for line, cent in zip(whole.lines, cents, strict=True)
    ]
    total = ("bill", f"{sum(cents) / 100:,.2f}", _percent(1.0), "", "effective (amortised) cost")
    head = ("step", f"{currency}", "of the bill", "GPU hours", "what is in it")
    return f"<h2>The waterfall, {escape(currency)}</h2>{drawn}{_table(head, [*rows, total], numbers=(1, 2, 3))}"


def _parts(found: Breakdown, currency: str, what: str) -> str:
    own = [one for one in found.parts if one.bill.currency == currency and one.bill.micros > 0][:_MOST_BARS]
    if not own:
        return ""
    stacked = {one.key or "(nobody's)": _in_parts(one) for one in own}
    drawn = plots.stacked(stacked, title=f"By {what}, {currency}", text=lambda value: f"{value:,.2f}")
    rows = [
        (
            one.key or "(nobody's)",
            f"{one.bill.micros / 1_000_000:,.2f}",
            _percent(one.amount("idle") / one.bill.micros),
            _percent(one.amount("low_sm") / one.bill.micros),
            _percent(one.amount("effective") / one.bill.micros),
        )
        for one in own
    ]
    head = (what, currency, "idle", "low SM", "effective")
    return f"<h2>By {escape(what)}, {escape(currency)}</h2>{drawn}{_table(head, rows, numbers=(1, 2, 3, 4))}"


def _in_parts(one: Waterfall) -> dict[str, float]:
    """The steps that a reader can do something about, and the rest; credits, which are negative, are left out of the bar."""
    parts = {STEPS[step][0]: max(0, one.amount(step)) for step in _STEPS_SHOWN}
    parts["everything else"] = max(0, one.bill.micros - sum(parts.values()))
    return {title: micros / 1_000_000 for title, micros in parts.items()}


def _trend(days: Sequence[DayCost], currency: str) -> str:
    own = [day for day in days if day.bill.currency == currency]
    if len(own) < 2:  # noqa: PLR2004 - of one day the table says it all
        return ""
    first = own[0].day
    series = {
        "bill": [(float((day.day - first).days), day.bill.micros / 1_000_000) for day in own],
        "effective": [(float((day.day - first).days), day.effective.micros / 1_000_000) for day in own],
    }

    def label(number: float) -> str:
        return (
            ""
            if number % 1
            else (datetime.combine(first, datetime.min.time()) + timedelta(days=number)).strftime("%d %b")
        )

    drawn = plots.lines(
        series,
        title=f"Day by day, {currency}",
        y_label=f"{currency} a day",
        x_text=label,
        step=True,
    )
    return f"<h2>Trend, {escape(currency)}</h2>{drawn}"


def _doubts(found: Breakdown) -> str:
    if found.project != "*":
        return ""
    if not found.doubts:
        return '<h2>Telemetry that is not believed</h2><p class="soft">None.</p>'
    rows = [(one.device, one.reason, f"{one.gpu_hours:,.1f}", str(one.amount)) for one in found.doubts]
    head = ("device", "reason", "GPU hours", "charged to nobody")
    return f"<h2>Telemetry that is not believed</h2>{_table(head, rows, numbers=(2, 3))}"


def _uncharged(found: Breakdown) -> str:
    if not found.uncharged:
        return ""
    rows = [(one.owner, one.project, f"{one.gpu_hours:,.1f}") for one in found.uncharged]
    about = '<p class="soft">Device time that somebody had and that no charge covers.</p>'
    return f"<h2>Used and not billed</h2>{about}{_table(('owner', 'project', 'GPU hours'), rows, numbers=(2,))}"


def _flags(found: Breakdown) -> str:
    if not found.flags:
        return ""
    rows = [(flag.what, f"{flag.count:,}", flag.example) for flag in found.flags]
    return f"<h2>Not taken as it came</h2>{_table(('what', 'how many', 'such as'), rows, numbers=(1,))}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(
            f"<{tag}{scope}{' class=n' if place in numbers else ''}>{escape(value)}</{tag}>"
            for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.1%}"
