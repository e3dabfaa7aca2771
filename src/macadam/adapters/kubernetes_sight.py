"""What Jobs, pods and nodes of a cluster say about attempts: pure, from the API's objects to sightings.

Conditions and reasons as in https://kubernetes.io/docs/concepts/workloads/controllers/job/ and the API reference of Pod.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import msgspec

from macadam.adapters import markets
from macadam.ports import Device, Node, Sighting

Object = dict[str, Any]

LABELS = "app.kubernetes.io/managed-by=macadam"
WHY, MESSAGE, OUTCOME = "macadam.local/why", "macadam.local/message", "macadam.local/outcome"
_LIMIT = "macadam.local/time-limit"
_KILLED, _TIMED_OUT, _NOT_FOUND, _REFUSED, _TERMINATED = 137, 124, 127, 126, 143
_NEVER = ("InvalidImageName", "CreateContainerConfigError")  # reasons with which a container waits for ever
_GONE = ("NodeLost", "Evicted", "NodeShutdown", "Terminated", "Shutdown")
_SLICE = "nvidia.com/mig-"
# Taints that announce the end of a node, and for how many seconds it is there at least from then on: AWS gives two minutes, GKE lets pods
# go within 15 s of a preemption, the cluster autoscaler waits for ten minutes (--max-graceful-termination-sec), Karpenter as long as pods ask,
# but no longer than the two minutes where AWS takes the machine. https://github.com/aws/aws-node-termination-handler,
# https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms#termination-graceful-shutdown, https://karpenter.sh/docs/concepts/disruption/
_LEAVING: dict[str, float] = {
    "ToBeDeletedByClusterAutoscaler": 600,
    "karpenter.sh/disrupted": 120,
    "karpenter.sh/disruption": 120,  # its name before 1.0
    "aws-node-termination-handler/spot-itn": 120,
    "cloud.google.com/impending-node-termination": 15,
    "node.kubernetes.io/out-of-service": 0,
}
_NOBODY: Mapping[str, datetime] = MappingProxyType({})
_DELETED = 120.0  # s that a node is there at least after its object was deleted: its finalizers let pods end first
_SUFFIXES: dict[str, int] = {f"{letter}i": 2 ** (10 * n) for n, letter in enumerate("KMGTPE", 1)} | {
    letter: 10 ** (3 * n) for n, letter in enumerate("kMGTPE", 1)
}


def of_stone(job: Object) -> Sighting | None:
    """What a Job says of itself that is final: an outcome that was written, or that it never ran. None if nothing is."""
    notes = job["metadata"].get("annotations", {})
    attempt = notes.get("macadam.local/attempt", "")
    if OUTCOME in notes:
        return msgspec.json.decode(notes[OUTCOME], type=Sighting)
    if job["spec"].get("parallelism") == 0 or notes.get(WHY) == "refused":
        why = "refused" if notes.get(WHY) == "refused" else "stopped"
        code = _REFUSED if why == "refused" else _TERMINATED
        return Sighting(attempt=attempt, state="ended", why=why, exit_code=code, message=notes.get(MESSAGE, ""))  # type: ignore[arg-type] # one of two words
    return None


def outcome(seen: Sighting) -> str:
    return msgspec.json.encode(seen).decode()


def sight(attempt: str, job: Object, pods: Sequence[Object]) -> Sighting:
    """How an attempt is, by its Job and what there is of its pods."""
    if (final := of_stone(job)) is not None:
        return msgspec.structs.replace(final, attempt=attempt)
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", ()) if c["status"] == "True"}
    over = [pod for pod in pods if _is_over(pod)]
    if "Complete" in conditions and len(over) == len(pods):
        return _ended(attempt, job, over, why="")
    if "Failed" in conditions and len(over) == len(pods):
        limit = conditions["Failed"].get("reason") == "DeadlineExceeded"
        return _ended(attempt, job, over, why="time limit" if limit else _how(pods))
    if job["metadata"].get("annotations", {}).get(WHY) == "stopped" and len(over) == len(pods):
        return _ended(attempt, job, over, why="stopped")
    running = [pod for pod in pods if _state(pod, "running")]
    if over or running:
        began = [_instant(now["startedAt"]) for pod in (*over, *running) if (now := _part(pod)).get("startedAt")]
        return Sighting(attempt=attempt, state="running", started=min(began, default=None))
    waiting = [part for pod in pods if (part := _state(pod, "waiting")) is not None]
    for held in waiting:
        if held.get("reason") in _NEVER:
            said = f"{held['reason']}: {held.get('message', '')}"
            return Sighting(attempt=attempt, state="ended", why="refused", exit_code=_REFUSED, message=said)
    said = "; ".join(sorted({f"{part.get('reason', '')}: {part.get('message', '')}" for part in waiting}))
    return Sighting(attempt=attempt, state="starting", message=said[:1000])


def ranked(pod: Object) -> int:
    """A pod's index in its Job."""
    metadata = pod["metadata"]
    named = "batch.kubernetes.io/job-completion-index"
    return int(metadata.get("labels", {}).get(named) or metadata.get("annotations", {}).get(named) or 0)


def nodes_of(
    found: Iterable[Object], recognise: Callable[[str], str], now: datetime, known: Mapping[str, datetime] = _NOBODY
) -> Iterable[Node]:
    """Nodes that are ready, and those that go away, whether ready or not: what runs there is to be told. One that takes no pods is closed.
    What other pods use of them is not known here: give Macadam nodes of its own. known: when nodes go that were seen to go away before, as
    most announcements carry no time.
    """
    for node in found:
        leaving = _leaving(node, now, known)
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
        if not ready and leaving is None:
            continue
        labels, room = node["metadata"].get("labels", {}), node["status"]["allocatable"]
        name = node["metadata"]["name"]
        yield Node(
            name=_named(node),
            cpus=int(quantity(room["cpu"]) * 1000),
            memory=int(quantity(room["memory"])),
            disk=int(quantity(room.get("ephemeral-storage", "0"))),
            devices=tuple(_devices(name, labels, room, recognise)),
            leaving=leaving,
            closed=bool(node["spec"].get("unschedulable")),
            **markets.bought(labels, str(node["spec"].get("providerID", ""))),
        )


def quantity(text: str) -> Fraction:
    """A quantity as API servers write them. Raises ValueError."""
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return Fraction(text.removesuffix(suffix)) * factor
    return Fraction(text.removesuffix("m")) / 1000 if text.endswith("m") else Fraction(text)


def _devices(
    node: str, labels: dict[str, str], room: dict[str, str], recognise: Callable[[str], str]
) -> Iterable[Device]:
    """As many as can be allotted. Kubernetes tells no UUIDs, so their ids name node and number."""
    model = recognise(labels.get("nvidia.com/gpu.product", ""))
    told = labels.get("nvidia.com/gpu.memory", "")
    memory = int(told) << 20 if told.isascii() and told.isdecimal() else 0  # a label is whoever's it is
    for index in range(int(room.get("nvidia.com/gpu", "0"))):
        yield Device(id=f"gpu:{node}/{index}", index=index, model=model, memory=memory)
    for resource, count in sorted(room.items()):
        if resource.startswith(_SLICE):
            profile = resource.removeprefix(_SLICE)
            for index in range(int(count)):
                yield Device(id=f"gpu:{node}/mig:{profile}-{index}", index=index, model=model)


def _leaving(node: Object, now: datetime, known: Mapping[str, datetime]) -> datetime | None:
    """When it goes, if that was announced: the earliest of what its taints and its deletion say."""
    metadata, times = node["metadata"], []
    for taint in node["spec"].get("taints", ()):
        if taint["key"] in _LEAVING:
            at = _instant(taint["timeAdded"]) if taint.get("timeAdded") else None
            times.append((at or now) + timedelta(seconds=_LEAVING[taint["key"]]))
    if metadata.get("deletionTimestamp"):
        times.append(_instant(metadata["deletionTimestamp"]) + timedelta(seconds=_DELETED))
    return min(*times, known.get(_named(node), times[0])) if times else None


def _named(node: Object) -> str:
    """As pods are told where to go."""
    return str(node["metadata"].get("labels", {}).get("kubernetes.io/hostname", node["metadata"]["name"]))


def _ended(attempt: str, job: Object, pods: Sequence[Object], *, why: str) -> Sighting:
    parts = [_part(pod) for pod in pods]
    began = [_instant(part["startedAt"]) for part in parts if part.get("startedAt")]
    over = [_instant(part["finishedAt"]) for part in parts if part.get("finishedAt")]
    started, ended = min(began, default=None), max(over, default=None)
    code, message = _code(parts, why)
    if why == "time limit":
        message = f"It met its time limit of {job['metadata'].get('annotations', {}).get(_LIMIT, '?')} s."
    return Sighting(
        attempt=attempt,
        state="ended",
        exit_code=code,
        why=why,  # type: ignore[arg-type] # one of the words of `Sighting`
        message=message,
        started=started,
        ended=ended,
        seconds=(ended - started).total_seconds() if started and ended else 0,
    )


def _code(parts: Sequence[Object], why: str) -> tuple[int, str]:
    """The exit code of the member that failed first, and what is said about it."""
    failed = sorted((p for p in parts if p.get("exitCode")), key=lambda p: str(p.get("finishedAt", "")))
    if why == "time limit":
        return _TIMED_OUT, ""
    if not failed:
        return ({"": 0, "stopped": 0 if parts else _TERMINATED}.get(why, _KILLED)), ""
    first = failed[0]
    said = str(first.get("message", ""))
    if first.get("reason") in ("StartError", "ContainerCannotRun"):
        return (_NOT_FOUND if "not found" in said or "no such file" in said else _REFUSED), said
    return int(first["exitCode"]), said


def _how(pods: Sequence[Object]) -> str:
    """Why a Job failed, beyond its exit code."""
    if not pods or any(pod["status"].get("reason") in _GONE or _disrupted(pod) for pod in pods):
        return "lost"
    return "memory" if any(_part(pod).get("reason") == "OOMKilled" for pod in pods) else ""


def _disrupted(pod: Object) -> bool:
    return any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def _state(pod: Object, which: str) -> Object | None:
    for status in pod["status"].get("containerStatuses", ()):
        found: Object | None = status.get("state", {}).get(which)
        if found is not None:
            return found
    return None


def _is_over(pod: Object) -> bool:
    """Whether none of it runs or will: one that was deleted before it ran has no exit code."""
    if _state(pod, "terminated") is not None or pod["status"].get("phase") in ("Failed", "Succeeded"):
        return True
    return "deletionTimestamp" in pod["metadata"] and _state(pod, "running") is None


def _part(pod: Object) -> Object:
    """What its container says of how it runs or ran."""
    return _state(pod, "terminated") or _state(pod, "running") or {}


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
