"""Two weeks of July as they happened: what was asked at each scheduled departure, and what became known when.

A customer's system would send these as they come. Instants are UTC and computed in plain Python, apart from the
feature definitions, so that the replay also checks them.
"""

import csv
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from features import ZONES

START = datetime.fromisoformat("2013-07-01T04:00:00Z")  # midnight in New York
END = datetime.fromisoformat("2013-07-15T04:00:00Z")

_ZONE = {airport: ZoneInfo(zone) for zone, airports in ZONES.items() for airport in airports.split()}
_TEXT = {"carrier", "tailnum", "origin", "dest", "time_hour"}
_INPUTS = ("carrier", "origin", "dest", "tailnum", "distance", "sched_arr_time")
LATE = 15  # minutes


def questions(raw: Path) -> list[tuple[datetime, str, dict[str, object]]]:
    """Every flight, cancelled ones too: (scheduled departure, its key, the inputs of the prediction), in order."""
    flights = [row for row in _rows(raw / "flights" / "2013-07.csv") if START <= _scheduled(row) < END]
    asked = [(_scheduled(row), _key(row), {name: row[name] for name in _INPUTS}) for row in flights]
    return sorted(asked, key=lambda question: question[:2])


def landings(raw: Path) -> list[tuple[datetime, str, dict[str, object], float]]:
    """Flights that arrived, when that was known: (arrival, key, the whole row, 1 if over 15 minutes late else 0).

    Rows without a tail number or an air time are refused by the contract, so they do not become features either.
    """
    needed = ("tailnum", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
    complete = [row for row in _rows(raw / "flights" / "2013-07.csv") if all(row[name] is not None for name in needed)]
    known = [(_arrival(row), _key(row), row, float(row["arr_delay"] > LATE)) for row in complete]
    return sorted((event for event in known if event[0] < END), key=lambda event: event[:2])


def weather(raw: Path) -> list[tuple[datetime, dict[str, object]]]:
    """Readings, each known when its hour is over."""
    known = [(_instant(row["time_hour"]) + timedelta(hours=1), row) for row in _rows(raw / "weather" / "2013-07.csv")]
    return sorted((event for event in known if event[0] < END), key=lambda event: event[0])


def _rows(path: Path) -> Iterator[dict]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield {name: _value(name, text) for name, text in row.items()}


def _value(name: str, text: str) -> object:
    if text == "NA":
        return None
    if name in _TEXT:
        return text
    number = float(text)
    return int(number) if number.is_integer() else number


def _key(row: dict) -> str:
    return f"{row['time_hour']} {row['carrier']}{row['flight']} {row['origin']}"


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _scheduled(row: dict) -> datetime:
    return _instant(row["time_hour"]) + timedelta(minutes=row["minute"])


def _arrival(row: dict) -> datetime:
    """The scheduled arrival on the destination's clock, the next day if that shows less than it did at departure."""
    zone = _ZONE[row["dest"]]
    departure = _scheduled(row).astimezone(zone)
    clock = row["sched_arr_time"] // 100 * 60 + row["sched_arr_time"] % 100
    next_day = clock <= departure.hour * 60 + departure.minute
    midnight = departure.replace(hour=0, minute=0, tzinfo=None) + timedelta(days=int(next_day))
    local = (midnight + timedelta(minutes=clock)).replace(tzinfo=zone)
    return local.astimezone(ZoneInfo("UTC")) + timedelta(minutes=row["arr_delay"])
