"""What a running server does by itself every so often. This table is the one place for such work.

A duty that fails is logged and tried again at its next turn, later each time; it never takes the server down.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from macadam.access import revoking
from macadam.access.types import DenialCount, RecordDenials
from macadam.app.platform import LOCAL_TOKEN, Platform
from macadam.errors import Conflict, InvalidInput, MacadamError
from macadam.faces import logs, telemetry_worker
from macadam.faces.gateway_meter import GatewayMeter
from macadam.journal import sealing
from macadam.journal.layout import CLOSED
from macadam.journal.types import SealClosed
from macadam.ledger import key_service
from macadam.ledger.types import RetireKey
from macadam.serving import denials
from macadam.values import instant, utc_now

_log = logging.getLogger(logs.LOGGER)
_LONGEST_WAIT = 300.0  # seconds between attempts of a duty that keeps failing


@dataclass(frozen=True, kw_only=True)
class Duty:
    """every: seconds from one turn's end to the next. act: must be safe to repeat, and quick to give up."""

    name: str
    every: float
    act: Callable[[Platform], None]


def seal_journal(platform: Platform) -> None:
    """Seals what gateways have closed, so that receipts become final and proofs possible.

    As the home's own administrator: a MACADAM_TOKEN in the server's environment is for clients.
    """
    home = platform.settings.home
    token = platform.ports.secrets.get(LOCAL_TOKEN).decode()
    for project in sealing.waiting(home):
        folder = sealing.folder_of(home, project)
        sealing.recover_dead(folder)
        if any(folder.glob(f"*{CLOSED}")):  # a call with nothing to seal would still leave a leaf
            platform.call(SealClosed(project=project), token=token)


def renew_revocations(platform: Platform) -> None:
    """Records what was revoked without SQL, and writes the list anew before gateways take it for old."""
    now = utc_now()
    recorded = revoking.reconcile(platform.ports, now)
    if recorded:
        platform.committed()
        _log.warning("tokens were revoked without the database", extra={"facts": {"tokens": recorded}})
    revoking.publish(platform.ports, now)


def retire_ledger_keys(platform: Platform) -> None:
    """Ends the overlap of a ledger key whose time is over, so that a forgotten one does not sign for ever."""
    with platform.ports.sql.read() as sql:
        over = key_service.overdue(sql, instant(utc_now()))
    for key in over:
        platform.call(RetireKey(key=key), token=platform.ports.secrets.get(LOCAL_TOKEN).decode())


def record_denials(platform: Platform) -> None:
    """Turns what gateways refused into leaves. A report goes once its leaf is durable; twice recorded is once counted."""
    token = platform.ports.secrets.get(LOCAL_TOKEN).decode()
    for path in denials.finished(platform.settings.home / denials.FOLDER, time.time()):
        counts, others = denials.read(path)
        if counts or others:
            found = tuple(
                DenialCount(count=count, **msgspec.structs.asdict(denial)) for denial, count in sorted(counts.items())
            )
            try:
                platform.call(RecordDenials(report=path.stem, denials=found, others=others), token=token)
            except (
                Conflict,
                InvalidInput,
            ) as error:  # somebody has written into it: kept for whoever looks, out of the way
                _log.error(
                    "a report of denials is refused", extra={"facts": {"report": path.name, "detail": str(error)}}
                )
                path.rename(path.with_suffix(".refused"))
                continue
        path.unlink(missing_ok=True)


DUTIES: tuple[Duty, ...] = (
    # Looking is a directory listing; a segment closes at most every MACADAM_JOURNAL_SEGMENT_AGE.
    Duty(name="seal journal", every=5.0, act=seal_journal),
    # A gateway ends its report with the minute.
    Duty(name="record denials", every=5.0, act=record_denials),
    # Reading one small file; a revocation itself is published by whoever revokes.
    Duty(name="renew revocations", every=5.0, act=renew_revocations),
    # A directory listing; an hour is sealed once it is over.
    Duty(name="seal telemetry", every=60.0, act=telemetry_worker.seal),
    # A pod that is gone before it was seen is nobody's; elsewhere than on Kubernetes it does nothing.
    Duty(name="know pods", every=15.0, act=telemetry_worker.know_pods),
    # Retention is counted in hours and days.
    Duty(name="expire telemetry", every=600.0, act=telemetry_worker.expire),
    # A leaf for each endpoint that answered; what a killed server did not report is let go.
    Duty(name="meter gateway", every=600.0, act=GatewayMeter()),
    # An overlap is counted in days.
    Duty(name="retire ledger keys", every=60.0, act=retire_ledger_keys),
)


class Clerk:
    """Does the duties in one thread, in turn. `close()` waits for the one under way."""

    def __init__(self, platform: Platform, duties: Sequence[Duty] = DUTIES) -> None:
        self._platform = platform
        self._duties = tuple(duties)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="macadam-duties", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        due = {duty.name: time.monotonic() + duty.every for duty in self._duties}
        failures = dict.fromkeys(due, 0)
        while due and not self._stop.wait(max(0.0, min(due.values()) - time.monotonic())):
            for duty in self._duties:
                if due[duty.name] <= time.monotonic() and not self._stop.is_set():
                    failures[duty.name] = 0 if self._do(duty) else failures[duty.name] + 1
                    wait = duty.every * 2 ** min(failures[duty.name], 10)
                    due[duty.name] = time.monotonic() + min(wait, max(duty.every, _LONGEST_WAIT))

    def _do(self, duty: Duty) -> bool:
        try:
            duty.act(self._platform)
        except MacadamError as error:
            _log.warning("duty failed", extra={"facts": {"duty": duty.name, "code": error.code, "detail": str(error)}})
            return False
        except Exception as error:  # noqa: BLE001 - logged with its trace; the other duties go on
            _log.error("duty failed", exc_info=error, extra={"facts": {"duty": duty.name}})
            return False
        return True
