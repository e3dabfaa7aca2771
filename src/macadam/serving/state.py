"""What gateways know: endpoints and access, published as one named object after each change, without SQL for readers.

A publisher builds the state under a lock that all processes of a home share, so an older state never replaces a newer
one. Gateways compare `generation` and load what is new; loading models is theirs.
"""

import fcntl
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.engine import AccessSnapshot
from macadam.errors import MacadamError, NotFound
from macadam.ports import Objects, Ports
from macadam.serving.schema import deployments, endpoints
from macadam.serving.types import Deployment

NAME = "serving/state.json"
_log = logging.getLogger(__name__)
_DEBOUNCE = 0.01
"""Seconds that a burst of changes is gathered for: much less than the second within which a revocation must hold."""
_RETRY = 1.0


class ServingState(msgspec.Struct, frozen=True, kw_only=True):
    """generation: changes with anything in it. endpoints: by project, then name."""

    generation: str
    access: AccessSnapshot
    endpoints: dict[str, dict[str, Deployment]]


class _Generation(msgspec.Struct):
    generation: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ServingState).decode
_decode_generation = msgspec.json.Decoder(_Generation).decode


def generation(sql: sa.Connection) -> str:
    """The id of the state that `build` would give now."""
    newest = sql.execute(sa.select(sa.func.max(endpoints.c.generation))).scalar()
    return f"{access.generation(sql)}/{newest or '-'}"


def build(sql: sa.Connection) -> ServingState:
    """The state as this connection sees it."""
    found: dict[str, dict[str, Deployment]] = {}
    query = sa.select(deployments.c.document).join(endpoints, endpoints.c.deployment == deployments.c.id)
    for document in sql.execute(query.order_by(endpoints.c.project, endpoints.c.name)).scalars():
        one = msgspec.convert(document, Deployment)
        found.setdefault(one.project, {})[one.endpoint] = one
    return ServingState(generation=generation(sql), access=access.snapshot(sql), endpoints=found)


def decode(data: bytes) -> ServingState:
    """Raises msgspec.MsgspecError."""
    return _decode(data)


def published(objects: Objects) -> str:
    """The generation of the published state, '' if there is none that can be read."""
    try:
        return _decode_generation(objects.get_name(NAME)).generation
    except (NotFound, msgspec.MsgspecError):
        return ""


def publish(ports: Ports) -> bool:
    """Publishes the present state if it is not published yet. Returns whether it did.

    Raises StorageFull, Busy.
    """
    with ports.sql.read() as sql:
        now = generation(sql)
    if published(ports.objects) == now:
        return False
    with _only_one(ports):
        with ports.sql.read() as sql:
            state = build(sql)
        ports.objects.set_name(NAME, _encode(state))
    return True


@contextmanager
def _only_one(ports: Ports) -> Iterator[None]:
    """Building and publishing is one step among all processes: whoever comes later also read later."""
    path = ports.settings.home / "serving" / "state.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Publisher:
    """Publishes soon after each nudge, on a thread of its own. `close()` publishes what is left to publish."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()

    def nudge(self) -> None:
        """Says that something may have changed. Returns at once."""
        self._wanted.set()
        if self._thread is None:
            with self._start:
                if self._thread is None and not self._closing.is_set():
                    self._thread = threading.Thread(target=self._run, name="serving-state", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        with self._start:
            self._closing.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
            self._publish()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait()
            if self._closing.wait(_DEBOUNCE):
                return  # `close` publishes
            self._wanted.clear()
            if not self._publish():
                self._wanted.set()
                self._closing.wait(_RETRY)

    def _publish(self) -> bool:
        """A state that cannot be published is said and tried again; the calls that led to it are done."""
        try:
            publish(self._ports)
        except (MacadamError, OSError, sa.exc.SQLAlchemyError) as error:
            _log.warning("The state for gateways was not published, and will be: %s", error)
            return False
        return True
