"""Makes a new project: a small one that works as it is, with made-up data, to change step by step into one's own."""

import csv
import io
import math
import random
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

from macadam.errors import Conflict, InvalidInput
from macadam.values import NAME_PATTERN, uuid7

_TEMPLATE = "macadam.delivery.template"
_FILES = {
    "macadam.yaml": "macadam.yaml",
    "parcels.odcs.yaml": "contracts/parcels.odcs.yaml",
    "features.py.txt": "features.py",
    "train.py.txt": "train.py",
    "gates.yaml": "gates.yaml",
    "README.md.jinja": "README.md",
    "gitignore.jinja": ".gitignore",
}
_COLUMNS = ("parcel", "depot", "carrier", "weight_kg", "promised_hours", "shipped_at", "late_minutes", "delivered_at")
_MONTHS = 5
_A_DAY = 30  # parcels: enough to learn from, little enough to train in a second
_CARRIERS = {"northline": 0.0, "quickship": -0.8, "overland": 0.9}  # how late each is, in log-odds
_DEPOTS = {"harbour": 0.2, "airport": -0.3, "hillside": 0.5}


def init(directory: Path, name: str) -> Path:
    """Writes a project `name` into `directory/name` and returns that path: all of its files or none.

    Raises InvalidInput for what is no name, Conflict if something is there already.
    """
    if not re.match(NAME_PATTERN, name):
        raise InvalidInput(
            f"{name!r} is no name for a project.", next_step="Use lower case letters, digits, '-' and '_'."
        )
    place = directory / name
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise Conflict(f"{place} is there already.", next_step="Choose another name or another directory.")
    draft = directory / f".{name}.{uuid7()}.draft"
    try:
        _write(draft, name)
        draft.replace(place)  # an empty directory gives way, a file that came meanwhile does not
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _write(place: Path, name: str) -> None:
    for source, target in _FILES.items():
        text = resources.files(_TEMPLATE).joinpath(source).read_text(encoding="utf-8")
        path = place / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{{ name }}", name), encoding="utf-8")
    (place / "raw").mkdir()
    for month, rows in parcels():
        (place / "raw" / f"parcels-{month}.csv").write_text(rows, encoding="utf-8")


def parcels() -> Iterator[tuple[str, str]]:
    """Made-up parcels of January to May 2025, as (month, CSV). The same at each call; a few rows break the contract."""
    chance = random.Random(2025)  # noqa: S311 - made-up data, nothing secret
    number, day = 0, datetime(2025, 1, 1, tzinfo=UTC)
    for month in range(1, _MONTHS + 1):
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        while day.month == month:
            for _ in range(_A_DAY):
                number += 1
                table.writerow(_parcel(number, day, chance))
            day += timedelta(days=1)
        yield f"2025-{month:02}", text.getvalue()


def _parcel(number: int, day: datetime, chance: random.Random) -> tuple[str, ...]:
    carrier, depot = chance.choice(list(_CARRIERS)), chance.choice(list(_DEPOTS))
    weight, promised = round(chance.lognormvariate(1, 0.8), 2), chance.choice((24, 48, 72))
    shipped = day + timedelta(minutes=chance.randrange(6 * 60, 20 * 60))
    # Depots have good and bad weeks, which the shares of the last days can tell.
    wave = math.sin(day.timetuple().tm_yday / 9 + len(depot))
    odds = _CARRIERS[carrier] + _DEPOTS[depot] + wave + 0.15 * weight - promised / 40 + 0.6 * (day.weekday() >= 4)  # noqa: PLR2004 - from Friday on
    late = chance.random() < 1 / (1 + math.exp(-odds))
    hours = promised * (chance.uniform(1.02, 1.6) if late else chance.uniform(0.4, 0.98))
    minutes = round(hours * 60)
    said = "" if number % 401 == 0 else str(-weight if number % 577 == 0 else weight)  # faults, for the quarantine
    return (
        f"P{number:06}",
        depot,
        carrier,
        said,
        str(promised),
        shipped.strftime("%Y-%m-%dT%H:%M:%SZ"),
        str(minutes - promised * 60),
        (shipped + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
