"""`macadam up`: the control plane in this process, the gateway in one of its own, until Ctrl-C or SIGTERM.

Everything that could refuse the start (a home that another `up` holds, a taken port) is looked at first, before
anything is changed. The gateway is watched: when it dies it is started again, later each time. Granian runs embedded
in this process: its own worker process would cost 27 MB more and could not share the platform.
"""

import argparse
import asyncio
import dataclasses
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from granian.constants import Interfaces
from granian.server.embed import Server

from macadam.app.platform import Platform
from macadam.errors import Busy, SettingInvalid, Unavailable
from macadam.faces import logs
from macadam.faces.duties import Clerk
from macadam.faces.gateway_process import GatewayProcess, end_leftover
from macadam.faces.http import ControlPlane
from macadam.faces.jobs_worker import JobsWorker
from macadam.faces.link import LinkServer
from macadam.faces.session import Session, Verb
from macadam.faces.telemetry_worker import TelemetryWorker
from macadam.settings import Settings

_LOCK = "up.lock"
_POLL = 0.02  # seconds between two looks at whether it is healthy
_TRIES = 3  # starts of the gateway before `up` gives up waiting for its first health
_STOP_SECONDS = 10  # calls under way may finish for this long


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What the lock file says about the `up` that holds it."""

    pid: int
    control_plane: str
    gateway: str


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen at; default: MACADAM_HOST, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="of the control plane; default: MACADAM_PORT, else 8480")
    parser.add_argument("--gateway-port", type=int, help="of the gateway; default: MACADAM_GATEWAY_PORT, else 8481")


def _run(options: argparse.Namespace, session: Session) -> int:
    server_flags = {k: getattr(options, k) for k in ("host", "port", "gateway_port") if hasattr(options, k)}
    settings = Settings.load(home=session.home)
    settings = dataclasses.replace(settings, server=dataclasses.replace(settings.server, **server_flags))
    began = time.perf_counter()
    with _claimed(settings), Platform(settings) as platform:
        _refuse_plain_keys(platform)
        asyncio.run(_serve(platform, session, began))
    session.say("Stopped.")
    return 0


def _refuse_plain_keys(platform: Platform) -> None:
    """Whoever sets a passphrase believes that the keys are encrypted."""
    state = platform.ports.secrets.encryption()
    if platform.settings.keys.wanted and state != "sealed":
        raise SettingInvalid(
            "A passphrase or KMS for the home's keys is set, and not all of them are encrypted yet.",
            next_step="macadam keys encrypt",
        )


async def _serve(platform: Platform, session: Session, began: float) -> None:
    """Runs until a signal asks it to stop, or the control plane fails. Raises Unavailable if it never gets healthy."""
    settings = platform.settings
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    handler = logs.write_to(settings.home / "logs" / "control-plane.jsonl")
    app = ControlPlane(platform)
    server = Server(
        app,
        settings.server.host,
        settings.server.port,
        interface=Interfaces.ASGINL,
        log_enabled=False,
        websockets=False,
    )
    gateway = GatewayProcess(settings)
    link = LinkServer(platform, app) if settings.link.port else None
    linking = asyncio.create_task(link.serve() if link else stop.wait())
    serving = asyncio.create_task(server.serve())
    watching = asyncio.create_task(gateway.watch())
    stopping = asyncio.create_task(stop.wait())
    clerk = Clerk(platform)
    jobs = JobsWorker(platform)
    telemetry = TelemetryWorker(platform)
    try:
        if await _healthy(settings, serving, gateway, stop):
            _announce(session, settings, time.perf_counter() - began)
            await asyncio.wait({stopping, serving, watching, linking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        watching.cancel()
        linking.cancel()
        await gateway.stop()
        if not serving.done():
            server.stop()  # type: ignore[no-untyped-call] # granian ships no types for it
            await asyncio.wait({serving}, timeout=_STOP_SECONDS)
        await asyncio.to_thread(jobs.close)
        await asyncio.to_thread(telemetry.close)
        await asyncio.to_thread(clerk.close)
        await asyncio.to_thread(app.close)
        logs.stop(handler)
    if not stop.is_set():
        for task in (serving, watching, linking):
            if task.done() and not task.cancelled():
                task.result()
        raise Unavailable("The control plane stopped by itself.", next_step=f"Look in {settings.home / 'logs'}.")


async def _healthy(
    settings: Settings, serving: "asyncio.Task[None]", gateway: GatewayProcess, stop: asyncio.Event
) -> bool:
    """Waits until both answer. False if it was asked to stop meanwhile.

    Raises Unavailable at the time limit, or as soon as one of them keeps ending.
    """
    limit = time.monotonic() + settings.server.health_timeout
    waiting = {
        "control plane": (settings.server.port, "/health"),
        "gateway": (settings.server.gateway_port, "/health/ready"),  # it has loaded what it is to serve
    }
    while waiting:
        for name, (port, path) in list(waiting.items()):
            if await _answers(settings.server.host, port, path):
                del waiting[name]
        if stop.is_set():
            return False
        if gateway.restarts >= _TRIES:
            raise Unavailable(
                f"The gateway ended {gateway.restarts} times while it started. It said last: {gateway.last_words()}",
                next_step=f"Look in {settings.home / 'logs' / 'gateway.log'}.",
            )
        if serving.done() or time.monotonic() > limit:
            raise Unavailable(
                f"The {' and the '.join(waiting)} did not get healthy within {settings.server.health_timeout:g} s.",
                next_step=f"Look in {settings.home / 'logs'}; a slow machine may need MACADAM_HEALTH_TIMEOUT.",
            )
        await asyncio.sleep(_POLL)
    return True


async def _answers(host: str, port: int, path: str) -> bool:
    """Whether GET answers 200 there."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        status = await asyncio.wait_for(reader.readline(), timeout=2.0)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
    return b" 200" in status


def _announce(session: Session, settings: Settings, seconds: float) -> None:
    running = _running(settings)
    if session.json:
        session.show({"seconds": round(seconds, 3), "home": str(settings.home), **msgspec.to_builtins(running)})
        return
    session.say(f"Healthy in {seconds:.1f} s.")
    session.say(f"  control plane  {running.control_plane}")
    session.say(f"  gateway        {running.gateway}")
    session.say(f"  home           {settings.home}")
    session.say("Ctrl-C stops both.")


def _running(settings: Settings) -> Running:
    s = settings.server
    return Running(pid=os.getpid(), control_plane=_url(s.host, s.port), gateway=_url(s.host, s.gateway_port))


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _claimed(settings: Settings) -> Iterator[None]:
    """Holds the home for this process. Raises Busy if another holds it or a port is taken, with nothing changed."""
    path = settings.home / _LOCK
    _refuse_second(path)
    end_leftover(settings.home)
    for flag, port in (("--port", settings.server.port), ("--gateway-port", settings.server.gateway_port)):
        _refuse_taken(settings.server.host, port, flag)
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise SettingInvalid(
            f"The home {settings.home} cannot be made: {error.strerror}.",
            next_step="Set MACADAM_HOME (--home) to a directory that you may write.",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held(path) from error
        file.truncate(0)
        file.write(msgspec.json.encode(_running(settings)))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # the lock itself goes with the file's descriptor


def _refuse_second(path: Path) -> None:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError as error:
        raise _held(path) from error


def _held(path: Path) -> Busy:
    try:
        other = msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):  # it is just starting and has not written it yet
        return Busy(f"Another `macadam up` holds {path.parent}.", next_step="Stop it first, or choose another --home.")
    return Busy(
        f"`macadam up` already runs on {path.parent}, as process {other.pid} at {other.control_plane}.",
        next_step=f"Use it (MACADAM_URL={other.control_plane}), or stop it first.",
        details=msgspec.to_builtins(other),
    )


def _refuse_taken(host: str, port: int, flag: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise Busy(
                f"Port {port} at {host} cannot be used: {error.strerror}.",
                next_step=f"Stop what listens there, or choose another with {flag}.",
                details={"host": host, "port": port},
            ) from error


VERB = Verb(configure=_configure, run=_run)
