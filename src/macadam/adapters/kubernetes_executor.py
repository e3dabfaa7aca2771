"""Runs attempts at jobs on a Kubernetes cluster: one Job each, spoken to over the API server's REST.

Stateless but for a folder of logs: what an attempt is and how it ended stands in its Job, so that any process can go on after any
kill. A Job of that name is what keeps an attempt from running twice. Its pods carry a finalizer, so that their exit codes and logs
are read (`_settle`) before they go; the log of a stopped pod is kept here, as the kubelet drops it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from macadam.adapters.kubernetes_api import KubernetesApi, Object, open_api
from macadam.adapters.kubernetes_sight import LABELS, MESSAGE, OUTCOME, WHY, nodes_of, of_stone, outcome, ranked, sight
from macadam.errors import Conflict, InvalidInput, NotFound, Unavailable
from macadam.ports import Attempt, LogPage, Node, Objects, Sighting

_LOG_KEPT = 8 << 20  # bytes of one member's log
_CONTAINER = "work"
_FEW = 8  # requests that together cost less than a list of everything


class Rendering(Protocol):
    """What objects an attempt becomes; the room of jobs knows, and hands it in."""

    namespace: str

    def name(self, attempt: str) -> str: ...
    def claim(self, job: str) -> str: ...
    def job(self, attempt: Attempt) -> Object: ...
    def bundle(self, attempt: str, data: bytes, owner: str) -> Object: ...
    def checkpoint(self, attempt: Attempt) -> Object: ...
    def tombstone(self, attempt: str, *, why: str, message: str) -> Object: ...


def open_executor(
    config: str, context: str, render: Rendering, objects: Objects, directory: Path, *, recognise: Callable[[str], str]
) -> "KubernetesExecutor":
    """The executor of the cluster that a kubeconfig names, '' = of the one around this pod. Raises SettingInvalid."""
    return KubernetesExecutor(open_api(config, context), render, objects, directory, recognise=recognise)


class KubernetesExecutor:
    """directory: for logs. recognise: the catalogue's name for what a node says its GPUs are."""

    def __init__(
        self,
        api: KubernetesApi,
        render: Rendering,
        objects: Objects,
        directory: Path,
        *,
        recognise: Callable[[str], str] = str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api, self._render, self._objects, self._directory = api, render, objects, directory
        self._recognise, self._now = recognise, now
        self._leaving: dict[str, datetime] = {}
        space = f"namespaces/{render.namespace}"
        self._jobs, self._pods = f"/apis/batch/v1/{space}/jobs", f"/api/v1/{space}/pods"
        self._maps, self._claims = f"/api/v1/{space}/configmaps", f"/api/v1/{space}/persistentvolumeclaims"

    def nodes(self) -> tuple[Node, ...]:
        found = tuple(nodes_of(self._api.items("/api/v1/nodes"), self._recognise, self._now(), self._leaving))
        self._leaving = {node.name: node.leaving for node in found if node.leaving is not None}
        return found

    def start(self, attempt: Attempt) -> None:
        try:
            wanted = self._render.job(attempt)
            data = self._objects.get(attempt.bundle) if attempt.bundle else b""
            claim = self._render.checkpoint(attempt) if attempt.checkpoint else None
        except (InvalidInput, NotFound) as error:
            self._refuse(attempt.id, str(error))
            return
        try:
            if claim is not None:
                self._ensure(self._claims, claim)
            found = self._create_or_get(self._jobs, wanted, self._render.name(attempt.id))
            if data and of_stone(found) is None:
                # Its pods wait for it; a kill in between is made good by whoever starts it again.
                uid = str(found["metadata"]["uid"])
                self._ensure(self._maps, self._render.bundle(attempt.id, data, uid))
        except InvalidInput as error:
            self._refuse(attempt.id, str(error))

    def look(self, attempts: Sequence[str]) -> dict[str, Sighting]:
        names = {self._render.name(attempt): attempt for attempt in attempts}
        jobs = self._listed(names)
        members: dict[str, list[Object]] = {}
        if any(of_stone(job) is None for job in jobs.values()):
            for pod in self._api.items(self._pods, labels=LABELS):
                members.setdefault(pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", ""), []).append(pod)
        return {
            attempt: self._see(attempt, jobs[name], members.get(name, []))
            if name in jobs
            else Sighting(attempt=attempt, state="unknown")
            for name, attempt in names.items()
        }

    def stop(self, attempt: str, *, grace: float) -> None:
        name = self._render.name(attempt)
        stone = self._render.tombstone(attempt, why="stopped", message="before it started")
        try:
            self._create(self._jobs, stone)
        except Conflict:
            found = self._api.get(f"{self._jobs}/{name}")
            if of_stone(found) is None and sight(attempt, found, self._members(name)).state != "ended":
                # Suspending has the Job's controller end the pods, with the grace that they were made with ...
                change = {"metadata": {"annotations": {WHY: "stopped"}}, "spec": {"suspend": True}}
                self._api.patch(f"{self._jobs}/{name}", change)
                for pod in self._members(name):  # ... unless they are told another one before.
                    self._api.delete(f"{self._pods}/{pod['metadata']['name']}", grace=max(1, round(grace)))

    def log(self, attempt: str, *, offset: int = 0, limit: int = 65536, rank: int = 0) -> LogPage:
        name = self._render.name(attempt)
        kept = self._kept(name, rank)
        if kept.exists():
            with kept.open("rb") as file:
                file.seek(offset)
                data = file.read(limit)
            return _page(data, offset, ended=offset + len(data) >= kept.stat().st_size)
        job = self._api.get(f"{self._jobs}/{name}")
        seen = self._see(attempt, job, self._members(name))
        if kept.exists():  # it has ended just now, and its log was put there
            return self.log(attempt, offset=offset, limit=limit, rank=rank)
        pods = [pod for pod in self._members(name) if ranked(pod) == rank]
        if not pods:
            return LogPage(text="", next=offset, ended=seen.state == "ended")
        return _page(self._read(pods[0], offset, limit), offset, ended=False)

    def forget(self, attempt: str) -> None:
        name = self._render.name(attempt)
        for pod in self._members(name):
            self._release(pod)
        self._api.delete(f"{self._jobs}/{name}")
        for kept in self._directory.glob(f"{name}.*.log"):
            kept.unlink(missing_ok=True)

    def remove_checkpoint(self, job: str) -> None:
        self._api.delete(f"{self._claims}/{self._render.claim(job)}")

    def close(self) -> None:
        self._api.close()

    # --- seeing

    def _listed(self, names: Mapping[str, str]) -> dict[str, Object]:
        """The Jobs of these names that there are. A few are asked for one by one: ended ones stay for days, and a list has them all."""
        if len(names) > _FEW:
            listed = self._api.items(self._jobs, labels=LABELS)
            return {job["metadata"]["name"]: job for job in listed if job["metadata"]["name"] in names}
        found = {}
        for name in names:
            try:
                found[name] = self._api.get(f"{self._jobs}/{name}")
            except NotFound:
                continue
        return found

    def _see(self, attempt: str, job: Object, pods: Sequence[Object]) -> Sighting:
        seen = sight(attempt, job, pods)
        if seen.state != "ended" or of_stone(job) is not None:
            return seen
        return (
            seen if self._settle(job, pods, seen) else Sighting(attempt=attempt, state="running", started=seen.started)
        )

    def _settle(self, job: Object, pods: Sequence[Object], seen: Sighting) -> bool:
        """Keeps logs and outcome, in this order, before the pods may go: a kill in between repeats it.

        False if the Job changed since it was read: another process may have settled it and let the pods go, so look again.
        """
        metadata = job["metadata"]
        name = metadata["name"]
        for pod in pods:
            self._keep(self._kept(name, ranked(pod)), self._read(pod, 0, _LOG_KEPT))
        written = {"resourceVersion": metadata["resourceVersion"], "annotations": {OUTCOME: outcome(seen)}}
        try:
            self._api.patch(f"{self._jobs}/{name}", {"metadata": written})
        except (Conflict, NotFound):
            return False
        for pod in pods:  # what they left is kept, so they need not be listed again and again
            self._release(pod)
            self._api.delete(f"{self._pods}/{pod['metadata']['name']}")
        return True

    def _keep(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)

    def _read(self, pod: Object, offset: int, limit: int) -> bytes:
        """A container that could not be started has no log; what is known of it is why."""
        name = pod["metadata"]["name"]
        try:
            return self._api.read(f"{self._pods}/{name}/log?container={_CONTAINER}", offset=offset, limit=limit)
        except (NotFound, InvalidInput):  # 400: the container is waiting to start
            said = "".join(
                part.get("message", "") + "\n"
                for status in pod["status"].get("containerStatuses", ())
                for part in status.get("state", {}).values()
                if part.get("message")
            )
            return said.encode()[offset : offset + limit]

    def _release(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if metadata.get("finalizers"):
            change: dict[str, Any] = {"metadata": {"finalizers": None, "uid": metadata["uid"]}}
            try:
                self._api.patch(f"{self._pods}/{metadata['name']}", change)
            except (NotFound, Conflict):  # gone already, or another of that name
                return

    def _members(self, name: str) -> list[Object]:
        return list(self._api.items(self._pods, labels=f"batch.kubernetes.io/job-name={name}"))

    def _kept(self, name: str, rank: int) -> Path:
        return self._directory / f"{name}.{rank}.log"

    # --- creating

    def _refuse(self, attempt: str, why: str) -> None:
        try:
            self._create(self._jobs, self._render.tombstone(attempt, why="refused", message=why))
        except Conflict:
            # Its Job is there already: it was the working files that were refused. Then it ends as it stands.
            note = {"metadata": {"annotations": {WHY: "refused", MESSAGE: why[:1000]}}, "spec": {"suspend": True}}
            name = self._render.name(attempt)
            found = self._api.get(f"{self._jobs}/{name}")
            if of_stone(found) is None and not found.get("status", {}).get("conditions"):
                self._api.patch(f"{self._jobs}/{name}", note)

    def _ensure(self, path: str, found: Object) -> None:
        try:
            self._create(path, found)
        except Conflict:
            return  # made by an earlier start

    def _create_or_get(self, path: str, wanted: Object, name: str) -> Object:
        try:
            return self._create(path, wanted)
        except Conflict:
            return self._api.get(f"{path}/{name}")

    def _create(self, path: str, found: Object) -> Object:
        try:
            return self._api.create(path, found)
        except NotFound as error:  # a name that is not taken yet can miss one thing only
            raise Unavailable(
                f"There is no namespace {self._render.namespace}: {error.what}",
                next_step=f"kubectl create namespace {self._render.namespace}",
            ) from error


def _page(data: bytes, offset: int, *, ended: bool) -> LogPage:
    return LogPage(text=data.decode(errors="replace"), next=offset + len(data), ended=ended)
