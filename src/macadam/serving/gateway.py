"""The gateway process: `python -m macadam.serving.gateway --home DIR [--port N]`.

It needs the home's objects, online values and journal, and no SQL: it serves on while the control plane is down, and
takes over what was published meanwhile when that is back.
"""

import argparse
import asyncio
import errno
import gc
import logging
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from macadam.access import revocation
from macadam.access.engine import Engine
from macadam.access.revocation import Watch
from macadam.errors import Busy, MacadamError, NotFound
from macadam.journal.sealing import recover_dead
from macadam.personal.cloak import Cloaks
from macadam.ports import Objects, OnlineStore, open_secrets
from macadam.ports import load as adapter
from macadam.serving import answers, state
from macadam.serving.batch import Batcher
from macadam.serving.denials import FOLDER
from macadam.serving.desk import Clerk
from macadam.serving.guard import Guard
from macadam.serving.journals import Journals
from macadam.serving.metrics import Metrics
from macadam.serving.protocol import Connection, Desk
from macadam.serving.runtime import Runtime, Serving
from macadam.settings import Settings
from macadam.values import utc_now

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
"""Between two looks at the published state: with the publisher's part, a revoked token ends within a second."""
_REVOCATION_SECONDS = 0.1
"""Between two looks at the revocation list: it depends on nothing but the disk, so it is the last word on a token."""
_DRAIN_SECONDS = 8.0
"""Less than the ten that a supervisor waits before it kills."""
_BACKLOG = 2048


class Gateway:
    """One worker: its memory, its journals, its server."""

    def __init__(self, settings: Settings) -> None:
        home = settings.home
        self.settings = settings
        self.objects = cast("Objects", adapter("local_objects")(home / "objects"))
        self.online = cast("OnlineStore", adapter("lmdb")(home / "online"))
        self.cloaks = Cloaks(home, open_secrets(settings))
        self.journals = Journals(settings)
        self.runtime = Runtime(self.objects)
        self.metrics = Metrics()
        self.guard = Guard(settings.access, home / FOLDER)
        self._seen = b""
        self._began = time.monotonic()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises Busy if the port is taken."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        self.desk = Desk(submit=lambda _: None, max_body=self.settings.server.max_body)
        self.clerk = Clerk(
            self.runtime,
            Batcher(self.online, self.journals.of, self.cloaks.of),
            self.metrics,
            loop,
            journals=self.journals,
            guard=self.guard,
            gauges=self._gauges,
            is_draining=lambda: self.desk.draining,
        )
        self.desk.submit = self.clerk.submit
        server = await self._listen(loop)
        work = (self._follow(), self._sweep(), self._tend(), self._heed(), self._recover())
        tasks = [asyncio.create_task(one) for one in work]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, *tasks[:4]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            server.close()
            await self._drain()
            self.guard.denials.close()
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self.journals.close)
            self.cloaks.close()
            self.online.close()
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Server:
        place = self.settings.server
        try:
            server = await loop.create_server(
                lambda: Connection(self.desk, loop),
                place.host,
                place.gateway_port,
                backlog=_BACKLOG,
                reuse_address=True,
            )
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is taken by another process" if taken else f"cannot be used: {error.strerror or error}"
            raise Busy(
                f"Port {place.gateway_port} at {place.host} {why}.",
                next_step="Stop what listens there, or choose another with --port or MACADAM_GATEWAY_PORT.",
                details={"host": place.host, "port": place.gateway_port},
            ) from error
        port = server.sockets[0].getsockname()[1]
        host = f"[{place.host}]" if ":" in place.host else place.host
        print(f"macadam gateway ready at http://{host}:{port}", flush=True)  # noqa: T201 - for whoever started it
        return server

    # --- what happens beside answering

    async def _follow(self) -> None:
        """Takes over each published state; loads models apart from it, so that access never waits for them."""
        loading: asyncio.Task[None] | None = None
        while self.settings.home.exists():
            try:
                await self._look()
            except (MacadamError, msgspec.MsgspecError, OSError) as error:
                _log.error("the published state cannot be used, the last one goes on: %s", error)
            if self.runtime.due and (loading is None or loading.done()):
                loading = asyncio.create_task(self._load())
            await asyncio.sleep(_POLL_SECONDS)
        _log.error("the home %s is gone, and so is what could be answered: the gateway ends", self.settings.home)

    async def _look(self) -> None:
        try:
            data = await asyncio.to_thread(self.objects.get_name, state.NAME)
        except NotFound:
            return
        if data == self._seen:
            return
        new, engine = await asyncio.to_thread(_read_state, data)
        self.runtime.apply(new, engine)
        self.journals.declare(new.journals)
        self.guard.known.override(new.access.rates)
        self.clerk.forget_routes()
        self._seen = data

    async def _heed(self) -> None:
        """Takes over each revocation list. A list that is not to be trusted is said, and changes nothing."""
        watch = self.runtime.revocations
        while True:
            if self.runtime.revocation_key:
                try:
                    await self._read_revocations(watch)
                except (MacadamError, OSError) as error:
                    _log.error("the revocation list is refused, the last one goes on: %s", error)
            self.clerk.closed = self._stale()
            await asyncio.sleep(_REVOCATION_SECONDS)

    async def _read_revocations(self, watch: Watch) -> None:
        """Off the loop: reading waits for the disk, and checking a long list takes milliseconds."""
        try:
            data = await asyncio.to_thread(self.objects.get_name, revocation.NAME)
        except NotFound:
            return
        key, floor = self.runtime.revocation_key, self.runtime.revocation_floor
        if await asyncio.to_thread(watch.offer, data, key, floor):
            self.clerk.forget_routes()
            _log.info(
                "%d tokens are revoked by list %d", len(watch.revoked), watch.newest.number if watch.newest else 0
            )

    def _revocation_age(self) -> float:
        """Seconds since the newest list was written; before the first, since this process began."""
        age = self.runtime.revocations.age(utc_now())
        return age if math.isfinite(age) else time.monotonic() - self._began

    def _stale(self) -> bytes:
        """What to answer with once there was no list for longer than the setting allows; b'' while there is."""
        limit = self.settings.access.revocation_age
        return _NO_NEWS if limit and self._revocation_age() > limit else b""

    async def _load(self) -> None:
        for slot in self.runtime.due:
            await asyncio.to_thread(self.runtime.load, slot, self._open_journal)
        self.runtime.forget_unused()
        gc.collect()
        gc.freeze()  # models and states live long: later collections skip them

    def _open_journal(self, serving: Serving) -> None:
        """Before the first answer, so that it does not wait for the disk. What cannot be opened is tried again."""
        self.journals.open(serving.deployment.project)

    async def _sweep(self) -> None:
        """Ends slow connections, and this process when a journal is beyond repair: its supervisor starts another."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            self.desk.sweep(loop.time())
            self.guard.denials.tend()
            self.clerk.outbox.sweep()
            self.journals.require_working()

    async def _tend(self) -> None:
        """Apart from the sweep: a disk that hangs must not keep it from refusing what waits for the disk."""
        while True:
            await asyncio.to_thread(self.journals.tend)
            await asyncio.sleep(1.0)

    async def _recover(self) -> None:
        """Finishes the segments of gateways that were killed."""
        for folder in sorted((self.settings.home / "journal").glob("*/")):
            for damage in await asyncio.to_thread(recover_dead, folder):
                _log.error("a journal segment cannot be recovered: %s", damage)

    async def _drain(self) -> None:
        """Answers what has come, and closes connections as they end."""
        self.desk.drain()
        end = time.monotonic() + _DRAIN_SECONDS
        while self.desk.connections and time.monotonic() < end:
            await asyncio.sleep(0.02)
            self.desk.drain()

    def _gauges(self) -> dict[str, float]:
        return {
            "connections": len(self.desk.connections),
            "waiting_requests": self.clerk.waiting,
            "journal_unsynced_bytes": self.journals.unsynced,
            "endpoints": len(self.runtime.slots),
            "endpoints_not_loaded": sum(slot.serving is None for slot in self.runtime.slots.values()),
            "revoked_tokens": len(self.runtime.revocations.revoked),
            "revocation_list_age_seconds": round(self._revocation_age(), 3),
            "revocation_lists_refused": self.runtime.revocations.refused,
            "endpoints_refused": sum(slot.problem is not None for slot in self.runtime.slots.values()),
            "uptime_seconds": round(time.monotonic() - self._began, 3),
        }


_NO_NEWS = answers.problem(
    503,
    "unavailable",
    "The gateway has had no revocation list for too long, so it cannot tell which tokens still hold.",
    next_step="Start the control plane (`macadam up`), which writes one.",
)


def _read_state(data: bytes) -> tuple[state.ServingState, Engine]:
    new = state.decode(data)
    return new, Engine(new.access)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m macadam.serving.gateway", description="Answer predictions.")
    parser.add_argument("--home", type=Path, help="default: MACADAM_HOME, else .macadam here")
    parser.add_argument("--host", help="address to listen at; default: MACADAM_HOST, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: MACADAM_GATEWAY_PORT, else 8481; 0: any free one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        settings = Settings.load(home=options.home)
        changes: dict[str, Any] = {"host": options.host, "gateway_port": options.port}
        server = replace(settings.server, **{k: v for k, v in changes.items() if v is not None})
        uvloop.run(Gateway(replace(settings, server=server)).run())
    except MacadamError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
