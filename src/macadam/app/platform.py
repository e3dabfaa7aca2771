"""Platform: everything wired together over one home, and the typed way to call it in process."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import msgspec

from macadam.access import revoking
from macadam.access import service as access
from macadam.app import belonging
from macadam.app.dispatcher import Dispatcher, no_progress
from macadam.compute.jobs import clusters
from macadam.compute.waterfall import metering
from macadam.errors import MacadamError, NotFound, SettingInvalid
from macadam.ledger import service as ledger
from macadam.ledger.key_service import announce_first
from macadam.ledger.witnesses import Submitter
from macadam.operations import UNDECLARED, Declared, Operation, Progress, Request, load, of_request
from macadam.ports import Objects, Ports, Secrets, open_secrets
from macadam.ports import load as adapter
from macadam.serving.publishing import Publisher
from macadam.settings import Settings
from macadam.values import utc_now

_log = logging.getLogger(__name__)
R = TypeVar("R")
LOCAL_TOKEN = "local-token"  # noqa: S105 - the name of a secret, not a secret


class Platform:
    """An open home. Use as a context manager, or call `close()`.

    token: the caller's credential; '' takes MACADAM_TOKEN, else the local administrator's of this home. declared: what
    its calls are for, and from where, for policies that ask.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        token: str = "",
        declared: Declared = UNDECLARED,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = settings
        self.ports = _connect(settings)
        self._migrate_and_bootstrap()
        self._submitter = Submitter(self.ports)
        self._sequencer = ledger.Sequencer(self.ports, then=self._submitter.nudge)
        self._publisher = Publisher(self.ports)
        self._work = metering.Meter()
        self.committed()  # what a killed process had committed and not followed up
        self.dispatcher = Dispatcher(self.ports, clock=clock, sequence=self.committed, work=self._work)
        self._token = token or os.environ.get("MACADAM_TOKEN", "") or self._local_token()
        self._declared = declared
        self._closing = threading.Lock()

    @classmethod
    def open(cls, home: Path | str | None = None, *, token: str = "", declared: Declared = UNDECLARED) -> "Platform":
        """Opens (or creates) the home, by default MACADAM_HOME or `.macadam` here. Raises SettingInvalid."""
        return cls(Settings.load(home=Path(home) if home else None), token=token, declared=declared)

    def call(
        self,
        request: Request[R],
        *,
        token: str = "",
        idempotency_key: str = "",
        progress: Progress = no_progress,
    ) -> R:
        """Runs the operation that the request's type belongs to. Raises what `macadam.errors` says."""
        load_if_unknown(type(request))
        answer = self.dispatch(
            of_request(type(request)),
            msgspec.to_builtins(request),
            token=token,
            idempotency_key=idempotency_key,
            progress=progress,
        )
        return cast("R", answer)

    def dispatch(
        self,
        operation: Operation,
        arguments: Mapping[str, object],
        *,
        token: str = "",
        lax: bool = False,
        idempotency_key: str = "",
        declared: Declared | None = None,
        progress: Progress = no_progress,
    ) -> Any:
        """Like `call`, with the request as plain values: what faces use. token: '' is this platform's own caller;
        declared: None for what this platform's own caller says of its calls.
        """
        return self.dispatcher.run(
            operation,
            arguments,
            token=token or self._token,
            lax=lax,
            idempotency_key=idempotency_key,
            declared=self._declared if declared is None else declared,
            progress=progress,
        )

    @property
    def ledger_failure(self) -> str:
        """Why queued leaves are not under a checkpoint yet, '' if nothing is wrong. They are safe in SQL meanwhile."""
        return self._sequencer.failure

    @property
    def ledger_alarm(self) -> str:
        """What witnesses hold against this ledger, '' if nothing: it was rolled back, or forked."""
        return self._submitter.alarm

    def close(self) -> None:
        """Integrates what is queued for the ledger and closes every adapter, also after one that failed.

        Closing twice does nothing. Raises what the sequencer's close does.
        """
        if self._closing.acquire(blocking=False):
            with ExitStack() as last_first:
                last_first.callback(self.ports.sql.close)
                last_first.callback(self.ports.online.close)
                last_first.callback(self._publisher.close)
                last_first.callback(self._submitter.close)
                last_first.callback(self._sequencer.close)
                last_first.callback(self.ports.executor.close)
                last_first.callback(self.ports.runner.close)
                last_first.callback(self.keep_work, least=metering.LEAST)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def committed(self) -> None:
        """After each change: leaves get their checkpoint, gateways their state."""
        self._sequencer.nudge()
        self._publisher.nudge()
        if self._work.due():
            self.keep_work()

    def keep_work(self, *, least: float = 0.0) -> None:
        """Adds what operations took so far to SQL, as happens every few seconds. A figure that cannot be kept makes no
        durable change fail.
        """
        measured = self._work.drain(least=least)
        if not measured:
            return
        try:
            self.ports.sql.write(lambda sql: metering.keep(sql, measured))
        except MacadamError as error:
            self._work.put_back(measured)
            _log.warning("what operations took was not kept: %s", error)

    def _local_token(self) -> str:
        try:
            return self.ports.secrets.get(LOCAL_TOKEN).decode()
        except NotFound:
            return ""

    def _policy_set(self) -> str:
        with self.ports.sql.read() as sql:
            return access.snapshot(sql).policy_set

    def _migrate_and_bootstrap(self) -> None:
        self.ports.sql.migrate()
        belonging.claim(self.ports)
        ledger.bootstrap(self.ports)
        access.bootstrap(self.ports)
        announce_first(self.ports, self._policy_set)
        revoking.reconcile(self.ports, utc_now())  # what was revoked while SQL could not be reached


def open_stores(settings: Settings) -> tuple[Objects, Secrets]:
    """The home's objects and secrets without its database: for what must work when that does not."""
    home = settings.home
    return (
        cast("Objects", adapter("local_objects")(home / "objects")),
        open_secrets(settings),
    )


def load_if_unknown(request: type[Request[Any]]) -> None:
    """A request type can be imported without the room that handles it: load the rooms then."""
    try:
        of_request(request)
    except KeyError:
        load()


def _database(settings: Settings) -> object:
    if settings.storage.database:
        return adapter("postgres")(settings.storage.database, settings.sql)
    return adapter("sqlite")(settings.home / belonging.SQLITE_FILE, settings.sql)


def _connect(settings: Settings) -> Ports:
    """Builds the adapters. Anything may be loaded here, but no adapter imports its heavy package before use."""
    home = settings.home
    try:
        for part in ("", "objects", "keys", "online", "journal", "warehouse", "serving", "work", "jobs"):
            (home / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingInvalid(
            f"The home {home} cannot be made: {error.strerror}.",
            next_step="Set MACADAM_HOME to a directory that you may write.",
        ) from error
    if settings.storage.objects or settings.storage.online:
        raise SettingInvalid(
            "MACADAM_OBJECTS and MACADAM_ONLINE name scale adapters, which this release lacks.",
            next_step="Unset them: the embedded adapters under the home are used.",
        )
    belonging.check(settings)
    objects: Any = adapter("local_objects")(home / "objects")
    return Ports(
        settings=settings,
        sql=cast("Any", _database(settings)),
        objects=objects,
        tables=cast("Any", adapter("iceberg")(home / "warehouse")),
        online=cast("Any", adapter("lmdb")(home / "online")),
        runner=cast("Any", adapter(settings.storage.runner)(home / "work")),
        executor=clusters.open_executor(settings, objects),
        secrets=open_secrets(settings),
    )
