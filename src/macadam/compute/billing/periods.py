"""Calendar periods in UTC, which budgets and forecasts speak of."""

from datetime import UTC, datetime, timedelta

from macadam.compute.billing.budget_types import Period

_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def bounds(period: Period, at: datetime) -> tuple[datetime, datetime]:
    """Start and end (excluded) of the period that `at` is in, both at midnight UTC."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return day, day + timedelta(days=1)
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    months = _MONTHS[period]
    first = (day.month - 1) // months * months + 1
    start = day.replace(month=first, day=1)
    ahead = first - 1 + months
    return start, start.replace(year=start.year + ahead // 12, month=ahead % 12 + 1)
