"""The waterfall against the same told once more: one charge, one hour and one owner at a time, in fractions, by project and step."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.waterfall.clusters import HOUR, charge, row, table

from macadam.compute.billing.types import Charge
from macadam.compute.waterfall import cascade

DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)
NODES = {"gpu:0": "n0", "gpu:1": "n0", "gpu:2": "n1"}
OWNERS = (("run:a", "vision"), ("job:b", "speech"), ("endpoint:c", ""))
Row = dict[str, object]
Told = dict[tuple[str, str], Fraction]


def part_of_days(one: Charge) -> list[tuple[datetime, datetime, Fraction]]:
    whole, begin, parts = one.end - one.start, one.start, []
    while begin < one.end:
        midnight = begin.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + DAY
        end = min(one.end, midnight)
        parts.append(
            (
                begin,
                end,
                Fraction(one.effective.micros) * Fraction((end - begin) // _MICROSECOND, whole // _MICROSECOND),
            )
        )
        begin = end
    return parts


def told(charges: list[Charge], rows: list[Row]) -> Told:
    found: Told = defaultdict(Fraction)
    for one in charges:
        if one.category != "usage":
            found[one.project, one.category] += one.effective.micros
        elif one.commitment == "unused":
            found[one.project, "unused"] += one.effective.micros
        else:
            devices = {
                str(r["device"]) for r in rows if (r["device"] == one.device if one.device else r["node"] == one.node)
            }
            for begin, end, money in part_of_days(one):
                tell_of_a_day(found, one, money, begin, end, [r for r in rows if r["device"] in devices], seen=devices)
    return found


def tell_of_a_day(
    found: Told, one: Charge, money: Fraction, begin: datetime, end: datetime, rows: list[Row], *, seen: set[str]
) -> None:
    met = [(r, min(end, r["start"] + HOUR) - max(begin, r["start"])) for r in rows]
    met = [
        (r, Fraction(overlap // _MICROSECOND, (end - begin) // _MICROSECOND))
        for r, overlap in met
        if overlap > timedelta(0)
    ]
    paid = Fraction(1) if one.device else Fraction(one.gpus)
    capacity = max(paid, len({r["device"] for r, _ in met}))
    dark = "no_telemetry" if one.gpus or one.device or seen else "other"
    left = Fraction(1)
    hours = {(r["device"], r["start"]): time for r, time in met}
    for (device, start), time in hours.items():
        here = [r for r, _ in met if (r["device"], r["start"]) == (device, start)]
        had = sum(tell_of_a_row(found, one, r, money * time / capacity) for r in here)
        found[one.project, "unallocated"] += money * time / capacity * (1 - had)
        left -= time / capacity
    found[one.project, dark] += money * left


def tell_of_a_row(found: Told, one: Charge, seen: Row, hour: Fraction) -> Fraction:
    """Which share of the hour the row takes."""
    if not (seen["owner"] or seen["suspect"]):
        return Fraction(0)
    share, gpu, sm, tensor = (Fraction(seen[n]) for n in ("share", "gpu_active", "sm_active", "tensor_active"))
    if seen["suspect"]:
        found[one.project, "not_believed"] += hour * share
        return share
    project = str(seen["project"] or one.project)
    busy = min(gpu, sm)
    reached = min(busy, tensor)
    levels = {"idle": 1 - gpu, "low_sm": gpu - busy, "below_peak": busy - reached, "effective": reached}
    for step, part in levels.items():
        found[project, step] += hour * share * part
    return share


quarters = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
bills = st.lists(
    st.builds(
        charge,
        st.integers(-(10**7), 10**9),
        start=st.integers(0, 60),
        hours=st.sampled_from([0.5, 1, 2, 24, 31.25, 72]),
        project=st.sampled_from(["", "vision", "speech"]),
        node=st.sampled_from(["n0", "n1", "n9"]),
        device=st.sampled_from(["", "", "gpu:0", "gpu:9"]),
        gpus=st.sampled_from([0, 0.5, 1, 2, 8]),
        category=st.sampled_from(["usage"] * 5 + ["tax", "credit", "purchase"]),
        commitment=st.sampled_from(["", "used", "unused"]),
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def usage(draw: st.DrawFn) -> list[Row]:
    made: list[Row] = []
    for device, node in NODES.items():
        for hour in draw(st.lists(st.integers(0, 72), unique=True, max_size=3)):
            left, here = 1.0, [row(start=hour, device=device, node=node, owner="", project="")]
            for owner, project in OWNERS:
                share = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
                if 0 < share <= left:
                    left -= share
                    levels = {name: draw(quarters) for name in ("gpu_active", "sm_active", "tensor_active")}
                    doubt = {"suspect": draw(st.sampled_from(["", "", "", "stuck"]))}
                    whose = {"device": device, "node": node, "owner": owner, "project": project}
                    here.append(row(start=hour, share=share, **whose, **levels, **doubt))
            made += here
    return made


@given(bills, usage())
@settings(max_examples=60)
def test_every_project_and_step_gets_what_counting_by_hand_gives_it(charges: list[Charge], rows: list[Row]) -> None:
    """Within a few millionths of a dollar: each of the pieces is rounded once."""
    charges = [msgspec.structs.replace(one, id=str(number)) for number, one in enumerate(charges)]
    divided: dict[tuple[str, str], int] = defaultdict(int)
    for one in cascade.spread(charges, table(*rows)).rows.to_pylist():
        divided[one["project"], one["step"]] += one["micros"]
    expected = told(charges, rows)
    for key in divided.keys() | expected.keys():
        assert abs(divided[key] - expected[key]) <= 20, key
