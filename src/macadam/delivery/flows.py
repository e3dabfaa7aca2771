"""Applies a plan as a durable flow (DBOS, beside the platform's state: a file in the home, or a schema in Postgres): killed anywhere, it goes on at its step.

Each step is one operation with an idempotency key of the flow and the step. DBOS remembers steps that have returned;
one that was cut off is called again with the same key and gets the first answer if its transaction had committed.
So nothing is done twice and nothing is left out.
"""

import fcntl
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import sqlalchemy as sa

from macadam.access.policy_types import PolicyVersion
from macadam.app.platform import Platform
from macadam.delivery import steps
from macadam.delivery.observe import observe
from macadam.delivery.plan import compare
from macadam.delivery.types import Plan, Step
from macadam.errors import Busy, GateRefused, StorageFull
from macadam.lazy import lazy
from macadam.models.types import GateResult
from macadam.settings import Settings
from macadam.values import instant, parse_instant, utc_now, uuid7

if TYPE_CHECKING:
    import dbos
else:
    dbos = lazy("dbos")

_FLOW = "macadam-apply"
# Part of what a stored flow means: raise it when the steps of an old one could no longer be carried on.
_FLOW_VERSION = "1"
_OPEN = ["PENDING", "ENQUEUED", "DELAYED"]
_PG_FULL = {"53100", "58030"}  # disk_full, io_error
_POLL = 0.2  # s between looks at a resumed flow


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happens while a plan is applied. number: of the step, from 1; of: how many there are.

    resumed: the flow of an earlier apply goes on; abandoned: it does not, since the files have changed. left: something
    stays that the files no longer name; text says what. done: seconds
    and outcome are set. before: done by the earlier apply. progress: text, count and total of a long step.
    """

    kind: Literal["resumed", "abandoned", "left", "started", "progress", "done", "before", "skipped"]
    key: str = ""
    title: str = ""
    why: str = ""
    number: int = 0
    of: int = 0
    seconds: float = 0
    text: str = ""
    count: int = 0
    total: int = 0
    outcome: dict[str, object] = {}


OnEvent = Callable[[Event], None]


class StepDone(msgspec.Struct, frozen=True, kw_only=True):
    """A step's outcome: the operation's response as plain values. reused: an equal one was there already."""

    key: str
    title: str
    seconds: float = 0
    reused: bool = False
    outcome: dict[str, object] = {}


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A model version that the gate did not let pass. waiting: only approvals are missing."""

    model: str
    version: int
    waiting: bool
    reasons: tuple[str, ...]
    approver: str = ""


class WaitingPolicies(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the project's policies that too few have approved. ref: of its text; approvals: that
    count; needed: how many have to, of others.
    """

    version: int
    ref: str
    proposed_by: str
    approvals: int
    needed: int


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """How an apply ended.

    state: nothing (to do); done; waiting (for approval: approve, then apply again); refused (by a gate). skipped: the
    titles of the steps that the gate, or policies without approval, held back.
    """

    project: str
    flow: str
    state: Literal["nothing", "done", "waiting", "refused"]
    resumed: bool = False
    steps: tuple[StepDone, ...] = ()
    held: tuple[Held, ...] = ()
    policies: WaitingPolicies | None = None
    skipped: tuple[str, ...] = ()
    seconds: float = 0


EXIT_CODES: dict[str, int] = {"nothing": 0, "done": 0, "waiting": 20, "refused": GateRefused.exit_code}
"""What the command line ends with: an approval to wait for has a code of its own."""


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """DBOS, launched, and `_flow` as it wraps it."""

    dbos: "dbos.DBOS"
    flow: Callable[[str, str], str]


def ignore(_event: Event) -> None:
    """Listens to nothing."""


def plan(platform: Platform, directory: Path) -> Plan:
    """What `apply` would do now. Raises NotFound, InvalidInput, ContractInvalid, UserCodeFailed, Conflict."""
    return compare(*observe(platform, directory))


def apply(platform: Platform, directory: Path, on_event: OnEvent = ignore) -> Applied:
    """Brings the platform to what the project's files say; goes on with an apply that was killed.

    Raises Busy if another apply runs on this home, and what the steps raise: what was done until then stays, and the
    next apply starts behind it.
    """
    started = time.monotonic()
    home = platform.settings.home
    with _alone(home), _full_disk_said(), _engine(platform.settings) as engine:
        made = plan(platform, directory)
        for note in made.left:
            on_event(Event(kind="left", text=note))
        flow = _unfinished(engine, made, on_event)
        if not flow and made.nothing_to_do:
            return Applied(project=made.project, flow="", state="nothing")
        resumed = bool(flow)
        flow = flow or _flow_id(made)
        with _running(_Apply(platform, flow, directory, on_event)):
            outcome = _resume(engine, flow) if resumed else _start(engine, flow, made)
    applied = msgspec.json.decode(outcome, type=Applied)
    return msgspec.structs.replace(applied, resumed=resumed, seconds=time.monotonic() - started)


def _flow_id(made: Plan) -> str:
    """Names the project and all that its files ask for, so that a later apply knows whether the flow is still wanted."""
    return f"{_prefix(made)}{made.desired.partition(':')[2][:16]}-{uuid7()}"


def _prefix(made: Plan) -> str:
    return f"apply-{made.project}-"


def _unfinished(engine: _Engine, made: Plan, on_event: OnEvent) -> str:
    """The killed flow that asks for what the files still ask for; others of the project are given up."""
    wanted = _flow_id(made)[: -len(uuid7())]
    found = ""
    for status in engine.dbos.list_workflows(name=_FLOW, status=_OPEN, workflow_id_prefix=_prefix(made)):
        flow = str(status.workflow_id)
        if flow.startswith(wanted) and not found:
            found = flow
            on_event(Event(kind="resumed", text=flow))
        else:
            engine.dbos.cancel_workflow(flow)
            on_event(Event(kind="abandoned", text=flow))
    return found


def _start(engine: _Engine, flow: str, made: Plan) -> bytes:
    with dbos.SetWorkflowID(flow):
        return engine.flow(msgspec.json.encode(made).decode(), instant(utc_now())).encode()


def _resume(engine: _Engine, flow: str) -> bytes:
    """The queue of DBOS takes it up again, in a thread of its own; this one waits."""
    handle = engine.dbos.resume_workflow(flow)
    return str(handle.get_result(polling_interval_sec=_POLL)).encode()


class _Apply:
    """What a flow needs beside its stored input: this process's platform and listener."""

    def __init__(self, platform: Platform, flow: str, directory: Path, on_event: OnEvent) -> None:
        self.platform, self.flow, self.directory, self.on_event = platform, flow, directory, on_event


_now_running: list[_Apply] = []


@contextmanager
def _running(applied: _Apply) -> Iterator[None]:
    _now_running.append(applied)
    try:
        yield
    finally:
        _now_running.remove(applied)


def _flow(plan_text: str, began: str) -> str:
    """The flow itself. Everything that decides its course is its input or a step's recorded outcome."""
    made = msgspec.json.decode(plan_text, type=Plan)
    walk = _Walk(_now_running[0], made, parse_instant(began))
    for number, step in enumerate(made.steps, 1):
        walk.take(number, step)
    return msgspec.json.encode(walk.applied()).decode()


class _Walk:
    """One pass over a plan's steps."""

    def __init__(self, running: _Apply, made: Plan, began: datetime) -> None:
        self._running, self._plan, self._began = running, made, began
        self._done: dict[str, StepDone] = {}
        self._held: dict[str, Held] = {}
        self._policies: WaitingPolicies | None = None
        self._skipped: list[str] = []

    def take(self, number: int, step: Step) -> None:
        said = partial(Event, key=step.key, title=step.title, why=step.why, number=number, of=len(self._plan.steps))
        if hindrance := self._hindrance(step):
            self._skipped.append(step.title)
            self._running.on_event(said(kind="skipped", text=hindrance))
            return
        worked: list[bool] = []

        def work() -> str:
            worked.append(True)
            self._running.on_event(said(kind="started"))
            return msgspec.json.encode(self._work(number, step, said)).decode()

        recorded = dbos.DBOS.run_step({"name": step.key}, work)
        done = msgspec.json.decode(recorded, type=StepDone)
        self._done[step.key] = done
        kind: Literal["done", "before"] = "done" if worked else "before"
        self._running.on_event(said(kind=kind, seconds=done.seconds, outcome=done.outcome))
        if step.request == "CheckGate":
            self._hold(done)
        elif step.request == "ShowPolicies":
            self._await(done)

    def _hindrance(self, step: Step) -> str:
        if step.model in self._held:
            return f"{step.model} did not pass its gate"
        if step.under_policies and self._policies is not None:
            return f"version {self._policies.version} of the policies waits for approval"
        return ""

    def applied(self) -> Applied:
        waiting = self._policies is not None or any(held.waiting for held in self._held.values())
        refused = any(not held.waiting for held in self._held.values())
        return Applied(
            project=self._plan.project,
            flow=self._running.flow,
            state="refused" if refused else "waiting" if waiting else "done",
            steps=tuple(self._done.values()),
            held=tuple(self._held.values()),
            policies=self._policies,
            skipped=tuple(self._skipped),
        )

    def _work(self, number: int, step: Step, said: "partial[Event]") -> StepDone:
        started = time.monotonic()

        def progress(text: str, count: int, total: int) -> None:
            self._running.on_event(said(kind="progress", text=text, count=count, total=total))

        arguments = steps.resolved(step, {key: done.outcome for key, done in self._done.items()}, self._began)
        outcome, reused = steps.carry_out(
            self._running.platform, step.request, arguments, f"{self._running.flow}/{number}", progress
        )
        return StepDone(
            key=step.key,
            title=step.title,
            seconds=time.monotonic() - started,
            reused=reused,
            outcome=outcome,
        )

    def _hold(self, done: StepDone) -> None:
        result = msgspec.convert(done.outcome, GateResult)
        if result.verdict != "pass":
            self._held[result.model] = Held(
                model=result.model,
                version=result.version,
                waiting=result.measures_pass,
                reasons=result.reasons,
                approver=self._plan.approvers.get(result.model, ""),
            )

    def _await(self, done: StepDone) -> None:
        found = msgspec.convert(done.outcome, PolicyVersion)
        if found.state not in ("approved", "active"):
            self._policies = WaitingPolicies(
                version=found.version,
                ref=found.ref,
                proposed_by=found.proposed_by,
                approvals=found.counted,
                needed=found.needed,
            )


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One apply at a time on a home, so that an open flow is known to be a killed one. Dies with its holder."""
    with (home / "apply.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                "Another apply runs on this home.", next_step="Wait until it has ended, then look again."
            ) from error
        yield


@contextmanager
def _full_disk_said() -> Iterator[None]:
    """When a step's error cannot be kept either, the flow stays open and goes on once there is space."""
    try:
        yield
    except sa.exc.OperationalError as error:
        full = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
        if not full and getattr(error.orig, "sqlstate", "") not in _PG_FULL:
            raise
        raise StorageFull(
            "The disk of the database is full: the apply stopped where it was.",
            next_step="Free space and run `macadam apply` again: it goes on at that step.",
        ) from error


def _store(settings: Settings) -> "dbos.DBOSConfig":
    """Where DBOS keeps flows. In Postgres in a schema of its own, without its triggers: only what it is asked is read."""
    if settings.storage.database:
        return {
            "system_database_url": settings.storage.database,
            "dbos_system_schema": "macadam_flows",
            "use_listen_notify": False,
            "sys_db_pool_size": 4,
        }
    return {"system_database_url": f"sqlite:///{settings.home / 'flows.sqlite'}"}


@contextmanager
def _engine(settings: Settings) -> Iterator[_Engine]:
    """DBOS with nothing said on the console and no server of its own."""
    logger = logging.getLogger("dbos")
    logger.addHandler(logging.NullHandler())  # it adds a console handler only where it finds none
    logger.propagate = False
    engine = dbos.DBOS(
        config={
            "name": "macadam",
            **_store(settings),
            "application_version": _FLOW_VERSION,
            # A new name each time: DBOS then takes up no flow by itself, `_unfinished` decides which.
            "executor_id": uuid7(),
            "log_level": "CRITICAL",
            "enable_otlp": False,
        }
    )
    try:
        flow = dbos.DBOS.workflow(name=_FLOW)(_flow)
        engine.launch()
        yield _Engine(dbos=engine, flow=flow)
    finally:
        dbos.DBOS.destroy(destroy_registry=True)
