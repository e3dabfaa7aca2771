"""`macadam gpu top`: devices live, like nvtop, with whose they are and what they cost by the hour.

Shows what a platform knows, what this machine's driver says (--local), or a recording (--replay), which needs no GPU.
"""

import argparse
import contextlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from macadam import operations
from macadam.compute.jobs.price_service import GpuHour
from macadam.compute.scheduling import mig
from macadam.compute.telemetry import collecting, fold, recordings, state
from macadam.compute.telemetry import frame as judged
from macadam.compute.telemetry.requests import Device, ListDevices
from macadam.compute.telemetry.types import Sample, to_table
from macadam.errors import InvalidInput
from macadam.faces.gpu_prices import Prices
from macadam.faces.session import Session, Verb
from macadam.faces.tables import NO_DEVICES
from macadam.lazy import lazy
from macadam.values import Money, utc_now

if TYPE_CHECKING:
    import rich.console as rich_console
    import rich.live as rich_live
    import rich.table as rich_table
    import rich.text as rich_text
else:
    rich_console = lazy("rich.console")
    rich_live = lazy("rich.live")
    rich_table = lazy("rich.table")
    rich_text = lazy("rich.text")

_WINDOW = timedelta(minutes=20)
"""What a replay or a look at this machine remembers, for trends and for checks over several readings."""
_BARS = "▁▂▃▄▅▆▇█"
_POINTS, _BAR = 12, 8
_PIPE, _ROUND = 160, 5
"""Characters: a table in a pipe is for grep. Lines that stand around the devices."""
_UNKNOWN = "—"
_NOT_BELIEVED, _HELD, _STALE = "red", "yellow", 120.0
"""Seconds: a reading older than this is said to be old."""
_THROTTLED = {
    "throttled_heat": "heat",
    "throttled_hardware": "hardware",
    "throttled_power": "power limit",
    "throttled_sync": "sync",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A device with its price. hourly: of the whole device, None if nobody has told a price; price: which it is; charged: whether
    jobs are charged by it.
    """

    device: Device
    hourly: Money | None = None
    price: str = ""
    charged: bool = False


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One look. hourly: of all devices with a price, by currency in micros; idle: of it, of those that nobody has."""

    at: datetime
    devices: tuple[Row, ...]
    hourly: dict[str, int]
    idle: dict[str, int]
    suspect: int


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one look and end; with --json, for scripts")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=2.0, help="between two looks; default 2")
    parser.add_argument("--local", action="store_true", help="read this machine's driver, without a platform")
    parser.add_argument(
        "--replay", metavar="FILE", help="show a recording (of `gpu watch --record`), or a scrape's text"
    )
    parser.add_argument("--speed", metavar="X", type=float, default=10.0, help="of a replay; default 10 times")
    parser.add_argument(
        "--sort", choices=tuple(_ORDERS), default="node", help="what the first device has most of; default: node"
    )
    parser.add_argument(
        "--provider", metavar="NAME", help="as if its machines were this provider's; default: what jobs are charged"
    )


def _run(options: argparse.Namespace, session: Session) -> int:
    once = bool(getattr(options, "once", False))
    if session.json and not once:
        raise InvalidInput("A live picture is no JSON document.", next_step="Add --once.")
    every = max(0.1, float(getattr(options, "every", 2.0)))
    looks = _looks(options, session, every)
    prices = Prices(session, str(getattr(options, "provider", "")))
    order = _ORDERS[str(getattr(options, "sort", "node"))]
    frames = (_sorted(_priced(devices, at, prices), order) for at, devices in looks)
    if once:
        # A replay is shown as it ended, anything else as it is.
        newest = deque(frames, maxlen=1) if hasattr(options, "replay") else [next(frames)]
        _print(newest[0] if newest else Frame(at=utc_now(), devices=(), hourly={}, idle={}, suspect=0), session)
        return 0
    _live(frames, every, pace=not hasattr(options, "replay"))
    return 0


def _print(frame: Frame, session: Session) -> None:
    if session.json:
        session.show(frame)
        return
    console = rich_console.Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE)
    if frame.devices:
        console.print(_table(frame, console.width))
    else:
        session.say(_title(frame))
        session.say(NO_DEVICES)


def _live(frames: Iterator[Frame], every: float, *, pace: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt), rich_live.Live(refresh_per_second=4, screen=False) as live:
        for frame in frames:
            live.update(_table(frame, live.console.width, max(1, live.console.height - _ROUND)))
            if pace:
                time.sleep(every)


# --- where devices are seen


Look = tuple[datetime, tuple[Device, ...]]


def _looks(options: argparse.Namespace, session: Session, every: float) -> Iterator[Look]:
    if hasattr(options, "replay"):
        speed = float(getattr(options, "speed", 10.0))
        once = bool(getattr(options, "once", False))
        return _replayed(Path(options.replay), 1 / speed if speed > 0 else 0.0, once=once)
    if getattr(options, "local", False):
        return _local(every, once=bool(getattr(options, "once", False)))
    return _known(session)


def _known(session: Session) -> Iterator[Look]:
    """What a platform knows. Without a project: everything, which takes a role in all projects."""
    operations.load("gpu")
    asked = {"project": session.project() or "*", "minutes": _POINTS}
    while True:
        yield utc_now(), session.call(operations.of_request(ListDevices), asked)


def _local(every: float, *, once: bool) -> Iterator[Look]:
    """What the driver of this machine says. Raises Unavailable if there is none."""
    source = collecting.LocalDevices(node=socket.gethostname(), clock=utc_now, owner_of=collecting.nobody)
    memory: list[Sample] = []
    with contextlib.closing(source):
        for turn in range(sys.maxsize):
            found, _ = source.read(utc_now())
            memory = [s for s in (*memory, *found) if s.at > utc_now() - _WINDOW]
            if once and turn == 0:
                time.sleep(min(1.0, every))  # means since the reading before need one
                continue
            yield utc_now(), _seen(memory, utc_now())


def _replayed(path: Path, pause: float, *, once: bool) -> Iterator[Look]:
    """Each instant of a recording in turn, or once: as it ended. pause: s for each second that was recorded, at most 2 s."""
    memory: list[Sample] = []
    before: datetime | None = None
    for now, samples in _turns(path):
        if before is not None and not once:
            time.sleep(min(2.0, (now - before).total_seconds() * pause))
        before = now
        memory = [s for s in (*memory, *samples) if s.at > now - _WINDOW]
        if not once:
            yield now, _seen(memory, now)
    if once and before is not None:
        yield before, _seen(memory, before)


def _turns(path: Path) -> Iterator[tuple[datetime, list[Sample]]]:
    """Samples of one turn lie closer together than a second."""
    turn: list[Sample] = []
    pieces = list(recordings.read(path, now=utc_now()))
    samples = sorted((s for piece, _ in pieces for s in piece), key=lambda s: s.at)
    if not samples and (problems := [said for _, found in pieces for said in found]):
        raise InvalidInput(
            f"Nothing in {path} is a sample: {problems[0]}", next_step="Record one: macadam gpu watch --record"
        )
    for sample in samples:
        if turn and (sample.at - turn[0].at).total_seconds() >= 1:
            yield turn[-1].at, turn
            turn = []
        turn.append(sample)
    if turn:
        yield turn[-1].at, turn


def _seen(memory: Sequence[Sample], now: datetime) -> tuple[Device, ...]:
    """Judged and folded as a platform would."""
    if not memory:
        return ()
    table = to_table(list(memory))
    minute = fold.MINUTE * 1_000_000
    start = int(min(s.at for s in memory).timestamp() * 1e6) // minute * minute
    end = (int(now.timestamp() * 1e6) // minute + 1) * minute
    folded = fold.fold(table, start, end, pods={}, holdings=())
    return state.devices(judged.Frame(table).rows, folded.usage, now)


# --- money


def _priced(devices: Sequence[Device], at: datetime, prices: Prices) -> Frame:
    """A slice has its part of its device's price, by its profile; none where that is not known."""
    known = prices.of(((device.node, device.model) for device in devices if device.model), at)
    rows = [_row(device, known.get((device.node, device.model))) for device in devices]
    hourly: dict[str, int] = {}
    idle: dict[str, int] = {}
    for row in rows:
        if row.hourly is not None:
            currency = row.hourly.currency
            hourly[currency] = hourly.get(currency, 0) + row.hourly.micros
            if not row.device.owners:
                idle[currency] = idle.get(currency, 0) + row.hourly.micros
    return Frame(
        at=at,
        devices=tuple(rows),
        hourly=hourly,
        idle=idle,
        suspect=sum(bool(row.device.suspect) for row in rows),
    )


def _part(device: Device) -> float | None:
    """Of a GPU, as jobs are charged for it: of a slice what it takes of the memory. None if that cannot be said."""
    if "/mig:" not in device.device:
        return 1.0
    share = mig.share(device.model, device.profile)
    return None if share is None else float(share)


def _row(device: Device, told: GpuHour | None) -> Row:
    part = _part(device)
    if told is None or told.per_gpu_hour is None or part is None:
        return Row(device=device)
    whole = told.per_gpu_hour
    hourly = Money(micros=round(whole.micros * part), currency=whole.currency)
    words = told.words if part == 1 else f"{part:.1%} of {told.words}"
    return Row(device=device, hourly=hourly, price=words, charged=told.charged)


_ORDERS: dict[str, Callable[[Row], float | None]] = {
    "node": lambda _: 0.0,
    "activity": lambda row: row.device.sm_active if row.device.sm_active is not None else row.device.gpu_active,
    "memory": lambda row: row.device.memory_used,
    "power": lambda row: row.device.power,
    "temperature": lambda row: row.device.temperature,
    "price": lambda row: row.hourly.micros if row.hourly else None,
    "idle": lambda row: 0.0 if row.device.owners or not row.hourly else row.hourly.micros,
    "doubt": lambda row: float(bool(row.device.error or row.device.suspect)),
}


def _sorted(frame: Frame, of: Callable[[Row], float | None]) -> Frame:
    """Most first, what is not known last; equals by machine and device, as they came."""

    def rank(row: Row) -> tuple[bool, float]:
        value = of(row)
        return value is None, -(value or 0.0)

    return msgspec.structs.replace(frame, devices=tuple(sorted(frame.devices, key=rank)))


# --- the picture


class _Column(msgspec.Struct, frozen=True, kw_only=True):
    """fewest: characters down to which its words are cut, 0 = never, as with numbers. goes: the higher, the sooner it is left out
    where there is no room for all; 0 = never.
    """

    name: str
    justify: Literal["left", "right"] = "right"
    fewest: int = 0
    goes: int = 0


_COLUMNS = (
    _Column(name="device", justify="left", fewest=14),
    _Column(name="model", justify="left", goes=6),
    _Column(name="SM active", justify="left", goes=7),
    _Column(name="SM"),
    _Column(name="GPU", goes=3),
    _Column(name="tensor", goes=9),
    _Column(name="memory", justify="left", goes=4),
    _Column(name="W", goes=2),
    _Column(name="°C", goes=5),
    _Column(name="price", goes=1),
    _Column(name="project", justify="left", goes=8),
    _Column(name="owner", justify="left", fewest=12),
    _Column(name="note", justify="left", fewest=10),
)
_GAP = 2


def _table(frame: Frame, width: int = 200, most: int = sys.maxsize) -> "rich_table.Table":
    """width: characters of the terminal; in a narrow one words are cut and what matters least is left out, numbers are whole or
    not there. most: devices that are shown.
    """
    rows = frame.devices[:most]
    cells = [_cells(row, narrow=False) for row in rows]
    wanted = _fitting(cells, _heads(frame), width)
    if any(column.goes and number not in wanted for number, column in enumerate(_COLUMNS)):
        cells = [_cells(row, narrow=True) for row in rows]
        wanted = _fitting(cells, _heads(frame), width)
    table = rich_table.Table(title=_title(frame), title_justify="left", expand=False, box=None, pad_edge=False)
    for number, space in wanted.items():
        column = _COLUMNS[number]
        table.add_column(
            _heads(frame)[number],
            justify=column.justify,
            no_wrap=True,
            overflow="ellipsis",
            min_width=space,
            max_width=space,
        )
    for row, texts in zip(rows, cells, strict=True):
        table.add_row(*(texts[number] for number in wanted), style="dim" if row.device.age > _STALE else "")
    if len(frame.devices) > most:
        table.caption = f"and {len(frame.devices) - most} more: --project, --sort"
    if not frame.devices:
        table.caption = "no device was seen in the last minutes"
    return table


def _heads(frame: Frame) -> list[str]:
    """With the currency, if prices are in one."""
    money = f"{next(iter(frame.hourly))}/h" if len(frame.hourly) == 1 else "per hour"
    return [money if column.name == "price" else column.name for column in _COLUMNS]


def _fitting(cells: "Sequence[Sequence[rich_text.Text]]", heads: Sequence[str], width: int) -> dict[int, int]:
    """The columns that are shown, by number, and the characters that each gets."""
    needs = {
        number: max([len(heads[number]), *(row[number].cell_len for row in cells)])
        for number in range(len(_COLUMNS))
        if any(row[number].plain for row in cells) or not _COLUMNS[number].fewest or not cells
    }
    while True:
        given = _cut(needs, width)
        leaving = [number for number in needs if _COLUMNS[number].goes]
        if _space(given) <= width or not leaving:
            return given
        del needs[max(leaving, key=lambda number: _COLUMNS[number].goes)]


def _cut(needs: dict[int, int], width: int) -> dict[int, int]:
    """The widest words first, by a character each time, down to the fewest."""
    given = dict(needs)
    while _space(given) > width:
        words = [number for number, space in given.items() if 0 < _COLUMNS[number].fewest < space]
        if not words:
            break
        given[max(words, key=given.__getitem__)] -= 1
    return given


def _space(given: dict[int, int]) -> int:
    return sum(given.values()) + _GAP * (len(given) - 1)


def _cells(row: Row, *, narrow: bool) -> "list[rich_text.Text]":
    """narrow: without what can be told otherwise, such as the machine and the bar."""
    d = row.device
    owners = ", ".join(h.owner if h.share > 0.999 else f"{h.owner} {h.share:.0%}" for h in d.owners)  # noqa: PLR2004
    projects = ", ".join(sorted({h.project or _UNKNOWN for h in d.owners}))
    device = _short(d.device)
    doubt = d.error or (f"{d.suspect}, not believed" if d.suspect else "")
    return [
        _plain(device.removeprefix("GPU-") if narrow else f"{d.node}/{device}" if d.node else device),
        _plain(" ".join((d.model or d.product or _UNKNOWN, d.profile)).rstrip()),
        _plain(sparkline(d.trend)),
        _plain(_percent(d.sm_active)),
        _plain(_percent(d.gpu_active)),
        _plain(_percent(d.tensor_active)),
        _plain(_memory(d.memory_used, d.memory_total, bar=not narrow)),
        _plain(_UNKNOWN if d.power is None else f"{d.power:.0f}"),
        _plain(_UNKNOWN if d.temperature is None else f"{d.temperature:.0f}"),
        _plain(_UNKNOWN if row.hourly is None else f"{row.hourly.micros / 1e6:.2f}"),
        _plain(projects or "nobody's"),
        _plain(owners or _UNKNOWN),
        _plain(doubt, _NOT_BELIEVED) if doubt else _plain(_held(d), _HELD),
    ]


def _held(device: Device) -> str:
    """What its clocks are held down by, and its last error."""
    bits = device.throttle or 0
    held = [words for reason, words in _THROTTLED.items() if bits & fold.REASONS[reason]]
    said = [f"held by {', '.join(held)}"] if held else []
    said += [f"Xid {device.xid}"] if device.xid else []
    said += [f"seen {device.age / 60:.0f} min ago"] if device.age > _STALE else []
    return ", ".join(said)


def _plain(text: str, style: str = "") -> "rich_text.Text":
    """Names come from elsewhere: they are no markup, and bring no control characters to the terminal."""
    return rich_text.Text("".join(c if c.isprintable() else "·" for c in text), style=style)


def _title(frame: Frame) -> str:
    money = ", ".join(f"{micros / 1e6:.2f} {currency}/h" for currency, micros in sorted(frame.hourly.items()))
    idle = ", ".join(f"{micros / 1e6:.2f} {currency}/h" for currency, micros in sorted(frame.idle.items()))
    parts = [f"{frame.at:%Y-%m-%d %H:%M:%S} UTC", f"{len(frame.devices)} devices"]
    asked = any(row.hourly is not None and not row.charged for row in frame.devices)
    parts += [f"{money}{', in part by list prices' if asked else ''}"] if money else ["no price known"]
    parts += [f"{idle} for nobody"] if idle else []
    unpriced = sum(row.hourly is None for row in frame.devices)
    parts += [f"{unpriced} without a price"] if unpriced and money else []
    parts += [f"{frame.suspect} not believed"] if frame.suspect else []
    return " · ".join(parts)


def sparkline(points: Sequence[float | None]) -> str:
    """Ratios as bars, '·' where nothing was measured; the newest at the end."""
    shown = list(points)[-_POINTS:]
    return "".join("·" if p is None else _BARS[min(len(_BARS) - 1, max(0, int(p * len(_BARS))))] for p in shown).rjust(
        _POINTS
    )


def _memory(used: int | None, total: int | None, *, bar: bool) -> str:
    if used is None:
        return _UNKNOWN
    gib = 1024**3
    if not total:
        return f"{used / gib:.0f}G"
    full = min(_BAR, max(0, round(_BAR * used / total)))
    drawn = f"{'█' * full}{'░' * (_BAR - full)} " if bar else ""
    return f"{drawn}{used / gib:.0f}/{total / gib:.0f}G"


def _percent(ratio: float | None) -> str:
    return _UNKNOWN if ratio is None else f"{ratio:.0%}"


def _short(device: str) -> str:
    """The UUID's beginning tells devices apart, and with a slice its number."""
    whole, _, mig = device.removeprefix("gpu:").removeprefix("host:").partition("/mig:")
    return whole[:12] + (f"/mig:{mig}" if mig else "")


VERB = Verb(configure=_configure, run=_run)
