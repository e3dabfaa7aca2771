"""What Ray believes is used, by node and by job: what tasks, actors and submissions have reserved, whether they use it or not.

Beside what was measured it shows reservations that stand idle. Read over the dashboard's REST, as `ray status` and `ray list` do.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

_SUPERVISOR = "_ray_internal_job_actor_"  # of a submission, whose resources are the entry point's
_ALIVE = ("ALIVE", "PENDING_CREATION", "RESTARTING")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One row. node: Ray's id; address: its IP. job: a submission's id, else Ray's id of the job; '' for the node as a whole.

    cpus, gpus: reserved, as Ray counts them, parts included; memory: bytes reserved. The *_total are the node's, in its own row only.
    """

    at: datetime
    node: str
    address: str
    job: str = ""
    cpus: float = 0
    gpus: float = 0
    memory: int = 0
    cpus_total: float | None = None
    gpus_total: float | None = None
    memory_total: int | None = None


def read(get: Callable[[str], Any], at: datetime) -> list[View]:
    """get: the dashboard's JSON at a path. A node's own row first, then those of the jobs that hold something there.

    The reads are moments apart: rows of jobs need not sum to their node's.
    """
    listed = get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    nodes = {node["node_id"]: node for node in listed if node["state"] == "ALIVE"}
    usage = get("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"] or {}
    actors = get("/api/v0/actors?detail=1&limit=10000")["data"]["result"]["result"]
    tasks = get("/api/v0/tasks?detail=1&limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=RUNNING")
    jobs = {job["job_id"]: job["submission_id"] for job in get("/api/jobs/") if job["job_id"] and job["submission_id"]}
    held = holders([*actors, *tasks["data"]["result"]["result"]], jobs)
    rows = []
    for node in sorted(nodes):
        rows.append(_whole(at, nodes[node], usage.get(node, {})))
        rows += [
            _part(at, nodes[node], job, amounts) for (place, job), amounts in sorted(held.items()) if place == node
        ]
    return rows


def holders(found: Iterable[dict[str, Any]], jobs: dict[str, str]) -> dict[tuple[str, str], dict[str, float]]:
    """What is reserved by (node, job): by actors that live and tasks that run. jobs: Ray's id → submission."""
    held: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in found:
        # A task of an actor holds nothing beside what the actor does.
        if not one.get("node_id") or (one["state"] not in (*_ALIVE, "RUNNING")) or one.get("type") == "ACTOR_TASK":
            continue
        name = one.get("name") or ""
        job = name.removeprefix(_SUPERVISOR) if name.startswith(_SUPERVISOR) else jobs.get(one["job_id"], one["job_id"])
        for resource, amount in (one.get("required_resources") or {}).items():
            held[one["node_id"], job][resource] += amount
    return {key: dict(amounts) for key, amounts in held.items() if any(amounts.values())}


def _whole(at: datetime, node: dict[str, Any], usage: dict[str, Sequence[float]]) -> View:
    room = node["resources_total"]
    used = {resource: amounts[0] for resource, amounts in usage.items()}
    return View(
        at=at,
        node=node["node_id"],
        address=node["node_ip"],
        cpus=used.get("CPU", 0),
        gpus=used.get("GPU", 0),
        memory=int(used.get("memory", 0)),
        cpus_total=room.get("CPU", 0),
        gpus_total=room.get("GPU", 0),
        memory_total=int(room.get("memory", 0)),
    )


def _part(at: datetime, node: dict[str, Any], job: str, amounts: dict[str, float]) -> View:
    return View(
        at=at,
        node=node["node_id"],
        address=node["node_ip"],
        job=job,
        cpus=amounts.get("CPU", 0),
        gpus=amounts.get("GPU", 0),
        memory=int(amounts.get("memory", 0)),
    )
