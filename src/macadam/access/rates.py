"""How much one caller may ask: a bucket of tokens per principal or address, in memory, for one process.

Each key keeps one number, the time at which its bucket will be full again (the generic cell rate algorithm, ITU-T
I.371): a refusal costs no more than an answer, and idle keys can be forgotten without a trace.
"""

import ipaddress
import math
import time
from collections.abc import Callable, Mapping

import msgspec

from macadam.errors import InvalidInput, RateLimited

MOST_KEYS = 20_000
"""Callers remembered: some 4 MB. Beyond, those with full buckets go first, then the oldest."""
_IPV6_BITS = 64
"""What one customer has of IPv6 (RFC 6177): every address in it is the same caller."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """per_second: requests in the long run; 0 = no limit. burst: how many at once."""

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not (0 <= self.per_second < math.inf and self.burst >= 1):
            raise InvalidInput(
                f"{self.per_second} requests a second, {self.burst} at once, is no limit.",
                next_step="Give a rate of 0 (none) or more, and a burst of 1 or more (see the settings MACADAM_…_RATE).",
            )

    @property
    def policy(self) -> str:
        """The field RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers, section 3): quota and its window."""
        window = max(1, math.ceil(self.burst / self.per_second))
        return f'"default";q={self.burst};w={window}'


class Bucket:
    """What one caller has left. Not for two threads at once."""

    __slots__ = ("burst_seconds", "full_at", "interval", "limit")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.interval = 1.0 / limit.per_second if limit.per_second else 0.0
        # The twentieth keeps the last of a burst from failing on the rounding of all before it.
        self.burst_seconds = self.interval * (limit.burst + 0.05)
        self.full_at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more request may be answered now. now: monotonic seconds."""
        full_at = (self.full_at if self.full_at > now else now) + self.interval  # noqa: FURB136 - max() takes twice as long
        if full_at - now > self.burst_seconds:
            return False
        self.full_at = full_at
        return True

    def remaining(self, now: float) -> int:
        """Requests that may follow at once."""
        if not self.interval:
            return self.limit.burst
        return max(0, int((self.burst_seconds - max(0.0, self.full_at - now)) / self.interval))

    def wait(self, now: float) -> int:
        """Whole seconds until one more may follow, at least 1: what Retry-After says."""
        return max(1, math.ceil(self.full_at + self.interval - self.burst_seconds - now))

    def refusal(self, now: float) -> RateLimited:
        limit = self.limit
        return RateLimited(
            f"More than {limit.per_second:g} requests a second, or {limit.burst} at once.",
            next_step="Wait as long as Retry-After says; an administrator can raise it (`macadam principals limit`).",
            details={"retry_after": self.wait(now), "per_second": limit.per_second, "burst": limit.burst},
        )

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """RateLimit-Policy and RateLimit; none where there is no limit."""
        if not self.interval:
            return []
        state = f'"default";r={self.remaining(now)};t={self.wait(now)}'
        return [(b"ratelimit-policy", self.limit.policy.encode()), (b"ratelimit", state.encode())]


class Buckets:
    """The buckets of one process. overrides: principal → its own limit; replaced when access changes."""

    def __init__(
        self, limit: Limit, *, clock: Callable[[], float] = time.monotonic, most_keys: int = MOST_KEYS
    ) -> None:
        self._limit = limit
        self._overrides: Mapping[str, Limit] = {}
        self._buckets: dict[str, Bucket] = {}
        self._most = most_keys
        self.clock = clock

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: str) -> Bucket:
        """The bucket of a caller; a full one if it is not known."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._forget(self.clock())
            bucket = self._buckets[key] = Bucket(self._overrides.get(key, self._limit))
        return bucket

    def override(self, limits: Mapping[str, Limit]) -> None:
        """Takes over the limits of principals. Whose limit changed begins with a full bucket."""
        if limits == self._overrides:
            return
        for key in {*limits, *self._overrides}:
            if limits.get(key) != self._overrides.get(key):
                self._buckets.pop(key, None)
        self._overrides = dict(limits)

    def _forget(self, now: float) -> None:
        for key in [key for key, bucket in self._buckets.items() if bucket.full_at <= now]:
            del self._buckets[key]
        while len(self._buckets) >= self._most:
            del self._buckets[next(iter(self._buckets))]


def refusal_headers(error: RateLimited) -> list[tuple[bytes, bytes]]:
    """What a 429 says beside its body: when to come back, and by which policy."""
    facts = error.details
    wait, rate, burst = (facts.get(name) for name in ("retry_after", "per_second", "burst"))
    if not (isinstance(wait, int) and isinstance(rate, float) and isinstance(burst, int)):
        return [(b"retry-after", b"1")]
    state = f'"default";r=0;t={wait}'
    policy = Limit(per_second=rate, burst=burst).policy
    return [
        (b"retry-after", str(wait).encode()),
        (b"ratelimit-policy", policy.encode()),
        (b"ratelimit", state.encode()),
    ]


def address_key(address: str) -> str:
    """One caller per IPv4 address and per /64 of IPv6. What is no address (a Unix socket) is one caller."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "?"
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known, _IPV6_BITS), strict=False))
    return str(known)
