"""How much the control plane lets one caller ask: by principal, and by address for those it does not know.

The buckets themselves are in `macadam.access.rates`; calls in process are not limited, since who makes them has the home.
"""

import threading
from collections.abc import Mapping

from macadam.access.rates import Buckets, Limit, address_key
from macadam.operations import Actor
from macadam.settings import Access


class Limits:
    """Safe to share between threads."""

    def __init__(self, settings: Access) -> None:
        self._known = Buckets(Limit(per_second=settings.rate, burst=settings.rate_burst))
        self._strangers = Buckets(Limit(per_second=settings.anonymous_rate, burst=settings.anonymous_burst))
        self._lock = threading.Lock()

    def charge(self, actor: Actor, overrides: Mapping[str, Limit]) -> None:
        """Counts one call of a known principal. Raises RateLimited."""
        with self._lock:
            self._known.override(overrides)
            _take(self._known, actor.id)

    def charge_stranger(self, address: str) -> None:
        """Counts one call without a valid token. '': no address is known, so there is nobody to limit.

        Raises RateLimited.
        """
        if address:
            with self._lock:
                _take(self._strangers, address_key(address))

    def headers(self, principal: str) -> list[tuple[bytes, bytes]]:
        """What is left, for an answer's head."""
        with self._lock:
            return self._known.of(principal).headers(self._known.clock())


def _take(buckets: Buckets, key: str) -> None:
    bucket, now = buckets.of(key), buckets.clock()
    if not bucket.take(now):
        raise bucket.refusal(now)
