"""A stand-in of the clouds' metadata services: what a machine is told at 169.254.169.254, and how each refuses what is not asked properly."""

import http.server
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Cloud:
    """What is announced. action, rebalance: AWS; preempted, maintenance: GCP; events: Azure. broken: an answer to everything, instead."""

    action: dict[str, str] | None = None
    rebalance: bool = False
    preempted: bool = False
    maintenance: str = "NONE"
    events: list[dict[str, Any]] = field(default_factory=list)
    name: str = "west_0"
    broken: tuple[int, bytes] | None = None
    wait: threading.Event | None = None
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(f"{method} {path}")
        if self.wait is not None:
            self.wait.wait(30)
        if self.broken is not None:
            return *self.broken, {"Location": "http://127.0.0.1:1/"}
        if "X-Forwarded-For" in headers:  # AWS and Google refuse what a proxy hands on
            return 403, b"", {}
        if path.startswith("/latest/"):
            return *self._aws(method, path, headers), {}
        if path.startswith("/computeMetadata/"):
            return self._gcp(path, headers)
        return *self._azure(path, headers), {}

    def _aws(self, method: str, path: str, headers: Any) -> tuple[int, bytes]:
        if method == "PUT" and path == "/latest/api/token":
            if not 1 <= int(headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21600:
                return 400, b""
            token = secrets.token_urlsafe(40)
            self.tokens.add(token)
            return 200, token.encode()
        if headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, b""
        if path == "/latest/meta-data/spot/instance-action" and self.action is not None:
            return 200, json.dumps(self.action).encode()
        if path == "/latest/meta-data/events/recommendations/rebalance" and self.rebalance:
            return 200, b'{"noticeTime": "2026-11-21T12:00:00Z"}'
        return 404, b"<html>404 - Not Found</html>"

    def _gcp(self, path: str, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        if headers.get("Metadata-Flavor") != "Google":
            return 403, b"", {}
        said = {"preempted": "TRUE" if self.preempted else "FALSE", "maintenance-event": self.maintenance}
        key = path.removeprefix("/computeMetadata/v1/instance/")
        return (200, said[key].encode(), {"Metadata-Flavor": "Google"}) if key in said else (404, b"", {})

    def _azure(self, path: str, headers: Any) -> tuple[int, bytes]:
        if headers.get("Metadata") != "true" or "api-version=" not in path:
            return 400, b'{"error": "Bad request"}'
        if path.startswith("/metadata/instance/compute/name"):
            return 200, self.name.encode()
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": self.events}).encode()


def event(kind: str, not_before: str, *names: str) -> dict[str, Any]:
    return {
        "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
        "EventStatus": "Scheduled",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(names),
        "NotBefore": not_before,
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }


@contextmanager
def serving() -> Iterator[Cloud]:
    cloud = Cloud()

    class Says(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body, headers = cloud.answer(self.command, self.path, self.headers)
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing: tests print what they need."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cloud.url = f"http://127.0.0.1:{server.server_port}"
        yield cloud
        server.shutdown()
