"""What a gateway answers: routes, who may call, and the batches. Independent of the server that brings the requests.

Requests of one turn of the event loop are gathered and answered together, in their order; the answers of each
connection leave with one write.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from macadam.access.circumstances import declared
from macadam.access.engine import Engine
from macadam.access.rates import Bucket
from macadam.errors import MacadamError, NotAuthenticated
from macadam.operations import Actor, Declared, Granted
from macadam.serving import answers
from macadam.serving.batch import Ask, Batcher, decode_body
from macadam.serving.guard import Guard
from macadam.serving.journals import Journals
from macadam.serving.metrics import Metrics
from macadam.serving.outbox import Entry, Outbox
from macadam.serving.protocol import Connection, Incoming
from macadam.serving.runtime import Runtime, Slot
from macadam.values import utc_now

_log = logging.getLogger(__name__)
MOST_PENDING = 8192
"""Requests that wait: beyond, a quick 503 serves everybody better than a longer queue."""
MOST_TOGETHER = 256
"""Requests answered in one turn: bounds how long the loop is busy."""
_OK = 200
_MOST_ROUTES = 20_000
_LONGEST_ROUTE = 500
"""Bytes of path and credential: with a query of 64 KB to each, the routes kept would fill the memory."""
_PREDICT = re.compile(rb"^/v1/projects/([a-z][a-z0-9_-]{0,62})/endpoints/([a-z][a-z0-9_-]{0,62})/predict\Z")
_encode = msgspec.json.Encoder().encode
_TRACE = re.compile(rb"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
PREDICT, REPLAY = "predictions:create", "predictions:replay"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A caller at an endpoint, allowed. expires: of the token; bucket: the caller's; declared: what it says of its call."""

    slot: Slot
    actor: Actor
    project: str
    endpoint: str
    expires: datetime | None
    bucket: Bucket
    declared: Declared
    granted: Granted


class Clerk:
    """Takes requests and answers them. For the event loop's thread only.

    closed: what every prediction is answered with instead, while it is not empty.
    """

    def __init__(
        self,
        runtime: Runtime,
        batcher: Batcher,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        *,
        journals: Journals,
        guard: Guard,
        gauges: Callable[[], dict[str, float]],
        is_draining: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._batcher = batcher
        self._metrics = metrics
        self._loop = loop
        self._journals = journals
        self._guard = guard
        self._gauges = gauges
        self.outbox = Outbox(loop, self._deliver)
        self._is_draining = is_draining
        self._pending: list[Incoming] = []
        self._routes: dict[tuple[bytes, ...], Route] = {}
        self._scheduled = False
        self._now = 0.0
        self.closed = b""

    @property
    def waiting(self) -> int:
        return len(self._pending) + self.outbox.held

    def submit(self, request: Incoming) -> None:
        """Queues a request for this turn of the loop."""
        if self.waiting >= MOST_PENDING and not request.fixed:
            request.answer = _BUSY
        self._pending.append(request)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def forget_routes(self) -> None:
        """What was decided before a change of access or endpoints no longer holds."""
        self._routes.clear()

    def _turn(self) -> None:
        self._scheduled = False
        batch, self._pending = self._pending[:MOST_TOGETHER], self._pending[MOST_TOGETHER:]
        if self._pending:
            self._scheduled = True
            self._loop.call_soon(self._turn)
        start = time.perf_counter()
        self._now = time.monotonic()
        asks: dict[int, Ask] = {}
        for position, request in enumerate(batch):
            if not request.answer:
                ask = self._ask(request)
                if ask is not None:
                    asks[position] = ask
        if asks:
            stages, _ = self._batcher.run(list(asks.values()))
            self._metrics.batches += 1
            for stage in ("features", "predict", "journal"):
                self._metrics.stages[stage].observe(getattr(stages, stage), len(asks))
            for position, ask in asks.items():
                batch[position].answer = ask.answer
        self._send(batch, asks)
        if asks:
            self._metrics.stages["total"].observe(time.perf_counter() - start, len(asks))

    # --- sending

    def _send(self, batch: Sequence[Incoming], asks: dict[int, Ask]) -> None:
        """By connection, in the order of its requests."""
        out: dict[Connection, list[Entry]] = {}
        for position, request in enumerate(batch):
            out.setdefault(request.connection, []).append((request, asks.get(position)))
        self.outbox.put(out.items())

    def _deliver(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """One write; then what was answered is counted, by project's journal."""
        ends: set[Connection] = set()
        parts = [self._finished(request, ends) for request, _ in entries]
        sent = connection.send(parts[0] if len(parts) == 1 else b"".join(parts), last=bool(ends))
        connection.answered(len(parts))
        for _, ask in entries:
            if ask is not None:
                self._count(ask, sent=sent)

    def _finished(self, request: Incoming, ends: set[Connection]) -> bytes:
        answer = request.answer
        if request.fixed:
            if not request.keep_alive:
                ends.add(request.connection)
            return answer
        if not request.keep_alive or self._is_draining():
            ends.add(request.connection)
            answer = answers.closing(answer)
        elif request.old:
            answer = answers.kept(answer)
        return answers.without_body(answer) if request.method == b"HEAD" else answer

    def _count(self, ask: Ask, *, sent: bool) -> None:
        one = ask.serving.deployment
        key = (one.project, one.endpoint, ask.status)
        self._metrics.requests[key] = self._metrics.requests.get(key, 0) + 1
        if ask.receipt is not None:
            self._metrics.records += 1
            if sent:
                ask.receipt.answered()
                self._metrics.answered += 1
        elif sent and ask.status == _OK and not ask.is_unrecorded:
            self._count_omitted(one.project, one.endpoint)

    def _count_omitted(self, project: str, endpoint: str) -> None:
        """An answer that no writer has seen and nobody has counted: seen here, where it leaves, and nowhere else."""
        self._journals.of(project).omitted(1)
        _log.error("an answer of %s/%s left without a record, and nothing had allowed it", project, endpoint)

    # --- routes

    def _ask(self, request: Incoming) -> Ask | None:
        """What to answer in the batch; None if it is answered already."""
        route = self._routes.get(_caller(request))
        if route is None or self.closed or request.method != b"POST" or (route.expires and route.expires <= utc_now()):
            found = self._found(request)
            if isinstance(found, bytes):
                return self._refuse(request, found, int(found[9:12]))
            route = found
        if not route.bucket.take(self._now):
            asset = f"endpoint:{route.endpoint}"
            refused = self._guard.too_fast(route.actor.id, route.project, asset, route.bucket, self._now)
            return self._refuse(request, refused, 429)
        serving = route.slot.serving
        if serving is None:
            why = route.slot.problem.what if route.slot.problem else "It is being loaded."
            problem = answers.problem(
                503,
                "unavailable",
                f"{route.slot.wanted.version} does not answer yet. {why}",
                next_step="Ask again in a second.",
            )
            return self._refuse(request, problem, 503)
        try:
            body = decode_body(request.body)
        except msgspec.ValidationError as error:
            return self._refuse(request, _invalid(error), 422)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem = answers.problem(
                400, "invalid-input", f"The body is not JSON: {error}.", next_step="Send a JSON object."
            )
            return self._refuse(request, problem, 400)
        if body.at is not None and (refused := self._refused_replay(route, body.at)):
            return self._refuse(request, refused, int(refused[9:12]))
        trace = _TRACE.match(request.trace) if request.trace else None
        return Ask(
            serving=serving,
            actor=route.actor.id,
            granted=route.granted,
            inputs=body.inputs,
            at=body.at,
            trace=trace[1].decode() if trace else "",
        )

    def _refuse(self, request: Incoming, answer: bytes, status: int) -> Ask | None:
        """Nothing is left for the batch."""
        request.answer = answer
        self._metrics.unrecorded[status] = self._metrics.unrecorded.get(status, 0) + 1
        return None

    def _found(self, request: Incoming) -> Route | bytes:
        """The caller at an endpoint, looked up anew. Bytes: the answer."""
        if self.closed and request.target.startswith(b"/v1/"):
            return self.closed
        try:
            return self._route(request)
        except NotAuthenticated as error:
            return self._guard.stranger(request.connection.peer, answers.of_error(error), self._now)
        except MacadamError as error:
            return answers.of_error(error)

    def _route(self, request: Incoming) -> Route | bytes:
        """Raises NotAuthenticated. Bytes: the answer."""
        path = request.target.partition(b"?")[0]
        match = _PREDICT.match(path)
        if match is None:
            return self._plain(request.method, path)
        if request.method != b"POST":
            return _allow(b"POST")
        engine = self._runtime.engine
        if engine is None:
            return _NO_STATE
        project, endpoint = match[1].decode(), match[2].decode()
        revoked = self._runtime.revocations.revoked
        actor = engine.authenticate(_bearer(request.authorization), utc_now(), revoked)
        bucket = self._guard.known.of(actor.id)
        says = declared(request.purpose.decode("latin-1"), request.location.decode("latin-1"))
        decision = engine.decide(actor, PREDICT, f"endpoint:{endpoint}", project, declared=says)
        if not decision.allowed:
            return self._guard.forbid(actor, PREDICT, f"endpoint:{endpoint}", project, decision)
        slot = self._runtime.slots.get((project, endpoint))
        if slot is None:
            detail = f"Project {project!r} has no endpoint {endpoint!r}."
            return answers.problem(404, "not-found", detail, next_step="List them: macadam endpoints list.")
        route = Route(
            slot=slot,
            actor=actor,
            project=project,
            endpoint=endpoint,
            expires=_expires(engine, request.authorization),
            bucket=bucket,
            declared=says,
            granted=Granted(decision, PREDICT, f"endpoint:{endpoint}"),
        )
        key = _caller(request)
        if sum(map(len, key)) <= _LONGEST_ROUTE and engine.lasts(PREDICT, project):
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            self._routes[key] = route
        return route

    def _refused_replay(self, route: Route, at: datetime) -> bytes:
        """A replay's clock chooses what the features know: not for everybody who may ask."""
        if at.tzinfo is None:
            return answers.problem(
                422, "invalid-input", "The field `at` has no time zone.", next_step="Add Z or +01:00."
            )
        engine = self._runtime.engine
        if engine is None:
            return _NO_STATE
        decision = engine.decide(
            route.actor, REPLAY, f"endpoint:{route.endpoint}", route.project, declared=route.declared
        )
        if decision.allowed:
            return b""
        return self._guard.forbid(route.actor, REPLAY, f"endpoint:{route.endpoint}", route.project, decision)

    def _plain(self, method: bytes, path: bytes) -> bytes:
        """Health and metrics, for anybody who reaches the port: they name no data."""
        if path not in (b"/health", b"/health/live", b"/health/ready", b"/metrics"):
            return answers.problem(404, "not-found", "There is nothing at this path.", next_step="See docs/reference.")
        if method not in (b"GET", b"HEAD"):
            return _allow(b"GET, HEAD")
        if path == b"/metrics":
            return answers.answer(200, answers.TEXT, self._metrics.text(self._gauges(), more=self._journals.counters()))
        if path == b"/health/ready":
            return self._ready()
        return answers.answer(200, answers.JSON, b'{"status":"live"}')

    def _ready(self) -> bytes:
        if self._runtime.engine is None:
            return _NO_STATE
        if self._is_draining():
            return answers.problem(503, "unavailable", "The gateway is stopping.")
        missing = [f"{p}/{e}" for (p, e), slot in self._runtime.slots.items() if slot.serving is None]
        if missing:
            return answers.problem(503, "unavailable", f"Not loaded yet: {', '.join(missing)}.")
        return self._journals_ready()

    @property
    def _refused(self) -> dict[str, str]:
        """Endpoints at which the version before goes on, because the one that is wanted cannot be loaded."""
        return {
            f"{project}/{endpoint}": f"{slot.wanted.version} is not loaded: {slot.problem.what}"
            for (project, endpoint), slot in self._runtime.slots.items()
            if slot.problem is not None
        }

    def _journals_ready(self) -> bytes:
        """Not ready while a project has stopped answering; degraded while one answers without records."""
        found = self._journals.conditions
        stopped = [f"{project} does not answer: {why}" for project, (why, stops) in sorted(found.items()) if stops]
        if stopped:
            return answers.problem(
                503, "unavailable", f"{'; '.join(stopped)}.", next_step="See macadam journal status."
            )
        degraded: dict[str, object] = {}
        if found:
            degraded["journal"] = {p: f"answers without records: {why}" for p, (why, _) in sorted(found.items())}
        if refused := self._refused:
            degraded["models"] = refused
        if degraded:
            return answers.answer(200, answers.JSON, _encode({"status": "degraded", **degraded}))
        return answers.answer(200, answers.JSON, b'{"status":"ready"}')


_BUSY = answers.problem(503, "busy", f"More than {MOST_PENDING} requests are waiting.", next_step="Ask again later.")
_NO_STATE = answers.problem(
    503, "unavailable", "The gateway knows no endpoints yet.", next_step="Open the home once: macadam up."
)


def _caller(request: Incoming) -> tuple[bytes, ...]:
    """What a route that is kept depends on: where to, who, and what is said of the call."""
    return (request.target, request.authorization, request.purpose, request.location)


def _bearer(authorization: bytes) -> str:
    """Raises NotAuthenticated."""
    scheme, _, token = authorization.partition(b" ")
    if authorization and scheme.lower() != b"bearer":
        raise NotAuthenticated(
            "The Authorization header is no bearer token.", next_step="Send `Authorization: Bearer TOKEN`."
        )
    return token.strip().decode("ascii", "replace")


def _expires(engine: Engine, authorization: bytes) -> datetime | None:
    return engine.expiry(_bearer(authorization))


def _allow(methods: bytes) -> bytes:
    whole = answers.problem(405, "method-not-allowed", f"The path takes {methods.decode()}.")
    head, _, rest = whole.partition(b"\r\n")
    return head + b"\r\nallow: " + methods + b"\r\n" + rest


def _invalid(error: msgspec.ValidationError) -> bytes:
    return answers.problem(
        422,
        "invalid-input",
        f"The request does not fit: {error}.",
        next_step='Send {"inputs": {NAME: VALUE, …}}, with numbers, text or null.',
    )
