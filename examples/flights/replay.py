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


def facts(raw: Path) -> list[tuple[datetime, str, dict[str, object]]]:
    """What became known and when, in order: (instant, table, row).

    A flight is known twice: when it has left, then again, complete, when it has landed. Weather is known when its hour
    is over. Flights without a tail number or an air time are refused by the contract, so they are no facts either.
    """
    flights = _complete(raw)
    not_yet = dict.fromkeys(("arr_time", "arr_delay", "air_time"))
    known = [(_departure(row), "flights", row | not_yet) for row in flights]
    known += [(_arrival(row), "flights", row) for row in flights]
    readings = _rows(raw / "weather" / "2013-07.csv")
    known += [(_instant(row["time_hour"]) + timedelta(hours=1), "weather", row) for row in readings]
    return sorted((fact for fact in known if fact[0] < END), key=lambda fact: fact[0])


def labels(raw: Path) -> list[tuple[datetime, str, float]]:
    """What came true, known at landing: (instant, key of the question, 1 if over 15 minutes late else 0), in order."""
    known = [(_arrival(row), _key(row), float(row["arr_delay"] > LATE)) for row in _complete(raw)]
    return sorted(label for label in known if label[0] < END)


def _complete(raw: Path) -> list[dict]:
    needed = ("tailnum", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
    return [row for row in _rows(raw / "flights" / "2013-07.csv") if all(row[name] is not None for name in needed)]


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


def _departure(row: dict) -> datetime:
    return _scheduled(row) + timedelta(minutes=row["dep_delay"])


def _arrival(row: dict) -> datetime:
    """The scheduled arrival on the destination's clock, the next day if that shows less than it did at departure."""
    zone = _ZONE[row["dest"]]
    departure = _scheduled(row).astimezone(zone)
    clock = row["sched_arr_time"] // 100 * 60 + row["sched_arr_time"] % 100
    next_day = clock <= departure.hour * 60 + departure.minute
    midnight = departure.replace(hour=0, minute=0, tzinfo=None) + timedelta(days=int(next_day))
    local = (midnight + timedelta(minutes=clock)).replace(tzinfo=zone)
    return local.astimezone(ZoneInfo("UTC")) + timedelta(minutes=row["arr_delay"])
