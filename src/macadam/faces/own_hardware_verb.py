"""`macadam cost own`: what an hour of one's own GPU costs, by wear and power, as a price that `cost add-prices` takes."""

import argparse
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec

from macadam.compute.catalogue import energy, gpus
from macadam.compute.catalogue.energy import Hardware
from macadam.compute.catalogue.prices import Price
from macadam.errors import InvalidInput
from macadam.faces.session import Session, Verb
from macadam.values import Money, utc_now

_MICROS = 1_000_000


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", required=True, metavar="MODEL", help="any name that the catalogue knows")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="that the machine has; 1")
    parser.add_argument(
        "--capex", required=True, metavar="AMOUNT", help="price of the machine, with its part of the network"
    )
    parser.add_argument("--residual", default="0", metavar="AMOUNT", help="what it sells for in the end; 0")
    parser.add_argument("--years", type=float, default=4.0, metavar="X", help="until then; 4")
    parser.add_argument(
        "--utilisation", type=float, default=0.5, metavar="X", help="part of the time that earns it; 0.5"
    )
    parser.add_argument("--watts", type=float, required=True, metavar="W", help="of the whole machine while it is used")
    parser.add_argument(
        "--pue", type=float, default=1.5, metavar="X", help="of the place: all power over the machines'; 1.5"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--per-kwh", metavar="AMOUNT", help="what a kWh costs")
    where.add_argument("--electricity", metavar="COUNTRY", help="the business price that the catalogue has of it")
    parser.add_argument("--currency", default="USD", metavar="ISO", help="of all amounts; USD")
    parser.add_argument("--name", default="own", metavar="NAME", help="of the machine")
    parser.add_argument("--out", metavar="FILE", help="write the price for `macadam cost add-prices --prices @FILE`")


def _run(options: argparse.Namespace, session: Session) -> int:
    model = gpus.find(options.gpu).name
    power, said = _electricity(options)
    hardware = Hardware(
        capex=_money("--capex", options.capex, options.currency),
        residual=_money("--residual", options.residual, options.currency),
        years=options.years,
        utilisation=options.utilisation,
        watts=options.watts,
        pue=options.pue,
        per_kwh=power,
    )
    found = Price(
        provider="own",
        region="own",
        instance=options.name,
        gpu=model,
        gpus=options.gpus,
        kind="owned",
        per_gpu_hour=energy.per_hour(hardware, options.gpus),
        dated=utc_now().date(),
        source=f"{hardware.capex} less {hardware.residual} over {options.years:g} years, {options.utilisation:.0%} used; "
        f"{options.watts:g} W at a PUE of {options.pue:g}, a kWh at {power} ({said})",
    )
    if hasattr(options, "out"):
        _write(Path(options.out), [found])
    if session.json:
        session.show(found)
        return 0
    session.say(f"{found.per_gpu_hour} for an hour of one {model} of {options.name}.")
    session.say(f"By {found.source}.")
    if hasattr(options, "out"):
        session.say(f"Next: macadam cost add-prices --prices @{options.out}")
    return 0


def _electricity(options: argparse.Namespace) -> tuple[Money, str]:
    if hasattr(options, "per_kwh"):
        return _money("--per-kwh", options.per_kwh, options.currency), "as given"
    known = energy.electricity(options.electricity)
    return known.per_kwh, f"{known.region}, {known.period}, {known.source}"


def _money(flag: str, text: str, currency: str) -> Money:
    try:
        amount = Decimal(text)
        return Money(micros=int(amount * _MICROS), currency=currency)
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise InvalidInput(f"{flag} {text} is no amount.", next_step="Write a number, such as 250000.") from error


def _write(path: Path, prices: list[Price]) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(prices), indent=2) + b"\n")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.", next_step="Name another place.") from error


VERB = Verb(configure=_configure, run=_run)
