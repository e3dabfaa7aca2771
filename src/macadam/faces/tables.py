"""What people see of answers whose values stand too deep for a table: one plain row each, what matters most first.

`--json` has the answers whole. GPUs are told as numbers of GPUs, durations and ages as `kubectl` and `squeue` tell them.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from macadam.values import Money, utc_now

Row = dict[str, object]
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_NAME = 24  # characters of a command that stands for a name
_WHOLE = 1000  # thousandths
_GIB = 1 << 30


def shaped(operation: str, value: object, now: datetime | None = None) -> Row | list[Row] | str | None:
    """An answer that has a shape of its own for people: rows of a list, a record, or a text; else None. operation: its name in the table."""
    plain, at = msgspec.to_builtins(value), now or utc_now()
    if operation in _LISTS and isinstance(plain, (list, tuple)):
        return [_LISTS[operation](one, at) for one in plain]
    if operation in _RECORDS and isinstance(plain, dict):
        return _RECORDS[operation](plain, at)
    return _log(plain, at) if operation == "compute.read_log" else None


def hint(operation: str, shape: Row | Sequence[Row] | str) -> str:
    """What to ask next, '' if nothing is obvious."""
    rows = shape if isinstance(shape, (list, tuple)) else ()
    if operation == "compute.list_jobs" and any(row["state"] == "waiting" for row in rows):
        return "Why one waits, and until when: macadam jobs explain ID"
    if operation in ("compute.list_advice", "compute.find_advice"):
        return _ADVICE if rows else _NO_ADVICE
    if operation == "compute.list_devices" and not rows:
        return NO_DEVICES
    if operation == "compute.show_gpu_prices" and not rows:
        return "The queue has seen no machine with a GPU whose model is known. What anybody asks: macadam cost prices"
    if operation == "compute.import_bill" and isinstance(shape, dict):
        months = sorted({str(bill["period"]) for bill in shape["bills"]})  # type: ignore[attr-defined] # rows of _bill
        return "\n".join(
            [
                "Whose it is not: macadam cost unattributed",
                *(f"Divide it: macadam cost allocate --month {m}" for m in months),
            ]
        )
    return ""


_ADVICE = (
    "Risks, undo and what it rests on: macadam advice show ID. Next: macadam advice take ID, or dismiss ID --note WHY"
)
_NO_ADVICE = "It rests on what was seen of GPUs (macadam gpu usage) in sealed hours; macadam advice find looks anew."
NO_DEVICES = (
    "Here no device was seen in the last minutes. On this machine: macadam gpu top --local; "
    "elsewhere: macadam gpu watch --exporter URL; how: docs/how-to/see-gpus.md"
)


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


def _one_advice(advice: Mapping[str, Any], now: datetime) -> Row:
    proposal, measured = advice["proposal"], advice["measured"]
    saving = proposal["saving"]
    spread = [_amount(saving[one]) for one in ("low", "high") if saving["expected"]] or [
        f"{saving['low_hours']:,.0f}",
        f"{saving['high_hours']:,.0f} GPU-hours",
    ]
    shown: Row = {
        "advice": advice["ref"],
        "status": f"{advice['status']}{' by ' + advice['decided_by'] if advice['decided_by'] else ''}",
        "note": advice["note"],
        "what": proposal["what"],
        "because": proposal["because"],
        "saves in 30 days": f"{_advice(advice, now)['saves in 30 days']} ({' to '.join(spread)})",
        "assumes": proposal["assumes"],
        "risk": f"{proposal['risk']}: {proposal['risks']}",
        "undo": proposal["undo"],
        "seen": {"from": advice["start"], "to": advice["end"], "believed": f"{advice['believed']:.0%}"},
        "measured": _measured(measured) if measured else "",
    }
    return {name: value for name, value in shown.items() if value != ""}


def _measured(measured: Mapping[str, Any]) -> Row:
    """A verdict in words: its figures are of the same work, before and since."""
    before, since = measured["days"]
    shown: Row = {
        "verdict": measured["verdict"],
        "looked at": measured["scope"],
        "whole days": f"{before} before, {since} since",
    }
    if measured["verdict"] == "too early":
        return shown | {
            "ask again": "after three whole days on either side, and once bills are there for both or for neither"
        }
    if measured["saving"]:
        saved = " to ".join(_amount(measured[one]) for one in ("low", "high") if measured[one])
        shown["saves in 30 days"] = f"{_amount(measured['saving'])} ({saved or 'no interval'})"
    return shown | {"the same work cost": f"{measured['before']:,.4g} before, {measured['after']:,.4g} since"}


def _price(offer: Mapping[str, Any], _now: datetime) -> Row:
    return {
        "a GPU-hour": offer["per_gpu_hour"],
        "provider": offer["provider"],
        "kind": offer["kind"],
        "instance": offer["instance"],
        "GPUs": offer["gpus"],
        "dated": f"{offer['dated']}{' (old)' if offer['stale'] else ''}",
        "GPU": offer["gpu"],
        "region": offer.get("zone") or offer["region"],
        "source": offer["source"],
    }


def _bill(bill: Mapping[str, Any], _now: datetime) -> Row:
    gone = bill.get("withdrawn") or bill.get("replaced_by")
    return {
        "id": bill["id"],
        "period": bill["period_start"][:7],
        "billed": _sum(bill["billed"], bill["currency"]),
        "effective": _sum(bill["effective"], bill["currency"]),
        "unused": _sum(bill["unused"], bill["currency"]),
        "account": bill["account"],
        "issuer": bill["issuer"],
        "charges": bill["charges"],
        "counts": "no" if gone else "yes",
    }


def _charge(charge: Mapping[str, Any], _now: datetime) -> Row:
    return {
        "effective": charge["effective"],
        "billed": charge["billed"],
        "category": charge["category"] + (f", {charge['commitment']}" if charge["commitment"] else ""),
        "resource": charge["resource"],
        "start": charge["start"],
        "GPUs": f"{charge['gpus']} {charge['model']}".strip() if charge["gpus"] else "",
        "provider": charge["provider"],
        "tags": charge["tags"],
        "id": charge["id"],
    }


def _budget(state: Mapping[str, Any], _now: datetime) -> Row:
    return {
        "of": state["subject"] or "all of it",
        "amount": _amount(state["amount"]),
        "spent": _amount(state["spent"]),
        "held": _amount(state["held"]),
        "left": _amount(state["left"]),
        "a": state["period"],
        "stops": "yes" if state["hard"] else "no",
        "forecast": _amount(state["forecast"]),
        "not counted": state["others"],
        "until": state["period_end"],
    }


def _delivery(delivery: Mapping[str, Any], now: datetime) -> Row:
    shown = {name: value for name, value in delivery.items() if name not in ("files", "content", "originals", "bills")}
    return {**shown, "bills": [_bill(bill, now) for bill in delivery["bills"]]}


def _charges(page: Mapping[str, Any], now: datetime) -> Row:
    return {**page, "charges": [_charge(charge, now) for charge in page["charges"]]}


def _explanation(found: Mapping[str, Any], _now: datetime) -> Row:
    shown: Row = {"job": found["job"], "state": f"{found['state']} ({found['reason']})", "why": found["words"]}
    if found["missing"]:
        shown["GPUs missing"] = _gpus(found["missing"])
    for name in ("start", "end"):
        shown[name] = _estimate(found[name]["likely"], found[name]["late"], found[name]["basis"])
    shown["cost"] = _estimate(found["cost"]["likely"], found["cost"]["most"], found["cost"]["basis"])
    rest = {"job", "state", "reason", "words", "missing", "ahead", "start", "end", "cost", "next_step"}
    shown |= {name: value for name, value in found.items() if name not in rest and value not in (None, [], {}, "")}
    return shown | ({"next": found["next_step"]} if found["next_step"] else {})


def _estimate(likely: object, most: object, basis: str) -> object:
    """Both bounds on a line of their own, and below what they rest on."""
    if likely is None and most is None:
        return basis or "not known"
    if likely == most:
        return {"known": likely, "from": basis}
    return {"likely": likely, "at most": most if most is not None else "not known", "from": basis}


def _one_job(job: Mapping[str, Any], now: datetime) -> Row:
    """What was said of it and has come of it: whatever is as it always is stays unsaid."""
    row = _job(job, now)
    spec, asked = job["spec"], job["spec"]["resources"]
    shown: Row = {"job": job["ref"], "state": job["state"], "message": job["message"], "name": spec["name"]}
    shown["command"] = " ".join(spec["command"])
    shown["asks for"] = ", ".join(f"{name}: {cell}" for name, cell in _asked(asked).items())
    limits = {"priority": job["priority"], "time limit": lasting(spec["time_limit"]) if spec["time_limit"] else ""}
    shown |= {name: value for name, value in limits.items() if value}
    shown |= {name.replace("_", " "): spec[name] for name in ("deadline", "group", "image", "bundle") if spec[name]}
    shown |= {"submitted": job["submitted"], "by": row["by"]}
    if job["attempt"]:
        shown["attempts"] = f"{job['attempt']} ({job['restarts']} restarts, {job['preemptions']} preemptions)"
    shown |= {"ran": row["ran"], "spent": row["spent"], "ended": job["ended"]}
    return {name: value for name, value in shown.items() if value not in ("", None)}


def _asked(asked: Mapping[str, Any]) -> Row:
    found = {"GPUs": _gpus(asked["gpus"] * _WHOLE or asked["milli"]), "models": ", ".join(asked["models"])}
    found |= {
        "machines": asked["nodes"] or "",
        "cores": f"{asked['cpus']:g}",
        "memory": f"{asked['memory'] / _GIB:.3g} GiB",
    }
    return {name: value for name, value in found.items() if value}


def _page(page: Mapping[str, Any], now: datetime) -> Row:
    attempts = [
        {
            "number": one["number"],
            "started": one["started"],
            "ended": one["ended"],
            "ending": one["ending"] or (f"asked to stop: {one['wish']}" if one["wish"] else ""),
            "ran": lasting(one["seconds"]) if one["ended"] else "",
            "on": ", ".join(place["node"] for place in one["places"]),
            "GPUs": _gpus(sum(place["milli"] for place in one["places"])),
            "cost": one["cost"],
            "code": one["exit_code"],
            "message": one["message"],
        }
        for one in page["attempts"]
    ]
    return {
        **{name: value for name, value in _one_job(page["job"], now).items() if name != "attempts"},
        "attempts": attempts,
    }


def _log(page: Mapping[str, Any], _now: datetime) -> str:
    """The text itself, as `kubectl logs` prints it."""
    text = str(page["text"]).removesuffix("\n")
    return text or ("It wrote nothing." if page["ended"] else "It has written nothing yet.")


_Shape = Callable[[Mapping[str, Any], datetime], Row]


def _gpu_hour(price: Mapping[str, Any], _now: datetime) -> Row:
    return {
        "machine": price["node"],
        "GPU": price["model"],
        "an hour": _amount(price["per_gpu_hour"]) if price["per_gpu_hour"] else "—",
        "charged": price["charged"],
        "price": price["words"],
    }


_LISTS: dict[str, _Shape] = {
    "compute.show_gpu_prices": _gpu_hour,
    "compute.list_jobs": _job,
    "compute.list_quotas": _quota,
    "compute.list_cohorts": _cohort,
    "compute.list_advice": _advice,
    "compute.find_advice": _advice,
    "compute.list_prices": _price,
    "compute.list_bills": _bill,
    "compute.list_budgets": _budget,
}
_RECORDS: dict[str, _Shape] = {
    "compute.show_job": _page,
    "compute.submit_job": _one_job,
    "compute.cancel_job": _one_job,
    "compute.set_priority": _one_job,
    "compute.show_quota": _quota,
    "compute.import_bill": _delivery,
    "compute.list_charges": _charges,
    "compute.list_unattributed": _charges,
    "compute.explain_job": _explanation,
    "compute.estimate_job": _explanation,
    "compute.show_advice": _one_advice,
    "compute.take_advice": _one_advice,
    "compute.dismiss_advice": _one_advice,
    "compute.measure_advice": _one_advice,
}


def _gpus(milli: int) -> str:
    return f"{milli / _WHOLE:g}" if milli else ""


def _most(limit: int | None) -> str:
    return "any" if limit is None else f"≤ {limit}"


def _amount(money: Mapping[str, Any]) -> str:
    return str(Money(micros=money["micros"], currency=money["currency"]))


def _sum(decimal: str, currency: str) -> str:
    return f"{Decimal(decimal):,.2f} {currency}"


def _since(instant: str, now: datetime) -> str:
    return lasting(max(0.0, (now - datetime.fromisoformat(instant)).total_seconds()))


def _cut(text: str) -> str:
    return text if len(text) <= _NAME else text[: _NAME - 1] + "…"
