"""`macadam gateway`: a gateway on a machine of its own, linked to a control plane over mutual TLS, until it is stopped.

The first run joins, with what `macadam workloads enroll --json` printed on the control plane's machine; later runs find
their certificate in the home. The mirror runs in a thread here, the gateway in a process of its own.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any, cast

import msgspec

from macadam.access.spiffe import SpiffeId
from macadam.access.tls import Identity
from macadam.errors import InvalidInput, NotFound
from macadam.faces import logs
from macadam.faces.gateway_process import GatewayProcess, end_leftover
from macadam.faces.session import Session, Verb
from macadam.ports import Objects
from macadam.ports import load as adapter
from macadam.serving import link_mirror
from macadam.serving.link_mirror import Invitation, Joined, Keeper, Mirror
from macadam.settings import Settings

_PARTS = ("objects", "online", "journal", "serving", "logs", "link")
_SEGMENT_BYTES = 8 * 1024 * 1024
"""Of the segments written here: each is delivered in one request."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--link", metavar="URL", help="https://HOST:PORT of the control plane's link; to join")
    parser.add_argument("--join", metavar="FILE", help="what `macadam workloads enroll --json` printed; '-': stdin")
    parser.add_argument("--server-id", metavar="ID", help="with MACADAM_SVID_DIR: the SPIFFE id of the control plane")
    parser.add_argument("--name", help="with MACADAM_SVID_DIR: the workload's name there")
    parser.add_argument("--host", help="address to answer at; default: MACADAM_HOST, else 127.0.0.1")
    parser.add_argument("--gateway-port", type=int, help="default: MACADAM_GATEWAY_PORT, else 8481")


def _run(options: argparse.Namespace, session: Session) -> int:
    flags = {k: getattr(options, k) for k in ("host", "gateway_port") if hasattr(options, k)}
    settings = Settings.load(home=session.home)
    for part in _PARTS:
        (settings.home / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    joined = _joined(settings, options, session)
    server = dataclasses.replace(settings.server, gateway_name=joined.workload, **flags)
    smaller = min(settings.journal.segment_bytes, _SEGMENT_BYTES)
    journal = dataclasses.replace(settings.journal, segment_bytes=smaller)
    settings = dataclasses.replace(settings, server=server, journal=journal)
    end_leftover(settings.home)
    asyncio.run(_serve(settings, joined, session))
    session.say("Stopped.")
    return 0


def _joined(settings: Settings, options: argparse.Namespace, session: Session) -> Joined:
    """Where this home belongs, after joining if it is asked to. Raises InvalidInput."""
    url, file = getattr(options, "link", ""), getattr(options, "join", "")
    if settings.link.svid_dir:
        return _external(settings, options)
    if url and file:
        joined = link_mirror.join(settings.home, url, _invitation(file))
        session.say(f"Joined {joined.url} as {joined.workload}.")
        return joined
    known = link_mirror.joined_as(settings.home)
    if known is None:
        raise InvalidInput(
            f"The home {settings.home} has not joined a control plane.",
            next_step="There: macadam workloads enroll NAME --projects P --json > join.json. "
            "Here: macadam gateway --link https://HOST:PORT --join join.json.",
        )
    return known


def _external(settings: Settings, options: argparse.Namespace) -> Joined:
    """Certificates come from a SPIFFE agent: there is nothing to join, only to know."""
    given = {name: getattr(options, name, "") for name in ("link", "server_id", "name")}
    if missing := [f"--{name.replace('_', '-')}" for name, value in given.items() if not value]:
        raise InvalidInput(
            f"With MACADAM_SVID_DIR, {' and '.join(missing)} must be given.",
            next_step="Name the link, the control plane's SPIFFE id, and the workload as it is enrolled there.",
        )
    SpiffeId.parse(given["server_id"])
    joined = Joined(url=given["link"], server=given["server_id"], workload=given["name"], external=True)
    link_mirror.remember(settings.home, joined)
    return joined


def _invitation(file: str) -> Invitation:
    try:
        data = os.read(0, 1 << 20) if file == "-" else Path(file).read_bytes()
        return msgspec.json.decode(data, type=Invitation)
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}.", next_step="Give the file with --join.") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(
            f"{file} is no invitation: {error}.", next_step="Write it with: macadam workloads enroll NAME --json."
        ) from error


async def _serve(settings: Settings, joined: Joined, session: Session) -> None:
    """Runs until a signal asks it to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    handler = logs.write_to(settings.home / "logs" / "link.jsonl")
    directory = Path(settings.link.svid_dir) if joined.external else settings.home / "link"
    objects = cast("Objects", cast("Any", adapter("local_objects"))(settings.home / "objects"))
    keeper = Keeper(Mirror(settings.home, joined, Identity(directory), objects))
    ending = threading.Event()
    keeping = asyncio.create_task(asyncio.to_thread(keeper.run, ending.wait))
    gateway = GatewayProcess(settings)
    watching = asyncio.create_task(gateway.watch())
    stopping = asyncio.create_task(stop.wait())
    session.say(f"{joined.workload} answers on port {settings.server.gateway_port}, linked to {joined.url}.")
    try:
        await asyncio.wait({stopping, keeping, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        watching.cancel()
        await gateway.stop()
        ending.set()
        await asyncio.wait({keeping}, timeout=30.0)
        await asyncio.to_thread(keeper.finish)
        logs.stop(handler)
    for task in (keeping, watching):
        if task.done() and not task.cancelled():
            task.result()


VERB = Verb(configure=_configure, run=_run)
