"""One of two who race: carries out a call at a signal, in this process or in one of its own, and says how it ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from macadam.app.platform import Platform
from macadam.errors import MacadamError
from macadam.operations import Request
from macadam.settings import Settings


@dataclass(frozen=True)
class Move:
    """One call. token: whose."""

    request: Request[Any]
    token: str
    key: str = ""


def carry_out(platform: Platform, move: Move) -> tuple[str, Any]:
    """('done', the answer) or ('refused', the kind of error)."""
    try:
        answer = platform.call(move.request, token=move.token, idempotency_key=move.key)
    except MacadamError as error:
        return "refused", type(error).__name__
    return "done", msgspec.to_builtins(answer)


def serve(home: Path, environment: dict[str, str], wire: Any) -> None:
    """Carries out what comes over the wire until there is no more: each move at the second signal."""
    with Platform(Settings.load(environment, home=home)) as platform:
        wire.send("ready")
        while (move := wire.recv()) is not None:
            wire.send("ready")
            wire.recv()
            wire.send(carry_out(platform, move))
