"""The machine that jobs run on here, as executors take it: its GPUs, declared or found by the driver, and where it was bought."""

import logging
import re
import socket
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from macadam.compute.catalogue import gpus as catalogue
from macadam.compute.telemetry import nvml
from macadam.errors import SettingInvalid, Unavailable
from macadam.ports import Device, Node
from macadam.settings import Jobs, Machine
from macadam.values import utc_now

_log = logging.getLogger(__name__)
_VIRTUAL = re.compile(r"^([a-z0-9][a-z0-9-]{0,39})=([^@:]+)(?:@([A-Za-z0-9-]{1,60}))?(?::(spot|on-demand))?\Z")
_DECLARED = re.compile(r"^(\d{1,4})(?:x([A-Za-z0-9 ._-]{1,60}))?\Z")


def devices(settings: Jobs, found: Callable[[], Sequence[Device]] | None = None) -> Callable[[], Sequence[Device]]:
    """found: who is asked if none are declared; the driver, once, at the first need. Raises SettingInvalid when called, if
    the setting is no number.
    """

    @cache
    def listed() -> Sequence[Device]:
        return declared(settings.gpus) if settings.gpus else tuple((found or driven)())

    return listed


def bought(settings: Machine) -> dict[str, Any]:
    """What is said of where this machine was bought and as what, by `ports.Node`'s fields. Raises SettingInvalid."""
    known = {"": None, "0": False, "false": False, "1": True, "true": True}
    if settings.spot.lower() not in known:
        raise SettingInvalid(
            f"MACADAM_MACHINE_SPOT is {settings.spot!r}.", next_step="Write 1 for a spot machine, else 0; or unset it."
        )
    return {
        "provider": settings.provider.lower(),
        "region": settings.region,
        "zone": settings.zone,
        "machine": settings.type,
        "spot": known[settings.spot.lower()],
    }


def driven() -> tuple[Device, ...]:
    """What NVIDIA's driver finds and can read; () without one. A MIG slice is a device of its own."""
    if not nvml.present():
        return ()
    try:
        with nvml.NvmlCollector(
            nvml.library(), node=socket.gethostname(), clock=utc_now, owner_of=_nobody
        ) as collector:
            read = [sample for sample in collector.read() if not sample.error]
    except Unavailable as error:
        _log.warning("the GPUs are not known", extra={"facts": {"detail": str(error)}})
        return ()
    return tuple(
        Device(id=one.device, index=n, model=catalogue.recognise(one.product), memory=one.memory_total or 0)
        for n, one in enumerate(read)
    )


def _nobody(_process: int) -> None:
    """Whose processes are there is telemetry's question."""


def virtual(text: str) -> tuple[Node, ...]:
    """'base=2xh100-sxm-80gb,cheap=2@zone-a:spot' as virtual machines, of which the executor knows the processors. Raises SettingInvalid."""
    found: list[Node] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _VIRTUAL.match(part)
        if match is None or match[1] in [node.name for node in found]:
            raise SettingInvalid(
                f"MACADAM_MACHINES says {part!r}.",
                next_step="Write NAME=N[xMODEL][@ZONE][:spot] for each machine, with names that differ, commas between them.",
            )
        before = sum(len(node.devices) for node in found)
        devices = declared(match[2], node=match[1], first=before)
        spot = None if match[4] is None else match[4] == "spot"
        found.append(Node(name=match[1], cpus=0, memory=0, devices=devices, zone=match[3] or "", spot=spot))
    return tuple(found)


def declared(text: str, node: str = "", first: int = 0) -> tuple[Device, ...]:
    """'4' or '4xh100-sxm-80gb' as virtual devices. node: whose they are, '' = this machine's; first: index of the first. Raises
    SettingInvalid.
    """
    match = _DECLARED.match(text.strip())
    if not match:
        raise SettingInvalid(
            f"MACADAM_GPUS is {text!r}.", next_step="Write how many, and of what: 4 or 4xh100-sxm-80gb; or unset it."
        )
    known = catalogue.find(match[2]) if match[2] else None
    name = known.name if known else ""
    memory = known.memory if known else 0
    host = node or socket.gethostname()
    return tuple(
        Device(id=f"gpu:virtual-{host}-{n}", index=first + n, model=name, memory=memory, virtual=True)
        for n in range(int(match[1]))
    )
