"""The waterfall: pieces of charges taken down from what was billed to what was achieved, and summed by whoever is asked for.

Every sum is over whole micros, and the whole is compared with the bill before anything is answered: a waterfall that does not sum
to its bill is an error of ours and raises one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from macadam.compute.billing import sharing
from macadam.compute.billing.types import Charge
from macadam.compute.waterfall import activity, joining
from macadam.compute.waterfall import bill as bills
from macadam.compute.waterfall import seen as usages
from macadam.compute.waterfall.bill import Bill
from macadam.compute.waterfall.joining import DARK, DOUBTED, FREE, OWNED, Pieces
from macadam.compute.waterfall.seen import WHOLE, Seen
from macadam.compute.waterfall.served import Served, by_day
from macadam.compute.waterfall.types import (
    STEPS,
    Basis,
    By,
    DayCost,
    Doubt,
    Flag,
    Line,
    Step,
    Uncharged,
    Waterfall,
)
from macadam.errors import IntegrityError
from macadam.lazy import lazy
from macadam.values import Money

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.compute as pc

    Ints = npt.NDArray[np.int64]
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

_MS_PER_HOUR = 3_600_000
_NAMES: tuple[Step, ...] = tuple(STEPS)
_BASES: tuple[Basis, ...] = get_args(Basis)
_OF_KIND: dict[int, Step] = {DARK: "no_telemetry", FREE: "unallocated", DOUBTED: "not_believed"}
_KEYS = ("currency", "day", "step", "project", "owner", "gpu", "device", "reason", "basis")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A bill divided. rows: one for each currency, day (UTC), step, project, owner, GPU model, doubted device, reason and
    basis, with micros (whole) and gpu_hours; bill: micros by currency.
    """

    rows: "pa.Table"
    bill: dict[str, int]
    uncharged: tuple[Uncharged, ...]
    flags: tuple[Flag, ...]

    def of_project(self, project: str) -> "Spread":
        """What of it one project's readers may see: its own rows, and what it had that nobody billed."""
        rows = self.rows.filter(pc.equal(self.rows["project"], pa.scalar(project)))
        own = tuple(one for one in self.uncharged if one.project == project)
        return Spread(rows=rows, bill=_sums(rows), uncharged=own, flags=())


def spread(
    charges: Iterable[Charge],
    usage: "pa.Table",
    *,
    mfu: Mapping[str, float] | None = None,
    now: datetime | None = None,
) -> Spread:
    """Divides charges over usage (rows of telemetry's schema).

    mfu: owner → model FLOPs utilisation, 0 to 1, where its model FLOPs are known: it takes the place of counters. now: usage
    that begins later is flagged. Raises InvalidInput, and IntegrityError if a sum does not hold.
    """
    bill, seen = bills.read(charges), usages.read(usage, now=now)
    joined = joining.join(bill, seen)
    rows = _grouped(_stepped(bill, seen, joined.pieces, mfu or {}))
    if _sums(rows) != bill.totals():
        raise IntegrityError(
            f"The waterfall sums to {_sums(rows)} micros and the bill to {bill.totals()}.",
            next_step="Report it, with the bill: nothing that was computed from it can be used.",
        )
    return Spread(
        rows=rows,
        bill=bill.totals(),
        uncharged=joined.uncharged,
        flags=(*bill.flags, *seen.flags, *joined.flags),
    )


def _sums(rows: "pa.Table") -> dict[str, int]:
    summed = rows.group_by("currency").aggregate([("micros", "sum")])
    return {row["currency"]: row["micros_sum"] for row in summed.to_pylist()}


# --- pieces to steps


@dataclass(kw_only=True)
class _Names:
    """Texts as codes."""

    texts: list[str]
    places: dict[str, int]

    @classmethod
    def of(cls, *lists: Iterable[str]) -> "_Names":
        texts = list(dict.fromkeys(["", *(text for names in lists for text in names)]))
        return cls(texts=texts, places={text: n for n, text in enumerate(texts)})

    def codes(self, names: Iterable[str]) -> "Ints":
        return np.array([self.places[name] for name in names], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class _Stepped:
    """Columns of codes, the texts that they stand for, and the sums."""

    codes: "dict[str, Ints]"
    texts: dict[str, list[str]]
    micros: "Ints"
    hours: "npt.NDArray[np.float64]"


def _stepped(bill: Bill, seen: Seen, pieces: Pieces, mfu: Mapping[str, float]) -> _Stepped:
    """Every piece under its step; what an owner had of a GPU is cut in up to five."""
    charge = bill.slices.charge[pieces.slice]
    step = _plain_steps(bill, pieces, charge)
    gpus = ~seen.is_host()[seen.device[pieces.interval]] if len(seen.device) else np.zeros(len(step), dtype=np.bool_)
    working = (pieces.kind == OWNED) & gpus
    step[(pieces.kind == OWNED) & ~gpus] = _NAMES.index("host")
    cut = activity.cut(seen, pieces.row[working], mfu)
    place = np.r_[np.flatnonzero(~working), np.flatnonzero(working)[cut.piece]]
    steps = np.r_[step[~working], np.array([_NAMES.index(name) for name in activity.STEPS])[cut.step]]
    basis = np.r_[np.zeros(int((~working).sum()), dtype=np.int64), cut.basis]
    parts = sharing.share_out(pieces.micros[working], cut.piece, cut.weight)
    part = np.r_[np.ones(int((~working).sum())), cut.weight / WHOLE]
    codes, texts = _who(bill, seen, pieces, charge)
    return _Stepped(
        codes={**{name: values[place] for name, values in codes.items()}, "step": steps, "basis": basis},
        texts={**texts, "step": list(_NAMES), "basis": list(_BASES)},
        micros=np.r_[pieces.micros[~working], parts],
        hours=pieces.gpu_ms[place] / WHOLE * part / _MS_PER_HOUR,
    )


def _plain_steps(bill: Bill, pieces: Pieces, charge: "Ints") -> "Ints":
    own = np.array([_NAMES.index(_own_line(line)) for line in bill.lines], dtype=np.int64)
    step = own[charge] if len(charge) else charge.copy()
    for kind, name in _OF_KIND.items():
        step[pieces.kind == kind] = _NAMES.index(name)
    return step


def _own_line(line: str) -> Step:
    """A machine that is no GPU and that nothing was seen of is an other service."""
    return next((name for name in _NAMES if name == line), "other")


def _who(bill: Bill, seen: Seen, pieces: Pieces, charge: "Ints") -> "tuple[dict[str, Ints], dict[str, list[str]]]":
    """Whose each piece is and what it is of: the owner's project, else the one that the bill names."""
    owned, doubted = pieces.kind == OWNED, pieces.kind == DOUBTED
    projects = _Names.of(seen.projects, (one.project for one in bill.charges))
    models = _Names.of(seen.models, (one.model for one in bill.charges))
    currencies = _Names.of(one.effective.currency for one in bill.charges)
    billed = projects.codes(one.project for one in bill.charges)[charge] if len(charge) else charge
    told = _looked_up(projects.codes(seen.projects), _looked_up(seen.project, pieces.row))
    met = pieces.interval >= 0
    model = _looked_up(models.codes(seen.models), _looked_up(seen.model, pieces.interval))
    reason = _looked_up(seen.reason, pieces.row)
    codes = {
        "currency": currencies.codes(one.effective.currency for one in bill.charges)[charge],
        "day": bill.slices.day[pieces.slice],
        "project": np.where(owned & (told > 0), told, billed),
        "owner": np.where(owned, _looked_up(seen.owner, pieces.row), 0),
        "gpu": np.where(met, model, models.codes(one.model for one in bill.charges)[charge]),
        "device": np.where(doubted, _looked_up(seen.device, pieces.interval) + 1, 0),
        "reason": np.where(doubted, reason, 0),
    }
    texts = {
        "currency": currencies.texts,
        "project": projects.texts,
        "owner": seen.owners or [""],
        "gpu": models.texts,
        "device": ["", *seen.devices],
        "reason": seen.reasons or [""],
    }
    return codes, texts


def _looked_up(values: "Ints", places: "Ints") -> "Ints":
    """values[places], 0 where the place is none (-1)."""
    return np.where(places >= 0, values[places], 0) if len(values) else np.zeros(len(places), dtype=np.int64)


def _grouped(stepped: _Stepped) -> "pa.Table":
    columns = {name: pa.array(values) for name, values in stepped.codes.items()}
    table = pa.table({**columns, "micros": pa.array(stepped.micros), "gpu_hours": pa.array(stepped.hours)})
    summed = table.group_by(list(_KEYS)).aggregate([("micros", "sum"), ("gpu_hours", "sum")])
    found: dict[str, Any] = {}
    for name in _KEYS:
        if name == "day":
            found[name] = summed[name].cast(pa.int32()).cast(pa.date32())
        else:
            found[name] = pa.array(stepped.texts[name], type=pa.string()).take(summed[name].combine_chunks())
    found |= {"micros": summed["micros_sum"], "gpu_hours": summed["gpu_hours_sum"]}
    made = pa.table(found)
    return made.sort_by([(name, "ascending") for name in _KEYS])


# --- views


def waterfalls(
    found: Spread,
    by: By | None = None,
    *,
    models: Mapping[str, str] | None = None,
    served: Iterable[Served] = (),
) -> tuple[Waterfall, ...]:
    """One for each currency, or one for each currency and key, the dearest first. Together they sum to the bill.

    models: owner → the model that it worked for, for `by="model"`; served: of owners that worked for several in turn. An owner
    that is a model's version is known anyway.
    """
    divided, given = _between_models(found.rows, served) if by == "model" else (found.rows, {})
    keys = _keys(divided, by, models or {})
    keys = [given.get(place, key) for place, key in enumerate(keys)]
    rows = divided.select(["currency", "step", "basis", "micros", "gpu_hours"]).append_column("key", pa.array(keys))
    summed = rows.group_by(["currency", "key", "step", "basis"]).aggregate([("micros", "sum"), ("gpu_hours", "sum")])
    cells: dict[tuple[str, str], dict[tuple[str, str], tuple[int, float]]] = {}
    for row in summed.to_pylist():
        cell = cells.setdefault((row["currency"], row["key"]), {})
        cell[row["step"], row["basis"]] = (row["micros_sum"], row["gpu_hours_sum"])
    if by is None:
        for currency in found.bill:
            cells.setdefault((currency, ""), {})
    made = [_waterfall(key, currency, cell) for (currency, key), cell in cells.items()]
    return tuple(sorted(made, key=lambda one: (one.bill.currency, -one.bill.micros, one.key)))


def _between_models(rows: "pa.Table", served: Iterable[Served]) -> "tuple[pa.Table, dict[int, str]]":
    """Rows of owners that served several models in a day, once for each with its part; and which of the rows are whose."""
    known = by_day(served)
    if not known:
        return rows, {}
    places: list[int] = []
    weights: list[int] = []
    names: dict[int, str] = {}
    keys = zip(*(rows[name].to_pylist() for name in ("project", "owner", "day")), strict=True)
    for place, key in enumerate(keys):
        for model, weight in known.get(key, [("", 1)]):
            if key in known:
                names[len(places)] = model
            places.append(place)
            weights.append(weight)
    which: Ints = np.array(places, dtype=np.int64)
    shares: Ints = np.array(weights, dtype=np.int64)
    micros = sharing.share_out(np.array(rows["micros"].to_numpy(), dtype=np.int64), which, shares)
    total = np.bincount(which, weights=shares)[which] if len(which) else shares
    hours = np.array(rows["gpu_hours"].to_numpy(), dtype=np.float64)[which] * shares / total
    taken = rows.take(which)
    for name, values in (("micros", pa.array(micros)), ("gpu_hours", pa.array(hours))):
        taken = taken.set_column(taken.schema.get_field_index(name), name, values)
    return taken, names


def dearest(found: Sequence[Waterfall], limit: int) -> tuple[Waterfall, ...]:
    """The dearest of each currency, and one more that sums up the rest of it."""
    kept: list[Waterfall] = []
    for currency in dict.fromkeys(one.bill.currency for one in found):
        own = [one for one in found if one.bill.currency == currency]
        rest = own[limit:]
        kept += own[:limit]
        if rest:
            kept.append(_together(f"{len(rest)} others", rest))
    return tuple(kept)


def _together(key: str, several: Sequence[Waterfall]) -> Waterfall:
    currency = several[0].bill.currency
    cell: dict[tuple[str, str], tuple[int, float]] = {}
    for one in several:
        for line in one.lines:
            known = cell.get((line.step, ""), (0, 0.0))
            cell[line.step, ""] = (known[0] + line.amount.micros, known[1] + line.gpu_hours)
    return msgspec.structs.replace(_waterfall(key, currency, cell), bases={})


def _keys(rows: "pa.Table", by: By | None, models: Mapping[str, str]) -> list[str]:
    if by is None:
        return [""] * rows.num_rows
    column = by if by in ("project", "gpu", "owner", "day") else "owner"
    values = [str(value) for value in rows[column].to_pylist()]
    if column != "owner" or by == "owner":
        return values
    if by == "model":
        return [models.get(owner, _of_kind(owner, "model")) for owner in values]
    return [_of_kind(owner, by) for owner in values]


def _of_kind(owner: str, kind: str) -> str:
    """The reference, without its version for a model; '' for an owner of another kind."""
    if owner.partition(":")[0] != kind:
        return ""
    return owner.partition("@")[0] if kind == "model" else owner


def _waterfall(key: str, currency: str, cell: Mapping[tuple[str, str], tuple[int, float]]) -> Waterfall:
    total = sum(micros for micros, _ in cell.values())
    lines = []
    for step, (title, about) in STEPS.items():
        found = [value for (name, _), value in cell.items() if name == step]
        if found:
            micros = sum(amount for amount, _ in found)
            lines.append(
                Line(
                    step=step,
                    title=title,
                    amount=Money(micros=micros, currency=currency),
                    gpu_hours=round(sum(hours for _, hours in found), 6),
                    part=micros / total if total else None,
                    about=about,
                )
            )
    bases = {basis: Money(micros=m, currency=currency) for (step, basis), (m, _) in cell.items() if step == "effective"}
    return Waterfall(key=key, bill=Money(micros=total, currency=currency), lines=tuple(lines), bases=bases)


def days(found: Spread) -> tuple[DayCost, ...]:
    """What each day cost and achieved, by currency and day."""
    summed = found.rows.group_by(["currency", "day", "step"]).aggregate([("micros", "sum")]).to_pylist()
    sums: dict[tuple[str, date], list[int]] = {}
    for row in summed:
        pair = sums.setdefault((row["currency"], row["day"]), [0, 0])
        pair[0] += row["micros_sum"]
        pair[1] += row["micros_sum"] if row["step"] == "effective" else 0
    return tuple(
        DayCost(
            day=day,
            bill=Money(micros=whole, currency=currency),
            effective=Money(micros=effective, currency=currency),
        )
        for (currency, day), (whole, effective) in sorted(sums.items())
    )


def doubts(found: Spread) -> tuple[Doubt, ...]:
    """Devices whose telemetry is not believed, the dearest first."""
    rows = found.rows.filter(pc.not_equal(found.rows["reason"], pa.scalar("")))
    summed = rows.group_by(["currency", "device", "reason"]).aggregate([("micros", "sum"), ("gpu_hours", "sum")])
    made = [
        Doubt(
            device=row["device"],
            reason=row["reason"],
            gpu_hours=round(row["gpu_hours_sum"], 6),
            amount=Money(micros=row["micros_sum"], currency=row["currency"]),
        )
        for row in summed.to_pylist()
    ]
    return tuple(sorted(made, key=lambda one: (-one.amount.micros, one.device, one.reason)))
