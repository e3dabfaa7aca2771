"""The values that every room speaks in: names, references, digests, ids, instants, money.

Frozen and checked at birth, with no I/O. What a value means to one capability only lives in that room.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

import msgspec

from macadam.errors import InvalidInput

# `\Z`, not `$`: that one also matches before a newline at the end, and msgspec searches.
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,62}\Z"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}\Z"
REF_PATTERN = r"^[a-z][a-z_]{0,30}:[A-Za-z0-9][A-Za-z0-9._:/-]{0,200}(@[A-Za-z0-9._:-]{1,100})?\Z"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description="lower case, digits, '-' and '_'")]
Somewhere = Annotated[
    str, msgspec.Meta(pattern=r"^(\*|[a-z][a-z0-9_-]{0,62})\Z", description="a project's name, or * for all")
]
Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN, description="SHA-256 as sha256:<hex>")]
RefText = Annotated[str, msgspec.Meta(pattern=REF_PATTERN, description="kind:name[@version]")]

_REF = re.compile(REF_PATTERN)
_DURATION = re.compile(r"^(\d+)(ms|s|m|h|d|w)\Z")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Ref(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Names anything inside a project: `table:flights@4213`, `model:delay-risk@7`, `run:0193…`."""

    kind: str
    name: str
    version: str = ""

    def __post_init__(self) -> None:
        if not _REF.match(str(self)):
            raise InvalidInput(
                f"{str(self)!r} is not a reference.", next_step="Write it as kind:name or kind:name@version."
            )

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}@{self.version}" if self.version else f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Reads `kind:name[@version]`. Raises InvalidInput."""
        kind, _, rest = text.partition(":")
        name, _, version = rest.partition("@")
        return cls(kind=kind, name=name, version=version)


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """An amount in millionths of a currency unit: sums stay exact. currency: ISO 4217."""

    micros: int
    currency: str = "USD"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z]{3}", self.currency):
            raise InvalidInput(f"{self.currency!r} is not a currency.", next_step="Give an ISO 4217 code such as USD.")

    def __str__(self) -> str:
        """For people: to the cent from 1 up, to the hundredth of one below, to the micro below a cent. Exact amounts are in JSON."""
        places = 2 if abs(self.micros) >= 995_000 else 4 if abs(self.micros) >= 10_000 else 6  # noqa: PLR2004 - see above
        whole, _, part = f"{Decimal(self.micros).scaleb(-6):,.{places}f}".partition(".")
        return f"{whole}.{part.rstrip('0').ljust(2, '0')} {self.currency}"


def digest_of(data: bytes) -> str:
    """Returns the SHA-256 of `data` as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_duration(text: str) -> timedelta:
    """Reads '20ms', '30s', '5m', '1h', '28d' or '2w'. Raises InvalidInput."""
    match = _DURATION.match(text)
    if not match:
        raise InvalidInput(
            f"{text!r} is not a duration.", next_step="Write a whole number and a unit: ms, s, m, h, d or w."
        )
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def utc_now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC)


def require_aware(at: datetime, what: str) -> datetime:
    """Returns `at` in UTC. Raises InvalidInput if it has no time zone, or is in UTC before year 1 or after 9999."""
    if at.tzinfo is None:
        raise InvalidInput(f"{what} {at.isoformat()} has no time zone.", next_step="Add one, such as Z or +01:00.")
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInput(
            f"{what} {at.isoformat()} is in UTC in no year that can be written.", next_step="Take one from 1 to 9999."
        ) from error


def instant(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds and Z: the one spelling used in leaves and records."""
    # On the path of each prediction: isoformat takes half the time of strftime.
    return require_aware(at, "The time").replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_instant(text: str) -> datetime:
    """Reads RFC 3339 with a zone. Raises InvalidInput."""
    try:
        return require_aware(datetime.fromisoformat(text), "The time")
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is not a time.", next_step="Write RFC 3339, such as 2026-11-21T07:00:00Z."
        ) from error


def _uuid7_numbers() -> Iterator[int]:
    """UUIDv7 (RFC 9562, method 3: sub-millisecond ticks in rand_a), strictly increasing within a process."""
    last = 0
    while True:
        random = os.urandom(8 * _RANDOM_BLOCK)  # one system call for many ids
        for at in range(0, len(random), 8):
            ticks = time.time_ns() * 4096 // 1_000_000
            last = ticks if ticks > last else last + 1
            high = (last >> 12) << 16 | 0x7000 | (last & 0xFFF)
            yield high << 64 | 0x8 << 60 | int.from_bytes(random[at : at + 8], "big") >> 4


_RANDOM_BLOCK = 128
_uuid7 = _uuid7_numbers()
_uuid7_lock = threading.Lock()


def _restart_uuid7() -> None:
    """A forked child must not go on with its parent's random bytes."""
    global _uuid7, _uuid7_lock
    _uuid7, _uuid7_lock = _uuid7_numbers(), threading.Lock()


os.register_at_fork(after_in_child=_restart_uuid7)


def uuid7() -> str:
    """A new UUIDv7: sorts by time, and strictly increases within this process."""
    with _uuid7_lock:
        text = f"{next(_uuid7):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
