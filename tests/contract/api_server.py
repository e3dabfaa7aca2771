"""A stand-in for a Kubernetes cluster, at the HTTP boundary: an API server, the Job controller and one kubelet.

It is no Kubernetes. It keeps objects as the API server does (names taken once, merge patches, label selectors, pages, finalizers, RFC-shaped
Status errors, bearer tokens, TLS), refuses what Kubernetes' published schemas refuse, and carries Jobs out as their
documentation says: indexed pods, failure of the Job with its first failing pod, deadlines, suspension, graceful deletion. A pod's container is a local
process; mounts are told by variables. Images, networks, security contexts and devices are not there.
"""

import base64
import http.server
import itertools
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate

Object = dict[str, Any]
TOKEN = "a-service-accounts-token"
_TICK = 0.01
_PATH = re.compile(r"/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?(/log)?\Z")
_UNPACKED = "tarfile.open('/bundle/bundle.tar')"


def stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Status(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.body = (
            code,
            {"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": message},
        )


class Cluster:
    """The state and its two control loops. directory: of logs and volumes, kept as disks are kept when a cluster restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kill_at: dict[str, float] = {}
        self.requests: list[tuple[str, str]] = []
        self.namespaces = {"macadam"}
        self.failing = 0  # how many of the next requests are answered with 503
        self.fail_at: int | None = None  # after so many requests, one is answered with 503
        self.page = 2  # objects in a page, few, so that lists have several
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._versions = itertools.count(1)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for process in self.processes.values():
            process.kill()
            process.wait()

    # --- the API server

    def call(self, method: str, target: str, body: Object | None, authorization: str) -> Object | bytes:
        if authorization != f"Bearer {TOKEN}":
            raise Status(401, "Unauthorized", "Unauthorized")
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        match = _PATH.match(url.path)
        with self._lock:
            self.requests.append((method, url.path))
            if self.fail_at is not None:
                self.fail_at -= 1
                if self.fail_at < 0:
                    self.fail_at = None
                    raise Status(503, "ServiceUnavailable", "etcd leader changed")
            if self.failing:
                self.failing -= 1
                raise Status(503, "ServiceUnavailable", "etcd leader changed")
            if match is None:
                raise Status(404, "NotFound", f"no path {url.path}")
            space, kind, name, log = match.groups()
            key = (kind, space or "", name or "")
            if log:
                return self._log(key, query)
            if method == "GET" and not name:
                return self._list(kind, space or "", query)
            return {"GET": self._get, "POST": self._post, "PATCH": self._patch, "DELETE": self._delete}[method](
                key, body or {}
            )

    def put(self, kind: str, found: Object) -> Object:
        """What somebody else made, such as a node."""
        key = (kind, found["metadata"].get("namespace", ""), found["metadata"]["name"])
        found["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": stamp(),
            "resourceVersion": str(next(self._versions)),
        }
        self.objects[key] = found
        return found

    def _changed(self, found: Object) -> None:
        found["metadata"]["resourceVersion"] = str(next(self._versions))

    def _get(self, key: tuple[str, str, str], _: Object) -> Object:
        if key not in self.objects:
            raise Status(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def _post(self, key: tuple[str, str, str], body: Object) -> Object:
        kind, space, _ = key
        if space not in self.namespaces:
            raise Status(404, "NotFound", f'namespaces "{space}" not found')
        key = (kind, space, body["metadata"]["name"])
        if key in self.objects:
            raise Status(409, "AlreadyExists", f'{kind} "{key[2]}" already exists')
        if body["metadata"].get("namespace", space) != space:
            raise Status(400, "BadRequest", "the namespace of the object does not match the namespace of the request")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kubernetes_validate.validate(body, "1.37", strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Status(422, "Invalid", str(error)) from error
        body.setdefault("status", {})
        return self.put(kind, body)

    def _patch(self, key: tuple[str, str, str], body: Object) -> Object:
        found = self._get(key, {})
        if body.get("metadata", {}).get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            raise Status(409, "Conflict", "Precondition failed: UID")
        if (
            body.get("metadata", {}).pop("resourceVersion", found["metadata"]["resourceVersion"])
            != found["metadata"]["resourceVersion"]
        ):
            raise Status(409, "Conflict", "the object has been modified")
        merge(found, body)
        self._changed(found)
        self._collect(key)
        return found

    def _delete(self, key: tuple[str, str, str], options: Object) -> Object:
        found = self._get(key, {})
        if key[0] == "pods":
            self._end_pod(found, options.get("gracePeriodSeconds"))
        else:
            del self.objects[key]
            for other in [
                k for k in self.objects if k[0] in ("pods", "configmaps") and self._owner(k) == found["metadata"]["uid"]
            ]:
                self._end_pod(self.objects[other], None) if other[0] == "pods" else self.objects.pop(other)
        return found

    def _owner(self, key: tuple[str, str, str]) -> str:
        owners = self.objects[key]["metadata"].get("ownerReferences", ())
        return owners[0]["uid"] if owners else ""

    def _list(self, kind: str, space: str, query: dict[str, str]) -> Object:
        selector = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
        wanted = {name: value for name, sign, value in selector if sign}
        present = {name for name, _, _ in selector}
        found = [
            o
            for (k, s, _), o in sorted(self.objects.items(), key=lambda item: item[0])
            if k == kind
            and space in ("", s)
            and wanted.items() <= labels_of(o).items()
            and present <= set(labels_of(o))
        ]
        at = int(query.get("continue", "0"))
        size = min(self.page, int(query.get("limit", "500")))
        more = {"continue": str(at + size)} if at + size < len(found) else {}
        return {"kind": "List", "metadata": more, "items": found[at : at + size]}

    def _log(self, key: tuple[str, str, str], query: dict[str, str]) -> bytes:
        pod = self._get(key, {})
        state = pod["status"].get("containerStatuses", [{"state": {"waiting": {}}}])[0]["state"]
        if "waiting" in state or state.get("terminated", {}).get("reason") == "StartError":
            raise Status(400, "BadRequest", 'container "work" in pod is waiting to start')
        data = self._log_file(pod).read_bytes()
        return data[: int(query.get("limitBytes", len(data)))]

    def _log_file(self, pod: Object) -> Path:
        return self.directory / f"{pod['metadata']['uid']}.log"

    # --- the Job controller

    def _loop(self) -> None:
        while not self._closed.wait(_TICK):
            with self._lock:
                for key in [k for k in self.objects if k[0] == "jobs"]:
                    self._control(self.objects[key])
                for key in [k for k in self.objects if k[0] == "pods"]:
                    self._kubelet(key, self.objects[key])

    def _control(self, job: Object) -> None:
        spec, status = job["spec"], job["status"]
        pods = [o for k, o in self.objects.items() if k[0] == "pods" and self._owner(k) == job["metadata"]["uid"]]
        if any(c["type"] in ("Complete", "Failed") for c in status.get("conditions", ())):
            return
        if spec.get("suspend"):
            for pod in pods:
                self._end_pod(pod, None)
            return
        if not pods and "startTime" not in status:
            status["startTime"] = stamp()
            for index in range(spec["parallelism"]):
                self._make_pod(job, index)
            return
        codes = [terminated(pod) for pod in pods]
        late = "activeDeadlineSeconds" in spec and age(status["startTime"]) > spec["activeDeadlineSeconds"]
        if any(t and t["exitCode"] for t in codes) or late:
            for pod in pods:
                self._end_pod(pod, None)
            if all(terminated(pod) for pod in pods):
                reason = "DeadlineExceeded" if late else "BackoffLimitExceeded"
                status["conditions"] = [{"type": "Failed", "status": "True", "reason": reason}]
                self._changed(job)
        elif pods and all(codes):
            status["conditions"] = [{"type": "Complete", "status": "True"}]
            self._changed(job)

    def _make_pod(self, job: Object, index: int) -> None:
        template = json.loads(json.dumps(job["spec"]["template"]))
        name = job["metadata"]["name"]
        metadata = template["metadata"]
        own = {"batch.kubernetes.io/job-name": name, "batch.kubernetes.io/job-completion-index": str(index)}
        metadata["labels"] = metadata.get("labels", {}) | own
        metadata["annotations"] = metadata.get("annotations", {}) | {
            "batch.kubernetes.io/job-completion-index": str(index)
        }
        metadata |= {"name": f"{name}-{index}-x{next(self._versions)}", "namespace": job["metadata"]["namespace"]}
        metadata["ownerReferences"] = [{"kind": "Job", "uid": job["metadata"]["uid"]}]
        self.put("pods", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})

    # --- the kubelet

    def _kubelet(self, key: tuple[str, str, str], pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        process = self.processes.get(uid)
        if process is None:
            if "deletionTimestamp" in pod["metadata"]:
                pod["status"].setdefault("phase", "Failed")
                self._collect(key)
            elif not terminated(pod):
                self._run(pod)
            return
        if time.monotonic() > self.kill_at.get(uid, float("inf")) and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.poll() is not None:
            del self.processes[uid]
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            began = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
            self._finish(
                pod,
                {
                    "exitCode": code,
                    "startedAt": began,
                    "finishedAt": stamp(),
                    "reason": "Error" if code else "Completed",
                },
            )
        self._collect(key)

    def _finish(self, pod: Object, state: Object) -> None:
        pod["status"] |= {"phase": "Failed" if state["exitCode"] else "Succeeded"}
        pod["status"]["containerStatuses"] = [{"name": "work", "state": {"terminated": state}}]

    def _run(self, pod: Object) -> None:
        container = pod["spec"]["containers"][0]
        maps = [v["configMap"]["name"] for v in pod["spec"].get("volumes", ()) if "configMap" in v]
        if any(("configmaps", pod["metadata"]["namespace"], name) not in self.objects for name in maps):
            waiting = {"reason": "ContainerCreating"}
            pod["status"]["containerStatuses"] = [{"name": "work", "state": {"waiting": waiting}}]
            return
        variables: dict[str, str] = {}
        for entry in container.get("env", ()):
            variables[entry["name"]] = expanded(self._value(entry, pod), variables)
        place = self.directory / pod["metadata"]["uid"]
        place.mkdir()
        variables |= {"HOME": str(place), "TMPDIR": str(place), "PATH": os.environ["PATH"]}
        for volume in pod["spec"].get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                variables["MACADAM_CHECKPOINT"] = str(self._volume(pod, claim["claimName"]))
        words = [expanded(word, variables) for word in container["command"]]
        command = [sys.executable if word == "python" else word for word in words]
        for name in maps:
            (place / "bundle.tar").write_bytes(
                base64.b64decode(
                    self.objects["configmaps", pod["metadata"]["namespace"], name]["binaryData"]["bundle.tar"]
                )
            )
            command[2] = (
                command[2].replace("/bundle/bundle.tar", str(place / "bundle.tar")).replace("'/work'", repr(str(place)))
            )
        try:
            with self._log_file(pod).open("wb") as log:
                self.processes[pod["metadata"]["uid"]] = subprocess.Popen(
                    command,
                    env=variables,
                    cwd=place,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except FileNotFoundError:
            message = f'exec: "{command[0]}": executable file not found in $PATH'
            self._finish(
                pod,
                {"exitCode": 128, "startedAt": None, "finishedAt": stamp(), "reason": "StartError", "message": message},
            )
            return
        pod["status"] |= {"phase": "Running"}
        pod["status"]["containerStatuses"] = [{"name": "work", "state": {"running": {"startedAt": stamp()}}}]

    def _value(self, entry: Object, pod: Object) -> str:
        if "value" in entry:
            return entry["value"]
        return pod["metadata"]["annotations"][entry["valueFrom"]["fieldRef"]["fieldPath"].split("'")[1]]

    def _volume(self, pod: Object, claim: str) -> Path:
        found = self.objects["persistentvolumeclaims", pod["metadata"]["namespace"], claim]
        place = self.directory / f"volume-{found['metadata']['uid']}"
        place.mkdir(exist_ok=True)
        return place

    def _end_pod(self, pod: Object, grace: int | None) -> None:
        """Graceful deletion: asked once, and a later request can only shorten it."""
        metadata, uid = pod["metadata"], pod["metadata"]["uid"]
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        until = time.monotonic() + seconds
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = stamp()
            if uid in self.processes and self.processes[uid].poll() is None:
                named = pod["spec"]["containers"][0].get("lifecycle", {}).get("stopSignal", "SIGTERM")
                os.killpg(self.processes[uid].pid, signal.Signals[named])
        self.kill_at[uid] = min(self.kill_at.get(uid, float("inf")), until)

    def _collect(self, key: tuple[str, str, str]) -> None:
        """An object that is to go goes when nobody holds it, and a pod when its processes are over."""
        metadata = self.objects[key]["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and metadata["uid"] not in self.processes:
            del self.objects[key]


def expanded(text: str, variables: dict[str, str]) -> str:
    """As the kubelet does: https://github.com/kubernetes/design-proposals-archive/blob/main/node/expansion.md."""

    def one(match: "re.Match[str]") -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def labels_of(found: Object) -> dict[str, str]:
    labels: dict[str, str] = found["metadata"].get("labels", {})
    return labels


def merge(found: Object, change: Object) -> None:
    """RFC 7386."""
    for name, value in change.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, dict):
            merge(found.setdefault(name, {}), value)
        else:
            found[name] = value


def terminated(pod: Object) -> Object | None:
    for status in pod["status"].get("containerStatuses", ()):
        return status["state"].get("terminated")
    return (
        {"exitCode": 137} if "deletionTimestamp" in pod["metadata"] and pod["status"].get("phase") == "Failed" else None
    )


def age(since: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()


class Server:
    """The cluster behind HTTPS. pair: PEM file with certificate and key."""

    def __init__(self, cluster: Cluster, pair: Path) -> None:
        handler = type("Handler", (_Handler,), {"cluster": cluster})
        self._http = _Quiet(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that does not trust us hangs up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together: in two packets they would wait for each other's acknowledgement
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            found = self.cluster.call(self.command, self.path, body, self.headers.get("Authorization", ""))
            self._send(201 if self.command == "POST" else 200, found)
        except Status as status:
            self._send(status.code, status.body)

    def _send(self, code: int, found: Object | bytes) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: tests print what they need."""

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - named by http.server
