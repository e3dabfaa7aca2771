"""The witness over HTTP: POST /add-checkpoint, and GET / for its verifier key. One thread a connection, few of them."""

import json
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from macadam_witness.witness import Answer, Witness

MOST_BYTES = 64 * 1024
"""Of a request: 63 proof lines and 100 signatures take 14 KB."""
SECONDS = 10.0
"""A client that sends nothing for this long is left."""
MOST_CONNECTIONS = 64


def say(event: str, **facts: object) -> None:
    """One line of JSON for the operator."""
    line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **facts}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


class Server(ThreadingHTTPServer):
    """Listens at once; `serve_forever()` answers."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], witness: Witness) -> None:
        self.witness = witness
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)  # who is refused comes back; who holds connections open is timed out

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the base class calls it
        say("connection failed", error=repr(sys.exc_info()[1]))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "macadam-witness"
    sys_version = ""
    timeout = SECONDS
    server: Server

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(Answer(200, f"{self.server.witness.verifier}\n"))
        else:
            self._answer(Answer(404, "POST /add-checkpoint\n"))

    def do_POST(self) -> None:
        self._answer(self._decide())

    def _decide(self) -> Answer:
        length = self.headers.get("Content-Length", "")
        if self.path != "/add-checkpoint" or not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # its body was not read
            if self.path != "/add-checkpoint":
                return Answer(404, "POST /add-checkpoint\n")
            return (
                Answer(413, f"at most {MOST_BYTES} bytes\n") if length.isdecimal() else Answer(411, "say the length\n")
            )
        try:
            return self.server.witness.add_checkpoint(self.rfile.read(int(length)))
        except (OSError, ValueError) as error:
            say("not remembered", error=str(error))
            return Answer(500, "this witness cannot remember or read what it must\n")

    def _answer(self, answer: Answer) -> None:
        data = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)
        if answer.alarm:
            say("ALARM", why=answer.alarm, client=self.client_address[0], status=answer.status)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        say("request", line=format % arguments)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if code != HTTPStatus.OK:
            super().log_request(code, size)


def serve(witness: Witness, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Until it is interrupted. ready: called with the port once it listens. Raises OSError if it cannot listen."""
    with Server((host, port), witness) as server:
        ready(server.server_address[1])
        server.serve_forever(poll_interval=0.2)
