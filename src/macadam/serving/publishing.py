"""Builds the state for gateways from SQL and publishes it after each change.

It is built under a lock that all processes of a home share, so an older state never replaces a newer one.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import sqlalchemy as sa

from macadam.access import revoking
from macadam.access import state as access
from macadam.access.schema import projects
from macadam.errors import MacadamError
from macadam.journal.schema import policies
from macadam.journal.types import Durability, JournalPolicy, OnFailure
from macadam.models import supply
from macadam.nudged import Nudged
from macadam.ports import Ports
from macadam.serving import state
from macadam.serving.schema import deployments, endpoints
from macadam.serving.state import ServingState
from macadam.serving.types import Deployment
from macadam.values import utc_now

_log = logging.getLogger(__name__)
_DEBOUNCE = 0.01
"""Seconds that a burst of changes is gathered for: much less than the second within which a revocation must hold."""
_RETRY = 1.0


def generation(sql: sa.Connection) -> str:
    """The id of the state that `build` would give now."""
    newest = sql.execute(sa.select(sa.func.max(endpoints.c.generation))).scalar()
    declared = sql.execute(sa.select(sa.func.max(policies.c.generation))).scalar()
    return f"{access.generation(sql)}/{newest or '-'}/{declared or '-'}"


def build(sql: sa.Connection, *, revocation_key: str = "", revocation_number: int = 0) -> ServingState:
    """The state as this connection sees it."""
    found: dict[str, dict[str, Deployment]] = {}
    query = sa.select(deployments.c.document).join(endpoints, endpoints.c.deployment == deployments.c.id)
    for document in sql.execute(query.order_by(endpoints.c.project, endpoints.c.name)).scalars():
        one = msgspec.convert(document, Deployment)
        found.setdefault(one.project, {})[one.endpoint] = one
    return ServingState(
        generation=generation(sql),
        access=access.snapshot(sql),
        endpoints=found,
        journals=journals(sql),
        revocation_key=revocation_key,
        revocation_number=revocation_number,
        model_keys=supply.trusted(sql),
    )


def journals(sql: sa.Connection) -> dict[str, JournalPolicy]:
    """What gateways do for each project whose journal is not the default one."""
    t, high = policies.c, projects.c.risk == "high"
    query = sa.select(t.project, t.durability, t.on_journal_failure, high.label("high")).join(
        projects, projects.c.name == t.project
    )
    return {row.project: effective(row.durability, row.on_journal_failure, high=row.high) for row in sql.execute(query)}


def effective(durability: Durability, on_journal_failure: OnFailure, *, high: bool) -> JournalPolicy:
    """A high-risk project stops, whatever was declared before it became one."""
    return JournalPolicy(durability=durability, on_journal_failure="stop" if high else on_journal_failure)


def publish(ports: Ports) -> bool:
    """Publishes the present state if it is not published yet. Returns whether it did.

    Raises StorageFull, Busy.
    """
    with ports.sql.read() as sql:
        now = generation(sql)
    if state.published(ports.objects) == now:
        return False
    revoking.publish(ports, utc_now())  # first: it is small, and gateways that have it refuse at once
    key = revoking.signer(ports.secrets).verifier
    with _only_one(ports):
        number = revoking.published_number(ports.objects, key)
        with ports.sql.read() as sql:
            built = build(sql, revocation_key=str(key), revocation_number=number)
        ports.objects.set_name(state.NAME, state.encode(built))
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
        self._thread = Nudged("serving-state", self._run)

    def nudge(self) -> None:
        """Says that something may have changed. Returns at once."""
        self._thread.nudge()

    def close(self) -> None:
        if self._thread.close():
            self._publish()

    def _run(self) -> None:
        wanted, closing = self._thread.wanted, self._thread.closing
        while not closing.is_set():
            wanted.wait()
            if closing.wait(_DEBOUNCE):
                return  # `close` publishes
            wanted.clear()
            if not self._publish():
                wanted.set()
                closing.wait(_RETRY)

    def _publish(self) -> bool:
        """A state that cannot be published is said and tried again; the calls that led to it are done."""
        try:
            publish(self._ports)
        except (MacadamError, OSError, sa.exc.SQLAlchemyError) as error:
            _log.warning("The state for gateways was not published, and will be: %s", error)
            return False
        return True
