"""Bills and telemetry for the tests of the waterfall, by hand and at random."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
from hypothesis import strategies as st

from macadam.compute.billing.types import Charge
from macadam.compute.telemetry.types import usage_schema
from macadam.values import Money

T0 = datetime(2026, 10, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
_EMPTY = dict.fromkeys(usage_schema().names)


def at(hours: float) -> datetime:
    return T0 + hours * HOUR


def money(micros: int, currency: str = "USD") -> Money:
    return Money(micros=micros, currency=currency)


def charge(micros: int = 10_000_000, *, start: float = 0, hours: float = 1, currency: str = "USD", **facts) -> Charge:
    """By default: 10 dollars for the one GPU of node n0, in the first hour of October."""
    amount = money(micros, currency)
    known = {"id": "c", "bill": "b", "billed": amount, "effective": amount, "category": "usage"}
    if not {"node", "device", "resource", "model"} & facts.keys() and facts.get("category", "usage") == "usage":
        known |= {"node": "n0", "gpus": 1}
    return Charge(start=at(start), end=at(start + hours), **(known | facts))


def row(*, start: float = 0, seconds: float | None = 3600, **facts) -> dict[str, object]:
    """By default: a run of the project vision on gpu:0 for the first hour, all of it, as busy as can be."""
    known = {
        "device": "gpu:0",
        "node": "n0",
        "model": "h100-sxm-80gb",
        "project": "vision",
        "owner": "run:a",
        "share": 1.0,
    }
    measured = {"gpu_active": 1.0, "sm_active": 1.0, "tensor_active": 1.0, "suspect": ""}
    return {**_EMPTY, **known, **measured, "start": at(start), "seconds": seconds, **facts}


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=usage_schema())


# --- at random, with everything that collectors and clouds get wrong

_names = st.sampled_from(["", "n0", "n1"])
_gpus = st.sampled_from(["gpu:0", "gpu:1", "gpu:0/mig:1", "gpu:0/mig:2", "host:n1"])
_ratio = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 1.0, -0.5, 1.7, float("nan"), float("inf")]))
_hours = st.one_of(st.integers(0, 60).map(float), st.floats(0, 60))
_micros = st.integers(-(10**9), 10**11)


@st.composite
def charges(draw: st.DrawFn, *, least: int = -(10**9)) -> list[Charge]:
    made = []
    for number in range(draw(st.integers(0, 6))):
        facts = {
            "id": str(number),
            "category": draw(st.sampled_from(["usage"] * 6 + ["purchase", "tax", "credit", "adjustment"])),
            "commitment": draw(st.sampled_from(["", "", "used", "unused"])),
            "capacity": draw(st.sampled_from(["", "", "used", "unused"])),
            "node": draw(_names),
            "resource": draw(st.sampled_from(["", "n0", "i-1"])),
            "device": draw(st.sampled_from(["", "", "gpu:0", "gpu:1", "gpu:9"])),
            "model": draw(st.sampled_from(["", "h100-sxm-80gb", "other"])),
            "gpus": draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0, -1.0, float("nan"), 1e9])),
            "project": draw(st.sampled_from(["", "vision", "speech"])),
        }
        hours = draw(st.one_of(st.just(1.0), st.just(0.0), st.just(-1.0), st.floats(0, 100)))
        currency = draw(st.sampled_from(["USD", "USD", "EUR"]))
        micros = max(least, draw(_micros))
        made.append(charge(micros, start=draw(_hours), hours=hours, currency=currency, **facts))
    return made


@st.composite
def usage(draw: st.DrawFn) -> list[dict[str, object]]:
    made = []
    for _ in range(draw(st.integers(0, 12))):
        facts = {
            "device": draw(_gpus),
            "node": draw(_names),
            "model": draw(st.sampled_from(["", "h100-sxm-80gb"])),
            "project": draw(st.sampled_from(["", "vision", "speech", None])),
            "owner": draw(st.sampled_from(["", "run:a", "run:b", "model:m@3", "endpoint:e", "job:j", None])),
            "suspect": draw(st.sampled_from(["", "", "", "stuck", None])),
        }
        ratios = {name: draw(_ratio) for name in ("share", "gpu_active", "sm_active", "tensor_active")}
        seconds = draw(
            st.one_of(st.just(3600.0), st.floats(0, 20_000), st.sampled_from([None, -5.0, float("nan"), 1e12]))
        )
        size = {"slice": draw(st.sampled_from([None, 1 / 7, 0.25, 4 / 7, 1.0, 0.0, -1.0, float("nan")]))}
        made.append(row(start=draw(_hours), seconds=seconds, **facts, **ratios, **size))
    return made
