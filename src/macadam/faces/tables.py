"""What people see of answers whose values stand too deep for a table: one plain row each, what matters most first.

`--json` has the answers whole. GPUs are told as numbers of GPUs, durations and ages as `kubectl` and `squeue` tell them.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from macadam.values import utc_now

Row = dict[str, object]
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_NAME = 24  # characters of a command that stands for a name
_WHOLE = 1000  # thousandths


def shaped(operation: str, value: object, now: datetime | None = None) -> list[Row] | None:
    """Rows of an answer that has a shape of its own for people, else None. operation: its name in the table of operations."""
    shape = _SHAPES.get(operation)
    if shape is None or not isinstance(value, (list, tuple)):
        return None
    at = now or utc_now()
    return [shape(msgspec.to_builtins(one), at) for one in value]


def hint(operation: str, rows: Sequence[Row]) -> str:
    """What to ask next, '' if nothing is obvious."""
    if operation == "compute.list_jobs" and any(row["state"] == "waiting" for row in rows):
        return "Why one waits, and until when: macadam jobs explain ID"
    if operation in ("compute.list_advice", "compute.find_advice") and rows:
        return "Risks, undo and what it rests on: --json. Next: macadam advice take ID, or dismiss ID --note WHY"
    return ""


def lasting(seconds: float) -> str:
    """Two units at most: 95 → '1m35s', 93600 → '1d2h'."""
    left = round(seconds)
    said: list[str] = []
    for size, letter in _UNITS:
        if left >= size and len(said) < 2:  # noqa: PLR2004 - see above
            said.append(f"{left // size}{letter}")
            left %= size
        elif said:
            break
    return "".join(said) or "0s"


def _job(job: Mapping[str, Any], now: datetime) -> Row:
    asked = job["spec"]["resources"]
    return {
        "id": job["id"],
        "state": job["state"],
        "GPUs": _gpus(asked["gpus"] * _WHOLE or asked["milli"]),
        "name": job["spec"]["name"] or _cut(" ".join(job["spec"]["command"])),
        "age": _since(job["submitted"], now),
        "ran": lasting(job["attained"]) if job["attained"] else "",
        "spent": job["spent"] if job["attained"] else "",
        "by": job["author"].partition(":")[2],
        "message": job["message"],
    }


def _quota(state: Mapping[str, Any], _now: datetime) -> Row:
    quota = state["quota"]
    return {
        "project": quota["project"],
        "GPUs": quota["gpus"],
        "in use": _gpus(state["using"]) or "0",
        "borrowed": _gpus(state["borrowed"]),
        "cohort": quota["cohort"],
        "borrows": _most(quota["borrow"]) if quota["cohort"] else "",
        "lends": _most(quota["lend"]) if quota["cohort"] else "",
        "GPU-hours": f"{state['gpu_hours']:,.1f}" + (f" of {quota['gpu_hours']:,g}" if quota["gpu_hours"] else ""),
        "money": f"{_amount(state['spent'])}" + (f" of {_amount(quota['money'])}" if quota["money"] else ""),
        "in this": quota["window"],
        "running": state["running"],
        "waiting": state["waiting"],
    }


def _cohort(cohort: Mapping[str, Any], _now: datetime) -> Row:
    return {
        "cohort": cohort["cohort"] or "(none)",
        "projects": cohort["projects"],
        "GPUs": cohort["gpus"],
        "in use": _gpus(cohort["using"]) or "0",
        "there are": cohort["machines"],
    }


def _advice(advice: Mapping[str, Any], _now: datetime) -> Row:
    proposal = advice["proposal"]
    saving = proposal["saving"]
    return {
        "id": advice["ref"].removeprefix("advice:"),
        "status": advice["status"],
        "saves in 30 days": _amount(saving["expected"]) if saving["expected"] else f"{saving['hours']:,.0f} GPU-hours",
        "risk": proposal["risk"],
        "what": proposal["what"],
        "measured": advice["measured"]["verdict"] if advice["measured"] else "",
    }


_SHAPES: dict[str, Callable[[Mapping[str, Any], datetime], Row]] = {
    "compute.list_jobs": _job,
    "compute.list_quotas": _quota,
    "compute.list_cohorts": _cohort,
    "compute.list_advice": _advice,
    "compute.find_advice": _advice,
}


def _gpus(milli: int) -> str:
    return f"{milli / _WHOLE:g}" if milli else ""


def _most(limit: int | None) -> str:
    return "any" if limit is None else f"≤ {limit}"


def _amount(money: Mapping[str, Any]) -> str:
    """To the cent: exact amounts are in `--json`."""
    return f"{money['micros'] / 1_000_000:,.2f} {money['currency']}"


def _since(instant: str, now: datetime) -> str:
    return lasting(max(0.0, (now - datetime.fromisoformat(instant)).total_seconds()))


def _cut(text: str) -> str:
    return text if len(text) <= _NAME else text[: _NAME - 1] + "…"
