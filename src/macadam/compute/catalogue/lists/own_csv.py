"""A price list as a person writes one: CSV with a header, one price a line.

Columns: provider, region, instance, gpu, gpus, kind, currency, dated, source, and either per_gpu_hour (of one GPU) or per_hour (of
the machine), so that nobody mistakes one for the other; zone may be left out.
"""

import csv
from pathlib import Path
from typing import get_args

from macadam.compute.catalogue import gpus
from macadam.compute.catalogue.lists.found import MOST, Found, Progress, Sold, Terms
from macadam.compute.catalogue.machines import Machine
from macadam.compute.catalogue.prices import Kind
from macadam.errors import InvalidInput, SourceInvalid, TooLarge

_NEEDED = ("provider", "region", "instance", "gpu", "gpus", "kind", "currency", "dated", "source")
_KINDS: tuple[Kind, ...] = get_args(Kind)
_LARGEST = 64 * 2**20
_DIGITS = 6
_MOST_GPUS = 100_000


def read(path: Path, terms: Terms, _progress: Progress) -> Found:
    """Raises SourceInvalid, TooLarge, and InvalidInput for columns that are missing or say the price twice."""
    if path.stat().st_size > _LARGEST:
        raise TooLarge(f"{path.name} has more than {_LARGEST:,} bytes.", next_step="Split it.")
    found = Found()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            unit = _unit([name.strip() for name in rows.fieldnames or ()])
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
            for row in rows:
                _take(found, row, f"line {rows.line_num}", unit, terms)
                if len(found.prices) > MOST:
                    raise TooLarge(f"{path.name} has more than {MOST:,} prices.", next_step="Split it.")
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise SourceInvalid(f"{path.name} is no CSV in UTF-8: {error}.", next_step="Save it as CSV.") from error
    return found


def _unit(header: list[str]) -> str:
    lacking = [name for name in _NEEDED if name not in header]
    if lacking or len(set(header)) < len(header):
        raise InvalidInput(
            f"The list has no {', '.join(lacking)}." if lacking else "The list has two columns of one name.",
            next_step=f"Give the columns {', '.join(_NEEDED)}, and per_gpu_hour or per_hour.",
        )
    units = [name for name in ("per_gpu_hour", "per_hour") if name in header]
    if len(units) != 1:
        raise InvalidInput(
            "A price is of one GPU or of the whole machine.", next_step="Give per_gpu_hour or per_hour, and not both."
        )
    return units[0]


def _take(found: Found, row: dict[str, str], where: str, unit: str, terms: Terms) -> None:
    found.rows += 1
    before = found.refused
    if None in row or None in row.values():  # what csv makes of a line that is too long or too short
        return found.refuse(where, "", "a line of another width", "as many values as the header has")
    text = {name: value.strip() for name, value in row.items()}
    _check_texts(found, where, text)
    machine = _machine(found, where, text)
    kind = next((one for one in _KINDS if one == text["kind"]), None)
    if kind is None:
        found.refuse(where, "kind", text["kind"], "one of " + ", ".join(_KINDS))
    currency = found.currency(where, "currency", text["currency"])
    amount = found.amount(where, unit, text[unit])
    if amount == 0:
        found.refuse(where, unit, text[unit], "an amount above 0")
    dated = found.day(where, "dated", text["dated"], terms.today)
    if found.refused > before or kind is None or amount is None or dated is None:
        return None
    sold = Sold(
        provider=text["provider"],
        region=text["region"],
        zone=text.get("zone", ""),
        kind=kind,
        currency=currency,
        dated=dated,
        source=text["source"],
        listed=False,
    )
    known = len(found.prices)
    found.offer(where, unit, amount * int(machine.gpus) if unit == "per_gpu_hour" else amount, machine, sold)
    if (len(found.prices), found.refused) == (known, before):
        found.refuse(where, unit, text[unit], "one price of an offer on a day: an earlier line has another")
    return None


def _check_texts(found: Found, where: str, text: dict[str, str]) -> None:
    for name in ("provider", "instance", "source"):
        if not text[name]:
            found.refuse(where, name, "", "a value")
    for name, longest in {"provider": 200, "region": 200, "instance": 200, "zone": 200, "source": 1000}.items():
        if len(text.get(name, "")) > longest:
            found.refuse(where, name, text[name], f"at most {longest} characters")


def _machine(found: Found, where: str, text: dict[str, str]) -> Machine:
    model = gpus.recognise(text["gpu"])
    if not model:
        found.refuse(where, "gpu", text["gpu"], "a GPU of the catalogue, such as H100 SXM")
    digits = len(text["gpus"]) <= _DIGITS and text["gpus"].isascii() and text["gpus"].isdecimal()
    count = int(text["gpus"]) if digits else 0
    if not 1 <= count <= _MOST_GPUS:
        found.refuse(where, "gpus", text["gpus"], f"a whole number from 1 to {_MOST_GPUS:,}")
    return Machine(instance=text["instance"], gpu=model, gpus=count, source=text["source"])
