"""The GPUs of this machine, as executors take them: those that are declared, else those that the driver finds."""

import re
import socket
from collections.abc import Callable, Sequence
from functools import cache

from macadam.compute.catalogue import gpus as catalogue
from macadam.errors import SettingInvalid
from macadam.ports import Device
from macadam.settings import Jobs

_DECLARED = re.compile(r"^(\d{1,4})(?:x([A-Za-z0-9 ._-]{1,60}))?\Z")


def devices(settings: Jobs, found: Callable[[], Sequence[Device]] = tuple) -> Callable[[], Sequence[Device]]:
    """found: asks the driver; asked once, at the first need. Raises SettingInvalid when called, if the setting is no number."""

    @cache
    def listed() -> Sequence[Device]:
        return declared(settings.gpus) if settings.gpus else tuple(found())

    return listed


def declared(text: str) -> tuple[Device, ...]:
    """'4' or '4xh100-sxm-80gb' as virtual devices. Raises SettingInvalid."""
    match = _DECLARED.match(text.strip())
    if not match:
        raise SettingInvalid(
            f"MACADAM_GPUS is {text!r}.", next_step="Write how many, and of what: 4 or 4xh100-sxm-80gb; or unset it."
        )
    known = catalogue.find(match[2]) if match[2] else None
    name = known.name if known else ""
    memory = known.memory if known else 0
    host = socket.gethostname()
    return tuple(
        Device(id=f"gpu:virtual-{host}-{n}", index=n, model=name, memory=memory, virtual=True)
        for n in range(int(match[1]))
    )
